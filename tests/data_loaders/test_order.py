import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_loaders.order import (
    ClipSize,
    SampleOrder,
    color_generator,
    colors_epoch,
    draws,
    frame_indices,
    permute,
    size_at,
)
from sat_udpdiff.config import DataConfig

DATA = DataConfig()
FIRST_ORDER = [5, 9, 4, 1, 3, 2, 0, 6, 8, 7]
FIRST_TASKS = [1, 1, 1, 1, 1, 0, 0, 0]
FIRST_LONG = [True, True, True, True, True, False, True, True]
FIRST_DROPS = [0.9344, 0.0479, 0.856]

SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(sum)


def make(sizes, *, seed=0, shards=3, run=4):
    return SampleOrder(sizes, seed=seed, shuffle_shards=shards, shuffle_run=run)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 200), keys=st.tuples(*[st.integers(0, 2**32 - 1) for _ in range(6)]))
def test_permute_is_a_permutation(size, keys):
    assert sorted(permute(i, size=size, keys=keys) for i in range(size)) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(
    sizes=SIZES,
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 50),
    shards=st.integers(1, 6),
    run=st.integers(1, 9),
)
def test_every_clip_comes_once_per_epoch(sizes, seed, epoch, shards, run):
    order = make(sizes, seed=seed, shards=shards, run=run)
    numbers = range(epoch * len(order), (epoch + 1) * len(order))
    places = [order.at(n) for n in numbers]
    assert {place.epoch for place in places} == {epoch}
    assert sorted(place.index for place in places) == list(range(sum(sizes)))


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**31), data=st.data())
def test_any_place_is_found_on_its_own(sizes, seed, data):
    unbroken = make(sizes, seed=seed)
    numbers = range(3 * len(unbroken))
    expected = [unbroken.at(n) for n in numbers]
    # In any order, and without what came before: resuming is asking for a later number.
    for n in data.draw(st.permutations(numbers))[:20]:
        assert make(sizes, seed=seed).at(n) == expected[n]


def rows_by_shard(order, sizes, epoch):
    starts = np.cumsum([0, *sizes])
    found = {}
    for n in range(epoch * len(order), (epoch + 1) * len(order)):
        index = order.at(n).index
        shard = int(np.searchsorted(starts, index, side="right")) - 1
        found.setdefault(shard, []).append((n, index - starts[shard]))
    return found


