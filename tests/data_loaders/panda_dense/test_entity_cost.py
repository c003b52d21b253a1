"""Operations per frame."""

from typing import Any

import pytest
import torch

from data_loaders.panda_dense.entity_convert import recognise
from data_loaders.panda_dense.entity_cost import GFLOPS_480X720, flops_per_frame
from data_loaders.panda_dense.mask2former import Mask2FormerSettings
from tests.data_loaders.panda_dense.published_entities import (
    SWIN_L,
    SWIN_T,
    TINY,
    Size,
    published_shapes,
)

SETTINGS = Mask2FormerSettings(weights="any")


def config(size: Size) -> Any:
    shapes = published_shapes(size, is_cropformer=False)
    return recognise({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})[0]


@pytest.mark.parametrize("network", ["mask2former Swin-T", "cropformer Swin-L"])
def test_the_table_is_what_is_counted(network: str) -> None:
    kind, _, backbone = network.partition(" ")
    flops = flops_per_frame(
        config({"Swin-T": SWIN_T, "Swin-L": SWIN_L}[backbone]),
        height=480,
        width=720,
        settings=SETTINGS,
        is_cropformer=kind == "cropformer",
    )
    # Versions of torch and transformers differ in which product they make of a sum.
    assert flops / 1e9 == pytest.approx(GFLOPS_480X720[network], rel=0.02)


def test_it_grows_with_the_frame_and_with_the_views() -> None:
    def count(side: int, *, short_side: int, is_cropformer: bool = False) -> int:
        settings = Mask2FormerSettings(weights="any", short_side=short_side, long_side=2000)
        return flops_per_frame(
            config(TINY), height=side, width=side, settings=settings, is_cropformer=is_cropformer
        )

    small = count(64, short_side=64)
    assert 3 * small < count(64, short_side=128) < 6 * small
    assert count(64, short_side=64, is_cropformer=True) > 5 * small
