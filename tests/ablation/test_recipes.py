"""The arms and rows of an ablation, against the files under configs/ and the paper's tables."""

from pathlib import Path

import pytest

from sat_udpdiff.ablation.recipes import (
    ARMS,
    CURVE_COLUMNS,
    CURVES,
    TABLES,
    choose_arms,
)
from sat_udpdiff.ablation.scores import COLUMNS, DENSE
from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_io import load_config
from sat_udpdiff.evaluation.paper import table_rows

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arm", ARMS.values(), ids=lambda arm: arm.name)
@pytest.mark.parametrize("family", ["tiny", "5b"])
def test_an_arm_is_files_that_parse_and_a_network_that_makes_its_samples(arm, family):
    config = load_config(
        [str(ROOT / f"configs/{family}.yaml"), *(str(ROOT / p) for p in arm.paths)]
    )
    for task in arm.judged:
        assert task is None if config.model.dense_groups == 0 else task in config.data.tasks


def test_the_eleven_arms_are_the_trainings_of_the_tables():
    assert len(ARMS) == 11
    used = {row.arm for table in TABLES for row in table.rows} | {row.arm for row in CURVES}
    assert used == set(ARMS)
    for name, arm in ARMS.items():
        needed = {row.task for table in TABLES for row in table.rows if row.arm == name}
        assert needed == set(arm.judged), name


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_has_the_papers_rows(table):
    numbers = [int(word.strip(",")) for word in table.name.split() if word.strip(",").isdigit()]
    paper = [row for number in numbers for row in table_rows(number)]
    for row in table.rows:
        (found,) = {
            (tuple(sorted(one.values.items())), one.task, one.files[1:])
            for one in paper
            if one.values == row.paper and one.task == row.task
        }
        assert found[2] == ARMS[row.arm].files
    if len(numbers) == 1:
        assert len(table.rows) == len(paper)
        assert {label for pair in table.pairs for label in pair} == {row.name for row in paper}


def test_the_curves_are_those_of_figure_8():
    assert [row.arm for row in CURVES] == ["scratch_single", "scratch_multitask"]
    assert CURVE_COLUMNS == ("SC", "BC", "MS")
    for row in CURVES:
        files = [str(ROOT / path) for path in ARMS[row.arm].paths]
        assert load_config(files).init.weights is None


def test_stand_ins_have_names_of_their_own():
    for header in (*CURVE_COLUMNS, "FVD", *DENSE):
        ours, paper = COLUMNS["tiny"][header], COLUMNS["paper"][header]
        assert ours.header == f"tiny {paper.header}"
        assert ours.score == f"tiny_{paper.score}"
        assert ours.higher_is_better == paper.higher_is_better


def test_arms_are_chosen_in_the_order_of_training():
    assert [arm.name for arm in choose_arms([])] == list(ARMS)
    assert [arm.name for arm in choose_arms(["depth", "multitask"])] == ["multitask", "depth"]
    with pytest.raises(ConfigError, match=r"arms: no such arm \(nearest: multitask\), got 'multi"):
        choose_arms(["depth", "multitsk"])
    with pytest.raises(ConfigError, match="there are multitask, baseline"):
        choose_arms(["zzz"])
