import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from data_loaders.panda_dense import measures, motion
from data_loaders.panda_dense.measuring import Measurer, MeasureSettings, Scores, check_measures
from data_loaders.panda_dense.shot_cuts import content_scores, find_cuts
from data_loaders.schema import DataError


def texture(height, width, *, seed=0, blur=1.5):
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 90, (height, width, 3))
    return (cv2.GaussianBlur(noise, (0, 0), blur) * blur + 120).clip(0, 255).astype(np.uint8)


def pan(*, frames=9, height=96, width=144, speed=3, seed=0):
    wide = texture(height, width + frames * speed, seed=seed)
    return np.stack([wide[:, speed * t : speed * t + width] for t in range(frames)])


def plain(level, *, frames=3, height=40, width=60):
    return np.full((frames, height, width), level, np.uint8)


def test_the_working_size_is_the_mean_of_what_it_covers():
    frames = np.zeros((2, 512, 64, 3), np.uint8)
    frames[:, ::2] = 200
    assert measures.shrink(frames).shape == (2, 256, 32, 3)
    assert set(np.unique(measures.working_gray(frames))) == {100}
    small = texture(40, 60)[None]
    assert measures.shrink(small) is small


def test_sharpness_is_the_variance_of_the_laplacian():
    checks = (np.indices((40, 60)).sum(axis=0) % 2 * 100).astype(np.uint8)[None]
    # Every pixel differs from its four neighbours by 100.
    assert measures.sharpness(checks) == pytest.approx(400.0**2)
    assert measures.sharpness(plain(90)) == 0
    gray = measures.working_gray(texture(200, 300)[None])
    blurred = cv2.GaussianBlur(gray[0], (0, 0), 3)[None]
    assert measures.sharpness(blurred) < 0.05 * measures.sharpness(gray)


def test_sharpness_is_that_of_most_frames():
    sharp = measures.working_gray(texture(64, 96)[None])[0]
    soft = cv2.GaussianBlur(sharp, (0, 0), 3)
    one_bad = measures.sharpness(np.stack([sharp, soft, sharp]))
    assert one_bad == pytest.approx(measures.sharpness(sharp[None]))


def test_exposure():
    gray = plain(0)
    gray[:, :10] = 255  # a quarter
    gray[:, 10:20] = 102
    assert measures.exposure(gray) == pytest.approx((0.5, 0.25, (255 + 102) / 4 / 255))


def test_black_frames():
    gray = plain(100, frames=5)
    gray[1:3] = 24
    gray[2, 0] = 255  # 2.5 % of it
    assert measures.black_frames(gray) == pytest.approx(1 / 5)
    assert measures.black_frames(plain(25)) == 0


def test_letterbox_is_what_stays_black_at_the_edges():
    rng = np.random.default_rng(0)
    gray = rng.integers(60, 200, (4, 100, 120), dtype=np.uint8)
    assert measures.letterbox(gray) == 0
    gray[:, :10] = gray[:, 95:] = 16
    assert measures.letterbox(gray) == pytest.approx(0.15)
    gray[:, :, :30] = 3
    assert measures.letterbox(gray) == pytest.approx(1 - 0.85 * 0.75)
    gray[:, 40:50, 50:80] = 0  # within the picture
    gray[1, 20:90, :30] = 90  # lit once
    assert measures.letterbox(gray) == pytest.approx(0.15)
    gray[:, 2, 60:62] = 255  # a logo within a bar
    assert measures.letterbox(gray) == pytest.approx(0.15)
    assert measures.letterbox(plain(5)) == 1


def test_still_steps():
    frames = measures.working_gray(pan(frames=5))
    assert measures.still_steps(frames) == 0
    stopped = np.concatenate([frames, frames[-1:], frames[-1:]])
    noisy = stopped.copy()
    noisy[-1, ::4, ::4] += 1
    assert measures.still_steps(noisy) == pytest.approx(2 / 6)
    assert measures.still_steps(frames[:1]) == 1


def cuts_of(frames):
    settings = MeasureSettings()
    scores = content_scores(frames, fps=8.0)
    return find_cuts(scores, ratio=settings.cut_ratio, least=settings.cut_content)


