import numpy as np
import pytest
import torch

from data_loaders.panda_dense.load_parts import torch_dtype
from data_loaders.panda_dense.pixels import normalized, resize_cubic, to_unit
from data_loaders.panda_dense.seeds import clip_generator, clip_seed


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        (None, "cpu", torch.float32),
        (None, "cuda", torch.bfloat16),
        ("fp16", "cpu", torch.float16),
        ("fp32", "cuda", torch.float32),
    ],
)
def test_the_dtype_follows_the_device_unless_it_is_named(dtype, device, expected) -> None:
    assert torch_dtype(dtype, device=torch.device(device), on_gpu="bf16") == expected


def test_seeds_belong_to_all_they_are_made_of() -> None:
    seeds = {
        clip_seed(0, "a"),
        clip_seed(1, "a"),
        clip_seed(0, "b"),
        clip_seed(0, "a", 1),
        clip_seed(0, "a", 2),
        clip_seed(0, "a1"),
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Once drawn, data depends on it.
    assert clip_seed(0, "a") == 3426483283761622585
    one, two = (torch.rand(3, generator=clip_generator(0, "a")) for _ in range(2))
    assert torch.equal(one, two)


def test_resizing_keeps_flat_colours_and_the_sides_apart() -> None:
    rgb = np.zeros((2, 20, 30, 3), np.uint8)
    rgb[:, :, 15:] = (200, 100, 50)
    small = resize_cubic(rgb, height=8, width=12)
    assert small.shape == (2, 8, 12, 3)
    assert (small[:, :, :4] == 0).all()
    assert (small[:, :, 8:] == (200, 100, 50)).all()
    assert resize_cubic(rgb, height=20, width=30) is rgb


def test_values_are_levels_by_colour() -> None:
    rgb = np.array([[[[0, 51, 255]]]], np.uint8)
    assert to_unit(rgb).flatten().tolist() == pytest.approx([0, 0.2, 1])
    scaled = normalized(rgb, mean=(0.5, 0.2, 0.0), std=(0.5, 1.0, 2.0))
    assert scaled.flatten().tolist() == pytest.approx([-1, 0, 0.5])
