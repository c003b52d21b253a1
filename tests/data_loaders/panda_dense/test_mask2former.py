"""Frames to entities, with a tiny network of the real class."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_loaders.geometry import CropBox
from data_loaders.panda_dense.mask2former import (
    EntitySegmenter,
    Mask2FormerSettings,
    check_mask2former,
    mask_probabilities,
)
from data_loaders.panda_dense.mask2former_parts import predict_whole
from data_loaders.schema import DataError
from tests.data_loaders.panda_dense.published_entities import picture
from tests.data_loaders.panda_dense.tiny_entities import (
    TINY_LONG_SIDE,
    TINY_MIN_SCORE,
    TINY_SHORT_SIDE,
    make_tiny_mask2former,
    save_tiny_cropformer,
    save_tiny_mask2former,
)

CPU = torch.device("cpu")
SETTINGS = Mask2FormerSettings(
    weights="to be set",
    min_score=TINY_MIN_SCORE,
    short_side=TINY_SHORT_SIDE,
    long_side=TINY_LONG_SIDE,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "mask2former"
    save_tiny_mask2former(folder)
    return folder


@pytest.fixture(scope="module", params=["mask2former", "cropformer"])
def segmenter(request: pytest.FixtureRequest, tmp_path_factory) -> EntitySegmenter:
    folder = tmp_path_factory.mktemp(request.param)
    {"mask2former": save_tiny_mask2former, "cropformer": save_tiny_cropformer}[request.param](
        folder
    )
    return EntitySegmenter.load(replace(SETTINGS, weights=str(folder)), device=CPU)


def load(folder: Path, **values: object) -> EntitySegmenter:
    return EntitySegmenter.load(replace(SETTINGS, weights=str(folder), **values), device=CPU)


def frames(*numbers: int) -> np.ndarray:
    """Unlike pictures of one size."""
    return np.stack([np.roll(picture(height=70, width=101), 13 * n, axis=1) for n in numbers])


def test_several_entities_are_found_by_falling_score(segmenter: EntitySegmenter) -> None:
    (found,) = segmenter.segment(frames(0))
    assert found.ids.shape == (70, 101) and found.ids.dtype == np.uint16
    assert len(found.scores) >= 3
    assert set(np.unique(found.ids)) - {0} == set(range(1, len(found.scores) + 1))
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert min(found.scores) >= TINY_MIN_SCORE and max(found.scores) <= 0.7311


def test_a_frame_does_not_depend_on_those_beside_it(segmenter: EntitySegmenter) -> None:
    together = segmenter.segment(frames(2, 0, 1))
    for number, found in zip((2, 0, 1), together, strict=True):
        (alone,) = segmenter.segment(frames(number))
        assert np.array_equal(found.ids, alone.ids) and found.scores == alone.scores
    assert not np.array_equal(together[0].ids, together[1].ids)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (200, 9), (37, 53)])
def test_frames_of_any_shape_pass(segmenter: EntitySegmenter, shape: tuple[int, int]) -> None:
    frame = picture(height=shape[0], width=shape[1])
    (found,) = segmenter.segment(frame[None])
    assert found.ids.shape == shape


def test_black_frames_pass(segmenter: EntitySegmenter) -> None:
    (found,) = segmenter.segment(np.zeros((1, 48, 72, 3), np.uint8))
    assert found.ids.max() == len(found.scores)


def test_no_entity_is_an_empty_picture(folder: Path) -> None:
    (found,) = load(folder, min_score=0.99).segment(frames(0))
    assert not found.ids.any() and found.ids.shape == (70, 101) and found.scores == ()


def test_limits_keep_the_surest_and_the_large_ones(folder: Path) -> None:
    (every,) = load(folder, min_area=0.0).segment(frames(0))
    (two,) = load(folder, min_area=0.0, most_entities=2).segment(frames(0))
    assert two.scores == every.scores[:2]
    assert np.array_equal(two.ids, np.where(every.ids <= 2, every.ids, 0))
    (large,) = load(folder, min_area=0.05).segment(frames(0))
    assert 0 < len(large.scores) < len(every.scores)
    assert np.bincount(large.ids.ravel())[1:].min() >= 0.05 * 70 * 101


def test_predictions_are_those_of_transformers() -> None:
    network = make_tiny_mask2former()
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = predict_whole(network, pixels), network(pixels)
    assert torch.equal(found.class_logits, expected.class_queries_logits[0])
    assert torch.equal(found.mask_logits, expected.masks_queries_logits)


def test_a_half_precision_backbone_is_near(folder: Path) -> None:
    (exact,) = load(folder).segment(frames(0))
    (near,) = load(folder, dtype="bf16").segment(frames(0))
    assert not np.array_equal(near.ids, exact.ids) or near.scores != exact.scores
    assert abs(len(near.scores) - len(exact.scores)) <= 3
    assert near.scores[0] == pytest.approx(exact.scores[0], abs=0.05)


def test_masks_are_cut_to_the_view_and_resized_without_a_shift() -> None:
    logits = torch.full((2, 8, 8), -4.0)
    logits[0, :, :2] = 4.0  # the left half of a view of 32x16 pixels in an input of 32x32 ...
    logits[1, :, 4:] = 4.0  # ... and its padding
    box = CropBox(top=3, left=5, height=64, width=40)
    masks = mask_probabilities(logits, padded=(32, 32), size=(32, 16), target=box)
    assert masks.shape == (2, 64, 40)
    assert torch.equal(masks[0, 7] > 0.5, torch.arange(40) < 20)
    assert masks[0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(-4)))
    # Bilinear: the padding reaches two pixels of the input into the view, no further.
    assert not (masks[1, :, :35] > 0.5).any()


def test_weights_that_give_no_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    _copy(folder, tmp_path, {"class_predictor.bias": torch.tensor([math.nan, 0.0])})
    with pytest.raises(DataError, match="entity scores: expected numbers, got none in fp32"):
        load(tmp_path).segment(frames(0))


def test_missing_weights_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    _copy(folder, tmp_path, {"class_predictor.bias": None})
    with pytest.raises(ValueError, match=r"entities.weights: cannot load .* class_predictor.bias"):
        load(tmp_path)


def test_left_over_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    _copy(folder, tmp_path, {"model.extra": torch.ones(2)})
    with pytest.raises(
        ValueError, match=r"1 tensors do not fit .* model.extra; take a model_final"
    ):
        load(tmp_path)


def test_weights_of_another_cropformer_are_refused(folder: Path, tmp_path: Path) -> None:
    _copy(folder, tmp_path, {})
    save_file({"layers.0.linear1.bias": torch.ones(64)}, tmp_path / "cropformer.safetensors")
    with pytest.raises(ValueError, match=r"entities\.weights: cannot load the folder"):
        load(tmp_path)


def test_no_weights_say_where_they_are_to_be_had() -> None:
    with pytest.raises(ValueError, match=r"clips\.segment\.weights: no folder .*Adobe_EntitySeg"):
        EntitySegmenter.load(
            replace(SETTINGS, weights="/nowhere/at/all"), device=CPU, section="clips.segment"
        )


def test_facts_name_the_weights(segmenter: EntitySegmenter, folder: Path) -> None:
    assert segmenter.facts.backend == "model"
    assert segmenter.facts.license == "none: random weights"
    assert segmenter.facts.version.startswith("transformers ")
    facts = load(folder).facts
    assert facts.model == "mask2former" and len(facts.revision) == 12


def test_weights_without_a_word_on_them_point_to_their_card(folder: Path, tmp_path: Path) -> None:
    _copy(folder, tmp_path, {})
    (tmp_path / "entities.json").unlink()
    assert load(tmp_path).facts.license == "see the model card"


def test_views_run_in_smaller_pieces_with_the_same_result(segmenter: EntitySegmenter) -> None:
    (whole,) = segmenter.segment(frames(0))
    halved = 0
    while segmenter.pieces.shrink():
        halved += 1
        (parts,) = segmenter.segment(frames(0))
        assert (parts.ids != whole.ids).sum() <= 2
        assert parts.scores == pytest.approx(whole.scores, abs=1e-5)
    is_cropformer = segmenter.facts.model.startswith("cropformer")
    assert halved == (2 if is_cropformer else 0)  # 5 views, 2, 1
    segmenter.pieces.restore()
    (again,) = segmenter.segment(frames(0))
    assert np.array_equal(again.ids, whole.ids)


def test_a_network_of_several_classes_gives_entities_of_any_class(folder: Path) -> None:
    one = make_tiny_mask2former()
    two = make_tiny_mask2former()
    # The class twice, each with half of its probability.
    two.class_predictor = torch.nn.Linear(32, 3)
    with torch.no_grad():
        for into, values in (
            (two.class_predictor.weight, one.class_predictor.weight),
            (two.class_predictor.bias, one.class_predictor.bias),
        ):
            into.copy_(values[[0, 0, 1]])
        two.class_predictor.bias[:2] -= math.log(2)
    facts = load(folder).facts
    found = [
        EntitySegmenter(network, settings=SETTINGS, facts=facts, device=CPU).segment(frames(0))[0]
        for network in (one, two)
    ]
    assert np.array_equal(found[0].ids, found[1].ids)
    assert found[0].scores == pytest.approx(found[1].scores, abs=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("weights", "", "a folder or a hub id"),
        ("min_score", 1.5, r"0\.\.1"),
        ("min_score", -0.1, r"0\.\.1"),
        ("min_area", 1.0, "0 or more, and below 1"),
        ("most_entities", 0, r"None or 1\.\.65535"),
        ("most_entities", 70000, r"None or 1\.\.65535"),
        ("short_side", 31, "32 or more"),
        ("long_side", 95, "short_side or more"),
        ("views_per_pass", 0, "1 or more"),
    ],
)
def test_values_that_cannot_work_are_named(field: str, value: object, expected: str) -> None:
    check_mask2former(SETTINGS, section="segment")
    with pytest.raises(DataError, match=rf"segment\.{field}: expected {expected}.*, got {value!r}"):
        check_mask2former(replace(SETTINGS, **{field: value}), section="segment")


def _copy(folder: Path, into: Path, changes: dict[str, torch.Tensor | None]) -> None:
    weights: dict[str, torch.Tensor | None] = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, into / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "entities.json"):
        (into / name).write_text((folder / name).read_text())
