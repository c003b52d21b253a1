"""Validation within a run: it changes nothing, ends nothing, and is told from training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_loaders.loader import Batches
from sat_udpdiff.config import TASKS, Task
from sat_udpdiff.diffusion.schedule import make_schedule
from sat_udpdiff.distributed import init_distributed
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.measure import Measure, UnusableError, mean_score
from sat_udpdiff.evaluation.pixel_measures import MapAgreement
from sat_udpdiff.generation import Encoders
from sat_udpdiff.training import loop, ranks
from sat_udpdiff.training.engine import MASTERS, MOMENTS
from sat_udpdiff.training.fixed_noise import FixedNoiseLosses
from sat_udpdiff.training.loop import Trainer
from sat_udpdiff.training.metrics import Stopwatch
from sat_udpdiff.training.run_log import read_metrics
from sat_udpdiff.training.sample_scores import SampleScores
from sat_udpdiff.training.sample_videos import SampleVideos
from sat_udpdiff.training.setup import build_engine, find_resume_point, restore_or_start
from sat_udpdiff.training.validation import Validation, make_validation

# deepspeed warns about its own use of torch.
pytestmark = pytest.mark.filterwarnings("default")

LOSSES = ("validation.every_steps=1", "validation.clips=1")
SETTINGS = ("train.steps=2", "data.num_workers=0", *LOSSES, "checkpoint.every_steps=1")


class Brightness(Measure):
    """The mean colour of a video; not of maps of depth."""

    name = "brightness"
    tasks = frozenset({"segmentation"})
    key = "1"

    def features(self, video):
        return {"mean": np.asarray(video.rgb().mean())}

    def scores(self, features, *, references):
        assert not references
        values = {name: float(found["mean"]) for name, found in features.items()}
        return [mean_score("brightness", values, higher_is_better=True)]


class Blind(Measure):
    """A measure that can judge no video, and fails where it has to."""

    name = "blind"
    key = "1"

    def features(self, video):
        if video.task == "depth":
            raise UnusableError("too dark")
        raise RuntimeError("no such kernel")

    def scores(self, features, *, references):
        raise AssertionError("there is nothing to score")


@pytest.fixture(scope="module")
def place():
    return init_distributed(device="cpu")


@pytest.fixture(scope="module")
def encoders(small_world, tmp_path_factory):
    return Encoders.load(small_world.config(tmp_path_factory.mktemp("run")), device="cpu")


@pytest.fixture(scope="module")
def make_trainer(small_world, place, encoders):
    def make(folder, *overrides: str) -> Trainer:
        shards = f"validation.shards={small_world.folder / 'shards'}"
        config = small_world.config(folder, *SETTINGS, shards, *overrides)
        resume_point = find_resume_point(config, place=place)
        engine = build_engine(config, place=place, resume_point=resume_point)
        state, ema = restore_or_start(engine, config=config, resume_point=resume_point)
        return Trainer(
            config=config,
            place=place,
            engine=engine,
            encoders=encoders,
            schedule=make_schedule(config.diffusion),
            state=state,
            ema=ema,
        )

    return make


def train(trainer: Trainer, validate) -> None:
    with Batches(trainer.config, start=trainer.state.samples_seen) as batches:
        loop.run(trainer, batches, validate=validate)


def tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}": value
        for kind in (MASTERS, *MOMENTS)
        for name, value in trainer.engine.gather(kind, keep=True).items()
    }


def with_videos(trainer: Trainer, *measures: Measure) -> Validation:
    """Losses and one sample video per task, judged by these measures."""
    prompts = replace(trainer.config.validation, prompts=("a disc",), num_steps=1)
    config = replace(trainer.config, validation=prompts)
    parts = {"encoders": trainer.encoders, "place": trainer.place}
    return Validation(
        place=trainer.place,
        losses=FixedNoiseLosses(config, **parts),
        videos=SampleVideos(config, **parts),
        scores=SampleScores(measures, fps=config.data.fps),
    )


@pytest.fixture(scope="module")
def pair(make_trainer, tmp_path_factory):
    """A run with every kind of validation after each step, and one without any."""
    runs, states = [], []
    for has_validation in (True, False):
        trainer = make_trainer(tmp_path_factory.mktemp("run"))
        torch.manual_seed(3)
        np.random.seed(3)
        train(trainer, with_videos(trainer, Brightness(), Blind()) if has_validation else None)
        runs.append(trainer)
        states.append((torch.get_rng_state(), np.random.get_state()[1]))
    return runs, states


def test_training_is_the_same_to_the_last_bit_with_and_without_it(pair):
    (validated, plain), _ = pair
    first, second = tensors(validated), tensors(plain)
    assert first.keys() == second.keys() and len(first) > 60
    assert [key for key in first if not first[key].equal(second[key])] == []
    for shadow, expected in zip(validated.ema.shadow, plain.ema.shadow, strict=True):
        assert shadow.equal(expected)
    assert all(module.training for module in validated.engine.module.modules())


def test_no_random_state_is_touched(pair):
    _, (first, second) = pair
    assert torch.equal(first[0], second[0])
    assert (first[1] == second[1]).all()


def test_its_lines_are_told_from_those_of_training(pair):
    (validated, plain), _ = pair
    found, expected = (
        read_metrics(_folder(trainer), kind="training") for trainer in (validated, plain)
    )
    assert [line["step"] for line in found] == [1, 2]
    assert [line["loss"] for line in found] == [line["loss"] for line in expected]
    lines = read_metrics(_folder(validated), kind="validation")
    assert [line["step"] for line in lines] == [1, 2]
    assert {line["kind"] for line in lines} == {"validation"}
    # The weights moved, and nothing else did.
    assert lines[0]["loss"] != lines[1]["loss"]
    assert lines[1]["loss_dense_depth_t_quartile_4"] > 0
    assert read_metrics(_folder(plain), kind="validation") == []


def test_samples_are_scored_task_by_task_and_none_is_left_out_in_silence(pair):
    (validated, _), _ = pair
    (_, line) = read_metrics(_folder(validated), kind="validation")
    assert 0 < line["brightness_segmentation"] < 255
    assert "brightness_depth" not in line
    assert line["excluded_videos"] == 1
    # `Blind` failed once in each of two validations.
    assert validated.state.failed_validations == 2
    files = sorted(path.name for path in (_folder(validated) / "samples").glob("*/*"))
    assert files == sorted(f"00_{task}.mp4" for task in TASKS for _ in range(2))


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.config.run.output)


def test_a_resumed_run_has_every_line_once(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, "train.steps=1")
    train(trainer, make_validation(trainer.config, encoders=trainer.encoders, place=trainer.place))
    (first,) = read_metrics(tmp_path, kind="validation")
    with (tmp_path / "metrics.jsonl").open("a") as file:  # a step that was lost in a crash
        file.write(json.dumps({"step": 2, "kind": "validation", "loss": -1.0}) + "\n")
    trainer = make_trainer(tmp_path)
    assert trainer.state.step == 1
    train(trainer, make_validation(trainer.config, encoders=trainer.encoders, place=trainer.place))
    lines = read_metrics(tmp_path, kind="validation")
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0] == first and lines[1]["loss"] > 0


def test_a_signal_puts_a_validation_off_and_the_run_that_goes_on_makes_it(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.stop.name = "SIGUSR1"
    validate = make_validation(trainer.config, encoders=trainer.encoders, place=trainer.place)
    train(trainer, validate)
    assert (trainer.state.step, read_metrics(tmp_path, kind="validation")) == (1, [])
    trainer = make_trainer(tmp_path)
    train(trainer, validate)
    assert [line["step"] for line in read_metrics(tmp_path, kind="validation")] == [1, 2]
    train(make_trainer(tmp_path), validate)  # nothing is left to do, and nothing is done twice
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("kind") for line in lines] == [None, "validation"] * 2


def test_what_fails_is_told_and_the_rank_still_meets_the_others(
    make_trainer, tmp_path, monkeypatch, capsys
):
    trainer = make_trainer(tmp_path, "train.steps=1")
    validation = with_videos(trainer)
    (tmp_path / "samples").write_text("in the way")
    network = trainer.engine.module
    monkeypatch.setattr(FixedNoiseLosses, "__call__", lambda *_: 1 / 0)
    gathered = []
    real = ranks.gather
    monkeypatch.setattr(
        ranks, "gather", lambda value, place: gathered.append(value) or real(value, place=place)
    )
    report = validation(network, 1)
    assert len(gathered) == 3  # as many as where nothing fails: losses, videos, scores
    assert report.values == {}
    assert [text.split(":")[0] for text in report.failures] == [
        "fixed-noise losses failed",
        "sample videos failed",
    ]
    assert network.training
    train(trainer, validation)
    assert (trainer.state.step, trainer.state.failed_validations) == (1, 2)
    assert "step 1: fixed-noise losses failed: ZeroDivisionError" in capsys.readouterr().err


def test_one_line_is_printed_without_single_cells(make_trainer, tmp_path, capsys):
    trainer = make_trainer(tmp_path, "train.steps=1")
    train(trainer, make_validation(trainer.config, encoders=trainer.encoders, place=trainer.place))
    told = [line for line in capsys.readouterr().err.splitlines() if "validation: loss" in line]
    assert len(told) == 1
    assert "loss_t_quartile_4 " in told[0] and "loss_depth " in told[0]
    assert "loss_video_depth_t_quartile" not in told[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stage_3_gathers_its_weights(precision, make_trainer, tmp_path):
    found = []
    for stage in (2, 3):
        settings = (f"train.zero_stage={stage}", f"train.precision={precision}", "train.steps=1")
        (tmp_path / str(stage)).mkdir()
        trainer = make_trainer(tmp_path / str(stage), *settings)
        validation = make_validation(trainer.config, encoders=trainer.encoders, place=trainer.place)
        train(trainer, validation)
        found += read_metrics(tmp_path / str(stage), kind="validation")
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)


def test_measures_are_those_of_an_evaluation(make_trainer, tmp_path):
    wish = ("validation.prompts=[a disc]", "validation.num_steps=1", "train.steps=1")
    trainer = make_trainer(tmp_path, *wish, "validation.measures=[agreement]")
    train(trainer, make_validation(trainer.config, encoders=trainer.encoders, place=trainer.place))
    (line,) = read_metrics(tmp_path, kind="validation")
    expected = {
        f"{score.name}_{task}"
        for task in TASKS
        for score in MapAgreement().scores(
            {"a": MapAgreement().features(noise_video(task))}, references={}
        )
    }
    assert expected and expected <= line.keys()


def noise_video(task: Task) -> ArrayVideo:
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3)).astype(np.uint8)
    return ArrayVideo(name="a", frames=frames, colours=frames, task=task)


def test_unknown_measures_and_files_are_refused_by_the_setting(make_trainer, tmp_path):
    trainer = make_trainer(
        tmp_path, "validation.prompts=[a disc]", "validation.measures=[agrement]"
    )
    parts = {"encoders": trainer.encoders, "place": trainer.place}
    with pytest.raises(
        ValueError, match=r"validation.measures: measures.*expected one of .*agreem"
    ):
        make_validation(trainer.config, **parts)
    validation = replace(
        trainer.config.validation, measures=("agreement",), evaluation=str(tmp_path / "no.yaml")
    )
    with pytest.raises(ValueError, match=r"validation.measures: .*no.yaml"):
        make_validation(replace(trainer.config, validation=validation), **parts)


def test_measures_that_need_many_videos_are_refused():
    measure = Brightness()
    measure.compares_with_references = True
    with pytest.raises(ValueError, match=r"validation.measures: brightness compares many videos"):
        SampleScores([measure], fps=8.0)


def test_the_time_of_a_validation_is_not_that_of_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    now[0] = 12.0
    watch.add(data_wait_seconds=0.5)
    watch.leave_out(10.0)
    times = watch.read(global_batch=4, flops_per_sample=1.0, peak_flops=None)
    assert (times["step_seconds"], times["samples_per_second"]) == (2.0, 2.0)


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_find_what_one_finds_and_go_on_together_after_a_failure(
    stage, make_trainer, small_world, launch, tmp_path
):
    (tmp_path / "one").mkdir()
    shared = ("train.steps=1", "validation.clips=2", f"train.zero_stage={stage}")
    alone = make_trainer(tmp_path / "one", *shared)
    train(alone, make_validation(alone.config, encoders=alone.encoders, place=alone.place))
    (expected,) = read_metrics(tmp_path / "one", kind="validation")
    run = tmp_path / "two"
    run.mkdir()
    (run / "samples").write_text("in the way")  # of the sample videos of both ranks
    prompts = ["validation.prompts=[a disc]"] if stage == 2 else []
    shards = f"validation.shards={small_world.folder / 'shards'}"
    command = small_world.train_command(run, *SETTINGS, shards, *shared, *prompts)
    torchrun = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    done = launch([*torchrun, *command, "train.micro_batch_size=1"])
    assert done.returncode == 0, done.stderr
    (found,) = read_metrics(run, kind="validation")
    assert found.keys() == expected.keys()
    for name in expected.keys() - {"kind", "seconds"}:
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    failures = done.stderr.count("sample videos failed: NotADirectoryError")
    assert failures == 2 * len(prompts)
