from dataclasses import replace

import numpy as np
import pytest
import torch

from data_loaders.panda_dense.captioner import (
    Captioner,
    CaptionSettings,
    check_captions,
)
from data_loaders.schema import DataError
from tests.data_loaders.panda_dense import tiny_caption
from tests.data_loaders.panda_dense.test_caption_models import KINDS

CPU = torch.device("cpu")
SMALL = {"frame_pixels": (1000, 8000), **tiny_caption.LENIENT}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for kind, save in KINDS.items():
        found[kind] = tmp_path_factory.mktemp(kind)
        save(found[kind])
    return found


@pytest.fixture
def make(folders):
    def load(kind="video_llava", **values):
        settings = CaptionSettings(model=kind, weights=str(folders[kind]), **(SMALL | values))
        return Captioner.load(settings, device=CPU)

    return load


def clips_of(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


TWO = clips_of((17, 48, 72), (9, 64, 50))


def ask(model, clips=TWO, *, keys=("a", "b", "c"), short=""):
    count = len(clips)
    return model.caption(
        clips, fps=[8.0] * count, keys=list(keys[:count]), short_captions=[short] * count
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_writes_a_caption(make, kind) -> None:
    model = make(kind)
    for result in ask(model, short="A dog runs."):
        assert result.flag == ""
        assert result.caption_long == result.answer
        assert len(result.caption_long.split()) > 1
        assert result.caption_short == "A dog runs."
        assert result.attempts == 1
    assert model.facts.backend == "model"
    assert model.facts.version.startswith("transformers ")
    assert len(model.facts.revision) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_two_clips_at_once_get_what_each_gets_alone(make, kind) -> None:
    model = make(kind)
    together = ask(model)
    assert together[0].answer != together[1].answer
    assert [ask(model, [TWO[0]])[0], ask(model, [TWO[1]], keys="b")[0]] == together
    assert ask(model, TWO[::-1], keys="ba") == together[::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_depends_on_what_is_seen(make, kind) -> None:
    # Over several clips: a tiny model may say the same of two.
    clips = clips_of(*[(9, 48, 72)] * 6)
    assert len({ask(make(kind), [clip])[0].answer for clip in clips}) > 1


def test_logits_are_the_models_own_for_a_question_padded_on_its_left(make) -> None:
    from data_loaders.panda_dense.caption_models import batch_questions

    model = make("qwen2_5_vl")
    questions = [model._question(clip, fps=8.0) for clip in TWO]
    pair = batch_questions(questions, model=model._asked, pad=1)
    logits = model.model(**pair).logits[:, -1]
    for row, question in zip(logits, questions, strict=True):
        alone = batch_questions([question], model=model._asked, pad=1)
        torch.testing.assert_close(row, model.model(**alone).logits[0, -1], rtol=0, atol=1e-5)


def test_a_bad_answer_is_asked_again_with_its_own_draws_then_flagged(make) -> None:
    model = make(min_words=50, attempts=3)
    results = ask(model, short="A dog runs.")
    for result in results:
        assert result.flag in ("too short", "empty")
        assert result.attempts == 3
        assert result.caption_long == "A dog runs."
        assert result.caption_short == "A dog runs."
        assert result.answer != "A dog runs."
    greedy = ask(make())[0].answer
    assert results[0].answer != greedy
    # The draws belong to clip, attempt and seed, not to what was drawn before.
    assert ask(model, [TWO[1]], keys="b", short="A dog runs.")[0] == results[1]
    assert ask(model, keys="xy")[0].answer != results[0].answer
    assert ask(make(min_words=50, attempts=3, seed=1))[0].answer != results[0].answer


def test_a_second_answer_that_is_good_is_taken(make, monkeypatch) -> None:
    model = make(min_words=3)
    said = iter(["No.", "A dog runs. It barks."])
    monkeypatch.setattr(model.tokenizer, "batch_decode", lambda ids, **_: [next(said) for _ in ids])
    (result,) = ask(model, TWO[:1])
    assert result.flag == ""
    assert result.attempts == 2
    assert result.caption_long == "A dog runs. It barks."
    assert result.caption_short == "A dog runs."


def test_without_any_caption_both_are_empty(make) -> None:
    (result,) = ask(make(min_words=50, attempts=1), TWO[:1])
    assert (result.caption_short, result.caption_long) == ("", "")
    assert result.flag == "too short"


def test_drawing_leaves_torchs_own_stream_as_it_was(make) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    ask(make(min_words=50, attempts=2))
    assert torch.equal(torch.rand(2), expected)


def test_a_temperature_draws_the_first_answer_too(make) -> None:
    hot = ask(make(temperature=2.0))
    assert [result.attempts for result in hot] == [1, 1]
    assert hot[0].answer != ask(make())[0].answer
    assert ask(make(temperature=2.0), [TWO[1]], keys="b")[0] == hot[1]


def test_an_answer_stopped_by_the_limit_ends_with_a_sentence(make, monkeypatch) -> None:
    model = make(max_new_tokens=4)
    monkeypatch.setattr(
        model.tokenizer, "batch_decode", lambda ids, **_: ["A dog runs. It ba"] * len(ids)
    )
    assert ask(model, TWO[:1])[0].caption_long == "A dog runs."


def test_clips_at_once_are_halved_until_one(make, monkeypatch) -> None:
    model = make(clips_per_batch=4)
    sizes = []
    generate = model.model.generate
    monkeypatch.setattr(
        model.model,
        "generate",
        lambda **batch: (sizes.append(len(batch["input_ids"])), generate(**batch))[1],
    )
    clips = clips_of(*[(5, 30, 30)] * 3)
    ask(model, clips)
    assert model.pieces.shrink()
    ask(model, clips)
    assert model.pieces.shrink()
    assert not model.pieces.shrink()
    ask(model, clips)
    model.pieces.restore()
    ask(model, clips)
    assert sizes == [3, 2, 1, 1, 1, 1, 3]


def test_a_full_device_is_told_to_the_caller(make, monkeypatch) -> None:
    model = make()

    def full(**_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(model.model, "generate", full)
    with pytest.raises(torch.OutOfMemoryError):
        ask(model)


def test_weights_of_another_kind_are_named(folders) -> None:
    settings = CaptionSettings(model="video_llava", weights=str(folders["qwen3_vl"]))
    with pytest.raises(
        ValueError, match=r"caption\.weights: .*expected a model of type 'video_llava', got 'qwen3"
    ):
        Captioner.load(settings, device=CPU)


def test_weights_that_are_not_there_are_named(tmp_path) -> None:
    settings = CaptionSettings(weights=str(tmp_path / "no"))
    with pytest.raises(ValueError, match=r"c\.weights: no folder .*hf download LanguageBind"):
        Captioner.load(settings, device=CPU, section="c")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 0}, "caption.frames: expected at least 1, got 0"),
        ({"model": "qwen3_vl", "frames": 7}, "caption.frames: expected an even number .*got 7"),
        ({"max_words": 10}, "caption.max_words: expected at least min_words = 15, got 10"),
        ({"top_p": 0.0}, "caption.top_p: expected more than 0 and at most 1, got 0.0"),
        ({"attempts": 0}, "caption.attempts: expected at least 1, got 0"),
        ({"prompt": " "}, "caption.prompt: expected a question, got ' '"),
        ({"frame_pixels": (9, 5)}, "caption.frame_pixels: expected two numbers"),
        ({"retry_temperature": 0.0}, "caption.retry_temperature: expected more than 0"),
        ({"temperature": float("nan")}, "caption.temperature: expected at least 0, got nan"),
    ],
)
def test_wrong_numbers_are_named(wrong, message) -> None:
    settings = CaptionSettings()
    check_captions(settings, section="caption")
    with pytest.raises(DataError, match=message):
        check_captions(replace(settings, **wrong), section="caption")
