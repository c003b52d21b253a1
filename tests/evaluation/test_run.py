"""The run: scores by task, restart, processes that share the work, and bad videos."""

import multiprocessing
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from sat_udpdiff.distributed import Place
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.cache import Entry, FeatureCache
from sat_udpdiff.evaluation.measure import Features, Measure, NoRoomError, Score, Video
from sat_udpdiff.evaluation.run import NO_MAP, READING, Evaluation, evaluate
from sat_udpdiff.evaluation.videos import samples_in
from tests.evaluation.conftest import Agreement, Brightness, Motion, Shift
from tests.evaluation.loose_video import LooseVideo

RNG = np.random.default_rng(0)


def array_video(name: str, *, frames: int = 3, level: int | None = None) -> ArrayVideo:
    shape = (frames, 16, 24, 3)
    drawn = RNG.integers(0, 256, shape, np.uint8)
    return ArrayVideo(name=name, frames=drawn if level is None else np.full(shape, level, np.uint8))


@pytest.fixture
def call(tmp_path: Path, place: Callable[..., Place]) -> Callable[..., Evaluation]:
    def run(videos: list[Video], **options) -> Evaluation:
        options = {"name": "row", "place": place(), **options}
        found = evaluate(videos, cache=FeatureCache(folder=tmp_path / "cache"), **options)
        assert found is not None
        return found

    return run


def test_samples_are_scored_by_task(tiny_samples: Path, call: Callable[..., Evaluation]) -> None:
    videos = list(samples_in(tiny_samples).videos)
    found = call(videos, measures=[Brightness(), Agreement()], facts={"steps": 2})
    assert [group.name for group in found.groups] == ["segmentation", "depth"]
    for group in found.groups:
        assert len(group.videos) == 2 and not group.exclusions and not group.failures
        assert [score.name for score in group.scores] == ["brightness", "foreground_iou"]
        score = group.score("brightness")
        assert score is not None
        by_hand = {v.name: v.rgb().mean() for v in videos if v.task == group.name}
        assert dict(score.per_video) == pytest.approx(by_hand)
        assert score.value == pytest.approx(np.mean(list(by_hand.values())))
    assert found.facts["steps"] == 2
    assert found.costs["brightness"].videos == 4
    assert found.costs["agreement"].videos_per_minute > 0
    assert found.costs[READING].videos == 4


def test_measures_of_maps_are_not_asked_about_videos_without(
    call: Callable[..., Evaluation],
) -> None:
    agreement = Agreement()
    found = call([array_video("a"), array_video("b")], measures=[Brightness(), agreement])
    assert [group.name for group in found.groups] == [NO_MAP]
    assert [score.name for score in found.groups[0].scores] == ["brightness"]
    assert not agreement.asked and not found.groups[0].exclusions


def test_nothing_is_made_twice(call: Callable[..., Evaluation]) -> None:
    videos = [array_video("a"), array_video("b")]
    first = call(videos, measures=[Brightness()])
    again, other = Brightness(), Brightness(key="2")
    second = call([*videos, array_video("c")], measures=[again])
    assert again.asked == ["c"]
    assert second.groups[0].scores[0].per_video["a"] == first.groups[0].scores[0].per_video["a"]
    # Another name, the same frames: the address is the content.
    renamed = Brightness()
    call([ArrayVideo(name="d", frames=videos[0].frames)], measures=[renamed])
    assert renamed.asked == []
    # Another key is another measure.
    call(videos, measures=[other])
    assert other.asked == ["a", "b"]


def test_a_damaged_entry_is_made_again(tmp_path: Path, call: Callable[..., Evaluation]) -> None:
    videos = [array_video("a"), array_video("b")]
    before = call(videos, measures=[Brightness()])
    entry = next((tmp_path / "cache").rglob("*.npz"))
    entry.write_bytes(entry.read_bytes()[:100])
    measure = Brightness()
    after = call(videos, measures=[measure])
    assert len(measure.asked) == 1
    assert after.groups[0].scores == before.groups[0].scores


def test_a_killed_run_goes_on(call: Callable[..., Evaluation]) -> None:
    class Fails(Brightness):
        def features(self, video: Video) -> Features:
            if video.name == "c":
                raise RuntimeError("out of memory")
            return super().features(video)

    videos = [array_video(name) for name in "abcd"]
    with pytest.raises(RuntimeError) as failure:
        call(videos, measures=[Fails()])
    assert failure.value.__notes__ == ["while brightness looked at c"]
    measure = Brightness()
    call(videos, measures=[measure])
    assert measure.asked == ["c", "d"]


