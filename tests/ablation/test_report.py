"""Tables, figure and report of made-up scores."""

import io
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sat_udpdiff.ablation.figure import curves_png, draw_panel
from sat_udpdiff.ablation.grids import (
    NOTHING,
    all_grid,
    cell,
    curve_grid,
    ordering_grid,
    paper_grids,
)
from sat_udpdiff.ablation.orderings import judge_all
from sat_udpdiff.ablation.recipes import ARMS, CURVE_COLUMNS, CURVES
from sat_udpdiff.ablation.report import Report, to_page, write_report
from sat_udpdiff.ablation.scores import ScoreBook
from sat_udpdiff.ablation.settings import AblationConfig
from sat_udpdiff.ablation.sheets import Strip, sheet
from sat_udpdiff.ablation.statistics import estimate
from tests.ablation.made_up import STEP, TINY, fill


def report_of(book, **changes):
    facts = {"command": "python sat_udpdiff/ablate.py", "torch": "2"}
    return Report(config=AblationConfig(), book=book, missing={}, facts=facts, **changes)


def test_a_cell_tells_mean_interval_and_how_many():
    assert cell(estimate([1.0, 2.0, 3.0]), digits=2, seeds=3) == "2.00 ± 2.48"
    assert cell(estimate([1.0, 3.0]), digits=1, seeds=3) == "2.0 ± 12.7 (2 seeds)"
    assert cell(estimate([1.0]), digits=2, seeds=1) == "1.00 (1 seed)"
    assert cell(None, digits=2, seeds=3) == NOTHING


def test_our_cells_stand_beside_the_papers(book):
    grids = {grid.title: grid for grid in paper_grids(book, columns=TINY, step=STEP, seeds=3)}
    grid = grids["Table 2: Multi-task"]
    assert grid.head[1:5] == ("tiny SC", "tiny BC", "tiny MS", "tiny FVD")
    assert grid.head[5:] == ("paper SC", "paper BC", "paper MS", "paper FVD")
    (baseline,) = [row for row in grid.rows if row[0] == "CogVideoX 5B"]
    # The second arm of the fixture: 0.95, 0.951, 0.949, FVD the other way round.
    assert baseline[1] == "95.00 ± 0.25" and baseline[4] == "-0.95 ± 0.00"
    assert baseline[5:] == ("94.57", "95.80", "97.67", "343.92")
    lines = grid.markdown().splitlines()
    assert lines[0] == "### Table 2: Multi-task"
    assert {line.count("|") for line in lines[2:]} == {10}


def test_every_network_has_a_row_with_all_scores(book):
    grid = all_grid(book, columns=TINY, step=STEP, seeds=3)
    assert len(grid.rows) == sum(len(arm.judged) for arm in ARMS.values()) == 12
    assert grid.rows[0][0] == "multitask, segmentation"
    assert all_grid(ScoreBook(), columns=TINY, step=STEP, seeds=3).rows == ()


def test_orderings_show_what_was_compared(book):
    grid = ordering_grid(judge_all(book, columns=TINY, step=STEP), columns=TINY)
    row = next(row for row in grid.rows if row[:2] == ("Table 10", "SC"))
    # Arms 0 and 4 of the fixture: 100 against 80, the same noise in both.
    assert row[2:] == (
        *("duplicate above random", "97.07 against 95.15"),
        *("+20.00 [+20.00, +20.00]", "holds"),
    )
    assert grid.rows[-1][3] == "a plot"


def test_figure_8_is_drawn_where_there_are_scores(book):
    columns = [TINY[name] for name in CURVE_COLUMNS]
    picture = np.asarray(Image.open(io.BytesIO(curves_png(book, columns=columns))).convert("RGB"))
    empty = np.asarray(
        Image.open(io.BytesIO(curves_png(ScoreBook(), columns=columns))).convert("RGB")
    )

    def has_colour(pixels, rgb):
        return bool((np.abs(pixels.astype(int) - rgb).max(-1) < 8).any())

    for rgb in ((0xB4, 0x53, 0x09), (0x1D, 0x4E, 0xD8)):
        assert has_colour(picture, rgb) and not has_colour(empty, rgb)
    grid = curve_grid(book, columns=TINY, seeds=3)
    assert [row[1] for row in grid.rows] == ["80", "160", "240", "320"] * 2


def test_no_seed_lies_outside_of_figure_8() -> None:
    book, column = ScoreBook(), TINY[CURVE_COLUMNS[0]]
    # The second curve lies far above the first, and two seeds give bands far wider than both.
    for number, row in enumerate(CURVES):
        for step in (80, 160):
            values = [0.1 + number / 2, 0.2 + number / 2]
            fill(book, row.arm, row.task, values=values, step=step)
    panel = Figure().subplots()
    draw_panel(panel, book, column=column)
    low, high = panel.get_ylim()
    assert low <= 10 and 70 <= high and high - low < 100
    assert panel.collections


def test_the_report_has_numbers_verdicts_conditions_and_gaps(book, tmp_path):
    (tmp_path / "sheets").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "sheets" / "00.png")
    report = report_of(book, sheets=["sheets/00.png"])
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    for expected in (
        "320 steps, seeds 0, 1, 2",
        "45 orderings: ",
        "| Table 10 | SC | duplicate above random | 97.07 against 95.15 | +20.00",
        "### Table 11: ",
        "![Scores over steps](fig8.png)",
        "![00](sheets/00.png)",
        "on another scale than the paper's",
        "* command: python sat_udpdiff/ablate.py",
    ):
        assert expected in text, expected
    assert "What is missing" not in text
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert len(numbers["orderings"]) == 45 and len(numbers["scores"]) == 3 * (12 + 6)
    assert {one["verdict"] for one in numbers["orderings"]} <= {
        *("holds", "does not hold", "undecided", "not measured"),
    }
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "<th>tiny SC</th>" in page


def test_what_is_missing_is_said_and_escaped(book, tmp_path):
    report = Report(config=AblationConfig(), book=book, missing={"depth seed 1": "a < b"}, facts={})
    assert "<li><b>depth seed 1</b>: a &lt; b</li>" in to_page(report, folder=tmp_path, curves=b"")
    write_report(report, tmp_path)
    assert "## What is missing\n\n* depth seed 1: a < b\n" in (tmp_path / "report.md").read_text()


def test_scores_of_the_paper_need_no_note(book, tmp_path):
    report = Report(config=AblationConfig(scores="paper"), book=book, missing={}, facts={})
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "tiny" not in text
    assert "45 orderings: 45 not measured" in text


@pytest.mark.parametrize("has_map", [True, False])
def test_a_sheet_has_a_row_per_network_and_the_frames_of_it(has_map):
    red = np.zeros((9, 8, 12, 3), dtype=np.uint8)
    red[..., 0] = 255
    green = np.zeros_like(red)
    green[..., 1] = 255
    strips = [Strip(label="multitask, depth", rgb=red, dense=green if has_map else None)] * 3
    one, three = (np.asarray(sheet(some, title="a disc")) for some in (strips[:1], strips))
    count = lambda picture, rgb: int((picture == rgb).all(-1).sum())  # noqa: E731
    assert count(three, (255, 0, 0)) == 3 * count(one, (255, 0, 0)) == 3 * 4 * 120 * 80
    assert count(one, (0, 255, 0)) == (4 * 120 * 80 if has_map else 0)