def shot(*, frames, seed, speed):
    """A coarse picture of one hue that moves: like a scene, and unlike noise."""
    wide = texture(96, 144 + frames * speed, seed=seed, blur=8) // 2
    wide[..., seed % 3] += 100
    return np.stack([wide[:, speed * t : speed * t + 144] for t in range(frames)])


@pytest.mark.parametrize("at", [1, 2, 3, 8, 13, 14, 15])
def test_planted_cuts_are_found_at_their_frame(at):
    one, other = shot(frames=at, seed=1, speed=3), shot(frames=16 - at, seed=2, speed=5)
    assert cuts_of(np.concatenate([one, other])) == (at,)


def test_fast_motion_and_slow_fades_are_no_cuts():
    assert cuts_of(pan(frames=16, speed=25)) == ()
    whole = shot(frames=16, seed=1, speed=3)
    fade = np.stack([cv2.convertScaleAbs(f, alpha=1 - t / 16) for t, f in enumerate(whole)])
    assert cuts_of(fade) == ()
    assert cuts_of(whole[:1]) == ()


def test_several_cuts():
    shots = [shot(frames=5, seed=i, speed=1 + i) for i in range(4)]
    assert cuts_of(np.concatenate(shots)) == (5, 10, 15)


def test_the_rule_of_cuts():
    steady = np.full(6, 30.0)
    assert find_cuts(steady, ratio=2.0, least=15.0) == ()
    assert find_cuts(np.array([30.0, 3, 3, 3, 30]), ratio=2.0, least=15.0) == (1, 5)
    assert find_cuts(np.array([14.0, 3, 3, 3, 14]), ratio=2.0, least=15.0) == ()
    # A step is compared with two on each side alone.
    assert find_cuts(np.array([90.0, 90, 90, 90, 3, 3, 14, 3, 3]), ratio=2.0, least=10.0) == (7,)
    assert find_cuts(np.array([16.0]), ratio=2.0, least=15.0) == (1,)
    assert find_cuts(np.array([]), ratio=2.0, least=15.0) == ()


def test_motion_of_a_pan_is_its_speed_over_the_diagonal():
    speed = 3
    diagonal = np.hypot(96, 144)
    measured = motion.measure_motion(pan(speed=speed), flow=motion.dis_flow, rows=256)
    assert measured.mean == pytest.approx(speed / diagonal, rel=0.06)
    assert measured.peak == pytest.approx(speed / diagonal, rel=0.15)
    assert motion.measure_motion(pan(frames=1), flow=motion.dis_flow, rows=256) == motion.Motion(
        mean=0.0, peak=0.0
    )


def test_motion_does_not_depend_on_the_size_of_the_picture():
    frames = pan(height=192, width=288, speed=6)
    large = motion.measure_motion(frames, flow=motion.dis_flow, rows=192)
    small = motion.measure_motion(frames, flow=motion.dis_flow, rows=96)
    assert small.mean == pytest.approx(large.mean, rel=0.05)


def test_something_small_that_moves_counts_in_the_peak():
    still = np.repeat(texture(96, 144)[None], 9, axis=0)
    for t in range(9):
        still[t, 30:54, 20 + 4 * t : 44 + 4 * t] = texture(24, 24, seed=3)
    measured = motion.measure_motion(still, flow=motion.dis_flow, rows=256)
    diagonal = np.hypot(96, 144)
    assert measured.mean < 0.6 / diagonal and measured.peak > 2.5 / diagonal


