"""Frechet distance: the formulas of the public tools, closed forms, intervals, size bias."""

import numpy as np
import pytest
import scipy.linalg

from sat_udpdiff.evaluation.fvd import (
    COVARIANCES,
    bootstrap_distance,
    check_protocol,
    frechet_distance,
    sample_size_bias,
)
from sat_udpdiff.evaluation.fvd_plot import draw_size_bias


def draw(rows: int, dim: int, *, seed: int = 0, decay: float = 1.0) -> np.ndarray:
    """Correlated Gaussians whose variances fall off, as those of logits do."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).standard_normal((dim, dim)))[0]
    scale = np.arange(1, dim + 1) ** (-decay / 2)
    return rng.standard_normal((rows, dim)) * scale @ turn


def fvd_comparison(fake: np.ndarray, real: np.ndarray) -> float:
    """The check of StyleGAN-V's authors, universome/fvd-comparison: np.cov, root of the product."""
    sigma_fake, sigma_real = np.cov(fake, rowvar=False), np.cov(real, rowvar=False)
    root = scipy.linalg.sqrtm(sigma_fake @ sigma_real)
    shift = np.square(fake.mean(0) - real.mean(0)).sum()
    return float(np.real(shift + np.trace(sigma_fake + sigma_real - 2 * root)))


def running_sums(fake: np.ndarray, real: np.ndarray) -> float:
    """cd-fvd, and StyleGAN-V's training: sums of float32 features and of their squares over N."""
    moments = []
    for rows in (fake, real):
        rows64 = rows.astype(np.float32).astype(np.float64)
        mean = rows64.sum(0) / len(rows64)
        moments.append((mean, rows64.T @ rows64 / len(rows64) - np.outer(mean, mean)))
    (mean_fake, sigma_fake), (mean_real, sigma_real) = moments
    root = scipy.linalg.sqrtm(sigma_real @ sigma_fake)
    shift = np.square(mean_real - mean_fake).sum()
    return float(np.real(shift + np.trace(sigma_fake + sigma_real - 2 * root)))


ORACLES = {"styleganv": fvd_comparison, "cdfvd": running_sums}


@pytest.mark.parametrize("protocol", ORACLES)
@pytest.mark.parametrize(
    ("rows", "others", "dim"), [(1024, 1024, 400), (600, 1024, 400), (300, 200, 20), (50, 40, 1)]
)
def test_equal_to_the_tools_formulas(protocol, rows, others, dim):
    fake = draw(rows, dim, seed=1).astype(np.float32).astype(np.float64)
    real = 1.3 * draw(others, dim, seed=2, decay=0.8).astype(np.float32).astype(np.float64) + 0.05
    real = real.astype(np.float32).astype(np.float64)
    ours = frechet_distance(fake, references=real, covariance=COVARIANCES[protocol])
    if dim == 1:  # np.cov of one column is a number, which scipy's root does not take
        ddof = 1 if protocol == "styleganv" else 0
        spread = fake.std(ddof=ddof) - real.std(ddof=ddof)
        theirs = (fake.mean() - real.mean()) ** 2 + spread**2
    else:
        theirs = ORACLES[protocol](fake, real)
    assert ours == pytest.approx(theirs, rel=1e-6)
    # The protocols differ by more than that, so one cannot stand for the other.
    other = "cdfvd" if protocol == "styleganv" else "styleganv"
    assert ours != pytest.approx(
        frechet_distance(fake, references=real, covariance=COVARIANCES[other]), rel=1e-5
    )


@pytest.mark.parametrize("rows", [10, 1024])
@pytest.mark.parametrize("covariance", ["unbiased", "biased"])
def test_a_set_has_no_distance_from_itself_in_any_order(rows, covariance):
    features = 100.0 + 10.0 * draw(rows, 400)
    mixed = features[np.random.default_rng(3).permutation(rows)]
    other = draw(rows, 400, seed=5)
    trace = features.var(axis=0).sum()
    for same in (features, mixed):
        found = frechet_distance(features, references=same, covariance=covariance)
        assert 0.0 <= found < 1e-11 * trace
    one, two = (
        frechet_distance(rows, references=other, covariance=covariance)
        for rows in (features, mixed)
    )
    assert one == pytest.approx(two, rel=1e-11)
    assert one == pytest.approx(
        frechet_distance(other, references=mixed, covariance=covariance), rel=1e-11
    )


@pytest.mark.parametrize("rows", [10, 500])
def test_a_shift_and_a_scale_are_known(rows):
    features = draw(rows, 400)
    shift = np.random.default_rng(4).standard_normal(400)
    found = frechet_distance(features, references=features + shift, covariance="unbiased")
    assert found == pytest.approx(shift @ shift, rel=1e-10)
    # x against c x: (c - 1)^2 times the squared mean and the trace, also without full rank.
    found = frechet_distance(features, references=3 * features, covariance="biased")
    mean = features.mean(0)
    assert found == pytest.approx(4 * (mean @ mean + features.var(axis=0).sum()), rel=1e-10)


