"""The closed form of the activations, against the real network in real size on the meta device."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan.activations import activation_bytes, sampling_bytes
from sat_udpdiff.plan.sizes import BYTES, derive_sizes

ROOT = Path(__file__).parents[2]
# Six layers show the share of each; the rest of the network is whole.
STEPS = [
    *[
        (family, ("model.num_layers=6", f"model.activation_checkpointing={mode}"))
        for family, mode in itertools.product(("5b", "2b"), ("none", "selective", "full"))
    ],
    ("5b", ("model.num_layers=42",)),
    ("5b", ("model.num_layers=5", "model.activation_checkpointing=selective")),
    ("5b", ("model.num_layers=4", "train.micro_batch_size=3")),
    ("5b", ("model.num_layers=4", "train.precision=fp32")),
    ("5b", ("model.num_layers=4", "data.num_frames=25", "model.dense_groups=0",
            "model.task_signal=none")),
]  # fmt: skip
SAVED = list(itertools.product(("5b", "2b"), ("bf16", "fp32")))


def files_of(family):
    return [str(ROOT / "configs" / f"{name}.yaml") for name in (family, "multitask")]


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """(what, family, settings) -> bytes; counted in one process of its own."""
    keys = [("step", family, settings) for family, settings in STEPS]
    keys += [("sample", family, ("model.num_layers=2",)) for family in ("5b", "2b")]
    keys += [("saved", *key) for key in itertools.chain(*(saved_settings(*pair) for pair in SAVED))]
    cases = tmp_path_factory.mktemp("counted") / "cases.json"
    cases.write_text(
        json.dumps([[files_of(family), settings, what] for what, family, settings in keys])
    )
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("count_network.py")), str(cases)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(keys, json.loads(done.stdout.splitlines()[-1]), strict=True))


def saved_settings(family, precision):
    for layers in (2, 3):
        yield (
            family,
            (
                f"model.num_layers={layers}",
                f"train.precision={precision}",
                "model.activation_checkpointing=none",
            ),
        )


def planned(config):
    return activation_bytes(
        config.model,
        sizes=derive_sizes(config),
        precision=config.train.precision,
        batch=config.train.micro_batch_size,
    )


@pytest.mark.parametrize(("family", "settings"), STEPS)
def test_peak_of_forward_and_backward(family, settings, counted):
    config = load_config(files_of(family), settings)
    assert planned(config) == pytest.approx(counted["step", family, settings], rel=0.02)


@pytest.mark.parametrize(("family", "precision"), SAVED)
def test_what_a_layer_keeps_is_what_autograd_saves(family, precision, counted):
    two, three = (counted["saved", *key] for key in saved_settings(family, precision))
    config = load_config(files_of(family))
    tokens, width = derive_sizes(config).tokens, config.model.hidden_size
    unit = tokens * width * BYTES[precision]
    # 20 tensors of tokens; beside them statistics of norms and attention, in fp32 on a GPU, and the
    # modulation of the sample.
    statistics = 4 * tokens * (4 + 5 * config.model.num_heads)
    assert 20 * unit < three - two < 20.01 * unit + statistics


@pytest.mark.parametrize("family", ["5b", "2b"])
def test_peak_of_a_sampling_step(family, counted):
    config = load_config(files_of(family), ["model.num_layers=2"])
    precision = config.train.precision
    estimate = sampling_bytes(config.model, sizes=derive_sizes(config), precision=precision)
    expected = counted["sample", family, ("model.num_layers=2",)]
    assert estimate == pytest.approx(expected, rel=0.03)


def test_activations_grow_from_full_to_none():
    kept = [
        planned(load_config(files_of("5b"), [f"model.activation_checkpointing={mode}"]))
        for mode in ("full", "selective", "none")
    ]
    assert kept == sorted(kept)
    assert kept[1] / kept[2] == pytest.approx(0.5, abs=0.1)
