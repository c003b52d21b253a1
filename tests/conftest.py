"""What training tests share: a world of small frozen networks and shards, made once."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "sat_udpdiff" / "train.py")
# Two layers of 64 on 9x32x48 clips: about 0.1 s per step, and every part of the real thing.
VALUES = {
    "model": {
        "family": "tiny",
        "num_layers": 2,
        "hidden_size": 64,
        "num_heads": 2,
        "time_embed_dim": 32,
        "text_dim": 128,
        "text_length": 16,
        "latent_channels": 4,
        "activation_checkpointing": "none",
    },
    "text": {"weights": "tiny", "dtype": "fp32"},
    "data": {"num_frames": 9, "height": 32, "width": 48, "num_workers": 1},
    "optimizer": {"lr": 1e-3, "warmup_steps": 2, "gradient_clipping": 1.0},
    "train": {
        "steps": 6,
        "micro_batch_size": 2,
        "precision": "fp32",
        "reduce_bucket_elements": 1_000_000,
    },
    "checkpoint": {"every_steps": 3},
    "log": {"every_steps": 1},
    "ema": {"enabled": True},
    "sample": {"num_steps": 2, "guidance": "constant"},
    "validation": {"num_steps": 2},
}


@dataclass(frozen=True, kw_only=True)
class SmallWorld:
    """Small frozen networks and shards, and a value file that names them."""

    base: Path
    folder: Path

    def config(self, run: Path, *overrides: str) -> Config:
        """Configuration of a run that writes to `run`."""
        return load_config([str(self.base)], [f"run.output={run}", *overrides])

    def train_command(self, run: Path, *overrides: str) -> list[str]:
        """What follows the launcher on the command line."""
        return [TRAIN, "--base", str(self.base), f"run.output={run}", *overrides]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """Folder of real clips beside the checkout, with captions.jsonl above it."""
    folder = ROOT.parent / "shared" / "data" / "clips"
    if not folder.is_dir():
        pytest.skip(f"no clips at {folder}")
    return folder


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    from data_loaders.shards import write_shards
    from data_loaders.synthetic import WorldConfig, make_clip
    from tests.small_codec import small_vae

    folder = tmp_path_factory.mktemp("small_world")
    codec = small_vae()
    codec.save_pretrained(folder / "codec")
    world = WorldConfig(frames=9, height=32, width=48, world="simple")
    write_shards((make_clip(i, seed=0, config=world) for i in range(12)), folder / "shards")
    values = VALUES | {
        "codec": {
            "weights": str(folder / "codec"),
            "subfolder": None,
            "scale_factor": 1.0,
            "spatial_compression": 4,
            "dtype": "fp32",
        },
        "data": VALUES["data"] | {"shards": str(folder / "shards")},
    }
    base = folder / "small.yaml"
    base.write_text(yaml.safe_dump(values))
    return SmallWorld(base=base, folder=folder)


@pytest.fixture(scope="session")
def launch() -> Callable[[Sequence[str]], subprocess.CompletedProcess[str]]:
    """Run a command as a user would: no rank in the environment, the checkout's packages first."""

    def call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=user_environment(), capture_output=True, text=True, timeout=600
        )

    return call


@pytest.fixture(scope="session")
def user_env() -> dict[str, str]:
    """Environment for programs that a test starts itself."""
    return user_environment()


def user_environment() -> dict[str, str]:
    ranks = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    kept = {key: value for key, value in os.environ.items() if key not in ranks}
    scripts = str(Path(sys.executable).parent)
    return kept | {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{scripts}{os.pathsep}{kept.get('PATH', '')}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{kept.get('PYTHONPATH', '')}".rstrip(os.pathsep),
    }
