"""Settings of an evaluation, and what is made of them."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from sat_udpdiff.config import ConfigError
from sat_udpdiff.evaluation import choose
from sat_udpdiff.evaluation.settings import EvaluationConfig, MeasureName, dump, load

CONFIGS = Path(__file__).parents[2] / "configs" / "evaluation"
# Those of ablate.py are looked at by its own tests.
FILES = sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("ablation_*.yaml")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_opens_with_its_promise_and_loads(file: Path) -> None:
    text = file.read_text()
    head = re.match(r"(#.*\n)+", text)
    assert head is not None and head[0].startswith("# Evaluation: ")
    for promise in ("Hardware", "Hours", "Expect", "Command"):
        assert f"\n# {promise}: " in head[0], promise
    assert f"configs/evaluation/{file.name}" in head[0]
    assert max(map(len, text.splitlines())) <= 100
    assert load([str(file)]) != EvaluationConfig() or file.stem == "paper"
    readme = (CONFIGS.parent / "README.md").read_text()
    assert f"`evaluation/{file.name}`" in readme


def test_settings_come_back(tmp_path: Path) -> None:
    config = load([str(CONFIGS / "tiny.yaml")], ["prompts.count=7", "measures=[agreement]"])
    (tmp_path / "evaluation.yaml").write_text(dump(config))
    assert load([str(tmp_path / "evaluation.yaml")]) == config


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("prompts.cuont=3", "prompts.cuont"),
        ("prompts.count=0", "prompts.count: expected at least 1, got 0"),
        ("sample.num_steps=0", "sample.num_steps: expected at least 1, got 0"),
        ("sample.seed=-1", "sample.seed: expected at least 0, got -1"),
        ("measures=[]", "measures: expected one or more, got none"),
        ("measures=[agrement]", "nearest: agreement"),
        ("measures=[agreement,agreement]", "measures: expected each once"),
        ("prompts.source=file", "prompts.file: expected a file with prompts.source=file"),
        ("reference.source=video", "reference.source: expected one of none, shards, world"),
    ],
)
def test_wrong_settings_are_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load([], [word])


def test_every_name_has_a_measure(tmp_path: Path) -> None:
    names = get_args(MeasureName)
    assert set(choose.REGISTRY) == set(names)
    around = choose.Around(device=torch.device("cpu"), cache=tmp_path)
    for name in ("consistency", "agreement", "entities"):
        (measure,) = choose.make_measures(load([], [f"measures=[{name}]"]), around=around)
        assert measure.name == name and measure.key


def test_all_that_is_missing_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(config, around):
        raise ValueError("vbench.dino: expected dino.pth, found nothing; get it from a place")

    registry = {**choose.REGISTRY, "agreement": missing, "entities": missing}
    monkeypatch.setattr(choose, "REGISTRY", registry)
    around = choose.Around(device=torch.device("cpu"), cache=tmp_path)
    config = load([], ["measures=[consistency,agreement,entities]"])
    with pytest.raises(ValueError, match="agreement: vbench") as error:
        choose.make_measures(config, around=around)
    assert "entities: vbench.dino" in str(error.value)
    assert str(error.value).endswith("; without: measures=[consistency]")
    assert "\n" not in str(error.value)
    chosen = choose.choose_measures(config, around=around)
    assert [m.name for m in chosen.measures] == ["consistency"] and len(chosen.missing) == 2
