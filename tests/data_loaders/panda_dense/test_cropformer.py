"""CropFormer's own parts: views, their positions, the second pass, fused masks."""

import math

import numpy as np
import pytest
import torch

from data_loaders.geometry import crop
from data_loaders.panda_dense import cropformer
from data_loaders.panda_dense.cropformer import (
    CropFormer,
    CropFusion,
    attention_mask,
    fuse_views,
    view_boxes,
    view_positions,
)
from data_loaders.panda_dense.mask2former_parts import decode_views, pixel_features, predict_whole
from tests.data_loaders.panda_dense.tiny_entities import make_tiny_fusion, make_tiny_mask2former


@pytest.fixture(scope="module")
def network() -> CropFormer:
    return CropFormer(make_tiny_mask2former(), fusion=make_tiny_fusion()).eval()


def noise(views: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(views, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def test_crops_lie_in_the_corners_with_the_published_sizes() -> None:
    boxes = view_boxes(height=480, width=720)
    assert [(box.top, box.left) for box in boxes] == [
        (0, 0),
        (0, 0),
        (0, 217),
        (144, 0),
        (144, 217),
    ]
    # 0.7 * 720 is 503.99... in floats, and the published code cuts it off.
    assert [(box.height, box.width) for box in boxes] == [(480, 720)] + [(336, 503)] * 4


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (97, 41), (360, 640)])
def test_crops_reach_every_border_and_stay_inside(size: tuple[int, int]) -> None:
    height, width = size
    boxes = view_boxes(height=height, width=width)
    seen = np.zeros(size, int)
    for box in boxes[1:]:
        assert box.top + box.height <= height and box.left + box.width <= width
        crop(seen[None], box=box)[:] += 1
    assert seen.min() >= 1


def test_views_of_a_picture_go_back_to_where_they_were() -> None:
    field = torch.rand(2, 48, 72, generator=torch.Generator().manual_seed(0))
    boxes = view_boxes(height=48, width=72)
    views = [
        field[:, box.top : box.top + box.height, box.left : box.left + box.width] for box in boxes
    ]
    torch.testing.assert_close(fuse_views(views, boxes=boxes), field)


def test_fused_masks_are_the_mean_of_the_views_that_see_a_pixel() -> None:
    boxes = view_boxes(height=10, width=10)  # crops of 7x7
    views = [torch.full((1, box.height, box.width), float(n)) for n, box in enumerate(boxes)]
    fused = fuse_views(views, boxes=boxes)[0]
    assert fused[0, 0] == (0 + 1) / 2  # the crop above left alone
    assert fused[9, 9] == (0 + 4) / 2
    assert fused[0, 5] == (0 + 1 + 2) / 3
    assert fused[5, 0] == (0 + 1 + 3) / 3
    assert fused[5, 5] == (0 + 1 + 2 + 3 + 4) / 5
    # All crops share 4x4 pixels in the middle.
    assert (fused[3:7, 3:7] == fused[5, 5]).all()
    assert fused[2, 5] == (0 + 1 + 2) / 3 and fused[5, 2] == (0 + 1 + 3) / 3


def test_positions_of_views_are_turns_of_a_circle() -> None:
    positions = view_positions(4, dim=8)
    assert positions.shape == (4, 8)
    for view in range(4):
        angle = 2 * math.pi * (view + 1) / 4
        for pair in range(4):
            slow = angle / 10000 ** (2 * pair / 8)
            expected = [math.sin(slow), math.cos(slow)]
            assert positions[view, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(
                expected, abs=1e-5
            )


def test_queries_look_into_their_masks_in_all_views() -> None:
    masks = torch.full((2, 3, 2, 4), -1.0)  # two views, three queries
    masks[0, 0, 0, :2] = 1.0  # the first query has pixels in the first view only
    masks[:, 1] = 1.0  # the second has all
    hidden = attention_mask(masks, size=(2, 4))
    assert hidden.shape == (1, 3, 16)
    assert (~hidden[0, 0]).nonzero().flatten().tolist() == [0, 1]
    assert not hidden[0, 1].any()
    assert not hidden[0, 2].any()  # no pixel anywhere: it looks everywhere


def test_masks_are_resized_to_the_level() -> None:
    masks = torch.full((1, 1, 4, 4), -1.0)
    masks[..., :2] = 1.0
    assert attention_mask(masks, size=(2, 2))[0, 0].tolist() == [False, True, False, True]


def test_the_first_pass_sees_each_view_alone(network: CropFormer) -> None:
    with torch.inference_mode():
        features = pixel_features(network.network, noise(3), views_per_pass=3)
        together = decode_views(network.network, features).last_hidden_state
        for view in range(3):
            single = pixel_features(network.network, noise(3)[view : view + 1], views_per_pass=1)
            alone = decode_views(network.network, single).last_hidden_state
            torch.testing.assert_close(together[view : view + 1], alone, atol=1e-4, rtol=1e-4)


def test_the_second_pass_is_the_decoder_of_transformers(
    network: CropFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On one view, from the learned queries and without the position of the view.
    monkeypatch.setattr(
        cropformer, "view_positions", lambda views, *, dim, device: torch.zeros(views, dim)
    )
    plain = network.network
    monkeypatch.setattr(
        CropFusion,
        "forward",
        lambda self, queries, *, position: (
            plain.model.transformer_module.queries_features.weight[:, None]
        ),
    )
    with torch.inference_mode():
        found, expected = network(noise(1)), predict_whole(plain, noise(1))
    torch.testing.assert_close(found.class_logits, expected.class_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.mask_logits, expected.mask_logits, atol=1e-4, rtol=0)
    assert expected.mask_logits.std() > 1


def test_alike_views_get_alike_masks(network: CropFormer) -> None:
    with torch.inference_mode():
        masks = network(noise(1).repeat(5, 1, 1, 1)).mask_logits
    assert masks.shape == (5, 20, 16, 24)
    for view in masks[1:]:
        torch.testing.assert_close(view, masks[0], atol=1e-5, rtol=0)


def test_a_crop_changes_the_masks_of_the_whole_picture(network: CropFormer) -> None:
    other = torch.cat([noise(4), noise(1, seed=1)])
    with torch.inference_mode():
        one, two = network(noise(5)).mask_logits, network(other).mask_logits
    assert not torch.allclose(one[0], two[0], atol=1e-2)


def test_the_order_of_crops_counts_by_their_positions_alone(
    network: CropFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = [0, 3, 1, 4, 2]
    with torch.inference_mode():
        one, two = network(noise(5)).mask_logits, network(noise(5)[order]).mask_logits
        assert not torch.allclose(one[order], two, atol=1e-3)
        monkeypatch.setattr(
            cropformer, "view_positions", lambda views, *, dim, device: torch.zeros(views, dim)
        )
        one, two = network(noise(5)).mask_logits, network(noise(5)[order]).mask_logits
        torch.testing.assert_close(one[order], two, atol=1e-4, rtol=1e-4)


def test_fusing_starts_from_the_whole_picture(network: CropFormer) -> None:
    queries = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(0))
    position = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        fused = network.fusion(queries, position=position)
        crops_swapped = network.fusion(queries[[0, 2, 1]], position=position)
        whole_swapped = network.fusion(queries[[1, 0, 2]], position=position)
    assert fused.shape == (20, 1, 32)
    # To attention the views are a set; the first one is also where the result starts.
    torch.testing.assert_close(fused, crops_swapped, atol=1e-5, rtol=0)
    assert not torch.allclose(fused, whole_swapped, atol=1e-2)