def test_shards_are_read_from_front_to_back_a_few_at_a_time():
    sizes = [40] * 12
    order = make(sizes, shards=3, run=8)
    spans = []
    for rows in rows_by_shard(order, sizes, epoch=1).values():
        numbers, offsets = zip(*rows, strict=True)
        spans.append((min(numbers), max(numbers)))
        # Each window of 8 rows is read before the next one; within it the order is free.
        first = min(offsets[:8], key=lambda row: (row - offsets[0] + 8) % 40)
        windows = [{(row - first) % 40 // 8 for row in offsets[i : i + 8]} for i in (0, 8, 16, 32)]
        assert windows == [{0}, {1}, {2}, {4}]
        assert list(offsets[:8]) != sorted(offsets[:8]) or list(offsets[8:16]) != sorted(
            offsets[8:16]
        )
    for n in range(480, 960, 7):
        assert sum(first <= n <= last for first, last in spans) <= 3
        assert len(order.shards_at(n)) == 3


def test_neighbours_in_a_batch_come_from_different_shards():
    sizes = [40] * 12
    order = make(sizes, shards=6, run=8)
    shards = [order.at(n).index // 40 for n in range(480)]
    same = sum(a == b for a, b in pairwise(shards))
    # 1 of 6 expected.
    assert same < 480 / 6 + 4 * math.sqrt(480 / 6)


def test_other_epochs_and_seeds_have_other_orders():
    def order(seed, epoch):
        made = make([5, 7, 4], seed=seed)
        return tuple(made.at(epoch * 16 + i).index for i in range(16))

    assert order(0, 0) == order(0, 0)
    assert len({order(seed, epoch) for seed in range(5) for epoch in range(5)}) == 25


def test_every_place_is_equally_likely():
    # 5 clips in 2 shards, 600 epochs: counts of each clip at place 0 are multinomial; chi-square
    # below the .999 quantile of 4 degrees of freedom (18.5), of all places together (16: 39.3).
    size, epochs = 5, 600
    order = make([2, 3], seed=3)
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        for i in range(size):
            counts[i, order.at(epoch * size + i).index] += 1
    expected = epochs / size
    assert ((counts[0] - expected) ** 2 / expected).sum() < 18.5
    assert ((counts - expected) ** 2 / expected).sum() < 39.3


def test_small_data_sets_are_mixed_as_a_whole():
    # 8 shards of 64 are one window of the default settings.
    order = SampleOrder(
        [64] * 8, seed=0, shuffle_shards=DATA.shuffle_shards, shuffle_run=DATA.shuffle_run
    )
    indices = [order.at(n).index for n in range(512)]
    assert sum(abs(a - b) == 1 for a, b in pairwise(indices)) < 10  # 2 expected
    assert abs(np.corrcoef(indices, np.arange(512))[0, 1]) < 4 / math.sqrt(512)


def test_the_order_is_the_same_for_ever():
    # A change here breaks the resume of every run that is under way.
    order = make([3, 0, 7], seed=7)
    assert [order.at(n).index for n in range(10)] == FIRST_ORDER
    drawn = [draws(n, seed=7, data=DATA) for n in range(8)]
    assert [d.task_id for d in drawn] == FIRST_TASKS
    assert [d.use_long_caption for d in drawn] == FIRST_LONG
    assert [d.drop_uniform for d in drawn[:3]] == pytest.approx(FIRST_DROPS, abs=1e-4)


def test_a_late_number_is_found_at_once():
    order = make([300] * 1000, shards=16, run=64)
    indices = [order.at(n).index for n in (0, 1, 299_999, 10**15)]
    assert all(0 <= index < 300_000 for index in indices)
    assert len(set(indices)) == 4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**63), run=st.integers(0, 10**6))
def test_rates_of_whole_percents_hold_in_every_hundred(seed, run):
    for weights in ((0.5, 0.5), (0.3, 0.7), (0.7, 0.3)):
        data = DataConfig(task_weights=weights)
        drawn = [draws(n, seed=seed, data=data) for n in range(100 * run, 100 * run + 100)]
        assert sum(d.task_id for d in drawn) == round(100 * weights[1])
        assert sum(d.use_long_caption for d in drawn) == 80
        assert sum(d.drop_uniform < 0.1 for d in drawn) == 10


def test_other_rates_hold_in_the_long_run():
    data = DataConfig(task_weights=(1 / 3, 2 / 3), long_caption_probability=0.777)
    drawn = [draws(n, seed=0, data=data) for n in range(3_000)]
    # One stratum in a hundred is undecided: 30 of these samples.
    assert abs(sum(d.task_id for d in drawn) - 2_000) < 4 * math.sqrt(30 / 4)
    assert abs(sum(d.use_long_caption for d in drawn) - 2_331) < 4 * math.sqrt(30 / 4)


def test_task_caption_and_dropout_are_drawn_apart():
    total = 4_000
    drawn = [draws(n, seed=0, data=DATA) for n in range(total)]
    together = Counter((d.task_id, d.use_long_caption, d.drop_uniform < 0.1) for d in drawn)
    for (_, is_long, is_dropped), found in together.items():
        rate = 0.5 * (0.8 if is_long else 0.2) * (0.1 if is_dropped else 0.9)
        assert abs(found - total * rate) < 4 * math.sqrt(total * rate)
    # Nor does a sample tell what the next one is.
    changes = sum(a.task_id != b.task_id for a, b in pairwise(drawn))
    assert abs(changes - total / 2) < 4 * math.sqrt(total / 4)


def test_extreme_rates_are_exact():
    data = DataConfig(tasks=("depth",), task_weights=(1.0,), long_caption_probability=0.0)
    drawn = [draws(n, seed=0, data=data) for n in range(200)]
    assert {d.task_id for d in drawn} == {1}
    assert not any(d.use_long_caption for d in drawn)
    data = DataConfig(task_weights=(0.0, 1.0), long_caption_probability=1.0)
    drawn = [draws(n, seed=0, data=data) for n in range(200)]
    assert {d.task for d in drawn} == {"depth"}
    assert all(d.use_long_caption for d in drawn)


def test_crops_are_drawn_per_sample_when_asked_for():
    assert {draws(n, seed=0, data=DATA).crop_anchor for n in range(5)} == {(0.5, 0.5)}
    data = DataConfig(crop="random")
    anchors = np.array([draws(n, seed=0, data=data).crop_anchor for n in range(400)])
    assert ((anchors >= 0) & (anchors < 1)).all()
    np.testing.assert_allclose(anchors.mean(0), 0.5, atol=4 / math.sqrt(12 * 400))
    assert draws(3, seed=0, data=data) == draws(3, seed=0, data=data)


def test_buckets_come_in_runs_at_their_rates():
    data = DataConfig(buckets=("49x480x720", "9x480x480"), bucket_weights=(0.7, 0.3), bucket_run=8)
    sizes = [size_at(n, seed=2, data=data) for n in range(800)]
    for i in range(0, 800, 8):
        assert len(set(sizes[i : i + 8])) == 1
    small = ClipSize(num_frames=9, height=480, width=480)
    assert sizes.count(small) == 240
    assert size_at(5, seed=2, data=DATA) == ClipSize(num_frames=49, height=480, width=720)


def test_colours_belong_to_seed_epoch_and_key():
    def first(seed=0, epoch=0, key="a"):
        return color_generator(seed=seed, epoch=epoch, key=key).integers(2**62)

    assert first() == first()
    assert len({first(), first(seed=1), first(epoch=1), first(key="b"), first(key="aa")}) == 5


def test_recolourings_take_turns():
    assert [colors_epoch(epoch, recolourings=3) for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert [colors_epoch(epoch, recolourings=0) for epoch in range(3)] == [0, 1, 2]


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


@pytest.mark.parametrize("source", ["8", "24000/1001", "24", "25", "30000/1001", "30", "60"])
def test_frame_indices_are_the_nearest_in_exact_arithmetic(source):
    rate = Fraction(source)
    indices = frame_indices(num_frames=2001, fps=8.0, source_frames=10**6, source_fps=float(rate))
    for k, index in enumerate(indices):
        wanted = Fraction(k, 8)
        off = abs(index / rate - wanted)
        assert off <= 1 / (2 * rate)
        # Of two equally near frames the later one.
        assert off < 1 / (2 * rate) or index / rate > wanted


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="at least one clip, got 0, 3, 4 and 0"):
        make([0, 0])
    with pytest.raises(ValueError, match="seed >= 0"):
        make([1], seed=-1)
    with pytest.raises(ValueError, match="n >= 0"):
        make([4]).at(-1)
