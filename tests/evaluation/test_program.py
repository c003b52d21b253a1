"""The evaluation program from its command line: end to end, restart, processes, refusals."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_loaders.decode import encode_rgb
from data_loaders.shards import write_shards
from data_loaders.synthetic import HELD_OUT_START, WorldConfig, make_clip
from sat_udpdiff import evaluate
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.measure import Score
from sat_udpdiff.evaluation.results import read_results
from sat_udpdiff.evaluation.run import Evaluation, Group
from sat_udpdiff.evaluation.videos import samples_in
from sat_udpdiff.loading import Model
from tests.conftest import SmallWorld

SCRIPT = str(Path(evaluate.__file__))
NO_REFERENCE = "reference.source=none"
CHEAP = "measures=[consistency,agreement]"
WORLD = ("prompts.source=world", "prompts.count=2", "reference.source=world", "reference.count=3")


def run(*words: object) -> int:
    return evaluate.main([str(word) for word in words])


def all_files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("video.mp4")}


def test_samples_become_scores_and_a_page(
    tiny_samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--samples", tiny_samples, CHEAP, NO_REFERENCE, "--output", tmp_path / "out") == 0
    table = capsys.readouterr().out
    (found,) = read_results(tmp_path / "out" / "results.json")
    assert [group.name for group in found.groups] == ["segmentation", "depth"]
    for group, own in zip(found.groups, ("map_flat_share", "map_colour_distance"), strict=True):
        assert len(group.videos) == 2
        assert [score.name for score in group.scores] == [
            "pixel_consistency", "map_foreground_iou", "map_boundary_f", own,
        ]  # fmt: skip
    assert found.facts["sample.num_steps"] == 2 and found.facts["device"] == "cpu"
    assert str(found.facts["network"]).startswith("segmentation 0.5, depth 0.5, task by embedding")
    # None of the paper's scores was asked for.
    assert "pixel_consistency" in table and "*paper" not in table
    assert table.startswith((tmp_path / "out" / "table.md").read_text())
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("<video ") == 2 * 2  # each sample once, whatever the number of scores
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.yaml", "features", "plots", "report.html", "results.json", "table.md",
    }  # fmt: skip


def test_the_same_command_again_makes_no_feature_again(tiny_samples: Path, tmp_path: Path) -> None:
    words = ("--samples", tiny_samples, CHEAP, NO_REFERENCE, "--output", tmp_path / "out")
    assert run(*words) == 0
    (first,) = read_results(tmp_path / "out" / "results.json")
    assert run(*words) == 0
    (second,) = read_results(tmp_path / "out" / "results.json")
    assert second.groups == first.groups
    assert "reading" in first.costs and "reading" not in second.costs


def test_half_written_samples_are_counted(samples: Path, tmp_path: Path) -> None:
    folder = next(samples.glob("*_depth_*"))
    (folder / "depth.npz").unlink()
    assert run("--samples", samples, CHEAP, NO_REFERENCE, "--output", tmp_path / "out") == 0
    (found,) = read_results(tmp_path / "out" / "results.json")
    assert dict(found.left_out) == {folder.name: "half written: no depth.npz"}
    assert [len(group.videos) for group in found.groups] == [2, 1]
    assert "no depth.npz" in (tmp_path / "out" / "table.md").read_text()


def test_folders_are_rows(tiny_samples: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    rng = np.random.default_rng(0)
    for name, frames in (("a disc-0", 4), ("still-0", 1)):
        rgb = rng.integers(0, 255, (frames, 32, 48, 3), np.uint8)
        (files / f"{name}.mp4").write_bytes(encode_rgb(rgb, fps=8.0, codec="h264"))
    output = tmp_path / "out"
    assert run("--samples", tiny_samples, files, CHEAP, NO_REFERENCE, "--output", output) == 0
    samples, videos = read_results(output / "results.json")
    assert (samples.name, videos.name) == (tiny_samples.name, "files")
    (group,) = videos.groups
    assert group.name == "video" and group.videos == ("a disc-0", "still-0")
    assert group.exclusions == {"consistency": {"still-0": "expected 2 or more frames, got 1"}}


def test_a_folder_without_a_whole_video_is_told_before_others_are_judged(
    tiny_samples: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in samples.glob("*/video.mp4"):
        path.unlink()
    words = ("--samples", tiny_samples, samples, CHEAP, NO_REFERENCE, "--output", tmp_path / "out")
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert f"{samples}: expected at least one whole video, found none; 4 left out" in error
    assert "half written: no video.mp4" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_files_for_vbench_hold_the_videos_of_their_group(tmp_path: Path) -> None:
    frames = np.zeros((2, 16, 24, 3), np.uint8)
    videos = {name: ArrayVideo(name=name, prompt=f"of {name}", frames=frames) for name in "ab"}
    groups = tuple(
        Group(
            name=task,
            videos=(name,),
            scores=(
                Score(name="motion_smoothness", value=0.5, higher_is_better=True,
                      per_video={name: 0.5}),
            ),
        )
        for task, name in (("segmentation", "a"), ("depth", "b"))
    )  # fmt: skip
    evaluate.write_for_vbench(Evaluation(name="r", groups=groups), videos=videos, folder=tmp_path)
    for task, prompt in (("segmentation", "of a"), ("depth", "of b")):
        info = json.loads((tmp_path / f"r_{task}_full_info.json").read_text())
        assert [one["prompt_en"] for one in info] == [prompt]


def test_a_network_is_sampled_and_judged_against_the_world(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    words = ("--load", small_checkpoint, *WORLD, "--output", output, "--name", "small")
    assert run(*words) == 0
    (first,) = read_results(output / "results.json")
    assert first.name == "small" and first.facts["references"] == 3
    assert [len(group.videos) for group in first.groups] == [2, 2]
    segmentation = first.group("segmentation")
    assert segmentation is not None
    entities = segmentation.score("entity_count_distance")
    assert entities is not None and entities.facts["references"] == 3

    found = samples_in(output / "samples")
    seeds = {(video.prompt, video.task): video.seed for video in found.videos}
    prompts = list(dict.fromkeys(prompt for prompt, _ in seeds))
    assert len(prompts) == 2
    for number, prompt in enumerate(prompts):
        assert seeds[prompt, "depth"] == seeds[prompt, "segmentation"] == number

    # Half of a sample is made again, whole ones are kept; the result is the same.
    before = all_files(output / "samples")
    damaged = next(iter(sorted(before)))
    (output / "samples" / damaged).unlink()
    assert run(*words) == 0
    after = all_files(output / "samples")
    assert {name for name in before if before[name] != after[name]} == {damaged}
    (second,) = read_results(output / "results.json")
    assert second.groups == first.groups

    # With all of them there, nothing is sampled.
    monkeypatch.setattr(Model, "generate", None)
    assert run(*words) == 0


def test_times_stand_in_the_results_and_in_the_table(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    words = ("--load", small_checkpoint, *WORLD, "measures=[consistency]", "prompts.count=1")
    assert run(*words, "--time", "--name", "small", "--output", tmp_path) == 0
    (found,) = read_results(tmp_path / "results.json")
    table = (tmp_path / "table.md").read_text()
    for group in found.groups:
        score = group.score("seconds")
        assert score is not None and score.facts["num_steps"] == 2
        denoise, without = score.facts["denoise"], score.facts["without_dense"]
        assert isinstance(denoise, float) and isinstance(without, float)
        assert 0 < denoise < score.value and 0 < without < score.value
        (row,) = re.findall(rf"^\| small \| {group.name} \| 1 \|.*$", table, flags=re.M)
        assert row.endswith(f"| {score.value:.2f} |")
    assert [group.name for group in found.groups] == ["segmentation", "depth"]
    assert "small, depth" in (tmp_path / "times.md").read_text()


def test_other_samples_in_the_output_are_refused(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--load", small_checkpoint, *WORLD, "--output", tmp_path, CHEAP)
    assert run(*words) == 0
    capsys.readouterr()
    assert run(*words, "sample.num_steps=3") == 2
    error = capsys.readouterr().err
    assert "is a sample of another sample.num_steps (2, now 3); give another folder" in error
    # The same weights, and a map that is read otherwise.
    assert run(*words, "--network", "colormap.depth_inverse=paper") == 2
    assert "is a sample of another colormap.depth_inverse" in capsys.readouterr().err
    # Other prompts have other folders; what lies beside them is not judged.
    assert run(*words, "reference.world_seed=1") == 0
    assert len(list((tmp_path / "samples").iterdir())) == 8
    (found,) = read_results(tmp_path / "results.json")
    assert [len(group.videos) for group in found.groups] == [2, 2]


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the data set pipeline, as far as evaluation looks at it."""
    output = tmp_path_factory.mktemp("data_set")
    world = WorldConfig(frames=13, height=40, width=64, world="simple")
    clips = (make_clip(HELD_OUT_START + i, seed=0, config=world) for i in range(3))
    write_shards(clips, output / "heldout")
    return output


