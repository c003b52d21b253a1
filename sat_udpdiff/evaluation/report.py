"""One page about an evaluation: tables, plots, and samples as moving pictures.

For each score the best, the middle and the worst samples are shown, so that a number can be
believed or not. The page needs nothing else; plots lie beside it as files, too.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from data_loaders.atomic_file import write_atomically
from data_loaders.page_parts import damaged, document, fit, moving_picture, tiles
from data_loaders.schema import DataError
from sat_udpdiff.evaluation import plots, tables
from sat_udpdiff.evaluation.measure import Histogram, Score, UnusableError, Video
from sat_udpdiff.evaluation.run import Evaluation
from sat_udpdiff.outputs import views_of

PAGE, PLOTS = "report.html", "plots"
"""Names in the folder of results."""
_ERRORS = ("rmse", "delta1")
"""Words in the names of scores of depth, whatever their alignment or judge: their distributions
are also drawn as shares of videos up to a value."""


def write_report(
    evaluations: Sequence[Evaluation],
    *,
    videos: Mapping[str, Mapping[str, Video]],
    folder: Path,
    shown: int = 1,
) -> Path:
    """Write the page and its plots.

    Args:
        evaluations: Rows of the table.
        videos: By row and name; read once more for those that are shown.
        folder: Where results are.
        shown: Samples of each score: so many of the best, the middle and the worst.

    Returns:
        The page's file.
    """
    drawn = draw_plots(evaluations)
    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    for name, png in drawn.items():
        write_atomically(folder / PLOTS / f"{name}.png", png)
    body = "\n".join(
        [
            _summary(evaluations),
            _tables(evaluations),
            _figures(drawn),
            *(_samples(one, videos=videos.get(one.name, {}), shown=shown) for one in evaluations),
        ]
    )
    names = ", ".join(evaluation.name for evaluation in evaluations)
    write_atomically(folder / PAGE, document(names, kind="Evaluation", body=body).encode())
    return folder / PAGE


def draw_plots(evaluations: Sequence[Evaluation]) -> dict[str, bytes]:
    """PNGs by name: scores that videos have of their own, and histograms, over rows and tasks."""
    values: dict[str, dict[str, list[float]]] = {}
    histograms: dict[str, dict[str, Histogram]] = {}
    for evaluation in evaluations:
        for group in evaluation.groups:
            for one in group.histograms:
                histograms.setdefault(one.name, {})[f"{evaluation.name}, {group.name}"] = one
            for score in group.scores:
                if score.per_video:
                    of_sets = values.setdefault(score.name, {})
                    of_sets[f"{evaluation.name}, {group.name}"] = list(score.per_video.values())
    drawn = {}
    for name, of_sets in values.items():
        drawn[name] = plots.distributions(of_sets, title=name, axis="score of a video")
        if not set(_ERRORS).isdisjoint(name.split("_")):
            drawn[f"{name}_share"] = plots.cumulative(of_sets, title=name, axis="score of a video")
    # A score and a histogram may bear one name.
    return drawn | {
        f"{name}_histogram": plots.histogram(of_sets, title=name)
        for name, of_sets in histograms.items()
    }


def chosen_videos(score: Score, *, shown: int) -> dict[str, list[str]]:
    """Names of the best, middle and worst videos by a score, each once, the best first."""
    ranked = sorted(
        score.per_video, key=lambda name: score.per_video[name], reverse=score.higher_is_better
    )
    best, worst = ranked[:shown], ranked[-shown:]
    start = max(0, (len(ranked) - shown) // 2)
    middle = ranked[start : start + shown]
    taken: set[str] = set()
    chosen = {}
    for which, names in (("best", best), ("worst", worst), ("median", middle)):
        chosen[which] = [name for name in names if name not in taken]
        taken |= set(names)
    return {which: chosen[which] for which in ("best", "median", "worst")}


def _summary(evaluations: Sequence[Evaluation]) -> str:
    facts: dict[str, str] = {}
    for evaluation in evaluations:
        prefix = f"{evaluation.name}: " if len(evaluations) > 1 else ""
        for group in evaluation.groups:
            facts[f"{prefix}{group.name}"] = f"{len(group.videos):,} videos"
        if evaluation.left_out:
            facts[f"{prefix}left out"] = f"{len(evaluation.left_out):,}"
        facts |= {f"{prefix}{name}": str(value) for name, value in evaluation.facts.items()}
    return f"<section>{tiles(facts)}</section>"


def _tables(evaluations: Sequence[Evaluation]) -> str:
    parts = {
        "Beside the paper": tables.paper_table(evaluations),
        "Other scores": tables.other_scores(evaluations),
        "What the numbers depend on": tables.score_facts(evaluations),
        "Left out": tables.exclusions(evaluations),
        "Cost": tables.costs(evaluations),
    }
    return "\n".join(
        f'<section><h2>{title}</h2><figure class="wide">{_html_table(text)}</figure></section>'
        for title, text in parts.items()
        if text
    )


def _html_table(text: str) -> str:
    """A markdown table of `tables.table` as HTML."""
    heads, _, *rows = [_cells(line) for line in text.splitlines()]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(line: str) -> list[str]:
    kept = line.removeprefix("| ").removesuffix(" |").replace("\\|", "\0")
    return [cell.strip().strip("*").replace("\0", "|") for cell in kept.split(" | ")]


def _figures(drawn: Mapping[str, bytes]) -> str:
    images = "\n".join(
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,'
        f'{b64encode(png).decode()}"></figure>'
        for name, png in drawn.items()
    )
    return f'<section><h2>Plots</h2><div class="plots">{images}</div></section>' if drawn else ""


def _samples(evaluation: Evaluation, *, videos: Mapping[str, Video], shown: int) -> str:
    """Each sample once, with all scores by which it stands out: pages of many scores stay small."""
    parts = []
    for group in evaluation.groups:
        places: dict[str, list[str]] = {}
        for score in group.scores:
            for which, names in chosen_videos(score, shown=shown).items():
                for name in names:
                    value = f"{which}: {score.name} {score.per_video[name]:.4f}"
                    places.setdefault(name, []).append(value)
        articles = "".join(
            f"<article><h3>{escape(name)}</h3>{_picture(name, video=videos.get(name))}"
            f"<p>{'<br>'.join(map(escape, told))}</p></article>"
            for name, told in places.items()
        )
        if articles:
            parts.append(f'<h3>{escape(group.name)}</h3><div class="grid">{articles}</div>')
    if not parts:
        return ""
    return f"<section><h2>Samples of {escape(evaluation.name)}</h2>{''.join(parts)}</section>"


def _picture(name: str, *, video: Video | None) -> str:
    if video is None:
        return damaged(name, reason="the video is no longer there")
    try:
        panels = {
            view.name: fit(view.frames, exact=view.name == "entities")
            for view in views_of(
                video.rgb(),
                task=video.task,
                dense=video.dense(),
                entity_ids=video.entity_ids(),
                depth=video.depth(),
            )
        }
    except (UnusableError, DataError, OSError) as error:
        return damaged(name, reason=str(error))
    return f"{moving_picture(panels, fps=video.fps)}<p>{escape(video.prompt)}</p>"
