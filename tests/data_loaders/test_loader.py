import logging
import os
import pathlib
import signal
import threading
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_loaders import clip_writer
from data_loaders.loader import Batches, batch_numbers
from data_loaders.order import color_generator, draws
from data_loaders.schema import DataError
from data_loaders.shards import ShardIndex, StoredSample, write_shards
from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.colormaps import depth as depth_colormap
from sat_udpdiff.colormaps import pixelplanes
from sat_udpdiff.config import ColormapConfig, Config, DataConfig, ModelConfig, TrainConfig

NUM_CLIPS = 7


@pytest.fixture
def config(tmp_path, noise_sample):
    folder = tmp_path / "data"
    write_shards((noise_sample(i) for i in range(NUM_CLIPS)), folder, samples_per_shard=3)
    return make_config(folder)


def make_config(folder, **data):
    return Config(
        seed=5,
        data=replace(
            DataConfig(
                shards=str(folder), num_frames=5, height=16, width=24, fps=8.0, num_workers=0
            ),
            **data,
        ),
        train=TrainConfig(micro_batch_size=1),
    )


def take(config, count, **place):
    with Batches(config, **place) as stream:
        return list(islice(stream, count))


def describe(batch):
    """Everything of a batch per sample, comparable."""
    dense = [None] * len(batch.keys) if batch.dense is None else batch.dense
    return [
        (
            int(batch.numbers[i]),
            batch.keys[i],
            batch.captions[i],
            int(batch.task[i]),
            bool(batch.drop_caption[i]),
            batch.rgb[i].numpy().tobytes(),
            None if dense[i] is None else dense[i].numpy().tobytes(),
        )
        for i in range(len(batch.keys))
    ]


def with_batch(config, size, accumulation=1):
    return replace(
        config, train=replace(config.train, micro_batch_size=size, accumulation_steps=accumulation)
    )


