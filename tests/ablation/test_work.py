"""What is run, in which order, what is not run twice, and what happens when something fails.

The programs are played by a class that leaves behind what they would.
"""

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sat_udpdiff.ablate import alone_in, from_here
from sat_udpdiff.ablate import main as ablate
from sat_udpdiff.ablation import work
from sat_udpdiff.ablation.judging import found_in
from sat_udpdiff.ablation.processes import ProgramError, Programs, StoppedError, last_lines
from sat_udpdiff.ablation.scores import Judged
from sat_udpdiff.ablation.settings import load
from sat_udpdiff.ablation.work import Ablation
from sat_udpdiff.config import ConfigError
from sat_udpdiff.evaluation.measure import Score
from sat_udpdiff.evaluation.results import write_results
from sat_udpdiff.evaluation.run import Evaluation, Group

PRESET = Path(__file__).parents[2] / "configs" / "evaluation" / "ablation_tiny.yaml"
SMALL = ("arms=[depth,multitask]", "seeds=[0,1]", "run.jobs=1", "training.steps=4")


class PlayedPrograms(Programs):
    """Leaves the files of train.py and evaluate.py; fails where it is told to."""

    calls: list[list[str]]
    failing: str
    too_short: bool
    """Whether a measure has no score of segmentation."""

    def run(self, words, *, log):
        self.calls.append(list(words))
        log.parent.mkdir(parents=True, exist_ok=True)
        if self.failing and self.failing in " ".join(words):
            raise ProgramError(f"ended with status 1; {log}: no space left")
        if "sat_udpdiff/train.py" in words:
            train(words)
        else:
            judge(words, too_short=self.too_short)


def value_of(words, key):
    return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))


def train(words):
    run, steps = Path(value_of(words, "run.output")), int(value_of(words, "train.steps"))
    folder = run / "checkpoints" / f"step_{steps:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    from sat_udpdiff.config_io import load_config, save_config

    base = words[words.index("--base") + 1 :]
    files = [word for word in base if word.endswith(".yaml")]
    save_config(load_config(files, [word for word in base if "=" in word]), run / "config.yaml")
    save_file({"x": torch.zeros(1)}, folder / "network.safetensors")
    size = (folder / "network.safetensors").stat().st_size
    content = {"version": 1, "state": {"step": steps}, "files": {"network.safetensors": size}}
    (folder / "state.json").write_text(json.dumps(content))