def test_prompts_are_the_captions_of_the_reference(
    small_checkpoint: Path, heldout: Path, tmp_path: Path
) -> None:
    words = ("--load", small_checkpoint, "--reference", heldout, "--output", tmp_path)
    assert run(*words, "prompts.count=2", "prompts.caption=short", "measures=[entities]") == 0
    world = WorldConfig(frames=13, height=40, width=64, world="simple")
    captions = {make_clip(HELD_OUT_START + i, seed=0, config=world).caption_short for i in range(3)}
    prompts = {video.prompt for video in samples_in(tmp_path / "samples").videos}
    assert len(prompts) == 2 and prompts < captions
    (found,) = read_results(tmp_path / "results.json")
    assert found.facts["references"] == 3


def test_prompts_of_a_file(small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red disc moves left\n\na blue square\n")
    words = ("prompts.source=file", f"prompts.file={tmp_path / 'prompts.txt'}", NO_REFERENCE)
    assert run("--load", small_checkpoint, *words, CHEAP, "--output", tmp_path / "out") == 0
    prompts = {video.prompt for video in samples_in(tmp_path / "out" / "samples").videos}
    assert prompts == {"a red disc moves left", "a blue square"}


def test_two_processes_share_sampling_and_judging(
    small_checkpoint: Path,
    tmp_path: Path,
    launch: Callable[[Sequence[str]], subprocess.CompletedProcess[str]],
) -> None:
    words = ["--load", str(small_checkpoint), *WORLD, CHEAP, "run.device=cpu", "--output"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = launch([*launcher, "--nproc_per_node", "2", SCRIPT, *words, str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert run(*words, tmp_path / "one") == 0
    (two,), (one,) = (read_results(tmp_path / n / "results.json") for n in ("two", "one"))
    assert two.facts["processes"] == 2
    for ours, theirs in zip(two.groups, one.groups, strict=True):
        assert ours.videos == theirs.videos
        for score, other in zip(ours.scores, theirs.scores, strict=True):
            # Other numbers of threads round otherwise.
            assert dict(score.per_video) == pytest.approx(dict(other.per_video), abs=0.02, rel=0.02)


def test_samples_need_no_reference(tiny_samples: Path, tmp_path: Path) -> None:
    words = ("--samples", tiny_samples, "measures=[consistency,entities]", "--output", tmp_path)
    assert run(*words) == 0
    (found,) = read_results(tmp_path / "results.json")
    segmentation, depth = found.groups
    assert "got 2 and 0" in segmentation.failures["entities"] and not depth.failures


def test_a_dry_run_says_what_would_be_done(
    small_checkpoint: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (next(samples.glob("*_depth_*")) / "video.mp4").unlink()
    words = ("--samples", samples, "--load", small_checkpoint, *WORLD, "--output", tmp_path / "o")
    assert run(*words, "--dry-run") == 0
    out = capsys.readouterr().out
    assert f"4 samples in {tmp_path / 'o' / 'samples'}, 4 to be made" in out
    assert f"3 videos in {samples}" in out and "half written: no video.mp4" in out
    assert "3 reference clips" in out and "measure agreement: ready" in out
    assert not (tmp_path / "o").exists()


def test_a_dry_run_names_what_is_missing(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from sat_udpdiff.evaluation import choose

    def missing(config, around):
        raise ValueError("vbench.dino: found no dino.pth; it is to be had at a place")

    monkeypatch.setattr(choose, "REGISTRY", {**choose.REGISTRY, "agreement": missing})
    words = ("--samples", samples, NO_REFERENCE, "--output", tmp_path / "o")
    assert run(*words, "--dry-run") == 2
    assert "measure agreement: vbench.dino: found no dino.pth" in capsys.readouterr().out
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert "found no dino.pth" in error and "without: measures=[consistency, entities]" in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "out"], "--samples or --load: expected videos, or a network to sample"),
        (["--samples", "nothing", "--output", "out"], "nothing: expected a folder of samples"),
        (["--samples", "empty", "--output", "out"], "expected folders that sample.py wrote"),
        (["--samples", "empty"], "--output: expected a folder, got nothing"),
        (["--load", "nothing", "--output", "out"], "--load: nothing lies at nothing"),
        (["--load", "tiny", "--output", "out"], "--base: expected configuration files"),
        (["--load", "CKPT", "--output", "out"], "(--reference): expected a folder of shards"),
        (["--load", "CKPT", "--output", "out", "--reference", "empty"], "manifest.json"),
        (["--load", "CKPT", "--output", "out", "--network", "data.fsp=3"], "data.fsp"),
        (["--samples", "s", "--output", "out", "--config", "none.yaml"], "none.yaml"),
        (["--samples", "s", "--output", "out", "measures=[fid]"], "measures[0]: expected one of"),
    ],
)
def test_bad_requests_are_refused_in_one_line(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, words: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert run(*(str(small_checkpoint) if word == "CKPT" else word for word in words)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert error.startswith("evaluate.py: ")
    assert not (tmp_path / "out").exists()


def test_references_of_the_world_need_a_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    rgb = np.zeros((3, 32, 48, 3), np.uint8)
    (files / "a.mp4").write_bytes(encode_rgb(rgb, fps=8.0, codec="h264"))
    words = ("--samples", files, "reference.source=world", "--output", tmp_path / "out")
    assert run(*words) == 2
    assert "reference.source=world: expected samples of sample.py" in capsys.readouterr().err


def test_every_setting_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run("--help-config")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert re.search(r"^  prompts\.count = 1024  \(a whole number\)$", text, flags=re.M)


def test_starts_as_a_script(small_world: SmallWorld, tmp_path: Path, launch) -> None:
    done = launch([sys.executable, SCRIPT, "--samples", str(tmp_path), "--output", "out"])
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("evaluate.py: ")


def test_the_settings_of_a_run_are_kept(tiny_samples: Path, tmp_path: Path) -> None:
    words = ("--samples", tiny_samples, CHEAP, NO_REFERENCE, "--output")
    assert run(*words, tmp_path / "one") == 0
    config = tmp_path / "one" / "evaluation.yaml"
    shutil.rmtree(tmp_path / "one" / "features")
    again = ("--samples", tiny_samples, "--config", config, "--output", tmp_path / "two")
    assert run(*again) == 0
    files = [(tmp_path / name / "results.json").read_text() for name in ("one", "two")]
    first, second = (json.loads(text)["evaluations"][0]["groups"] for text in files)
    assert first == second
