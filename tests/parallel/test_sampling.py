"""Several processes make the samples that one makes, and each of them once."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sat_udpdiff import loading
from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.parallel.layout import Axes, Layout
from sat_udpdiff.parallel.sampling import deal

PROGRAM = Path(__file__).with_name("forked_runs.py")
NETWORK = ("model.num_heads=4", "model.text_length=15")
# Name -> processes, and settings.
LAYOUTS = {
    "alone": (1, []),
    "data": (3, []),  # one more than there are samples
    "guidance": (4, ["sample.guidance_size=2"]),  # and two samples at a time
    "network": (4, ["sample.sequence_size=2", "sample.tensor_size=2", "codec.tiling=true"]),
    "alone in tiles": (1, ["codec.tiling=true"]),
}
SAMPLES = 2
TILING = ("true", "false")


@pytest.fixture(scope="module")
def samples(small_world, user_env, tmp_path_factory) -> Path:
    """Folder with the samples of every layout."""
    folder = tmp_path_factory.mktemp("samples")
    config = load_config([str(small_world.base)], NETWORK)
    network = build_network(config.model, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(0)
    state = {
        name: 0.2 * torch.randn(value.shape, generator=generator) + 0.1 * (value.ndim == 1)
        for name, value in network.state_dict().items()
    }
    save_file(state, folder / "weights.safetensors")
    common = ["--base", str(small_world.base), *NETWORK, "--seeds", "0", "1", "--task", "depth"]
    common += ["--steps", "3", "--prompt", "a red disc moves left"]
    common += ["--load", str(folder / "weights.safetensors")]
    plan = [
        {
            "program": "last_to_leave",
            "ranks": ranks,
            "arguments": [str(folder / name), str(SAMPLES), *common, *settings],
        }
        for name, (ranks, settings) in LAYOUTS.items()
    ]
    plan += [
        {
            "program": "shared_decode",
            "ranks": ranks,
            "arguments": [
                str(small_world.base),
                str(decoded_file(folder, tiling=tiling, ranks=ranks)),
                f"codec.tiling={tiling}",
            ],
        }
        for tiling in TILING
        for ranks in (1, 3)
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "sample", str(folder / "plan.json")],
        env=user_env,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def decoded_file(folder: Path, *, tiling: str, ranks: int) -> Path:
    return folder / f"decoded_{tiling}_{ranks}.npz"


def depths(folder: Path) -> dict[str, np.ndarray]:
    return {path.parent.name: np.load(path)["depth"] for path in sorted(folder.glob("*/depth.npz"))}


@pytest.mark.parametrize(("name", "alone"), [("guidance", "alone"), ("network", "alone in tiles")])
def test_samples_are_those_of_one_process(name, alone, samples):
    expected, found = depths(samples / alone), depths(samples / name)
    assert len(expected) == SAMPLES
    assert found.keys() == expected.keys()
    first, second = expected.values()
    assert np.abs(first - second).mean() > 0.01
    for key, depth in expected.items():
        # Rounding to 8 bits may fall the other way here and there.
        assert (found[key] == depth).mean() > 0.98
        assert np.abs(found[key] - depth).mean() < 1e-3


def test_a_sample_does_not_depend_on_how_many_make_others(samples):
    expected, found = depths(samples / "alone"), depths(samples / "data")
    assert found.keys() == expected.keys()
    for key, depth in expected.items():
        np.testing.assert_array_equal(found[key], depth)


@pytest.mark.parametrize("tiling", TILING)
def test_what_several_processes_decode_is_what_one_decodes(tiling, samples):
    """Three samples, two at a time: four views, or sixteen tiles, and then half of that."""
    one = np.load(decoded_file(samples, tiling=tiling, ranks=1))
    several = np.load(decoded_file(samples, tiling=tiling, ranks=3))
    assert one["rgb"].shape == one["dense"].shape == (3, 9, 32, 48, 3)
    for view in ("rgb", "dense"):
        assert one[view].std() > 1
        np.testing.assert_array_equal(several[view], one[view])


def test_tiles_are_another_decode(samples):
    whole, tiles = (
        np.load(decoded_file(samples, tiling=tiling, ranks=1))["rgb"]
        for tiling in ("false", "true")
    )
    assert (whole != tiles).any()


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_lies_beside_a_sample_makes_it_again_on_one_process(name, samples):
    records = list((samples / name).glob("*/sample.json"))
    assert len(records) == SAMPLES
    for path in records:
        made_by = json.loads(path.read_text())["config"]["sample"]
        assert [made_by[f"{axis}_size"] for axis in ("guidance", "sequence", "tensor")] == [1] * 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("codec.weights: no folder", None), "codec.weights: no folder"),
        ((None, "b"), "--load: the processes found different weights at RUN"),
    ],
)
def test_what_is_wrong_on_one_process_stops_all(other, message, monkeypatch):
    whole = SimpleNamespace(facts={"weights": {"sha256": "a"}})
    monkeypatch.setattr(loading.Model, "load", lambda load, **_: whole)
    monkeypatch.setattr(loading, "ask_all", lambda own: [own, other])
    layout = Layout(rank=0, sizes=Axes(data=2, guidance=1, sequence=1, tensor=1))
    with pytest.raises(ValueError, match=message):
        loading.Model.load_together(
            "RUN", config=Config(), layout=layout, device=torch.device("cpu")
        )


def test_processes_without_work_are_told_of():
    layout = Layout(rank=0, sizes=Axes(data=1, guidance=2, sequence=2, tensor=1))
    (line,) = loading.idle_decoders(Config(), layout=layout, batch_size=1)
    assert line.startswith("of 4 processes per sample 2 wait")
    assert loading.idle_decoders(Config(), layout=layout, batch_size=2) == []
    tiles = load_config([], ["codec.tiling=true"])
    assert loading.idle_decoders(tiles, layout=layout, batch_size=1) == []


def test_work_is_dealt_out_evenly():
    """The tiles of a video of 480x720, and of its map; README has the loads, in whole views."""
    tiles = 2 * [rows * columns for rows in (30, 30, 10) for columns in (45, 45, 18)]
    for parts, load in ((1, 2.8), (2, 1.4), (4, 0.72), (8, 0.37)):
        loads = np.bincount(deal(tiles, parts=parts), weights=tiles, minlength=parts)
        assert loads.sum() == sum(tiles)
        assert loads.max() / (60 * 90) == pytest.approx(load, abs=0.005)


def test_equal_work_goes_round():
    assert deal([5, 5, 5, 5, 5], parts=3) == [0, 1, 2, 0, 1]
    assert deal([5, 5], parts=4) == [0, 1]
