"""The value files of ablate.py: each opens with its promise, loads, and plans its trainings."""

import re
from pathlib import Path

import pytest

from sat_udpdiff.ablation.settings import load
from sat_udpdiff.ablation.work import Ablation

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted((CONFIGS / "evaluation").glob("ablation_*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_opens_with_its_promise_and_loads(file, tmp_path):
    text = file.read_text()
    head = re.match(r"(#.*\n)+", text)
    assert head is not None and head[0].startswith("# Ablation: ")
    for promise in ("Hardware", "Hours", "Expect", "Command"):
        assert f"\n# {promise}: " in head[0], promise
    assert f"configs/evaluation/{file.name}" in head[0]
    assert max(map(len, text.splitlines())) <= 100
    assert f"`evaluation/{file.name}`" in (CONFIGS / "README.md").read_text()
    config = load([str(file)])
    units = Ablation(config=config, output=tmp_path).units()
    assert len(units) == 11 * len(config.seeds)
    assert units[0].training.config().train.steps == config.training.steps


def test_there_is_one_for_each_world():
    assert {load([str(file)]).scores for file in FILES} == {"tiny", "paper"}