def test_a_video_is_read_once_for_all_measures(call: Callable[..., Evaluation]) -> None:
    class Counting(ArrayVideo):
        __slots__ = ("reads",)

        def rgb(self) -> np.ndarray:
            object.__setattr__(self, "reads", getattr(self, "reads", 0) + 1)
            return self.frames

    videos = [Counting(name=name, frames=array_video(name).frames) for name in "ab"]
    call(videos, measures=[Brightness(), Motion(), Shift()], references=[array_video("r")])
    assert [video.reads for video in videos] == [1, 1]


def test_memory_does_not_grow_with_the_number_of_videos(call: Callable[..., Evaluation]) -> None:
    size = (4, 256, 512, 3)

    class Rendered(LooseVideo):
        def rgb(self) -> np.ndarray:
            return np.full(size, int(self.digest), np.uint8)

    def peak(numbers: range) -> int:
        videos = [Rendered(frames=None, name=str(n), digest=str(n)) for n in numbers]
        half = len(videos) // 2
        tracemalloc.start()
        call(videos[:half], measures=[Brightness(), Motion(), Shift()], references=videos[half:])
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    few, many = peak(range(4)), peak(range(4, 64))
    # More than a video, so that frames are seen by the tracing; no video more for 56 of them.
    assert few > np.prod(size)
    assert many < few + np.prod(size) / 2


def test_measures_cannot_change_what_others_see(call: Callable[..., Evaluation]) -> None:
    class Careless(Brightness):
        def features(self, video: Video) -> Features:
            frames = video.rgb()
            frames //= 2
            return {"mean": np.array(frames.mean())}

    with pytest.raises(ValueError, match="read-only"):
        call([array_video("a")], measures=[Careless()])


def test_one_frame_is_an_exclusion_with_its_reason(call: Callable[..., Evaluation]) -> None:
    videos = [array_video("a"), array_video("still", frames=1), array_video("c")]
    for _ in range(2):  # made, and from the cache
        (group,) = call(videos, measures=[Brightness(), Motion()]).groups
        assert group.exclusions == {"motion": {"still": "expected 2 or more frames, got 1"}}
        motion, brightness = group.score("motion"), group.score("brightness")
        assert motion is not None and brightness is not None
        assert list(motion.per_video) == ["a", "c"] and len(brightness.per_video) == 3


def test_what_does_not_fit_today_is_tried_again_tomorrow(call: Callable[..., Evaluation]) -> None:
    class Large(Brightness):
        is_full = True
        calls = 0

        def features(self, video: Video) -> Features:
            self.calls += 1
            if self.is_full:
                raise NoRoomError("out of GPU memory")
            return super().features(video)

    videos = [array_video("a")]
    full, free = Large(), Large()
    free.is_full = False
    found = call(videos, measures=[full])
    assert found.groups[0].exclusions == {"brightness": {"a": "out of GPU memory"}}
    assert full.calls == 1
    found = call(videos, measures=[free])
    assert not found.groups[0].exclusions and found.groups[0].score("brightness") is not None


def test_a_set_without_usable_videos_has_no_score(call: Callable[..., Evaluation]) -> None:
    (group,) = call([array_video("a", frames=1)], measures=[Brightness(), Motion()]).groups
    assert [score.name for score in group.scores] == ["brightness"]
    assert group.failures == {"motion": "motion: no video could be judged"}


def test_features_that_are_no_numbers_are_excluded(call: Callable[..., Evaluation]) -> None:
    class Overflows(Brightness):
        def features(self, video: Video) -> Features:
            values = np.ones(4)
            values[0] = np.nan if video.name == "a" else np.inf if video.name == "b" else 1.0
            return {"mean": np.array(values.mean()), "values": values}

    videos = [array_video(name) for name in "abc"]
    (group,) = call(videos, measures=[Overflows()]).groups
    reasons = group.exclusions["brightness"]
    assert list(reasons) == ["a", "b"]
    assert reasons["a"] == "feature 'mean': 1 of 1 numbers are not finite"
    assert list(group.scores[0].per_video) == ["c"]


