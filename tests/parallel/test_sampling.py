"""Several processes make the samples that one makes, and each of them once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sat_udpdiff.config_io import load_config
from sat_udpdiff.model.transformer import build_network

PROGRAM = Path(__file__).with_name("forked_runs.py")
NETWORK = ("model.num_heads=4", "model.text_length=15")
# Name -> processes, and settings.
LAYOUTS = {
    "alone": (1, []),
    "guidance": (4, ["sample.guidance_size=2"]),  # and two samples at a time
    "network": (4, ["sample.sequence_size=2", "sample.tensor_size=2"]),
}


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
        {"ranks": ranks, "arguments": [*common, "--output", str(folder / name), *settings]}
        for name, (ranks, settings) in LAYOUTS.items()
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


def depths(folder: Path) -> dict[str, np.ndarray]:
    return {path.parent.name: np.load(path)["depth"] for path in sorted(folder.glob("*/depth.npz"))}


@pytest.mark.parametrize("name", ["guidance", "network"])
def test_samples_are_those_of_one_process(name, samples):
    alone, found = depths(samples / "alone"), depths(samples / name)
    assert len(alone) == 2
    assert found.keys() == alone.keys()
    first, second = alone.values()
    assert np.abs(first - second).mean() > 0.01
    for key, depth in alone.items():
        # Rounding to 8 bits may fall the other way here and there.
        assert (found[key] == depth).mean() > 0.98
        assert np.abs(found[key] - depth).mean() < 1e-3


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_lies_beside_a_sample_makes_it_again_on_one_process(name, samples):
    records = list((samples / name).glob("*/sample.json"))
    assert len(records) == 2
    for path in records:
        made_by = json.loads(path.read_text())["config"]["sample"]
        assert [made_by[f"{axis}_size"] for axis in ("guidance", "sequence", "tensor")] == [1] * 3
