"""Settings that changed since the checkpoint: what is refused, allowed, told and not spoken of."""

from pathlib import Path

import pytest

from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_io import load_config
from sat_udpdiff.training.changes import check_changes

FOLDER = Path("RUN/checkpoints/step_00000004")


def changes(*words, before=(), world_sizes=(1, 1)):
    return check_changes(
        load_config([], before),
        load_config([], words),
        world_sizes=world_sizes,
        folder=FOLDER,
    )


def test_nothing_changed():
    assert changes() == []


@pytest.mark.parametrize(
    "word",
    [
        "run.output=ELSEWHERE",
        "log.every_steps=7",
        "checkpoint.keep_last=5",
        "validation.num_steps=3",
        "sample.guidance_scale=2.0",
        "model.activation_checkpointing=none",
        "run.allow_changes=[optimizer.lr]",
    ],
)
def test_what_is_no_part_of_training_is_not_spoken_of(word):
    assert changes(word) == []


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("data.shards=MOVED", "note: data.shards was  so far, from here on it is MOVED"),
        ("data.num_workers=7", "note: data.num_workers was 2 so far, from here on it is 7"),
        ("train.zero_stage=3", "note: train.zero_stage was 2 so far, from here on it is 3"),
        ("train.steps=50", "note: train.steps was 40000 so far, from here on it is 50"),
        ("init.weights=tiny", "note: init.weights was None so far, from here on it is tiny"),
    ],
)
def test_what_leaves_training_as_it_was_is_told(word, line):
    assert changes(word) == [line]


@pytest.mark.parametrize(
    ("words", "before", "world_sizes", "told"),
    [
        ((), ("train.micro_batch_size=2",), (1, 2), ["train.micro_batch_size"]),
        ((), ("train.accumulation_steps=8",), (1, 8), ["train.accumulation_steps"]),
        (("train.accumulation_steps=4",), (), (8, 2), ["train.accumulation_steps"]),
        (
            ("train.micro_batch_size=4",),
            ("train.accumulation_steps=4",),
            (2, 2),
            ["train.micro_batch_size", "train.accumulation_steps"],
        ),
    ],
)
def test_ranks_may_change_with_the_same_global_batch(words, before, world_sizes, told):
    lines = changes(*words, before=before, world_sizes=world_sizes)
    assert [line.split()[1] for line in lines] == told


def test_another_global_batch_needs_a_word():
    with pytest.raises(ConfigError) as caught:
        changes(world_sizes=(8, 4))
    assert str(caught.value) == (
        f"{FOLDER}: the training would not go on as it began: global_batch was 8, got 4. Set it "
        "back, choose another run.output, or allow it with run.allow_changes=[global_batch]"
    )
    lines = changes("run.allow_changes=[global_batch]", world_sizes=(8, 4))
    assert lines == ["note: global_batch was 8 so far, from here on it is 4"]


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("optimizer.lr=1", "optimizer.lr"),
        ("train.precision=fp32", "train.precision"),
        ("data.crop=random", "data.crop"),
        ("data.source=latents", "data.source"),
        ("ema.enabled=true", "ema.enabled"),
        ("colormap.segmentation=location_aware", "colormap.segmentation"),
        ("codec.weights=ELSEWHERE", "codec.weights"),
        ("text.dtype=fp32", "text.dtype"),
    ],
)
def test_what_alters_training_needs_a_word(word, key):
    with pytest.raises(ConfigError, match=rf"{key} was .*run\.allow_changes=\[{key}\]"):
        changes(word)
    (line,) = changes(word, f"run.allow_changes=[{key}]")
    assert line.startswith(f"note: {key} was ")


def test_one_message_lists_every_key_with_both_values():
    words = ("optimizer.lr=1", "data.crop=random", "data.num_workers=5", "ema.decay=0.5")
    with pytest.raises(ConfigError) as caught:
        changes(*words, "run.allow_changes=[ema.decay]")
    message = str(caught.value)
    assert "data.crop was center, got random; optimizer.lr was 1e-05, got 1.0." in message
    assert message.endswith("run.allow_changes=[ema.decay,data.crop,optimizer.lr]")
    assert "num_workers" not in message


def test_a_longer_training_alters_a_schedule_that_ends_with_it():
    linear = "optimizer.schedule=linear"
    with pytest.raises(ConfigError, match=r"train\.steps was 40000, got 50\."):
        changes("train.steps=50", linear, before=(linear,))


@pytest.mark.parametrize("word", ["seed=5", "model.num_layers=3", "diffusion.snr_shift=3"])
def test_some_things_may_never_change(word):
    key = word.split("=")[0]
    with pytest.raises(ConfigError, match=f"{key}: the run in RUN was made with"):
        changes(word, f"run.allow_changes=[{key}]")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (
            "run.allow_changes=[optimizer.lrr]",
            r"run\.allow_changes: expected settings, .*\(nearest: optimizer\.lr\), got optim",
        ),
        (
            "checkpoint.keep_every=700",
            r"checkpoint\.keep_every: expected a multiple of checkpoint\.every_steps=500, or 0",
        ),
        ("checkpoint.keep_every=-500", r"checkpoint\.keep_every: expected at least 0, got -500"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(word, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config([], [word])
