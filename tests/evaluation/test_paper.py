"""The paper's rows: complete, and each made by files that are there and say the same numbers."""

import re
from pathlib import Path

import pytest

from sat_udpdiff.config_io import load_config
from sat_udpdiff.evaluation.paper import COLUMNS, ROWS, TITLES, main_rows, table_rows

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_table_has_its_rows() -> None:
    assert [len(table_rows(table)) for table in TITLES] == [3, 3, 2, 3, 2, 2, 3, 2, 3, 2, 3, 2]
    assert sum(len(table_rows(table)) for table in TITLES) == len(ROWS)
    assert len({(row.table, row.name) for row in ROWS}) == len(ROWS)
    headers = {column.header for column in COLUMNS}
    assert all(set(row.values) <= headers for row in ROWS)
    with pytest.raises(ValueError, match="table: expected 1 to 12, got 13"):
        table_rows(13)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}-{row.name}")
def test_a_row_is_made_by_files_that_are_there(row) -> None:
    shards = [] if "point_grid" in row.files[-1] else ["data.shards=s"]
    config = load_config([str(CONFIGS / f"{name}.yaml") for name in row.files], shards)
    assert row.task in (config.data.tasks if config.model.dense_groups else (None,))


@pytest.mark.parametrize("row", [row for row in ROWS if len(row.files) > 2], ids=lambda r: r.name)
def test_ablations_expect_the_numbers_of_their_row(row) -> None:
    """The heads of the value files were written from the paper independently."""
    text = (CONFIGS / f"{row.files[-1]}.yaml").read_text()
    expected = re.search(r"# Expect: +SC (\S+) BC (\S+) MS (\d+\.\d+)(?: FVD (\d+\.\d+))?", text)
    assert expected is not None
    numbers = [float(number) for number in expected.groups() if number]
    assert numbers == list(row.values.values())


def test_what_a_network_is_compared_with() -> None:
    multi = main_rows(task="depth", tasks=("segmentation", "depth"))
    assert [(row.table, row.name) for row in multi] == [
        (2, "depth"), (3, "multi-task depth"), (4, "multi-task"),
    ]  # fmt: skip
    assert multi[0].values["FVD"] == 302.55 and multi[1].values["RMSE"] == 0.1634
    single, time = main_rows(task="depth", tasks=("depth",))
    assert (single.table, single.values["SC"], time.values["seconds"]) == (1, 95.91, 205.75)
    assert main_rows(task=None, tasks=("segmentation", "depth"))[0].name == "CogVideoX 5B"
    (segmentation,) = main_rows(task="segmentation", tasks=("segmentation",))
    assert segmentation.table == 1


def test_columns_print_as_the_paper_does() -> None:
    printed = [column.text(0.97065) for column in COLUMNS[:1]] + [COLUMNS[4].text(0.41764)]
    assert printed == ["97.06", "0.4176"]
