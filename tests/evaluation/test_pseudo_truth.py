"""Labels of the pipeline's models (small, random weights) as truths of videos."""

import json

import numpy as np
import pytest
import torch

from data_loaders.panda_dense.classical_entities import ClassicalSegmenter
from data_loaders.panda_dense.classical_propagation import propagate_classically
from data_loaders.panda_dense.depth import DepthSettings
from data_loaders.panda_dense.depth_anything import DepthAnything, DepthAnythingSettings
from data_loaders.panda_dense.depthcrafter import DepthCrafter, DepthCrafterSettings
from data_loaders.panda_dense.mask2former import Mask2FormerSettings
from data_loaders.panda_dense.mask_cleaning import clean_masks
from data_loaders.panda_dense.models import Pieces
from data_loaders.panda_dense.propagate import PropagateSettings
from data_loaders.panda_dense.sam2_grid import Sam2GridSettings
from data_loaders.panda_dense.sam2_video import Sam2Settings
from data_loaders.panda_dense.segment import SegmentSettings
from data_loaders.schema import DataError
from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.measure import UnusableError
from sat_udpdiff.evaluation.pseudo_truth import (
    DepthTruth,
    EntityTruth,
    PipelineDepth,
    PipelineEntities,
    StoredTruth,
    in_pieces,
    rgb_digest,
)
from sat_udpdiff.evaluation.truth_measures import DepthAgainstTruth, SegmentationAgainstTruth
from tests.data_loaders.panda_dense.tiny_depth import (
    SMALL_DEPTH_ANYTHING,
    SMALL_DEPTHCRAFTER,
    save_tiny_depth_anything,
    save_tiny_depthcrafter,
)
from tests.data_loaders.panda_dense.tiny_entities import (
    TINY_LONG_SIDE,
    TINY_MIN_SCORE,
    TINY_SHORT_SIDE,
    save_tiny_mask2former,
)
from tests.data_loaders.panda_dense.tiny_sam2 import save_tiny_sam2_video

CPU = torch.device("cpu")
CLIP = make_clip(0, seed=0, config=WorldConfig(frames=5, height=64, width=96))
RGB = CLIP.rgb
CLASSICAL = SegmentSettings(backend="classical"), PropagateSettings(backend="classical")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_tiny_depth_anything(folder / "depth_anything")
    save_tiny_depthcrafter(folder / "depthcrafter")
    save_tiny_mask2former(folder / "entities")
    save_tiny_sam2_video(folder / "sam2")
    return folder


def depth_anything(weights) -> DepthAnythingSettings:
    return DepthAnythingSettings(weights=str(weights / "depth_anything"), **SMALL_DEPTH_ANYTHING)


def entity_models(weights) -> tuple[SegmentSettings, PropagateSettings]:
    segment = SegmentSettings(
        entityseg=Mask2FormerSettings(
            weights=str(weights / "entities"),
            min_score=TINY_MIN_SCORE,
            short_side=TINY_SHORT_SIDE,
            long_side=TINY_LONG_SIDE,
        )
    )
    return segment, PropagateSettings(sam2=Sam2Settings(weights=str(weights / "sam2")))


def test_depth_is_that_of_depth_anything(weights) -> None:
    settings = depth_anything(weights)
    truth = PipelineDepth(
        DepthSettings(method="depth_anything", depth_anything=settings), device=CPU
    )
    expected = DepthAnything.load(settings, device=CPU).estimate(RGB, key="any").depth
    depth = truth.depth(RGB)
    assert isinstance(truth, DepthTruth) and depth.dtype == np.float32
    assert truth.name == "depth_anything depth_anything"
    assert (depth.min(), depth.max()) == (0, 1)
    np.testing.assert_array_equal(np.rint(depth * 65535).astype(np.uint16), expected)