def judge(words, *, too_short):
    folder = Path(words[words.index("--output") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    groups = tuple(
        Group(
            name=name,
            videos=("a",),
            scores=(Score(name="tiny_fvd", value=3.0, higher_is_better=False, facts={"N": 40}),),
            failures={"motion": "too short"} if too_short and name == "segmentation" else {},
        )
        for name in ("segmentation", "depth")
        if name in value_of(words, "sample.tasks")
    )
    write_results([Evaluation(name="x", groups=groups)], folder / "results.json")


@pytest.fixture
def played(monkeypatch):
    PlayedPrograms.calls, PlayedPrograms.failing, PlayedPrograms.too_short = [], "", False
    monkeypatch.setattr(work, "Programs", PlayedPrograms)
    monkeypatch.chdir(Path(__file__).parents[2])
    return PlayedPrograms


def ablation_of(folder, *words):
    config = load([str(PRESET)], ["curve.every_steps=2", *SMALL, *words])
    return Ablation(config=config, output=folder)


def trained(calls):
    runs = [value_of(words, "run.output") for words in calls if "sat_udpdiff/train.py" in words]
    return [Path(run).name for run in runs]


def test_every_training_is_made_and_judged_once(played, tmp_path):
    ablation, told = ablation_of(tmp_path), []
    units = ablation.units()
    ablation.run(units, tell=told.append)
    # Seed by seed, so that every arm has one early.
    names = ["multitask_seed0", "depth_seed0", "multitask_seed1", "depth_seed1"]
    assert trained(played.calls) == names
    assert len(played.calls) == 8 and len(told) == 4 and ablation.failures == {}
    judged = next(words for words in played.calls if "depth_seed0_judged" in " ".join(words))
    assert judged[judged.index("--load") + 1].endswith("depth_seed0/checkpoints/step_00000004")
    # What the network was trained on stays what it is.
    assert "sample.tasks=[depth]" in judged and "--network" not in judged
    ablation.run(ablation.units(), tell=told.append)
    assert len(played.calls) == 8 and told[-1] == "4 of 4 trainings were done already"
    assert set(ablation.facts(units)) >= {"trainings", "training hours, all"}


def test_as_many_processes_judge_as_train(played, tmp_path):
    ablation = ablation_of(tmp_path, "arms=[depth]", "seeds=[0]", "training.ranks=2")
    ablation.run(ablation.units(), tell=str)
    training, judging = played.calls
    start, (port, other) = ["deepspeed", "--master_port"], (training[2], judging[2])
    assert training[:7] == [*start, port, "--num_gpus", "2", "--quiet", "sat_udpdiff/train.py"]
    assert judging[:7] == [*start, other, "--num_gpus", "2", "--quiet", "sat_udpdiff/evaluate.py"]
    assert port.isdecimal() and other.isdecimal()


def test_a_later_call_adds_seeds_and_arms(played, tmp_path):
    ablation_of(tmp_path).run(ablation_of(tmp_path).units(), tell=str)
    more = ablation_of(tmp_path, "seeds=[0,1,2]", "arms=[depth,multitask,segmentation]")
    played.calls.clear()
    more.run(more.units(), tell=str)
    assert trained(played.calls) == [
        *("segmentation_seed0", "segmentation_seed1", "multitask_seed2"),
        *("depth_seed2", "segmentation_seed2"),
    ]


def test_what_was_cut_short_goes_on(played, tmp_path):
    ablation = ablation_of(tmp_path)
    units = ablation.units()
    ablation.run(units, tell=str)
    unit = next(unit for unit in units if unit.training.name == "depth seed 1")
    (unit.training.checkpoint(4) / "state.json").write_text("{")
    (unit.training.folder / "checkpoints" / "step_00000004").rename(tmp_path / "gone")
    played.calls.clear()
    ablation.run(units, tell=str)
    # Its scores are there, of the same training.
    assert trained(played.calls) == ["depth_seed1"] and len(played.calls) == 1


def test_one_that_fails_is_named_and_the_others_go_on(played, tmp_path):
    played.failing, played.too_short = "runs/depth_seed0 ", True
    ablation, told = ablation_of(tmp_path), []
    units = ablation.units()
    ablation.run(units, tell=told.append)
    assert len(trained(played.calls)) == 4 and len(played.calls) == 7
    assert list(ablation.failures) == ["depth seed 0"]
    (said,) = (line for line in told if "depth seed 0" in line)
    assert "no space left" in said and "train.log" in said
    book, missing = ablation.book(units)
    assert "no space left" in missing["depth seed 0"]
    assert missing["depth seed 0, step 4"] == "not judged yet"
    assert missing["multitask seed 1, step 4, segmentation, motion"] == "too short"
    depth = Judged(arm="depth", task="depth", step=4)
    assert list(book.values[depth]) == [1]
    played.failing, played.too_short = "", False
    played.calls.clear()
    ablation.run(units, tell=str)
    # What failed is tried anew: a training with its scores, and two sets that lacked a score.
    assert trained(played.calls) == ["depth_seed0"] and len(played.calls) == 4
    assert ablation.book(units)[0].values[depth] == {0: {"tiny_fvd": 3.0}, 1: {"tiny_fvd": 3.0}}
    assert not ablation.book(units)[1].keys() & missing.keys() - {"depth seed 0"}


def test_a_report_needs_nothing_but_what_is_there(played, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "make_shards", lambda *_, **__: None)
    monkeypatch.setattr(work, "make_latents", lambda *_, **__: None)
    words = ["--config", str(PRESET), "--output", str(tmp_path / "out"), "curve.every_steps=2"]
    words += [*SMALL, "arms=[depth]"]
    assert ablate(words) == 0
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert numbers["facts"]["command"].startswith("python sat_udpdiff/ablate.py --config ")
    assert numbers["facts"]["trainings"] == 2 and numbers["score_facts"] == {"tiny_fvd": {"N": 40}}
    monkeypatch.setattr(work.judging, "check", lambda *_, **__: pytest.fail("not to be asked"))
    played.calls.clear()
    assert ablate([*words, "--report"]) == 0 and played.calls == []
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["facts"] == numbers["facts"]
    assert "| tiny_fvd | N=40 |" in (tmp_path / "out" / "report.md").read_text()


def test_two_ablations_do_not_work_in_one_folder(played, tmp_path, capsys):
    words = ["--config", str(PRESET), "--output", str(tmp_path), *SMALL, "curve.every_steps=2"]
    with alone_in(tmp_path):
        assert ablate(words) == 2
    assert f"another ablation is at work in {tmp_path}" in capsys.readouterr().err
    assert played.calls == []


def test_files_are_those_of_the_folder_where_the_program_was_started(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a disc\n")
    (tmp_path / "clips").mkdir()
    files = ["data.shards=clips", "evaluation.prompts.source=file"]
    config = load([str(PRESET)], [*files, "evaluation.prompts.file=prompts.txt"])
    monkeypatch.chdir(tmp_path)
    found = from_here(config)
    assert found.data.shards == str(tmp_path / "clips")
    assert found.evaluation.prompts.file == str(tmp_path / "prompts.txt")
    # What is no file there is a name on the hub, or one of the repository.
    assert found.training.base == "configs/tiny.yaml"
    assert found.evaluation.vbench.dino == config.evaluation.vbench.dino


def test_an_end_before_the_last_step_is_no_success(played, tmp_path, monkeypatch):
    monkeypatch.setattr(played, "run", lambda self, words, *, log: None)
    ablation = ablation_of(tmp_path)
    ablation.run(ablation.units(), tell=str)
    assert "ended before step 4" in ablation.failures["depth seed 0"]


def test_a_folder_of_another_ablation_is_refused_by_name(played, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "make_shards", lambda *_, **__: None)
    monkeypatch.setattr(work, "make_latents", lambda *_, **__: None)
    ablation_of(tmp_path).prepare()
    assert len(ablation_of(tmp_path, "seeds=[5]", "run.jobs=3").check()) == 2
    with pytest.raises(ConfigError, match=r"other settings: training.steps was 4, now 8"):
        ablation_of(tmp_path, "training.steps=8").check()
    with pytest.raises(ConfigError, match=r"evaluation.prompts.count was 40, now 8"):
        ablation_of(tmp_path, "evaluation.prompts.count=8").check()
    (tmp_path / "ablation.json").unlink()
    with pytest.raises(ConfigError, match="holds other files"):
        ablation_of(tmp_path).check()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prompts.source=file", "prompts.file=gone.txt"), "prompts.file: cannot read gone.txt"),
        (("prompts.source=reference", "reference.source=shards"), "expected a folder of shards"),
        (("prompts.count=31",), "evaluation.prompts.count: tiny_fvd wants 32 or .*, got 31;"),
        (("reference.source=none",), "evaluation.reference: tiny_fvd compares with 32 or more"),
    ],
)
def test_what_samples_are_judged_with_is_looked_for_first(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(PRESET.parents[2])
    with pytest.raises(ConfigError, match=message):
        ablation_of(tmp_path, *(f"evaluation.{word}" for word in words)).check()


def test_few_prompts_do_where_no_distance_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(PRESET.parents[2])
    words = ("evaluation.prompts.count=4", "evaluation.measures=[tiny,edge]")
    assert len(ablation_of(tmp_path, *words).check()) == 4


def test_settings_need_a_file(capsys, tmp_path):
    assert ablate(["--output", str(tmp_path / "out"), "seeds=[0]"]) == 2
    assert "--config: expected value files, such as" in capsys.readouterr().err


def test_caches_are_made_for_the_arms_that_are_trained(played, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(work, "make_latents", lambda folder, **facts: made.append((folder, facts)))
    words = ("data.shards=CLIPS", "arms=[depth,location_aware]")
    ablation_of(tmp_path, *words).prepare()
    assert [folder.name for folder, _ in made] == ["shared", "location_aware"]
    assert [facts["recolourings"] for _, facts in made] == [4, 1]
    assert {facts["shards"] for _, facts in made} == {"CLIPS"}


def test_samples_that_are_missing_are_no_scores(tmp_path):
    training = ablation_of(tmp_path).units()[0].training
    found = found_in([Evaluation(name="x", groups=())], training=training)
    assert found.scores == {}
    assert found.failures == {"segmentation": "no samples", "depth": "no samples"}


def test_a_program_that_fails_shows_the_end_of_its_log(tmp_path):
    programs, log = Programs(jobs=2), tmp_path / "a" / "log"
    code = "import sys; print('train: 10%|#  |'); sys.exit('disk full')"
    with pytest.raises(ProgramError, match=r"status 1; .*/a/log: disk full$"):
        programs.run(["python", "-c", code], log=log)
    assert log.read_text().startswith("$ python -c ")
    programs.run(["python", "-c", "print(1)"], log=log)
    assert log.read_text().endswith("1\n") and "disk full" in log.read_text()
    assert last_lines(log) == "disk full / 1"


def test_stopping_ends_programs_and_starts_no_more(tmp_path):
    programs, log, errors = Programs(jobs=1), tmp_path / "log", []

    def run():
        try:
            code = "import time; print('begun', flush=True); time.sleep(600)"
            programs.run(["python", "-c", code], log=log)
        except StoppedError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().endswith("begun\n")):
        assert time.monotonic() < deadline, "the program did not begin"
        time.sleep(0.05)
    programs.stop()
    thread.join(timeout=60)
    assert not thread.is_alive() and len(errors) == 1
    with pytest.raises(StoppedError):
        programs.run(["python", "-c", "print('never')"], log=log)
    assert not log.read_text().endswith("never\n")
