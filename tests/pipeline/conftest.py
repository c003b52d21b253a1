"""A folder of the tiny network, with nothing left at the zeros that hide faults."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config
from sat_udpdiff.generation import Encoders
from sat_udpdiff.model.transformer import UDPDiffTransformer, build_network
from sat_udpdiff.pipeline import UDPDiffPipeline
from sat_udpdiff.pipeline.folder import save_folder
from sat_udpdiff.weights.key_map import to_diffusers
from sat_udpdiff.weights.load import load_network_weights
from sat_udpdiff.weights.stored import store_all

ROOT = Path(__file__).parents[2]
TABLE = "mixins.task_embedding.table.weight"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network, and the folder that it was written to."""

    config: Config
    network: UDPDiffTransformer
    folder: Path

    def open(self) -> UDPDiffPipeline:
        """Our pipeline, silent."""
        pipeline = UDPDiffPipeline.from_pretrained(self.folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def write_export(folder: Path, *overrides: str, task: str = "multitask") -> Exported:
    """The shipped base, expanded if need be, its new weights moved off their starting values."""
    files = [str(ROOT / "configs" / f"{name}.yaml") for name in ("tiny", task)]
    config = load_config(files, ["sample.num_steps=5", *overrides])
    network = build_network(config.model, dtype=torch.float32, device="cpu")
    load_network_weights(network, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name == TABLE:
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
            elif name.startswith(("mixins.patch_embed.proj", "mixins.final_layer.linear")):
                spread = 0.1 * parameter.std()
                parameter += spread * torch.randn(parameter.shape, generator=generator)
    state = to_diffusers(store_all(network.state_dict()))
    assert save_folder(folder, config=config, state=state) == []
    return Exported(config=config, network=network.eval(), folder=folder)


@pytest.fixture(scope="session")
def export() -> Callable[..., Exported]:
    """(folder, *overrides) -> a network written there."""
    return write_export


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Both tasks, 32 channels."""
    return write_export(tmp_path_factory.mktemp("exported") / "udpdiff")


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """16 channels: diffusers' own classes."""
    return write_export(tmp_path_factory.mktemp("exported") / "baseline", task="baseline")


@pytest.fixture(scope="session")
def encoders(exported: Exported) -> Encoders:
    """The frozen networks as our own sampler uses them."""
    return Encoders.load(exported.config, device="cpu")


@pytest.fixture
def pipeline(exported: Exported) -> UDPDiffPipeline:
    """A fresh one: tests switch things on."""
    return exported.open()