def test_numbers_that_a_video_may_lack_are_no_reason(call: Callable[..., Evaluation]) -> None:
    class Lacks(Brightness):
        may_be_missing = frozenset({"stability"})

        def features(self, video: Video) -> Features:
            return {**super().features(video), "stability": np.array(np.nan)}

    (group,) = call([array_video("a")], measures=[Lacks()]).groups
    assert not group.exclusions and list(group.scores[0].per_video) == ["a"]


def test_a_score_that_is_no_number_is_told(call: Callable[..., Evaluation]) -> None:
    class Divides(Brightness):
        def scores(
            self, features: Mapping[str, Features], *, references: Mapping[str, Features]
        ) -> list[Score]:
            return [Score(name="brightness", value=float("nan"), higher_is_better=True)]

    (group,) = call([array_video("a")], measures=[Divides()]).groups
    assert not group.scores
    assert group.failures == {"brightness": "brightness: expected a finite number, got nan"}


def test_sets_are_compared_with_references(call: Callable[..., Evaluation]) -> None:
    videos = [array_video("a", level=10), array_video("b", level=20)]
    references = [array_video("a", level=30), array_video("s", level=50)]
    found = call(videos, measures=[Shift()], references=references)
    assert found.groups[0].scores[0].value == 25.0
    assert found.facts["references"] == 2


def test_too_few_videos_are_told_and_no_score(call: Callable[..., Evaluation]) -> None:
    videos = [array_video("a"), array_video("b")]
    (group,) = call(videos, measures=[Shift(min_videos=3)], references=videos).groups
    assert group.failures == {"shift": "shift: expected 3 samples or more, got 2"}
    (group,) = call(videos, measures=[Shift()], references=videos[:1]).groups
    assert group.failures == {"shift": "shift: expected 2 references or more, got 1"}


def test_references_have_exclusions_too(call: Callable[..., Evaluation]) -> None:
    class Moving(Shift):
        def features(self, video: Video) -> Features:
            return {"mean": np.array(Motion().features(video)["mean"].mean())}

    videos = [array_video("a"), array_video("b")]
    references = [*videos, array_video("still", frames=1)]
    found = call(videos, measures=[Moving()], references=references)
    assert found.reference_exclusions == {"shift": {"still": "expected 2 or more frames, got 1"}}
    assert found.groups[0].exclusions == {}


def test_names_must_differ(call: Callable[..., Evaluation]) -> None:
    with pytest.raises(ValueError, match="row: expected different names, got 2 videos called 'a'"):
        call([array_video("a"), array_video("a")], measures=[Brightness()])
    with pytest.raises(ValueError, match="row: expected at least one whole video, found none"):
        call([], measures=[Brightness()])


def share(folder: Path, rank: int, place: Place, queue: multiprocessing.Queue) -> None:
    measures: list[Measure] = [Brightness(), Motion()]
    videos = [array_video(str(i), frames=1 + i % 3, level=i) for i in range(8)]
    cache = FeatureCache(folder=folder)
    found = evaluate(videos, name="row", measures=measures, cache=cache, place=place)
    queue.put((rank, found))


def test_two_processes_share_the_work(tmp_path: Path, place: Callable[..., Place]) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [
        context.Process(target=share, args=(tmp_path / "two", rank, place(rank, 2), queue))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert found[1] is None
    share(tmp_path / "one", 0, place(), queue)
    _, alone = queue.get(timeout=10)
    assert found[0].groups == alone.groups
    assert len(alone.groups[0].exclusions["motion"]) == 3


def test_each_process_makes_its_part_and_the_first_one_what_is_left(
    tmp_path: Path, place: Callable[..., Place]
) -> None:
    videos, cache = [array_video(str(i)) for i in range(6)], FeatureCache(folder=tmp_path)
    second, first = Brightness(), Brightness()
    done = evaluate(videos, name="r", measures=[second], cache=cache, place=place(1, 3))
    assert done is None and second.asked == ["1", "4"]
    done = evaluate(videos, name="r", measures=[first], cache=cache, place=place(0, 3))
    # Nobody was the third: its part is made from the end.
    assert done is not None and first.asked == ["0", "3", "5", "2"]


def test_objects_are_no_features(tmp_path: Path) -> None:
    shelf = FeatureCache(folder=tmp_path).shelf(Brightness())
    with pytest.raises(TypeError, match="brightness: names: expected numbers, got object"):
        shelf.store(Entry(features={"names": np.array([None])}), digest="d")
    assert not list(tmp_path.rglob("*.npz"))
