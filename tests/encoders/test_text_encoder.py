"""The text encoder against direct calls of transformers, the tiny vocabulary, and the messages."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import T5EncoderModel

from data_loaders.synthetic import WorldConfig, make_scene
from data_loaders.synthetic_captions import long_caption, short_caption
from sat_udpdiff.config import TextEncoderConfig
from sat_udpdiff.encoders.source import TINY_WEIGHTS
from sat_udpdiff.encoders.text import TextEncoder
from sat_udpdiff.tiny.make_text import make_model, make_tokenizer, save

CONFIG = TextEncoderConfig(weights="tiny", dtype="fp32")
LENGTH = 48


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.load(CONFIG, text_length=LENGTH, text_dim=128)


def world_captions(world: str, *, count: int, seed: int) -> list[str]:
    captions = []
    for index in range(count):
        scene = make_scene(index, seed=seed, config=WorldConfig(world=world))
        areas = np.ones(len(scene.things), dtype=int)
        captions += [short_caption(scene, areas=areas), long_caption(scene, areas=areas)]
    return captions


def test_encode_is_t5_on_padded_tokens_without_a_mask(encoder):
    captions = ["a red disc moves left", "a small blue square stays still, over a brown floor"]
    tokens = torch.zeros(2, LENGTH, dtype=torch.long)
    mask = torch.zeros(2, LENGTH, dtype=torch.long)
    for row, caption in enumerate(captions):
        ids = encoder.tokenizer(caption)["input_ids"]
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    model = T5EncoderModel.from_pretrained(TINY_WEIGHTS / "text").eval()
    with torch.no_grad():
        expected = model(input_ids=tokens).last_hidden_state
        masked = model(input_ids=tokens, attention_mask=mask).last_hidden_state
    ours = encoder.encode(captions)
    assert ours.shape == (2, LENGTH, 128)
    assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert (ours - masked).abs().max() > 1e-2


def test_captions_do_not_see_each_other(encoder):
    captions = ["a red disc moves left", "a blue square moves up", "an olive floor"]
    assert_close(encoder.encode(captions)[1:2], encoder.encode(captions[1:2]))


def test_encoder_is_frozen(encoder):
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert not encoder.model.training


def test_unconditional_is_zeros_or_the_empty_caption(encoder):
    assert_close(encoder.unconditional(3), torch.zeros(3, LENGTH, 128))
    empty = TextEncoder.load(
        replace(CONFIG, unconditional="empty"), text_length=LENGTH, text_dim=128
    )
    assert_close(empty.unconditional(2), empty.encode(["", ""]))
    assert empty.unconditional(2).abs().max() > 0.1


def test_long_captions_are_cut_at_the_text_length(encoder):
    start = "a red disc moves left and " * 10
    assert encoder.num_tokens(start) > LENGTH
    assert_close(encoder.encode([start + "up"]), encoder.encode([start + "down"]))


def test_bf16_is_computed_in_bf16(encoder):
    half = TextEncoder.load(replace(CONFIG, dtype="bf16"), text_length=LENGTH, text_dim=128)
    ours = half.encode(["a red disc"])
    assert ours.dtype == torch.bfloat16
    assert half.unconditional(1).dtype == torch.bfloat16
    assert_close(ours.float(), encoder.encode(["a red disc"]), rtol=0, atol=0.1)


@pytest.mark.parametrize("world", ["simple", "full"])
def test_every_word_of_the_worlds_is_known(encoder, world):
    for caption in world_captions(world, count=40, seed=123):
        assert encoder.unknown_words(caption) == []


def test_captions_of_the_simple_world_fit_the_text_length(encoder):
    captions = world_captions("simple", count=300, seed=9)
    assert max(encoder.num_tokens(caption) for caption in captions) <= LENGTH


def test_unknown_words_are_named_and_spelled(encoder):
    assert encoder.unknown_words("A red cat moves left, and a cat barks") == ["cat", "barks"]
    assert encoder.tokenizer.tokenize("a cat") == ["a", "c", "##a", "##t"]
    cat, dog = encoder.encode(["a red cat", "a red dog"])
    assert (cat - dog).abs().max() > 0.5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a red disc moves left", "a blue disc moves left"),
        ("a red disc moves left", "a red disc moves right"),
        ("a red disc and a blue square", "a blue disc and a red square"),
        ("a disc in front of a square", "a square in front of a disc"),
    ],
)
def test_different_captions_have_clearly_different_embeddings(encoder, one, other):
    first, second = encoder.encode([one, other])
    assert (first - second).square().mean(-1).sqrt().max() > 0.5


@pytest.mark.parametrize("offset", [-2, -1, 0, 1, 2])
def test_an_embedding_tells_its_word_and_its_neighbours(encoder, offset):
    """A linear map fitted on half of the captions reads the words off the other half."""
    captions = sorted(set(world_captions("simple", count=200, seed=3)))
    tokens = encoder.tokenizer(
        captions, padding="max_length", max_length=LENGTH, return_tensors="pt"
    )["input_ids"]
    inner = slice(2, LENGTH - 2)
    wanted = torch.roll(tokens, -offset, dims=1)[:, inner]
    given = encoder.encode(captions)[:, inner].double()
    live = tokens[:, inner] != 0
    half = len(captions) // 2
    one_hot = torch.nn.functional.one_hot(wanted, int(tokens.max()) + 1).double()
    solution = torch.linalg.lstsq(
        given[:half][live[:half]], one_hot[:half][live[:half]], driver="gelsd"
    ).solution
    read = (given[half:][live[half:]] @ solution).argmax(-1)
    assert (read == wanted[half:][live[half:]]).double().mean() > 0.97


def test_shipped_weights_are_what_the_program_makes(encoder):
    made = make_model(vocabulary_size=len(encoder.tokenizer), seed=0).state_dict()
    for name, tensor in encoder.model.state_dict().items():
        assert_close(tensor, made[name], msg=name)


@pytest.fixture
def small_folder(tmp_path):
    words = ["a", "disc", "red"]
    tokenizer = make_tokenizer(words)
    model = make_model(vocabulary_size=tokenizer.get_vocab_size(), seed=1)
    save(tmp_path / "t5", tokenizer=tokenizer, words=words, model=model)
    return tmp_path / "t5"


def test_loads_a_folder_in_the_layout_of_diffusers(small_folder, tmp_path):
    pipeline = tmp_path / "pipeline"
    for part in ("text_encoder", "tokenizer"):
        (pipeline / part).mkdir(parents=True)
    for path in small_folder.iterdir():
        part = "tokenizer" if path.name.startswith("tokenizer") else "text_encoder"
        (pipeline / part / path.name).write_bytes(path.read_bytes())
    loaded = [
        TextEncoder.load(replace(CONFIG, weights=str(folder)), text_length=8, text_dim=128)
        for folder in (small_folder, pipeline)
    ]
    assert_close(loaded[0].encode(["a red disc"]), loaded[1].encode(["a red disc"]))


def test_missing_weights_name_the_place_and_the_cure(tmp_path):
    with pytest.raises(ValueError, match=r"text.weights: no folder '.*nowhere'.*hf download"):
        TextEncoder.load(
            replace(CONFIG, weights=str(tmp_path / "nowhere")), text_length=8, text_dim=128
        )


def test_damaged_weights_are_named(small_folder):
    config = replace(CONFIG, weights=str(small_folder))
    (small_folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"text.weights: cannot load the folder '.*t5'"):
        TextEncoder.load(config, text_length=8, text_dim=128)


def test_embedding_size_must_be_the_configured_one():
    with pytest.raises(ValueError, match=r"model.text_dim: tiny gives 128, configured 64"):
        TextEncoder.load(CONFIG, text_length=LENGTH, text_dim=64)
