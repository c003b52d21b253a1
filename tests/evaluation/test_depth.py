"""delta1 and RMSE: by hand, against the published program's formulas, and known sensitivities."""

import inspect

import numpy as np
import pytest
import torch

from sat_udpdiff.colormaps import depth as colormap
from sat_udpdiff.evaluation.depth import depth_errors, error_histogram


def clip(*frames):
    return np.array(frames, np.float32)


def test_two_by_two_by_hand() -> None:
    truth = clip([[0.4, 0.4], [0.8, 0.8]])
    guess = clip([[0.4, 0.55], [0.9, 0.4]])  # ratios 1, 1.375, 1.125, 2
    errors = depth_errors(truth, guess)
    assert errors.delta1 == 0.5
    assert errors.rmse == pytest.approx(np.sqrt((0.15**2 + 0.1**2 + 0.4**2) / 4))
    assert (errors.num_frames, errors.num_dropped) == (1, 0)


def test_a_ratio_of_just_1_25_does_not_count() -> None:
    assert depth_errors(clip([[0.5, 0.5]]), clip([[0.625, 0.62]])).delta1 == 0.5


def test_frames_count_alike_however_many_pixels_they_have() -> None:
    truth = clip([[0.5, 0.5, 0.5, 0.5]], [[0.5, np.nan, np.nan, np.nan]])
    guess = clip([[0.5, 0.5, 0.5, 0.5]], [[0.9, 0.5, 0.5, 0.5]])
    errors = depth_errors(truth, guess)
    assert errors.delta1 == 0.5
    assert errors.rmse == pytest.approx(0.2)


def test_frames_without_valid_pixels_are_dropped_and_counted() -> None:
    truth = clip([[0.5, 0.5]], [[np.nan, np.nan]], [[0.5, 0.5]])
    guess = clip([[0.5, 0.5]], [[np.nan, 0.1]], [[0.9, 0.9]])
    errors = depth_errors(truth, guess)
    assert (errors.num_frames, errors.num_dropped) == (2, 1)
    assert errors.delta1 == 0.5


def test_both_sides_are_clamped() -> None:
    errors = depth_errors(clip([[0.0, 0.0011]]), clip([[-1.0, 0.0]]))
    assert errors.delta1 == 1.0
    assert errors.rmse == pytest.approx(np.sqrt(1e-8 / 2), rel=1e-3)


def test_alignment_undoes_scale_and_shift() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.2, 0.9, (3, 8, 9))
    shifted = depth_errors(truth, 0.5 * truth + 0.2, align="lstsq")
    assert (shifted.scale, shifted.shift) == (pytest.approx(2), pytest.approx(-0.4))
    assert shifted.rmse == pytest.approx(0, abs=1e-12)
    scaled = depth_errors(truth, truth / 3, align="median")
    assert (scaled.scale, scaled.shift) == (pytest.approx(3), 0)
    assert scaled.rmse == pytest.approx(0, abs=1e-12)


def test_alignment_is_of_the_clip_and_not_of_frames() -> None:
    truth = np.stack([np.linspace(0.2, 0.8, 12).reshape(3, 4)] * 2)
    guess = truth.copy()
    guess[1] += 0.1
    assert depth_errors(truth, guess, align="lstsq").rmse > 0.03


def test_a_guess_of_one_value_becomes_the_mean_of_the_truth() -> None:
    truth = clip([[0.2, 0.4], [0.6, 0.8]])
    errors = depth_errors(truth, np.full_like(truth, 0.3), align="lstsq")
    assert errors.scale == 0
    assert errors.rmse == pytest.approx(truth.std(), rel=1e-6)


