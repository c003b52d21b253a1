"""Adjusted Rand index against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from sat_udpdiff.evaluation.segmentation import adjusted_rand_index, contingency


@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, (2, 20, 30))
    guess = np.where(rng.random(truth.shape) < 0.7, truth * 10, rng.integers(0, 9, truth.shape))
    expected = adjusted_rand_score(truth.ravel(), guess.ravel())
    assert adjusted_rand_index(truth, guess) == pytest.approx(expected, abs=1e-12)


def test_names_of_ids_do_not_matter() -> None:
    truth = np.array([0, 0, 1, 1, 2])
    assert adjusted_rand_index(truth, np.array([7, 7, 3, 3, -1])) == 1.0


def test_one_cluster_on_both_sides() -> None:
    assert adjusted_rand_index(np.zeros(9, int), np.full(9, 4)) == 1.0


def test_contingency_counts_pairs() -> None:
    counts = contingency(np.array([5, 5, 9]), np.array([1, 2, 2]))
    assert counts.tolist() == [[1, 1], [0, 1]]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        adjusted_rand_index(np.zeros(3, int), np.zeros(4, int))