def test_depth_is_that_of_depthcrafter_with_noise_by_content(weights) -> None:
    settings = DepthCrafterSettings(
        unet=str(weights / "depthcrafter" / "unet"),
        base=str(weights / "depthcrafter" / "svd"),
        **SMALL_DEPTHCRAFTER,
    )
    truth = PipelineDepth(DepthSettings(depthcrafter=settings), device=CPU)
    model = DepthCrafter.load(settings, device=CPU)
    expected = model.estimate(RGB, key=rgb_digest(RGB)[:16]).depth
    depth = truth.depth(RGB)
    np.testing.assert_array_equal(np.rint(depth * 65535).astype(np.uint16), expected)
    assert json.loads(truth.key)["models"][0]["revision"] == model.facts.revision


def test_entities_are_those_of_the_models(weights) -> None:
    truth = PipelineEntities(
        entity_models(weights)[0], propagate=entity_models(weights)[1], device=CPU
    )
    ids = truth.entities(RGB)
    assert isinstance(truth, EntityTruth)
    assert ids.dtype == np.int32 and ids.shape == RGB.shape[:3] and ids.max() > 0
    assert len(json.loads(truth.key)["models"]) == 2
    assert truth.name == "entityseg entities, sam2 sam2"
    again = PipelineEntities(
        entity_models(weights)[0], propagate=entity_models(weights)[1], device=CPU
    )
    assert again.key == truth.key
    np.testing.assert_array_equal(again.entities(RGB), ids)


def test_entities_without_weights() -> None:
    truth = PipelineEntities(CLASSICAL[0], propagate=CLASSICAL[1], device=CPU)
    first = ClassicalSegmenter().segment(RGB[:1])[0].ids
    expected = clean_masks(propagate_classically(RGB, first))
    np.testing.assert_array_equal(truth.entities(RGB), expected)
    measure = SegmentationAgainstTruth(truth)
    video = ArrayVideo(name="a", frames=RGB, ids=expected.astype(np.int32))
    assert measure.features(video)["miou"] == 1
    assert truth.name == "classical, classical" and "classical" in measure.key


def test_results_are_kept_by_content(tmp_path, weights, monkeypatch) -> None:
    settings = DepthSettings(method="depth_anything", depth_anything=depth_anything(weights))
    first = PipelineDepth(settings, device=CPU, folder=tmp_path / "truth")
    depth = first.depth(RGB)
    assert len(list((tmp_path / "truth").iterdir())) == 1

    def unexpected(*_, **__):
        raise AssertionError("estimated again")

    monkeypatch.setattr(DepthAnything, "estimate", unexpected)
    second = PipelineDepth(settings, device=CPU, folder=tmp_path / "truth")
    np.testing.assert_array_equal(second.depth(RGB), depth)
    with pytest.raises(AssertionError, match="estimated again"):
        second.depth(RGB[::-1].copy())


def test_damaged_results_are_made_again(tmp_path, caplog) -> None:
    first, then = CLASSICAL
    truth = PipelineEntities(first, propagate=then, device=CPU, folder=tmp_path)
    before = truth.entities(RGB)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(truth.entities(RGB), before)
    assert "made again" in caplog.text and kept.stat().st_size > 100


def test_a_clip_that_its_model_cannot_label_is_unusable(weights, monkeypatch) -> None:
    def fail(*_, **__):
        raise DataError("scores are not finite")

    segment, propagate = entity_models(weights)
    truth = PipelineEntities(segment, propagate=propagate, device=CPU)
    segmenter, _ = truth._loaded()
    assert segmenter is not None
    monkeypatch.setattr(segmenter, "segment", fail)
    with pytest.raises(UnusableError, match="no true entities: scores are not finite"):
        truth.entities(RGB)


def test_other_weights_have_another_key(weights, tmp_path) -> None:
    from transformers import DepthAnythingForDepthEstimation

    one = PipelineDepth(
        DepthSettings(method="depth_anything", depth_anything=depth_anything(weights)), device=CPU
    )
    model = DepthAnythingForDepthEstimation.from_pretrained(weights / "depth_anything")
    with torch.no_grad():
        model.head.conv3.bias.add_(1)
    model.save_pretrained(tmp_path / "depth_anything")
    other = PipelineDepth(
        DepthSettings(method="depth_anything", depth_anything=depth_anything(tmp_path)), device=CPU
    )
    assert DepthAgainstTruth(one).key != DepthAgainstTruth(other).key


