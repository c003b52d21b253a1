"""The report of an ablation: markdown, one HTML page, the numbers as JSON, and pictures."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from data_loaders.atomic_file import write_atomically
from data_loaders.page_parts import document, tiles
from sat_udpdiff.ablation.figure import curves_png
from sat_udpdiff.ablation.grids import (
    Grid,
    all_grid,
    curve_grid,
    facts_grids,
    ordering_grid,
    paper_grids,
)
from sat_udpdiff.ablation.orderings import Judgement, judge_all, summary
from sat_udpdiff.ablation.recipes import CURVE_COLUMNS
from sat_udpdiff.ablation.scores import COLUMNS, ScoreBook
from sat_udpdiff.ablation.settings import AblationConfig
from sat_udpdiff.config_sources import plain

REPORT, PAGE, NUMBERS, CURVES_PICTURE = "report.md", "report.html", "report.json", "fig8.png"
SHEETS = "sheets"
_TINY_NOTE = (
    "Columns named `tiny ...` are stand-ins that a judge of the synthetic world gives: they order "
    "networks, and are on another scale than the paper's numbers beside them. The clips that the "
    "distance is taken from have not gone through the encoder of video files, as all samples have."
)
_CELLS = (
    "A cell is the mean over training seeds ± half of its 95 % t-interval. Verdicts are of the "
    "difference of two rows, seed by seed: its interval lies above 0 (holds), below 0 (does not "
    "hold) or includes 0 (undecided)."
)
_BASELINE = (
    "`CogVideoX 5B` is the paper's name of the baseline; here it is the 16-channel network of the "
    "same size, fine-tuned on the same clips for as many steps."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that is told of an ablation."""

    config: AblationConfig
    book: ScoreBook
    missing: Mapping[str, str]
    """What has no numbers, or fewer than it should -> why."""
    facts: Mapping[str, Any]
    """Command, machine, versions, times."""
    score_facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of a score -> what it depends on, for all networks alike."""
    sheets: Sequence[str] = ()
    """Files of pictures below the folder of the report."""

    @property
    def judgements(self) -> list[Judgement]:
        """Verdicts on all claims."""
        columns, step = COLUMNS[self.config.scores], self.config.training.steps
        return judge_all(self.book, columns=columns, step=step)

    def grids(self) -> list[Grid]:
        """All tables, in the order of the report."""
        columns, seeds = COLUMNS[self.config.scores], len(self.config.seeds)
        step, book = self.config.training.steps, self.book
        return [
            ordering_grid(self.judgements, columns=columns),
            *paper_grids(book, columns=columns, step=step, seeds=seeds),
            curve_grid(book, columns=columns, seeds=seeds),
            all_grid(book, columns=columns, step=step, seeds=seeds),
            *facts_grids(self.score_facts),
        ]

    def notes(self) -> list[str]:
        """What a reader has to know before the numbers."""
        training = self.config.training
        conditions = (
            f"{training.steps} steps, seeds {', '.join(map(str, self.config.seeds))}; the same "
            "clips, prompts and sampling seeds for every network."
        )
        tiny = [_TINY_NOTE] if self.config.scores == "tiny" else []
        return [conditions, summary(self.judgements), _CELLS, _BASELINE, *tiny]


def write_report(report: Report, folder: Path) -> None:
    """Write report.md, report.html, report.json and fig8.png.

    Raises:
        OSError: The disk is full or not writable.
    """
    columns = COLUMNS[report.config.scores]
    picture = curves_png(report.book, columns=[columns[name] for name in CURVE_COLUMNS])
    write_atomically(folder / CURVES_PICTURE, picture)
    write_atomically(folder / REPORT, to_markdown(report).encode())
    write_atomically(folder / PAGE, to_page(report, folder=folder, curves=picture).encode())
    write_atomically(folder / NUMBERS, to_json(report).encode())


def to_markdown(report: Report) -> str:
    """The report for a repository."""
    lines = ["# Ablations", "", *(f"* {note}" for note in report.notes()), ""]
    if report.missing:
        lines += ["## What is missing", ""]
        lines += [f"* {name}: {why}" for name, why in report.missing.items()]
        lines.append("")
    for grid in report.grids():
        lines += [grid.markdown(), ""]
        if grid.title.startswith("Fig. 8"):
            lines += [f"![Scores over steps]({CURVES_PICTURE})", ""]
    if report.sheets:
        lines += ["### Samples, same prompt and seed in all rows", ""]
        lines += [f"![{Path(sheet).stem}]({sheet})" for sheet in report.sheets]
        lines.append("")
    lines += ["### How it was made", ""]
    lines += [f"* {name}: {value}" for name, value in report.facts.items()]
    return "\n".join(lines) + "\n"


def to_json(report: Report) -> str:
    """All numbers, and what they were made with."""
    content = {
        "settings": plain(asdict(report.config)),
        "facts": dict(report.facts),
        "missing": dict(report.missing),
        "score_facts": {name: dict(facts) for name, facts in report.score_facts.items()},
        "scores": list(report.book.rows()),
        "orderings": [_judgement(judgement) for judgement in report.judgements],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _judgement(judgement: Judgement) -> dict[str, Any]:
    difference = judgement.difference
    return {
        "claim": str(judgement.claim),
        "verdict": judgement.verdict.value,
        "difference": None if difference is None else asdict(difference),
    }


def to_page(report: Report, *, folder: Path, curves: bytes) -> str:
    """One HTML page that needs nothing else: pictures are in it.

    Args:
        report: What is told.
        folder: Where its pictures are.
        curves: Fig. 8 as PNG.
    """
    sections = []
    for grid in report.grids():
        picture = _picture(curves, "Scores over steps") if grid.title.startswith("Fig. 8") else ""
        sections.append(f"<h2>{escape(grid.title)}</h2>{_table(grid)}{picture}")
    sheets = "".join(_picture((folder / name).read_bytes(), name) for name in report.sheets)
    missing = "".join(
        f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in report.missing.items()
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes())
    body = f"""{notes}
{f"<h2>What is missing</h2><ul>{missing}</ul>" if missing else ""}
{"".join(sections)}
{f"<h2>Samples, same prompt and seed in all rows</h2>{sheets}" if sheets else ""}
<h2>How it was made</h2>
{tiles({name: str(value) for name, value in report.facts.items()})}"""
    return document("Ablations", kind="UDPDiff", body=body)


def _table(grid: Grid) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in grid.head)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in grid.rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _picture(png: bytes, name: str) -> str:
    data = b64encode(png).decode()
    return f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}"></figure>'
