from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch

from data_loaders.panda_dense.clip_reader import SourceFacts
from data_loaders.panda_dense.measuring import Measurer, MeasureSettings, Scores
from data_loaders.panda_dense.sidecars import ClipSource
from data_loaders.panda_dense.thresholds import KEEP, REASONS, FilterSettings, check_filter, verdict
from data_loaders.schema import DataError

GOOD = Scores(
    sharpness=300.0,
    dark=0.01,
    bright=0.01,
    luma=0.5,
    black_frames=0.0,
    letterbox=0.0,
    cuts=0,
    motion=0.01,
    motion_peak=0.03,
    still=0.0,
    text=0.0,
    aesthetic=5.5,
)
SOURCE = ClipSource(
    key="k",
    dataset="d",
    video_id="v",
    start=10.0,
    end=20.0,
    matching_score=0.5,
    desirable="desirable",
    shots=1,
)
FACTS = SourceFacts(
    num_bytes=1, sha256="", fps=24.0, num_frames=240, seconds=10.0, height=360, width=640
)
CASES = [
    ({"desirable": "1_still_foreground_image"}, "undesirable", "1_still_foreground_image"),
    ({"shots": 3}, "several shots", "3 shots, above 1"),
    ({"matching_score": 0.4}, "low matching score", "matching_score 0.4, below 0.43"),
    ({"fps": 5.0}, "low frame rate", "fps 5, below 8"),
    ({"height": 240}, "small picture", "rows 240, below 360"),
    ({"cuts": 1}, "shot cut", "cuts 1, above 0"),
    ({"black_frames": 0.1}, "black frames", "black_frames 0.1, above 0.05"),
    ({"dark": 0.7}, "too dark", "dark 0.7, above 0.6"),
    ({"luma": 0.02}, "too dark", "luma 0.02, below 0.05"),
    ({"bright": 0.9}, "too bright", "bright 0.9, above 0.5"),
    ({"letterbox": 0.24}, "letterbox", "letterbox 0.24, above 0.05"),
    ({"sharpness": 10.0}, "blurred", "sharpness 10, below 20"),
    ({"still": 0.9}, "still picture", "still 0.9, above 0.5"),
    ({"motion": 0.0001}, "little motion", "motion 0.0001, below 0.0005"),
    ({"motion": 0.2}, "much motion", "motion 0.2, above 0.08"),
    ({"text": 0.1}, "text overlay", "text 0.1, above 0.02"),
    ({"aesthetic": 3.0}, "poor looks", "aesthetic 3, below 4"),
]


def changed(change):
    """Scores, source and facts, one of them with the change."""
    parts = []
    for part in (GOOD, SOURCE, FACTS):
        own = {name: value for name, value in change.items() if name in _names(part)}
        parts.append(replace(part, **own))
    return parts


def _names(part):
    return {field.name for field in fields(part)}


def test_a_good_clip_is_kept():
    assert verdict(GOOD, SOURCE, FilterSettings(), facts=FACTS) == KEEP == ("", "")


@pytest.mark.parametrize(("change", "reason", "detail"), CASES)
def test_each_reason(change, reason, detail):
    scores, source, facts = changed(change)
    assert verdict(scores, source, FilterSettings(), facts=facts) == (reason, detail)
    assert reason in REASONS


@pytest.mark.parametrize(("change", "reason", "detail"), CASES)
def test_none_switches_a_threshold_off(change, reason, detail):
    scores, source, facts = changed(change)
    off = FilterSettings(**{field.name: None for field in fields(FilterSettings)})
    assert verdict(scores, source, off, facts=facts) == KEEP


def test_thresholds_that_are_off_by_default():
    long = FilterSettings(max_seconds=9.5)
    assert verdict(GOOD, SOURCE, long) == ("long clip", "10 s, above 9.5")
    assert verdict(GOOD, replace(SOURCE, end=None), long) == KEEP
    peak = FilterSettings(min_motion_peak=0.05)
    assert verdict(GOOD, SOURCE, peak) == ("little motion", "motion_peak 0.03, below 0.05")


def test_what_is_unknown_is_not_held_against_a_clip():
    source = ClipSource(key="k", dataset="d", video_id="v")
    scores = replace(GOOD, text=None, aesthetic=None)
    assert verdict(scores, source, FilterSettings()) == KEEP


def test_the_listing_alone_may_be_enough():
    source = replace(SOURCE, shots=2)
    assert verdict(None, source, FilterSettings()).reason == "several shots"
    assert verdict(None, SOURCE, FilterSettings()) == KEEP


def test_limits_themselves_are_kept():
    scores = replace(GOOD, letterbox=0.05, motion=0.0005, aesthetic=4.0, black_frames=0.05)
    assert verdict(scores, SOURCE, FilterSettings(), facts=replace(FACTS, fps=8.0)) == KEEP


def test_every_reason_has_a_case():
    assert {reason for _, reason, _ in CASES} | {"long clip"} == set(REASONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_dark": -0.1}, r"filter\.max_dark: expected a number >= 0, got -0\.1"),
        ({"max_cuts": -1}, r"filter\.max_cuts"),
        ({"min_motion": float("nan")}, r"filter\.min_motion"),
        ({"desirable": ()}, r"filter\.desirable: expected at least one word"),
        ({"min_motion": 0.1}, r"filter\.max_motion: expected more than min_motion"),
    ],
)
def test_settings_are_checked(change, message):
    check_filter(FilterSettings(), section="filter")
    with pytest.raises(DataError, match=message):
        check_filter(FilterSettings(**change), section="filter")


def scene(*, frames=9, speed=2):
    """A coarse coloured picture, panned."""
    noise = np.random.default_rng(0).normal(0, 400, (120, 180 + frames * speed, 3))
    wide = (cv2.GaussianBlur(noise, (0, 0), 2) + 120).clip(0, 255).astype(np.uint8)
    return np.stack([wide[:, speed * t : speed * t + 180] for t in range(frames)])


def letterboxed(frames):
    frames = frames.copy()
    frames[:, :14] = frames[:, -14:] = 16
    return frames


def overexposed(frames):
    frames = frames.copy()
    frames[:, :70] = 255
    return frames


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda frames: frames, ""),
        (letterboxed, "letterbox"),
        (lambda frames: np.repeat(frames[:1], 9, axis=0), "still picture"),
        (lambda frames: np.stack([cv2.GaussianBlur(f, (0, 0), 9) for f in frames]), "blurred"),
        (lambda frames: np.concatenate([frames[:8], frames[8:, ::-1] // 3]), "shot cut"),
        (lambda frames: np.concatenate([frames[:8], frames[:1] * 0]), "shot cut"),
        (lambda frames: frames * 0 + 8, "black frames"),
        (lambda frames: frames // 16 + 2, "black frames"),
        (overexposed, "too bright"),
    ],
)
def test_spoilt_clips_are_left_out_for_their_fault(spoil, reason):
    measurer = Measurer(MeasureSettings(), device=torch.device("cpu"))
    scores = measurer.measure(spoil(scene()), fps=8.0)
    assert verdict(scores, SOURCE, FilterSettings(), facts=FACTS).reason == reason
