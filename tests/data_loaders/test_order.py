import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_loaders.order import color_generator, draws, frame_indices, permute, sample_at
from sat_udpdiff.config import DataConfig

DATA = DataConfig()
FIRST_ORDER = [4, 3, 6, 9, 8, 7, 5, 2, 0, 1]
FIRST_TASKS = [1, 0, 0, 0, 1, 1, 1, 0]
FIRST_LONG = [False, True, True, True, False, True, True, True]


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 200), keys=st.tuples(*[st.integers(0, 2**32 - 1) for _ in range(6)]))
def test_permute_is_a_permutation(size, keys):
    assert sorted(permute(i, size=size, keys=keys) for i in range(size)) == list(range(size))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**63), num_samples=st.integers(1, 100), epoch=st.integers(0, 50))
def test_every_clip_comes_once_per_epoch(seed, num_samples, epoch):
    numbers = range(epoch * num_samples, (epoch + 1) * num_samples)
    places = [sample_at(n, seed=seed, num_samples=num_samples) for n in numbers]
    assert {place.epoch for place in places} == {epoch}
    assert sorted(place.index for place in places) == list(range(num_samples))


def test_order_differs_between_epochs_and_seeds():
    def order(seed, epoch, size=64):
        return [sample_at(epoch * size + i, seed=seed, num_samples=size).index for i in range(size)]

    assert order(0, 0) == order(0, 0)
    orders = {tuple(order(seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_place_is_equally_likely():
    # 5 clips, 600 epochs: counts of clip at place 0 are multinomial; chi-square below the .999
    # quantile of 4 degrees of freedom (18.5), and for all places together (16 degrees: 39.3).
    size, epochs = 5, 600
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        for i in range(size):
            counts[i, sample_at(epoch * size + i, seed=3, num_samples=size).index] += 1
    expected = epochs / size
    assert ((counts[0] - expected) ** 2 / expected).sum() < 18.5
    assert ((counts - expected) ** 2 / expected).sum() < 39.3


def test_neighbours_do_not_stay_neighbours():
    size = 1000
    order = [sample_at(i, seed=0, num_samples=size).index for i in range(size)]
    steps = sum(abs(a - b) == 1 for a, b in pairwise(order))
    assert steps < 10  # 2 expected
    rank_correlation = np.corrcoef(order, np.arange(size))[0, 1]
    assert abs(rank_correlation) < 4 / math.sqrt(size)


def test_the_order_is_the_same_for_ever():
    # A change here breaks the resume of every run that is under way.
    assert [sample_at(n, seed=7, num_samples=10).index for n in range(10)] == FIRST_ORDER
    drawn = [draws(n, seed=7, data=DATA) for n in range(8)]
    assert [d.task_id for d in drawn] == FIRST_TASKS
    assert [d.use_long_caption for d in drawn] == FIRST_LONG


def test_large_data_sets_cost_no_memory_or_time():
    size = 300_000_000
    numbers = [0, 1, size - 1, 10**15]
    indices = [sample_at(n, seed=1, num_samples=size).index for n in numbers]
    assert all(0 <= index < size for index in indices)
    assert len(set(indices)) == 4


@pytest.mark.parametrize(
    ("weights", "share"), [((0.5, 0.5), 0.5), ((0.3, 0.7), 0.7), ((7.0, 3.0), 0.3)]
)
def test_tasks_and_captions_come_at_their_rates(weights, share):
    data = DataConfig(task_weights=weights)
    total = 2_000
    drawn = [draws(n, seed=0, data=data) for n in range(total)]

    def near(count, rate):
        return abs(count - total * rate) < 4 * math.sqrt(total * rate * (1 - rate))

    assert near(sum(d.task_id for d in drawn), share)
    assert near(sum(d.use_long_caption for d in drawn), 0.8)
    assert near(sum(d.drop_uniform < 0.1 for d in drawn), 0.1)
    # Drawn apart: the caption does not follow the task.
    long_of = Counter((d.task, d.use_long_caption) for d in drawn)
    for task, rate in (("segmentation", 1 - share), ("depth", share)):
        assert near(long_of[(task, True)], rate * 0.8)


def test_extreme_rates_are_exact():
    data = DataConfig(tasks=("depth",), task_weights=(1.0,), long_caption_probability=0.0)
    drawn = [draws(n, seed=0, data=data) for n in range(200)]
    assert {d.task_id for d in drawn} == {1}
    assert not any(d.use_long_caption for d in drawn)
    data = DataConfig(task_weights=(0.0, 1.0), long_caption_probability=1.0)
    drawn = [draws(n, seed=0, data=data) for n in range(200)]
    assert {d.task for d in drawn} == {"depth"}
    assert all(d.use_long_caption for d in drawn)


def test_colours_belong_to_seed_epoch_and_key():
    def first(seed=0, epoch=0, key="a"):
        return color_generator(seed=seed, epoch=epoch, key=key).integers(2**62)

    assert first() == first()
    assert len({first(), first(seed=1), first(epoch=1), first(key="b"), first(key="aa")}) == 5


@pytest.mark.parametrize(
    ("fps", "source", "source_fps", "expected"),
    [
        (8.0, 49, 8.0, [0, 1, 2, 3, 4]),
        (8.0, 49, 30.0, [0, 4, 8, 11, 15]),
        (8.0, 49, 24000 / 1001, [0, 3, 6, 9, 12]),
        (8.0, 3, 8.0, [0, 1, 2, 2, 2]),
        (16.0, 49, 8.0, [0, 1, 1, 2, 2]),
    ],
)
def test_frame_indices_follow_time(fps, source, source_fps, expected):
    indices = frame_indices(num_frames=5, fps=fps, source_frames=source, source_fps=source_fps)
    assert indices == expected


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="num_samples >= 1, got 0, 0 and 0"):
        sample_at(0, seed=0, num_samples=0)
    with pytest.raises(ValueError, match="n >= 0"):
        sample_at(-1, seed=0, num_samples=4)