class ShiftedFlow(torch.nn.Module):
    """In RAFT's place: the mean of both pictures, to see which were given, and how large."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, one, other):
        self.batches.append(tuple(one.shape))
        assert one.shape == other.shape and not one.shape[2] % 8 and not one.shape[3] % 8
        flow = torch.stack([one.mean(dim=1), other.mean(dim=1)], dim=1)
        return [torch.zeros_like(flow), flow]


def test_raft_gets_pairs_in_batches_of_a_size_it_takes():
    model = ShiftedFlow()
    flow = motion.RaftFlow(model, device=torch.device("cpu"))
    frames = np.stack([np.full((100, 150, 3), 10 * t, np.uint8) for t in range(20)])
    found = np.stack(list(flow(frames)))
    assert found.shape == (19, 100, 150, 2)
    expected = np.arange(20) * 10 / 127.5 - 1
    np.testing.assert_allclose(found[:, 50, 70, 0], expected[:-1], atol=1e-6)
    np.testing.assert_allclose(found[:, 50, 70, 1], expected[1:], atol=1e-6)
    assert model.batches == [(16, 3, 128, 152), (3, 3, 128, 152)]
    assert [flow.pieces.shrink() for _ in range(5)] == [True, True, True, True, False]
    np.testing.assert_array_equal(np.stack(list(flow(frames))), found)
    assert model.batches[-1] == (1, 3, 128, 152)


def test_raft_needs_a_working_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match="expected torchvision of the same build as torch"):
        motion.load_raft("x.pth", size="small", device=torch.device("cpu"))


def test_raft_weights_that_do_not_fit_are_named(monkeypatch, tmp_path):
    made = SimpleNamespace(raft_small=lambda: torch.nn.Linear(2, 2), raft_large=None)
    fake = SimpleNamespace(models=SimpleNamespace(optical_flow=made))
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    monkeypatch.setitem(sys.modules, "torchvision.models", fake.models)
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", made)
    for content in ({"weight": torch.zeros(3, 3)}, None):
        path = tmp_path / "w.pth"
        path.write_bytes(b"no weights") if content is None else torch.save(content, path)
        with pytest.raises(DataError, match=r"raft_weights .*w\.pth: expected the state dict"):
            motion.load_raft(str(path), size="small", device=torch.device("cpu"))


def test_all_scores_of_a_clip_and_back_from_a_row():
    measurer = Measurer(MeasureSettings(), device=torch.device("cpu"))
    frames = pan(frames=6)
    scores = measurer.measure(frames, fps=8.0)
    assert scores.text is None and scores.aesthetic is None and scores.cuts == 0
    assert scores.motion == pytest.approx(3 / np.hypot(96, 144), rel=0.06)
    assert scores == measurer.measure(frames.copy(), fps=8.0)
    assert Scores.from_row({**scores.as_row(), "another": 1.0}) == scores
    assert measurer.facts.backend == "measured" and not measurer.pieces


@pytest.mark.parametrize("level", [0, 255])
def test_plain_clips_have_scores(level):
    frames = np.full((5, 64, 96, 3), level, np.uint8)
    scores = Measurer(MeasureSettings(), device=torch.device("cpu")).measure(frames, fps=8.0)
    assert all(np.isfinite(value) for value in scores.as_row().values() if value is not None)
    assert (scores.still, scores.sharpness) == (1.0, 0.0) and scores.motion < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion_backend": "raft"}, r"measure\.raft_weights: expected a file"),
        ({"motion_rows": 8}, r"measure\.motion_rows: expected a number >= 16, got 8"),
        ({"text_frames": 0}, r"measure\.text_frames"),
        ({"cut_ratio": 0.5}, r"measure\.cut_ratio"),
        ({"cut_content": float("nan")}, r"measure\.cut_content"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(DataError, match=message):
        check_measures(MeasureSettings(**change), section="measure")


@pytest.mark.shared
def test_real_clips_have_no_cuts_and_planted_ones_are_found(shared_clips):
    from data_loaders.panda_dense.clip_reader import read_clip
    from data_loaders.panda_dense.sidecars import ClipSource

    clips = []
    for path in sorted(shared_clips.glob("*.mp4")):
        source = ClipSource(key="k", dataset="d", video_id="v", path=str(path))
        clips.append(read_clip(source, num_frames=12, fps=8.0, height=128, width=192).rgb)
    for i, clip in enumerate(clips):
        assert cuts_of(clip) == ()
        for at in (1, 6, 11):
            other = clips[(i + 1) % len(clips)]
            assert cuts_of(np.concatenate([clip[:at], other[at:]])) == (at,)