def test_a_batch_holds_what_the_schema_says(config, noise_sample):
    (batch,) = take(with_batch(config, 3), 1)
    assert batch.rgb.shape == batch.dense.shape == (3, 5, 3, 16, 24)
    assert batch.rgb.dtype == batch.dense.dtype == torch.float32
    assert batch.task.dtype == batch.numbers.dtype == torch.int64
    for i, key in enumerate(batch.keys):
        sample = noise_sample(int(key.removeprefix("clip-")))
        rgb = ((batch.rgb[i].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        np.testing.assert_array_equal(rgb, sample.rgb)
        drawn = draws(i, seed=5, data=config.data)
        expected = sample.caption_long if drawn.use_long_caption else sample.caption_short
        assert batch.captions[i] == expected
        assert batch.task[i] == drawn.task_id
        assert batch.drop_caption[i] == (drawn.drop_uniform < 0.1)
    assert batch.rgb.min() == -1 and batch.rgb.max() == 1


def test_the_dense_map_is_the_map_of_the_task(config, noise_sample):
    seen = set()
    for n, batch in enumerate(take(config, 12)):
        sample = noise_sample(int(batch.keys[0].removeprefix("clip-")))
        dense = ((batch.dense[0].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        seen.add(int(batch.task[0]))
        if batch.task[0] == 1:
            disparity = sample.depth.astype(np.float32) / np.float32(65535)
            np.testing.assert_array_equal(dense, depth_colormap.encode(disparity))
            continue
        generator = color_generator(seed=5, epoch=n // NUM_CLIPS, key=sample.key)
        colors = pixelplanes.draw_colors(7, generator=generator, min_distance=0.0)
        np.testing.assert_array_equal(dense, pixelplanes.encode(sample.entity_ids, colors=colors))
    assert seen == {0, 1}


def test_a_clip_gets_new_colours_in_the_next_epoch(config):
    config = replace(
        config, data=replace(config.data, tasks=("segmentation",), task_weights=(1.0,))
    )
    by_key = {}
    for batch in take(config, 2 * NUM_CLIPS):
        by_key.setdefault(batch.keys[0], []).append(batch.dense)
    assert all(len(maps) == 2 and not torch.equal(*maps) for maps in by_key.values())


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_number_of_workers_changes_nothing(config, workers):
    several = replace(config, data=replace(config.data, num_workers=workers, prefetch=1))
    ours = [describe(batch) for batch in take(with_batch(several, 2), 6)]
    assert ours == [describe(batch) for batch in take(with_batch(config, 2), 6)]


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("start", [0, 5])
def test_the_global_order_is_the_same_on_any_number_of_ranks(config, world, start):
    count = 3 * NUM_CLIPS
    whole = [row for batch in take(config, count, start=start) for row in describe(batch)]
    ranks = [
        take(config, -(-count // world), place_rank=rank, world_size=world, start=start)
        for rank in range(world)
    ]
    steps = zip(*ranks, strict=True)
    joined = [row for step in steps for batch in step for row in describe(batch)]
    assert joined[:count] == whole
    # No two ranks draw the same, and an epoch has every clip once.
    assert len({row[0] for row in joined}) == len(joined)
    first = -start % NUM_CLIPS
    assert len({row[1] for row in joined[first : first + NUM_CLIPS]}) == NUM_CLIPS


@given(
    world=st.integers(1, 8),
    micro=st.integers(1, 4),
    start=st.integers(0, 10**9),
    steps=st.integers(1, 5),
)
def test_ranks_share_the_numbers_without_gap_or_overlap(world, micro, start, steps):
    numbers = [
        n
        for m in range(steps)
        for rank in range(world)
        for n in batch_numbers(
            m, start=start, micro_batch_size=micro, place_rank=rank, world_size=world
        )
    ]
    assert numbers == list(range(start, start + steps * world * micro))


def test_two_ranks_see_what_one_rank_sees(config):
    whole = [describe(batch) for batch in take(with_batch(config, 2), 5)]
    for micro, world in ((1, 2), (2, 1)):
        ranks = [
            take(with_batch(config, micro), 5, place_rank=rank, world_size=world)
            for rank in range(world)
        ]
        joined = [
            [row for batch in step for row in describe(batch)] for step in zip(*ranks, strict=True)
        ]
        assert joined == whole
    # Accumulating two micro-batches of one consumes the same numbers in the same order.
    flat = [
        row for batch in take(with_batch(config, 1, accumulation=2), 10) for row in describe(batch)
    ]
    assert flat == [row for step in whole for row in step]


@pytest.mark.parametrize("start", [1, 4, 2 * NUM_CLIPS + 3])
def test_resume_equals_the_unbroken_stream(config, start):
    whole = [describe(batch) for batch in take(config, start + 3)]
    assert [describe(batch) for batch in take(config, 3, start=start)] == whole[start:]


def test_every_clip_once_per_epoch_over_ranks_and_workers(config):
    config = replace(config, data=replace(config.data, num_workers=2))
    keys = [
        key
        for rank in range(NUM_CLIPS)
        for batch in take(config, 2, place_rank=rank, world_size=NUM_CLIPS)
        for key in batch.keys
    ]
    assert sorted(keys) == sorted([f"clip-{i:04d}" for i in range(NUM_CLIPS)] * 2)


def test_a_closed_loader_leaves_no_thread(config):
    config = replace(config, data=replace(config.data, num_workers=2))
    iterator = Batches(config)
    next(iterator)
    assert any(thread.name.startswith("data") for thread in threading.enumerate())
    iterator.close()
    assert not any(thread.name.startswith("data") for thread in threading.enumerate())


def test_the_baseline_has_no_dense_map_and_needs_no_labels(tmp_path, noise_sample):
    write_shards([noise_sample(0, ids=False, depth=False)], tmp_path)
    config = replace(make_config(tmp_path), model=ModelConfig(dense_groups=0))
    (batch,) = take(config, 1)
    assert batch.dense is None


def test_missing_labels_stop_the_run_before_it_starts(tmp_path, noise_sample):
    write_shards([noise_sample(0, depth=False), noise_sample(1, depth=False)], tmp_path)
    config = make_config(tmp_path)
    with pytest.raises(DataError, match=r"data\.tasks: depth needs depth, but shard shard-000000"):
        Batches(config)
    only = make_config(tmp_path, tasks=("segmentation",), task_weights=(1.0,))
    assert take(only, 1)[0].task.tolist() == [0]


def test_impossible_places_are_refused(config):
    for place in ({"place_rank": 2, "world_size": 2}, {"start": -1}):
        with pytest.raises(ValueError, match="expected 0 <= place_rank < world_size"):
            Batches(config, **place)


def test_the_prompt_ablation_names_the_task(config):
    config = replace(config, model=ModelConfig(task_signal="prompt"))
    phrases = {0: "with segmentation map: ", 1: "with depth map: "}
    for batch in take(config, 8):
        phrase = phrases[int(batch.task[0])]
        assert batch.captions[0].startswith(phrase)
        assert batch.captions[0].removeprefix(phrase).startswith(("short", "a long"))


def test_location_aware_colours(config):
    config = replace(
        config,
        colormap=ColormapConfig(segmentation="location_aware"),
        data=replace(config.data, tasks=("segmentation",), task_weights=(1.0,)),
    )
    one, two = (take(config, 1, start=start)[0] for start in (0, NUM_CLIPS))
    assert not torch.equal(one.dense, two.dense)
    # Colours come from the place alone: the same clip is the same map in every epoch.
    by_key = {}
    for batch in take(config, 2 * NUM_CLIPS):
        by_key.setdefault(batch.keys[0], []).append(batch.dense)
    assert all(torch.equal(*maps) for maps in by_key.values())


def test_short_clips_repeat_their_last_frame(tmp_path, noise_sample):
    write_shards([noise_sample(0, frames=3)], tmp_path)
    (batch,) = take(make_config(tmp_path), 1)
    assert batch.rgb.shape[1] == 5
    assert torch.equal(batch.rgb[0, 3:], batch.rgb[0, 2:3].expand(2, -1, -1, -1))
    assert not torch.equal(batch.rgb[0, 1], batch.rgb[0, 2])


def test_other_rates_are_picked_by_time_for_rgb_and_labels_alike(tmp_path, noise_sample):
    sample = noise_sample(0, frames=33, fps=30.0)
    write_shards([sample], tmp_path)
    only = make_config(tmp_path, num_frames=9, tasks=("depth",), task_weights=(1.0,))
    (batch,) = take(only, 1)
    expected = [0, 4, 8, 11, 15, 19, 23, 26, 30]
    rgb = ((batch.rgb[0].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(rgb, sample.rgb[expected])
    dense = ((batch.dense[0].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    disparity = sample.depth[expected].astype(np.float32) / np.float32(65535)
    np.testing.assert_array_equal(dense, depth_colormap.encode(disparity))


def damage(folder, key, member="mkv"):
    index = ShardIndex.open(folder)
    for i in range(len(index)):
        stored = index.sample(i)
        if stored.key == key:
            where = stored.members[member]
            with stored.path.open("r+b") as file:
                file.seek(where.offset)
                file.write(bytes(where.size))


def test_damaged_clips_are_replaced_counted_and_named(config, caplog):
    damage(config.data.shards, "clip-0002")
    config = replace(config, data=replace(config.data, max_bad_share=0.2))
    with caplog.at_level(logging.WARNING):
        found = [describe(batch) for batch in take(config, 2 * NUM_CLIPS)]
    assert len(caplog.records) == 1
    assert "skipped damaged clip clip-0002: shard shard-000000.tar" in caplog.text
    keys = [row[1] for batch in found for row in batch]
    assert "clip-0002" not in keys and len(keys) == 2 * NUM_CLIPS
    # The next clip of the data set stands in, whatever the workers do.
    assert keys.count("clip-0003") == 4
    threaded = replace(config, data=replace(config.data, num_workers=3))
    assert [describe(batch) for batch in take(threaded, 2 * NUM_CLIPS)] == found


@pytest.mark.parametrize("workers", [0, 2])
def test_too_much_damage_stops_with_a_report(config, workers):
    for key in ("clip-0001", "clip-0004"):
        damage(config.data.shards, key)
    config = replace(config, data=replace(config.data, max_bad_share=0.2, num_workers=workers))
    with pytest.raises(
        DataError, match=r"2 of 7 clips are damaged \(28.6%; .* allows 20.0%\)"
    ) as e:
        take(config, NUM_CLIPS)
    for key in ("clip-0001", "clip-0004"):
        assert f"{key}: shard" in str(e.value)


def test_an_empty_caption_counts_as_damage(tmp_path, noise_sample, monkeypatch):
    write_shards([noise_sample(0)], tmp_path)
    whole = StoredSample.record
    empty = {"caption_short": " ", "caption_long": ""}
    monkeypatch.setattr(StoredSample, "record", lambda self: {**whole(self), **empty})
    with pytest.raises(DataError, match="clip-0000: sample 'clip-0000': expected a caption"):
        next(Batches(make_config(tmp_path)))


def test_no_ids_at_all_is_black(tmp_path, noise_sample):
    sample = noise_sample(0)
    empty = replace(
        sample,
        entity_ids=np.zeros_like(sample.entity_ids),
        meta=replace(sample.meta, num_entities=0),
    )
    write_shards([empty], tmp_path)
    (batch,) = take(make_config(tmp_path, tasks=("segmentation",), task_weights=(1.0,)), 1)
    assert torch.equal(batch.dense, torch.full_like(batch.dense, -1))


def test_gaps_in_the_ids_draw_no_colours(tmp_path, noise_sample):
    sample = noise_sample(0)
    ids = np.zeros_like(sample.entity_ids)
    cv2.circle(ids[0], (12, 8), 5, 60000, -1)
    ids[1:] = ids[0]
    write_shards([replace(sample, entity_ids=ids)], tmp_path)
    (batch,) = take(make_config(tmp_path, tasks=("segmentation",), task_weights=(1.0,)), 1)
    colors = batch.dense.permute(0, 1, 3, 4, 2).reshape(-1, 3).unique(dim=0)
    assert len(colors) == 2


def threaded(config, **data):
    return replace(config, data=replace(config.data, num_workers=2, prefetch=2, **data))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_changes_nothing(config, number):
    whole = [describe(batch) for batch in take(config, 3 * NUM_CLIPS)]
    with Batches(threaded(config, decode_seconds=0.5)) as stream:
        found = [describe(next(stream)) for _ in range(3)]
        before = stream.process_ids()
        for process in before:
            os.kill(process, number)
        found += [describe(next(stream)) for _ in range(3 * NUM_CLIPS - 3)]
        assert not stream.damage.reasons
        # One that is stopped without work is not missed.
        assert set(before) - set(stream.process_ids())
    assert found == whole


def hang_on(config, key):
    """Put something in place of a clip's shard on which every read waits for ever."""
    index = ShardIndex.open(config.data.shards)
    path = next(s.path for i in range(len(index)) if (s := index.sample(i)).key == key)
    path.rename(path.with_suffix(".whole"))
    os.mkfifo(path)


def test_clips_on_which_reading_hangs_are_counted_and_named(config, caplog):
    with Batches(threaded(config, decode_seconds=0.5, max_bad_share=0.2)) as stream:
        next(stream)
        hang_on(config, "clip-0006")  # the last clip, alone in its shard
        found = [describe(next(stream)) for _ in range(NUM_CLIPS + 6)]
        assert list(stream.damage.reasons) == ["clip-0006"]
    assert "clip-0006" not in [row[1] for batch in found[6:] for row in batch]
    reason = "reading it failed twice: did not end within 0.5 seconds and was stopped"
    assert f"skipped damaged clip clip-0006: {reason}" in caplog.text


def test_a_shard_that_vanishes_stops_the_run_by_name(config):
    with Batches(threaded(config, max_bad_share=0.3)) as stream:
        next(stream)
        (pathlib.Path(config.data.shards) / "shard-000000.tar").unlink()
        with pytest.raises(DataError, match=r"3 of 7 clips are damaged .*shard-000000\.tar"):
            for _ in range(2 * NUM_CLIPS):
                next(stream)


def test_processes_end_with_the_stream(config):
    with Batches(threaded(config)) as stream:
        next(stream)
        processes = stream.process_ids()
        assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    with pytest.raises(ValueError, match="the batches were closed"):
        next(stream)


def test_random_crops_follow_the_sample_number(config):
    config = replace(config, data=replace(config.data, crop="random", height=8, width=24))
    whole = [describe(batch) for batch in take(config, 5)]
    assert [describe(batch) for batch in take(threaded(config), 5)] == whole
    centred = replace(config, data=replace(config.data, crop="center"))
    assert [describe(batch) for batch in take(centred, 5)] != whole


def test_recolourings_come_back_in_turn(config):
    config = replace(
        config,
        data=replace(config.data, tasks=("segmentation",), task_weights=(1.0,), recolourings=2),
    )
    by_key = {}
    for batch in take(config, 4 * NUM_CLIPS):
        by_key.setdefault(batch.keys[0], []).append(batch.dense)
    for maps in by_key.values():
        assert torch.equal(maps[0], maps[2]) and torch.equal(maps[1], maps[3])
        assert not torch.equal(maps[0], maps[1])


def test_every_batch_is_of_one_bucket(config):
    data = {"buckets": ("5x16x24", "1x8x16"), "bucket_weights": (0.5, 0.5), "bucket_run": 2}
    config = with_batch(replace(config, data=replace(config.data, **data)), 2)
    found = take(config, 20)
    shapes = [tuple(batch.rgb.shape) for batch in found]
    assert set(shapes) == {(2, 5, 3, 16, 24), (2, 1, 3, 8, 16)}
    assert all(batch.rgb.shape == batch.dense.shape for batch in found)
    late = take(threaded(config), 4, start=12)
    assert [describe(batch) for batch in late] == [describe(batch) for batch in found[6:10]]
    ranks = [take(with_batch(config, 1), 20, place_rank=rank, world_size=2) for rank in (0, 1)]
    joined = [row for step in zip(*ranks, strict=True) for batch in step for row in describe(batch)]
    assert joined == [row for batch in found for row in describe(batch)]


@pytest.mark.parametrize("codec", ["vp9", "h264", "ffv1"])
def test_both_decoders_give_the_same_batches(tmp_path, codec):
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed (extra: dali)")
    worlds = [
        WorldConfig(frames=9, height=64, width=96),
        WorldConfig(frames=9, height=48, width=96),
    ]
    clips = (make_clip(i, seed=0, config=worlds[i % 2]) for i in range(4))
    write_shards(clips, tmp_path, rgb_codec=codec)
    size = {"num_frames": 5, "height": 32, "width": 48, "fps": 6.0, "crop": "random"}
    config = with_batch(threaded(make_config(tmp_path, **size)), 2)
    reference = take(config, 4)
    found = take(replace(config, data=replace(config.data, decoder="dali")), 4)
    for batch, other in zip(reference, found, strict=True):
        assert batch.keys == other.keys and batch.captions == other.captions
        assert torch.equal(batch.task, other.task)
        assert other.rgb.shape == batch.rgb.shape and other.rgb.dtype == torch.float32
        # Levels of 255; see test_dali.py for what is rounded where.
        levels = (batch.rgb - other.rgb).abs() * 127.5
        assert levels.mean() < 0.05 and levels.max() < 16
        for i, task in enumerate(batch.task.tolist()):
            if task == 0:
                assert torch.equal(batch.dense[i], other.dense[i])
            else:
                # A bin of the depth colormap is up to 9 levels from the next.
                assert ((batch.dense[i] - other.dense[i]).abs() * 127.5).mean() < 0.05


def test_what_dali_cannot_decode_is_replaced_and_named(tmp_path, caplog, monkeypatch):
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed (extra: dali)")
    world = WorldConfig(frames=9, height=64, width=96)
    clips = [make_clip(i, seed=0, config=world) for i in range(4)]
    encode = clip_writer.encode_rgb

    def damage_inside(rgb, *, fps, codec):
        content = bytearray(encode(rgb, fps=fps, codec=codec))
        if np.array_equal(rgb, clips[2].rgb):
            # Whole for container and checksum, no video inside.
            middle = len(content) // 2
            content[middle - len(content) // 3 : middle + len(content) // 3] = bytes(
                2 * (len(content) // 3)
            )
        return bytes(content)

    monkeypatch.setattr(clip_writer, "encode_rgb", damage_inside)
    write_shards(clips, tmp_path, rgb_codec="vp9")
    config = threaded(
        make_config(tmp_path, num_frames=9, height=64, width=96, max_bad_share=0.3, decoder="dali")
    )
    found = take(with_batch(config, 2), 4)
    keys = [key for batch in found for key in batch.keys]
    assert clips[2].key not in keys and keys.count(clips[3].key) == 4
    assert f"skipped damaged clip {clips[2].key}: " in caplog.text


def test_a_decoder_in_this_process_that_hangs_stops_the_run_by_name(tmp_path, monkeypatch):
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed (extra: dali)")
    from data_loaders.dali_pipeline import DaliFitter

    world = WorldConfig(frames=9, height=64, width=96)
    write_shards((make_clip(i, seed=0, config=world) for i in range(2)), tmp_path)
    release = threading.Event()
    monkeypatch.setattr(DaliFitter, "__call__", lambda self, clips: release.wait(60))
    config = threaded(make_config(tmp_path, decoder="dali", decode_seconds=0.5))
    with (
        pytest.raises(
            DataError, match=r"decoding full-0000-0000000\d did not end within data\.dec"
        ),
        Batches(config) as stream,
    ):
        next(stream)
    release.set()


def test_clips_of_too_many_entities_for_the_distance_get_the_next_best(config):
    # 7 entities 300 apart do not exist: the cube's corners are 255 from each other.
    config = replace(
        config,
        colormap=ColormapConfig(min_distance=300.0),
        data=replace(config.data, tasks=("segmentation",), task_weights=(1.0,)),
    )
    with Batches(config) as stream:
        batch = next(stream)
        assert not stream.damage.reasons
    colors = (batch.dense[0].permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0) + 1) * 127.5
    distances = torch.pdist(colors)
    assert len(colors) == 8 and distances.min() >= 75


def test_a_start_within_a_batch_of_a_bucket_is_refused(config):
    data = {"buckets": ("5x16x24",), "bucket_weights": (1.0,), "bucket_run": 4}
    config = with_batch(replace(config, data=replace(config.data, **data)), 4)
    with pytest.raises(DataError, match=r"stands at sample 6, within a batch of one size"):
        Batches(config, start=6)
    assert len(take(config, 1, start=8)) == 1


@pytest.mark.parametrize("segmentation", ["pixelplanes", "location_aware"])
def test_ids_are_painted_alike_on_a_device_and_on_the_host(tmp_path, segmentation):
    from data_loaders.dali_examples import paint_ids_on_device
    from data_loaders.examples import ExampleTask, paint_ids
    from data_loaders.order import ClipSize
    from data_loaders.raw_examples import RawExampleMaker

    world = WorldConfig(frames=5, height=32, width=48)
    write_shards([make_clip(0, seed=0, config=world)], tmp_path)
    config = replace(
        make_config(tmp_path, tasks=("segmentation",), task_weights=(1.0,)),
        colormap=ColormapConfig(segmentation=segmentation),
    )
    size = ClipSize(num_frames=5, height=32, width=48)
    task = ExampleTask(number=0, attempt=0, size=size)
    example = RawExampleMaker(config, device="cpu")(task)
    # Gaps, which draw no colour.
    ids = (example.clip.labels * 3).astype(np.uint16)
    host = paint_ids(ids, key=example.facts.key, epoch=example.coloring, config=config)
    device = paint_ids_on_device(
        torch.from_numpy(ids.astype(np.int32)), example=example, config=config
    )
    levels = ((device.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(levels, host)
