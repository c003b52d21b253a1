"""The paper's rows: complete, and each made by files that are there and say the same numbers."""

import re
from pathlib import Path

import pytest

from sat_udpdiff.config_io import load_config, to_values
from sat_udpdiff.evaluation.paper import (
    COLUMNS,
    ROWS,
    TITLES,
    network_kind,
    rows_of_kind,
    table_rows,
)

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


def kind_of(*files: str) -> str:
    shards = [] if "point_grid" in files[-1] else ["data.shards=s"]
    return network_kind(to_values(load_config([str(CONFIGS / f"{f}.yaml") for f in files], shards)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}-{row.name}")
def test_a_network_made_by_the_files_of_a_row_stands_beside_it(row) -> None:
    found = rows_of_kind(kind_of(*row.files), task=row.task)
    if row.table in (8, 9) and len(row.files) > 2:
        # Other data tells these apart, and no configuration.
        assert row not in found
    elif row.name == "Depth Anything V2":
        assert row not in found and found
    else:
        values = {name: value for other in found for name, value in other.values.items()}
        assert values.items() >= row.values.items()
    # The tiny network of the same files is one of the same kind.
    if row.files[0] == "5b":
        assert kind_of("tiny", *row.files[1:]) == kind_of(*row.files)


@pytest.mark.parametrize(
    ("files", "task"),
    [
        (("5b", "depth", "ablations/scratch_single", "lora"), "depth"),
        (("5b", "multitask", "ablations/text_prompt"), "segmentation"),
        (("5b", "baseline", "ablations/scratch_single"), None),
        (("2b", "multitask"), "depth"),
    ],
)
def test_the_paper_has_no_row_of_other_networks(files, task) -> None:
    settings = ["data.shards=s", *(["lora.rank=4"] if files[-1] == "lora" else [])]
    paths = [str(CONFIGS / f"{file}.yaml") for file in files if file != "lora"]
    assert rows_of_kind(network_kind(to_values(load_config(paths, settings))), task=task) == ()


def test_what_a_network_is_compared_with() -> None:
    multi = rows_of_kind(kind_of("tiny", "multitask"), task="depth")
    assert [(row.table, row.name) for row in multi] == [
        (2, "depth"), (3, "multi-task depth"), (4, "multi-task"),
    ]  # fmt: skip
    assert multi[0].values["FVD"] == 302.55 and multi[1].values["RMSE"] == 0.1634
    single, time = rows_of_kind(kind_of("tiny", "depth"), task="depth")
    assert (single.table, single.values["SC"], time.values["seconds"]) == (1, 95.91, 205.75)
    baseline, *_ = rows_of_kind(kind_of("tiny", "baseline"), task=None)
    assert (baseline.table, baseline.name) == (1, "CogVideoX 5B")
    (segmentation,) = rows_of_kind(kind_of("tiny", "segmentation"), task="segmentation")
    assert segmentation.table == 1
    (placed,) = rows_of_kind(
        kind_of("tiny", "segmentation", "ablations/location_aware"), task="segmentation"
    )
    assert (placed.table, placed.values["SC"]) == (6, 81.26)


def test_columns_print_as_the_paper_does() -> None:
    printed = [column.text(0.97065) for column in COLUMNS[:1]] + [COLUMNS[4].text(0.41764)]
    assert printed == ["97.06", "0.4176"]