def test_missing_weights_are_named_before_anything_runs(tmp_path, weights) -> None:
    missing = str(tmp_path / "none here")
    with pytest.raises(ValueError, match=r"depth\.depthcrafter\.unet: .*hf download"):
        PipelineDepth(DepthSettings(depthcrafter=DepthCrafterSettings(unet=missing)), device=CPU)
    anything = DepthSettings(
        method="depth_anything", depth_anything=DepthAnythingSettings(weights=missing)
    )
    with pytest.raises(ValueError, match=r"depth\.depth_anything\.weights: .*hf download"):
        PipelineDepth(anything, device=CPU)
    segment, propagate = entity_models(weights)
    with pytest.raises(ValueError, match=r"propagate\.sam2\.weights: .*hf download"):
        PipelineEntities(
            segment, propagate=PropagateSettings(sam2=Sam2Settings(weights=missing)), device=CPU
        )
    with pytest.raises(ValueError, match=r"segment\.entityseg\.weights: "):
        PipelineEntities(
            SegmentSettings(entityseg=Mask2FormerSettings(weights=missing)),
            propagate=propagate,
            device=CPU,
        )


def test_what_makes_no_labels_is_no_truth() -> None:
    with pytest.raises(ValueError, match=r"depth\.backend: expected 'model' .* got 'none'"):
        PipelineDepth(DepthSettings(backend="none"), device=CPU)
    with pytest.raises(ValueError, match=r"propagate\.backend: .* got 'synthetic'"):
        PipelineEntities(CLASSICAL[0], propagate=PropagateSettings(backend="synthetic"), device=CPU)
    points = SegmentSettings(method="sam2_grid", sam2_grid=Sam2GridSettings(reading="points"))
    with pytest.raises(DataError, match="points are prompts of SAM 2"):
        PipelineEntities(points, propagate=CLASSICAL[1], device=CPU)


def test_a_video_without_a_truth_is_unusable(weights) -> None:
    black = np.zeros((3, 64, 96, 3), np.uint8)
    settings = DepthSettings(method="depth_anything", depth_anything=depth_anything(weights))
    truth = PipelineDepth(settings, device=CPU)
    model = truth._loaded().model
    with torch.no_grad():
        model.head.conv3.weight.zero_()
    with pytest.raises(UnusableError, match="one distance everywhere"):
        truth.depth(black)
    with torch.no_grad():
        model.head.conv3.bias.fill_(float("nan"))
    with pytest.raises(UnusableError, match=r"no true depth: .* finite"):
        truth.depth(black)


def test_a_full_device_is_met_with_smaller_pieces() -> None:
    pieces = [Pieces(8), Pieces(1)]
    sizes = []

    def work(limit):
        def call():
            sizes.append(pieces[0].size)
            if pieces[0].size > limit:
                raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
            return "done"

        return call

    assert in_pieces(work(2), pieces=pieces) == "done"
    assert sizes == [8, 4, 2]
    assert pieces[0].size == 8
    with pytest.raises(UnusableError, match=r"out of GPU memory: CUDA out of memory\.$"):
        in_pieces(work(0), pieces=pieces)
    assert pieces[0].size == 8


def test_stored_truths_are_found_by_their_frames() -> None:
    assert CLIP.depth is not None and CLIP.entity_ids is not None
    video = ArrayVideo(
        name="a",
        frames=RGB,
        ids=CLIP.entity_ids.astype(np.int32),
        disparity=CLIP.depth.astype(np.float32) / np.float32(65535),
    )
    truth = StoredTruth([video])
    assert isinstance(truth, DepthTruth) and isinstance(truth, EntityTruth)
    np.testing.assert_array_equal(truth.depth(RGB.copy()), video.disparity)
    np.testing.assert_array_equal(truth.entities(RGB.copy()), video.ids)
    with pytest.raises(UnusableError, match="no truth is stored for these frames"):
        truth.depth(RGB[1:])
    assert truth.key != StoredTruth([ArrayVideo(name="a", frames=RGB, ids=video.ids)]).key