def published(truth, guess, *, align, valid):
    """metric.py and the domain `disp` of eval.py, written from their formulas in torch."""
    guess = np.clip(guess, 1e-3, None)
    if align == "lstsq":
        columns = np.concatenate([guess[valid][:, None], np.ones((valid.sum(), 1))], axis=1)
        scale, shift = np.linalg.lstsq(columns, truth[valid], rcond=None)[0]
        guess = np.clip(scale * guess + shift, 1e-3, None)
    kept = valid.sum((1, 2)) > 0
    output, target, mask = (torch.from_numpy(x[kept]) for x in (guess, truth, valid))
    count = mask.sum((-1, -2))
    difference = (output - target).masked_fill(~mask, 0)
    rmse = torch.sqrt(torch.sum(difference**2, (-1, -2)) / count).mean()
    below = torch.maximum(output / target, target / output) < 1.25
    delta1 = (torch.sum((below & mask).double(), (-1, -2)) / count).mean()
    return delta1.item(), rmse.item()


@pytest.mark.parametrize("align", ["none", "lstsq"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_published_formulas(align, seed) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.beta(1.2, 1.6, (6, 30, 40))
    guess = np.clip(0.7 * truth + 0.1 + rng.normal(0, 0.1, truth.shape), 0, 1)
    valid = (truth > 1e-3) & (rng.random(truth.shape) < 0.7)
    valid[seed] = False
    expected = published(truth, guess, align=align, valid=valid)
    errors = depth_errors(truth, guess, align=align, valid=valid)
    assert (errors.delta1, errors.rmse) == pytest.approx(expected, abs=2e-9)
    assert errors.num_dropped == 1


SENSITIVITIES = {
    "quantised": (0.9974, 0.0011),
    "noise .05": (0.795, 0.049),
    "noise .1": (0.592, 0.096),
    "shift +.1": (0.513, 0.099),
    "inverted": (0.131, 0.527),
}


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_known_sensitivities(name) -> None:
    """Measured for truths drawn from Beta(1.2, 1.6); guesses stay in 0..1."""
    rng = np.random.default_rng(0)
    truth = rng.beta(1.2, 1.6, (10, 200, 300)).astype(np.float32)
    noise = rng.normal(size=truth.shape).astype(np.float32)
    guess = {
        "quantised": lambda: colormap.decode(colormap.encode(truth)),
        "noise .05": lambda: truth + 0.05 * noise,
        "noise .1": lambda: truth + 0.1 * noise,
        "shift +.1": lambda: truth + 0.1,
        "inverted": lambda: 1 - truth,
    }[name]()
    errors = depth_errors(truth, guess.clip(0, 1).astype(np.float32))
    delta1, rmse = SENSITIVITIES[name]
    assert errors.delta1 == pytest.approx(delta1, abs=0.0025)
    assert errors.rmse == pytest.approx(rmse, abs=0.001)


def test_medians_of_a_clip_that_is_mostly_sky() -> None:
    truth = clip([[0.0, 0.0, 0.0, 0.8]])
    errors = depth_errors(truth, truth, align="median")
    assert (errors.scale, errors.delta1) == (1, 1)


def test_histogram_of_errors() -> None:
    truth = clip([[0.2, 0.2, np.nan, 0.9]])
    guess = clip([[0.45, 0.1, 0.5, 0.9]])
    shares = error_histogram(truth, guess, bins=4)  # edges -1, -.5, 0, .5, 1
    assert shares.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 0])


def test_what_cannot_be_scored() -> None:
    truth = clip([[0.5, 0.5]])
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1, 2\) and \(2, 1, 2\)"):
        inspect.unwrap(depth_errors)(truth, clip([[0.5, 0.5]], [[0.5, 0.5]]))
    with pytest.raises(ValueError, match="the truth has none"):
        depth_errors(truth * np.nan, truth)
    with pytest.raises(ValueError, match="got 1 that are not"):
        depth_errors(truth, clip([[0.5, np.inf]]))
    with pytest.raises(ValueError, match="align: expected one of none, median, lstsq, got 'mean'"):
        inspect.unwrap(depth_errors)(truth, truth, align="mean")
