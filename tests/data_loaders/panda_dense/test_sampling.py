import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_loaders.panda_dense.sampling import (
    Candidate,
    SampleSettings,
    check_sample,
    choose,
    held_out_videos,
    rank,
)
from data_loaders.schema import DataError


def clips_of(counts):
    """One video per count."""
    return [
        Candidate(key=f"v{v}_{i}", video_id=f"v{v}") for v, n in enumerate(counts) for i in range(n)
    ]


COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=40)
LIMITS = st.one_of(st.none(), st.integers(1, 5))


@settings(max_examples=150, deadline=None)
@given(COUNTS, LIMITS, st.integers(1, 60), st.integers(0, 60), st.integers(0, 5))
def test_fewer_are_a_part_of_more(counts, per_video, fewer, more, seed):
    clips = clips_of(counts)
    small = choose(clips, num_clips=fewer, per_video=per_video, seed=seed)
    large = choose(clips, num_clips=fewer + more, per_video=per_video, seed=seed)
    everything = choose(clips, num_clips=None, per_video=per_video, seed=seed)
    assert small <= large <= everything
    limit = 9 if per_video is None else per_video
    eligible = sum(min(count, limit) for count in counts)
    assert len(small) == min(fewer, eligible) and len(everything) == eligible
    videos = Counter(key.partition("_")[0] for key in large)
    assert max(videos.values()) <= limit


@settings(max_examples=60, deadline=None)
@given(COUNTS, LIMITS, st.integers(1, 60), st.randoms(use_true_random=False))
def test_the_order_does_not_matter(counts, per_video, number, shuffler):
    clips = clips_of(counts)
    mixed = clips.copy()
    shuffler.shuffle(mixed)
    options = {"num_clips": number, "per_video": per_video, "seed": 3}
    assert choose(clips, **options) == choose(mixed, **options)
    held = {"num_clips": number, "most_share": 0.5, "seed": 3}
    assert held_out_videos(clips, **held) == held_out_videos(mixed, **held)


def test_another_seed_chooses_others_and_no_clip_is_favoured():
    clips = clips_of([1] * 400)
    times = Counter()
    for seed in range(60):
        times.update(choose(clips, num_clips=100, per_video=None, seed=seed))
    assert len(times) == 400
    assert min(times.values()) >= 3 and max(times.values()) <= 28  # 15 expected, deviation 3.4


def test_what_is_added_displaces_no_more_than_it_brings():
    clips = clips_of([1] * 300)
    before = choose(clips[:250], num_clips=100, per_video=None, seed=0)
    after = choose(clips, num_clips=100, per_video=None, seed=0)
    added = after - before
    assert added <= {clip.key for clip in clips[250:]} and len(before - after) == len(added)


def test_ranks_are_fixed():
    # Written down: a change would choose other clips for everybody's data.
    assert rank("clip", seed=0) == 0x7AF122CCE5798F91
    assert rank("clip", seed=0) != rank("clip", seed=1) != rank("clip2", seed=1)
    assert all(0 <= rank(str(i), seed=0) < 2**64 for i in range(100))


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.integers(1, 80), st.floats(0, 1), st.integers(0, 3))
def test_whole_videos_are_held_out(counts, wanted, share, seed):
    clips = clips_of(counts)
    held = held_out_videos(clips, num_clips=wanted, most_share=share, seed=seed)
    number = sum(clip.video_id in held for clip in clips)
    assert number <= share * len(clips) and number < wanted + max(counts)
    assert held <= {clip.video_id for clip in clips}


def test_as_many_are_held_out_as_wanted():
    clips = clips_of([random.Random(i).randint(1, 3) for i in range(3000)])
    held = held_out_videos(clips, num_clips=1024, most_share=0.5, seed=0)
    assert 1024 <= sum(clip.video_id in held for clip in clips) <= 1026
    fewer = held_out_videos(clips, num_clips=100, most_share=0.5, seed=0)
    assert fewer < held


def test_of_a_few_clips_not_all_are_held_out():
    clips = clips_of([1] * 9)
    assert not held_out_videos(clips, num_clips=1024, most_share=0.1, seed=0)
    assert len(held_out_videos(clips, num_clips=1024, most_share=0.25, seed=0)) == 2
    assert not held_out_videos([], num_clips=1024, most_share=0.1, seed=0)
    assert not held_out_videos(clips, num_clips=0, most_share=0.5, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clips": 0}, r"sample\.num_clips: expected >= 1 or None, got 0"),
        ({"per_video": 0}, r"sample\.per_video"),
        ({"held_out_clips": -1}, r"sample\.held_out_clips"),
        ({"most_held_out": 1.0}, r"sample\.most_held_out: expected a share"),
    ],
)
def test_settings_are_checked(change, message):
    check_sample(SampleSettings(), section="sample")
    with pytest.raises(DataError, match=message):
        check_sample(SampleSettings(**change), section="sample")
