"""The whole pipeline: videos to shards, with every model stage, killed and gone on with."""

import hashlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from data_loaders.panda_dense.commands import main
from data_loaders.panda_dense.manifest import joined_rows, read_manifest_table
from data_loaders.panda_dense.stages import STAGES
from data_loaders.panda_dense.store import Store
from data_loaders.shard_files import files_at
from data_loaders.shard_verify import verify
from data_loaders.shards import ShardIndex
from tests.data_loaders.panda_dense.small_world import (
    CLIPS,
    FRAMES,
    HEIGHT,
    WIDTH,
    model_words,
    save_crowd,
    save_models,
    save_table,
    save_videos,
)

PRELOADED = [
    "data_loaders.panda_dense.commands",
    "data_loaders.panda_dense.stages",
    "transformers.models.mask2former.modeling_mask2former",
    "transformers.models.sam2_video.modeling_sam2_video",
    "transformers.models.video_llava.modeling_video_llava",
    "diffusers.models.unets.unet_spatio_temporal_condition",
    "diffusers.models.autoencoders.autoencoder_kl_temporal_decoder",
    "matplotlib.figure",
]


class World:
    """Videos, models, and what an unbroken run makes of them."""

    def __init__(self, folder: Path) -> None:
        self.table = save_videos(folder / "videos")
        self.weights = save_models(folder / "weights")
        self.folder = folder

    def words(self, output: Path) -> list[str]:
        return [
            *("run", "--videos", str(self.folder / "videos"), "--csv", str(self.table)),
            *("--output", str(output), *CLIPS, *model_words(self.weights)),
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def unbroken(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "out"
    live_alone(world.words(output))
    return output


def rows_of(output: Path) -> dict[str, dict]:
    return {row["key"]: row for row in read_manifest_table(output / "manifest.parquet")}


def without_seconds(output: Path) -> dict[str, dict]:
    """The manifest but for what no two runs have alike: how long it took."""
    return {
        key: {name: value for name, value in row.items() if not name.endswith(".seconds")}
        for key, row in rows_of(output).items()
    }


def digests(output: Path) -> dict[str, str]:
    files = [path for name in ("shards", "heldout") for path in (output / name).iterdir()]
    files += [output / name for name in ("statistics.json", "statistics.png", "README.md")]
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_every_clip_has_an_outcome(unbroken: Path) -> None:
    rows = rows_of(unbroken)
    reasons = {key[:5]: row["reject_reason"] for key, row in rows.items() if not row["keep"]}
    assert reasons["short"] == "too short"
    assert reasons["noise"] == "unreadable"
    assert reasons["black"] == "black frames"
    assert reasons["never"] == "missing video"
    kept = [key for key, row in rows.items() if row["keep"]]
    assert len(kept) == 6 and all(key.startswith("video") for key in kept)
    assert not any(key.startswith("broken") for key in rows)


def test_what_made_the_labels_is_in_the_rows(unbroken: Path) -> None:
    row = next(row for row in rows_of(unbroken).values() if row["keep"])
    assert row["ingest.url"].startswith("https://www.youtube.com/")
    assert len(row["filter.sha256"]) == 64
    assert row["cut.num_frames"] == FRAMES
    for stage in ("segment", "propagate", "depth", "caption"):
        assert row[f"{stage}.backend"] == "model"
        assert {len(part) for part in row[f"{stage}.revision"].split("+")} == {12}
        assert row[f"{stage}.seconds"] > 0
        assert " " in row[f"{stage}.version"]


def test_the_shards_are_whole_and_split_by_video(unbroken: Path) -> None:
    videos = {}
    for name in ("shards", "heldout"):
        reports = list(verify(files_at(str(unbroken / name)), decode=True))
        assert not [fault for report in reports for fault in report.faults]
        index = ShardIndex.open(unbroken / name)
        records = [index.sample(i).record() for i in range(len(index))]
        videos[name] = {record["meta"]["extra"]["video_id"] for record in records}
        for record in records:
            size = (record["frames"], record["height"], record["width"])
            assert size == (FRAMES, HEIGHT, WIDTH)
            assert record["has_entity_ids"] and record["has_depth"]
            assert record["caption_short"].startswith("Something")
            assert record["caption_long"] != record["caption_short"]
    assert videos["shards"] and videos["heldout"]
    assert not videos["shards"] & videos["heldout"]


def test_a_second_run_changes_nothing(world: World, unbroken: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*.tar")}
    assert main(world.words(unbroken)) == 0
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*.tar")} == before


def live(words: list[str]) -> None:
    os._exit(main(words))


def start_process(words: list[str]) -> multiprocessing.context.ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=live, args=(words,))
    process.start()
    return process


def live_alone(words: list[str]) -> None:
    """Run a command, unbroken, in a process like those that are killed.

    In this one other tests have been at work, and what they left must not show in the last bits.
    """
    process = start_process(words)
    process.join()
    assert process.exitcode == 0


def kill_ten_times(words: list[str], *, output: Path) -> None:
    """Run a command in two processes at a time; SIGKILL at any moment, and go on to the end."""
    moments = random.Random(0)

    def start() -> multiprocessing.context.ForkServerProcess:
        return start_process(words)

    team, kills, longest = [start(), start()], 0, 2.0
    while kills < 10:
        time.sleep(moments.uniform(0.1 * longest, longest))
        victim = moments.choice(team)
        if victim.is_alive():
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            kills += 1
        victim.join()
        if (output / "write" / "done.json").exists():
            # Killing what has nothing left to do proves nothing: anew, with shorter lives.
            for process in team:
                process.join()
            shutil.rmtree(output)
            kills, longest = 0, longest / 2
            team = [start(), start()]
            continue
        team[team.index(victim)] = start()
    for process in team:
        process.join()
        assert process.exitcode == 0


def assert_same(output: Path, other: Path) -> None:
    rows, others = without_seconds(output), without_seconds(other)
    assert rows.keys() == others.keys()
    # What differs and no more: pytest cuts a comparison of all rows before it comes to that.
    assert not {
        f"{key} {name}": (value, others[key].get(name))
        for key, row in rows.items()
        for name, value in row.items()
        if value != others[key].get(name)
    }
    assert digests(output) == digests(other)
    assert not [path.name for path in output.rglob("*") if ".partial" in path.name]


@pytest.mark.slow
def test_killed_ten_times_it_ends_as_if_unbroken(
    world: World, unbroken: Path, tmp_path: Path
) -> None:
    kill_ten_times(world.words(tmp_path / "out"), output=tmp_path / "out")
    assert_same(tmp_path / "out", unbroken)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["model", "classical"])
def test_real_clips_killed_ten_times(
    world: World, shared_clips: Path, tmp_path: Path, backend: str
) -> None:
    table = tmp_path / "table.csv"
    save_table(shared_clips, table=table)
    more = []
    if backend == "classical":
        more = [f"{stage}.backend=classical" for stage in ("segment", "propagate")]
        more += ["depth.backend=none", "caption.backend=given"]

    def words(output: Path) -> list[str]:
        return [
            *("run", "--videos", str(shared_clips), "--csv", str(table), "--output", str(output)),
            *CLIPS, *model_words(world.weights), "clip.height=128", "clip.width=192", *more,
        ]  # fmt: skip

    live_alone(words(tmp_path / "unbroken"))
    kept = [row for row in rows_of(tmp_path / "unbroken").values() if row["keep"]]
    assert len(kept) >= 16
    kill_ten_times(words(tmp_path / "out"), output=tmp_path / "out")
    assert_same(tmp_path / "out", tmp_path / "unbroken")


def test_other_thresholds_cost_no_work_that_was_done(
    world: World, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    shutil.copytree(unbroken, output)
    rows = output / "depth" / "part-000000.jsonl"
    before = rows.read_text()
    # All that were measured are refused now, and come back.
    stricter = [*world.words(output), "select.thresholds.min_matching_score=0.6"]
    assert main(stricter) == 1
    assert "found none" in capsys.readouterr().err
    reasons = {row["reject_reason"] for row in joined_rows(Store(root=output), STAGES[:-1])}
    assert reasons == {"low matching score", "missing video", "too short", "unreadable"}
    # The folder keeps what it was told last.
    assert main([*world.words(output), "select.thresholds.min_matching_score=0.43"]) == 0
    assert_same(output, unbroken)
    assert rows.read_text() == before  # with its seconds: nothing was done again


def test_a_video_that_comes_late_is_in_the_shards_that_are_written_anew(
    world: World, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, videos = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(unbroken, output)
    shutil.copytree(world.folder / "videos", videos)
    words = [*world.words(output), "--videos", str(videos)]
    before = digests(output)
    assert main([*words, "--again"]) == 0
    assert digests(output) == before
    shutil.copy(videos / "video_00aaa.mp4", videos / "never_00aaa.mp4")
    capsys.readouterr()
    assert main([*words, "--retry", "missing video", "--dry-run"]) == 0
    assert "tried again would be: 1 clips" in capsys.readouterr().out
    assert main([*words, "--retry", "missing video"]) == 0
    kept = [key for key, row in rows_of(output).items() if row["keep"]]
    assert len(kept) == 7 and any(key.startswith("never") for key in kept)
    written = []
    for name in ("shards", "heldout"):
        reports = verify(files_at(str(output / name)), decode=False)
        assert not [fault for report in reports for fault in report.faults]
        index = ShardIndex.open(output / name)
        written += [index.sample(i).record()["key"] for i in range(len(index))]
    assert sorted(written) == sorted(kept)


def test_two_hundred_entities_none_and_no_labels(world: World, tmp_path: Path) -> None:
    save_crowd(tmp_path / "crowd")
    words = [
        *("run", "--videos", str(tmp_path / "crowd"), "--output", str(tmp_path / "out"), *CLIPS),
        *model_words(world.weights),
        *("select.sample.held_out_clips=0", "select.thresholds.max_black_frames=null"),
        *("select.thresholds.max_bright=null", "select.thresholds.max_dark=null"),
        *("segment.backend=synthetic", "depth.backend=synthetic", "caption.backend=given"),
        "run.attempts=1",
    ]
    assert main(words) == 0
    rows = rows_of(tmp_path / "out")
    assert rows["crowd"]["segment.num_entities"] == 200
    assert rows["crowd"]["keep"]
    assert rows["nobody"]["reject_reason"] == "no entity found"
    assert (
        rows["bare"]["failed"]
        and "expected a source with entity_ids" in (rows["bare"]["reject_detail"])
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("segment.entityseg.weights=nowhere/at/all", "segment.entityseg.weights: no folder"),
        ("segment.entityseg.weights=", "segment.entityseg.weights: expected a folder or a hub id"),
        ("propagate.sam2.weights=nowhere/at/all", "propagate.sam2.weights: no folder"),
        ("depth.depthcrafter.base=nowhere/at/all", "depth.depthcrafter.base: no folder"),
        ("caption.captioner.weights=nowhere/at/all", "caption.captioner.weights: no folder"),
        ("filter.aesthetic_head=nowhere.pth", "filter.aesthetic_head: expected a file"),
        ("filter.motion_backend=raft", "filter.raft_weights: expected a file"),
        ("clip.height=50", "clip.height: expected a multiple of 16, got 50"),
        ("clip.num_frames=48", "clip.num_frames: expected 4k + 1"),
        ("write.samples_per_shard=0", "write.samples_per_shard: expected an integer >= 1"),
        ("run.attempts=0", "run.attempts: expected an integer >= 1"),
        ("run.device=cuda:7", "run.device: expected one of the 0 GPU"),
        ("ingest.videos=nowhere", "ingest.videos: expected a folder"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    assert main([*world.words(tmp_path / "out"), word]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*world.words(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "ingest: 10 clips, 1 of them missing" in printed
    assert "write: waits for caption" in printed
    assert not (tmp_path / "out").exists()


def test_status_tells_without_the_settings(
    unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--output", str(unbroken)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^caption +6 +0 +0 +0 ", printed, re.MULTILINE)
    assert "missing video" in printed