def test_sets_that_vary_along_different_axes_share_nothing():
    """Rank one each in 50 dimensions, where the root of a product of matrices is all rounding."""
    one, two = np.zeros((3, 50)), np.zeros((4, 50))
    one[:, 7], two[:, 30] = (1, 2, 3), (0, 2, 4, 6)
    found = frechet_distance(one, references=two, covariance="unbiased")
    assert found == pytest.approx(2**2 + 3**2 + 1 + 20 / 3, rel=1e-12)


def test_what_cannot_be_compared_is_refused():
    good, bad = draw(20, 5), draw(20, 5)
    bad[[4, 9], 2] = np.nan, np.inf
    for features, references, message in (
        (good[:1], good, "^features: expected those of 2 or more videos, got 1"),
        (good, good[:0], "reference features: expected those of 2 or more videos, got 0"),
        (bad, good, "^features: expected finite numbers, got NaN .* in 2 of 20 rows, first 4"),
        (good, bad, "reference features: expected finite"),
        (good, draw(20, 6), r"one length, got 5 and 6 \(reference\)"),
    ):
        with pytest.raises(ValueError, match=message):
            frechet_distance(features, references=references, covariance="biased")
    with pytest.raises(ValueError, match="resamples: expected 2 or more, got 1"):
        bootstrap_distance(good, references=good, covariance="biased", resamples=1)
    with pytest.raises(ValueError, match="sizes: expected 2 to 10, half of 20 videos, got 11"):
        sample_size_bias(good, sizes=[5, 11], covariance="biased")
    with pytest.raises(ValueError, match="protocol: expected one of styleganv, cdfvd, got 'fid'"):
        check_protocol("fid")
    assert check_protocol("cdfvd") == "cdfvd"


@pytest.mark.parametrize("apart", [False, True])
def test_the_interval_holds_the_mean_distance_of_that_size(apart):
    """What the docstring says of it, on fewer draws."""
    pairs = []
    for seed in range(60):
        real = draw(64, 10, seed=2 * seed)
        pairs.append(
            (draw(64, 10, seed=2 * seed + 1) * (1.6 if apart else 1.0) + 0.2 * apart, real)
        )
    options = {"covariance": "unbiased"}
    distances = np.array([frechet_distance(a, references=b, **options) for a, b in pairs])
    found = [bootstrap_distance(a, references=b, resamples=40, **options) for a, b in pairs]
    low, high = np.array([one.interval for one in found]).T
    assert ((low <= distances) & (distances <= high)).all()
    assert low.min() >= 0
    held = (low <= distances.mean()) & (distances.mean() <= high)
    assert held.mean() > 0.85
    # Quantiles of the resampled distances would have missed it: they lie above the distance.
    assert np.mean([one.excess for one in found]) > (high - low).mean() / 10


def test_the_interval_repeats_and_narrows():
    real = draw(400, 10)
    wide, again, narrow = (
        bootstrap_distance(
            draw(rows, 10, seed=1) + 1.0, references=real[:rows], covariance="unbiased"
        )
        for rows in (50, 50, 400)
    )
    assert wide == again
    assert np.diff(narrow.interval) < 0.6 * np.diff(wide.interval)


def test_small_sets_are_too_far_apart():
    """One feature: E d = 2 s^2 / N of the means and s^2 / N of the deviations."""
    features = 2.0 * draw(20_000, 1)
    rows = sample_size_bias(features, sizes=[16, 64, 256], covariance="unbiased", repeats=400)
    for row in rows:
        assert row.mean == pytest.approx(3 * 4.0 / row.size, rel=0.15)
    rows = sample_size_bias(draw(600, 100), sizes=[25, 75, 300], covariance="biased")
    means = [row.mean for row in rows]
    assert means[0] > 1.5 * means[1] > 2.25 * means[2] > 0
    assert all(len(row.values) == 3 for row in rows)


def test_the_bias_is_drawn():
    rows = sample_size_bias(draw(200, 10), sizes=[10, 100], covariance="unbiased")
    picture = draw_size_bias({"10 features": rows}, title="bias")
    assert picture.startswith(b"\x89PNG")
    assert picture == draw_size_bias({"10 features": rows}, title="bias")
    more = sample_size_bias(draw(200, 10), sizes=[10, 50, 100], covariance="unbiased")
    assert picture != draw_size_bias({"10 features": more}, title="bias")
    with pytest.raises(ValueError, match="expected one or more sizes to draw, got none"):
        draw_size_bias({"none": []}, title="bias")
