"""The shipped judge of the tiny world, its training, and the measures that look through it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_loaders.synthetic import HELD_OUT_START
from sat_udpdiff.config_io import load_config
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.depth import LEAST, depth_errors
from sat_udpdiff.evaluation.fvd_measure import FvdSettings
from sat_udpdiff.evaluation.measure import Measure, UnusableError
from sat_udpdiff.evaluation.segmentation import adjusted_rand_index
from sat_udpdiff.tiny import make_judge, measure_judge
from sat_udpdiff.tiny.clips import TinyWorld
from sat_udpdiff.tiny.judge import FEATURES, WEIGHTS, Judge, component_axes
from sat_udpdiff.tiny.judge_network import KINDS
from sat_udpdiff.tiny.judged import Eyes, distance, single_measures

FEW = FvdSettings(min_videos=2)
ROOT = Path(__file__).parents[2]
WORLD = TinyWorld()
CLIPS = [WORLD.clip(HELD_OUT_START + 1000 + number) for number in range(8)]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def codec() -> VideoCodec:
    config = load_config([str(ROOT / "configs" / "tiny.yaml")], [])
    return VideoCodec.load(config.codec, device="cpu")


def videos(pixels: list[np.ndarray]) -> list[ArrayVideo]:
    return [ArrayVideo(name=str(number), frames=rgb) for number, rgb in enumerate(pixels)]


def video_measures(judge: Judge) -> list[Measure]:
    eyes = Eyes(judge)
    whole = [measure for measure in single_measures(eyes) if None in measure.tasks]
    return [*whole, distance(eyes, settings=FEW)]


def score(measure: Measure, pixels: list[np.ndarray], references: list[np.ndarray]) -> float:
    of_videos, of_references = (
        {video.name: measure.features(video) for video in videos(some)}
        for some in (pixels, references)
    )
    return measure.scores(of_videos, references=of_references)[0].value


def test_it_sees_depth_and_entities_of_clips_it_was_not_trained_on(judge: Judge) -> None:
    delta1, agreement = [], []
    for clip in CLIPS:
        assert clip.depth is not None and clip.entity_ids is not None
        truth = (clip.depth / 65535.0).astype(np.float32)
        errors = depth_errors(truth, judge.depth(clip.rgb), valid=truth > LEAST)
        delta1.append(errors.delta1)
        agreement.append(
            adjusted_rand_index(clip.entity_ids.astype(np.int32), judge.entities(clip.rgb))
        )
    assert np.mean(delta1) > 0.85
    assert np.mean(agreement) > 0.93


def test_ids_are_kinds_and_depth_is_disparity_from_the_wall_on(judge: Judge) -> None:
    for clip in CLIPS:
        verdict = judge(clip.rgb)
        assert verdict.depth.min() >= 0.0 and 0.9 < verdict.depth.max() <= 1.0
        assert set(np.unique(verdict.entity_ids)) <= set(range(1, len(KINDS) + 1))
        assert (verdict.depth[verdict.entity_ids == KINDS.index("wall") + 1] == 0).all()
        lengths = np.linalg.norm(verdict.subject_features, axis=1)
        assert np.allclose(lengths[lengths > 0], 1.0)


def test_clip_features_are_spread_as_they_were_made(judge: Judge) -> None:
    rows = np.stack(
        [judge.clip_features(WORLD.clip(HELD_OUT_START + 2000 + n).rgb) for n in range(48)]
    )
    assert rows.shape[1] == FEATURES
    assert np.abs(rows.mean(0)).max() < 0.6
    assert 0.6 < rows.std(0).min() and rows.std(0).max() < 1.5


@pytest.mark.parametrize(
    ("part", "way"),
    [
        ("consistency", "flicker"),
        ("consistency", "jitter"),
        ("smoothness", "noise"),
        ("smoothness", "flicker"),
        ("smoothness", "jitter"),
    ],
)
def test_consistency_and_smoothness_fall_as_frames_part(judge: Judge, part: str, way: str) -> None:
    spoil, strengths = measure_judge.SPOILT[way]
    whole = [clip.rgb for clip in CLIPS]
    rng = np.random.default_rng(0)
    worse = [spoil(rgb, strength=strengths[1], rng=rng) for rgb in whole]
    for measure in video_measures(judge):
        if part in measure.name:
            assert score(measure, worse, []) < score(measure, whole, []) - 0.003, measure.name


@pytest.mark.parametrize("way", ["blur", "flicker", "jitter", "fade"])
def test_the_distance_from_true_clips_grows_as_clips_are_spoilt(judge: Judge, way: str) -> None:
    (distance,) = (m for m in video_measures(judge) if m.name == "tiny_fvd")
    references = [WORLD.clip(HELD_OUT_START + 3000 + number).rgb for number in range(16)]
    others = [WORLD.clip(HELD_OUT_START + 4000 + number).rgb for number in range(16)]
    spoil, strengths = measure_judge.SPOILT[way]
    rng = np.random.default_rng(0)
    worst = [spoil(rgb, strength=strengths[-1], rng=rng) for rgb in others]
    assert score(distance, worst, references) > 1.3 * score(distance, others, references)


def test_one_frame_repeated_is_consistent_and_far_from_true_clips(judge: Judge) -> None:
    # What consistency alone cannot tell.
    measures = {measure.name: measure for measure in video_measures(judge)}
    whole = [clip.rgb for clip in CLIPS]
    gray = [np.full_like(rgb, 128) for rgb in whole]
    assert score(measures["tiny_background_consistency"], gray, []) > 0.99
    assert score(measures["tiny_fvd"], gray, whole) > 5 * score(measures["tiny_fvd"], whole, whole)
    assert score(measures["tiny_subject_consistency"], gray, []) < 0.5


def test_scores_say_that_they_are_the_tiny_worlds_own(judge: Judge) -> None:
    clip = CLIPS[0]
    assert clip.depth is not None and clip.entity_ids is not None
    video = ArrayVideo(
        name="a",
        frames=clip.rgb,
        task="depth",
        disparity=(clip.depth / 65535.0).astype(np.float32),
        ids=clip.entity_ids.astype(np.int32),
    )
    names = set()
    eyes = Eyes(judge)
    for measure in (*single_measures(eyes), distance(eyes, settings=FEW)):
        features = {"a": measure.features(video), "b": measure.features(replace(video, name="b"))}
        for found in measure.scores(features, references=features):
            names.add(found.name)
            assert found.facts["comparable"] is False
    assert {"tiny_fvd", "tiny_depth_delta1", "tiny_depth_rmse", "tiny_segmentation_ari"} <= names
    assert all(name.startswith("tiny_") for name in names)


def test_a_clip_of_another_size_is_left_out_with_the_reason(judge: Judge) -> None:
    video = ArrayVideo(name="large", frames=np.zeros((9, 64, 96, 3), dtype=np.uint8))
    with pytest.raises(UnusableError, match="expected 32 x 48 px, got 64 x 96"):
        video_measures(judge)[0].features(video)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"judge\.safetensors: no such file; .*make_judge"):
        Judge.load(tmp_path)


def test_axes_leave_features_uncorrelated_with_variance_one() -> None:
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(64, 6, generator=draws, dtype=torch.float64) @ torch.randn(
        6, 10, generator=draws, dtype=torch.float64
    )
    centre, axes = component_axes(features, count=4)
    made = (features - centre) @ axes.T
    assert torch.allclose(made.T @ made / 63, torch.eye(4, dtype=torch.float64), atol=1e-9)


def test_training_learns_and_goes_on_where_it_stopped(tmp_path: Path, codec: VideoCodec) -> None:
    training = make_judge.JudgeTraining(steps=4, batch_size=1)
    step = {"training": training, "world": WORLD, "codec": codec}
    unbroken = make_judge.start(training=training, work=tmp_path)
    make_judge.train_step(unbroken, **step)
    unbroken.save()
    restored = make_judge.start(training=training, work=tmp_path)
    assert restored.step == 1
    assert make_judge.train_step(unbroken, **step) == make_judge.train_step(restored, **step)
    for name, value in unbroken.mean.items():
        assert torch.equal(value, restored.mean[name]), name


def test_labels_are_what_the_scene_says() -> None:
    index = HELD_OUT_START + 1000
    clip = WORLD.clip(index)
    kinds, shapes, motions = make_judge.kinds_of(clip, index=index, world=WORLD)
    assert clip.entity_ids is not None
    things = clip.meta.extra["num_things"]
    assert set(np.unique(kinds[clip.entity_ids == things + 1])) == {KINDS.index("wall")}
    assert set(np.unique(kinds[clip.entity_ids == things + 2])) == {KINDS.index("ground")}
    for thing in range(1, things + 1):
        mask = clip.entity_ids == thing
        (kind,) = np.unique(kinds[mask])
        assert KINDS[kind] in clip.caption_long
        assert make_judge.SHAPES[int(shapes[mask][0])] in clip.caption_long
        assert len(np.unique(motions[mask])) == 1


def test_the_shipped_numbers_are_those_of_the_shipped_weights(judge: Judge) -> None:
    quality = json.loads((WEIGHTS / "quality.json").read_text())
    for seen in ("rendered", "coded"):
        assert quality[seen]["segmentation_ari"] > 0.93
        assert quality[seen]["depth_delta1"] > 0.85
    clip = CLIPS[0].rgb
    assert np.isfinite(judge.clip_features(clip)).all()
