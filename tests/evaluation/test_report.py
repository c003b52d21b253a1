"""Tables, plots and the page."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sat_udpdiff.evaluation import plots, report, tables
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.measure import Score, count_histogram
from sat_udpdiff.evaluation.run import Cost, Evaluation, Group

_VOID = {"meta", "img", "link", "br", "hr", "input"}
RNG = np.random.default_rng(0)


class Nesting(HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def assert_well_formed(html: str) -> None:
    parser = Nesting()
    parser.feed(html)
    parser.close()
    assert parser.open == []


def video(name: str, *, prompt: str = "a disc") -> ArrayVideo:
    shape = (3, 32, 48)
    return ArrayVideo(
        name=name,
        prompt=prompt,
        task="depth",
        frames=RNG.integers(0, 256, (*shape, 3), np.uint8),
        colours=RNG.integers(0, 256, (*shape, 3), np.uint8),
        disparity=RNG.random(shape, np.float32),
    )


MULTITASK = "segmentation 0.5, depth 0.5, task by embedding, pixelplanes, new channels duplicate"


def evaluation(name: str = "multi", *, network: str = MULTITASK) -> Evaluation:
    per_video = {f"v{i}": 0.9 + i / 100 for i in range(5)}
    scores = (
        Score(
            name="subject_consistency",
            value=0.9207,
            higher_is_better=True,
            per_video=per_video,
            interval=(0.91, 0.93),
            facts={"weights": "a|b"},
        ),
        Score(name="fvd", value=310.256, higher_is_better=False, facts={"n": 5}),
        Score(name="edge", value=0.5, higher_is_better=False, per_video=per_video),
        Score(name="entity_count_distance", value=1.5, higher_is_better=False),
        Score(name="depth_rmse", value=0.1, higher_is_better=False, per_video=per_video),
    )
    group = Group(
        name="depth",
        videos=tuple(per_video),
        scores=scores,
        histograms=(count_histogram("entities", {"samples": [3, 1], "references": [2]}, axis="n"),),
        exclusions={"edge": {"v9": "one frame"}},
        failures={"motion": "no video could be judged"},
    )
    return Evaluation(
        name=name,
        groups=(group,),
        left_out={"v7": "half written: no sample.json"},
        reference_exclusions={"fvd": {"r": "damaged"}},
        costs={"edge": Cost(seconds=30.0, videos=5)},
        facts={"network": network, "gpu": None},
    )


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in text.splitlines()]


def test_a_row_stands_above_the_papers() -> None:
    heads, _, ours, paper = rows_of(tables.paper_table([evaluation()]))
    assert heads == [
        "row", "task", "videos", "SC", "BC", "MS", "FVD", "delta1", "RMSE", "seconds",
    ]  # fmt: skip
    assert ours[:4] == ["multi", "depth", "5", "92.07 (91.00 to 93.00)"]
    assert ours[6:9] == ["310.26", "", "0.1000"]
    assert paper == [
        "*paper, Tables 2, 3, 4 (multi-task)*", "depth", "1024", "97.07", "96.89", "99.23",
        "302.55", "0.4176", "0.1634", "205.81",
    ]  # fmt: skip


def test_the_model_that_depth_is_compared_with_is_a_row() -> None:
    scores = tuple(
        Score(name=f"depth_comparison_{kind}", value=value, higher_is_better=kind == "delta1",
              facts={"model": "Depth Anything V2"})
        for kind, value in (("delta1", 0.6), ("rmse", 0.09), ("rmse_lstsq", 0.05))
    )  # fmt: skip
    plain = evaluation()
    group = replace(plain.groups[0], scores=(*plain.groups[0].scores, *scores))
    compared = replace(plain, groups=(group,))
    _, _, ours, _, other, paper = rows_of(tables.paper_table([compared]))
    empty = ["", "", "", ""]
    assert ours[-2:] == ["0.1000", ""]
    assert other == ["multi: Depth Anything V2", "depth", "5", *empty, "0.6000", "0.0900", ""]
    assert paper == [
        "*paper, Table 3 (Depth Anything V2)*", "depth", "1024", *empty, "0.5808", "0.0907", "",
    ]  # fmt: skip
    rest = tables.other_scores([compared])
    assert "depth_comparison_rmse_lstsq" in rest and "depth_comparison_rmse |" not in rest
    # Of files whose networks are unknown there is nothing of the paper.
    unknown = tables.paper_table([replace(compared, facts={})])
    assert "multi: Depth Anything V2" in unknown and "paper" not in unknown


def test_the_papers_row_is_of_such_a_network() -> None:
    single = tables.paper_table([evaluation(network="depth 1, new channels duplicate")])
    assert "Tables 1, 4 (single task)" in single and "95.91" in single
    unknown = Evaluation(name="files", groups=evaluation().groups)
    assert "paper" not in tables.paper_table([unknown])
    # Told once for rows that follow each other.
    assert tables.paper_table([evaluation("a"), evaluation("b")]).count("*paper") == 1


def test_everything_that_is_no_score_is_told() -> None:
    text = tables.markdown([evaluation()])
    for line in (
        "| multi | depth | edge | 0.5000 |  | 5 |",
        "| multi | depth | subject_consistency | weights=a\\|b |",
        "| multi | all | v7 | half written: no sample.json |",
        "| multi, depth | edge | v9 | one frame |",
        "| multi, depth | motion | the set | no video could be judged |",
        "| multi, references | fvd | r | damaged |",
        "| multi | edge | 5 | 30.00 | 10.0 |",
    ):
        assert line in text, line


def test_errors_of_every_alignment_and_judge_are_drawn_as_shares() -> None:
    names = ("depth_rmse", "depth_delta1_lstsq", "tiny_depth_rmse", "edge")
    per_video = {"a": 0.1, "b": 0.3}
    scores = tuple(
        Score(name=name, value=0.2, higher_is_better=False, per_video=per_video) for name in names
    )
    group = Group(name="depth", videos=("a", "b"), scores=scores)
    drawn = report.draw_plots([Evaluation(name="row", groups=(group,))])
    assert {name for name in drawn if name.endswith("_share")} == {
        "depth_rmse_share", "depth_delta1_lstsq_share", "tiny_depth_rmse_share",
    }  # fmt: skip


def test_best_middle_and_worst_are_chosen_once_each() -> None:
    per_video = {name: float(i) for i, name in enumerate("abcdefg")}
    higher = Score(name="x", value=3.0, higher_is_better=True, per_video=per_video)
    lower = Score(name="x", value=3.0, higher_is_better=False, per_video=per_video)
    assert report.chosen_videos(higher, shown=1) == {"best": ["g"], "median": ["d"], "worst": ["a"]}
    assert report.chosen_videos(lower, shown=2) == {
        "best": ["a", "b"], "median": ["c", "d"], "worst": ["f", "g"],
    }  # fmt: skip
    few = Score(name="x", value=0.0, higher_is_better=True, per_video={"a": 1.0, "b": 0.0})
    assert report.chosen_videos(few, shown=1) == {"best": ["a"], "median": [], "worst": ["b"]}


def test_the_page_stands_alone(tmp_path: Path) -> None:
    videos = {f"v{i}": video(f"v{i}", prompt="<script>alert(1)</script>") for i in range(4)}
    page = report.write_report([evaluation()], videos={"multi": videos}, folder=tmp_path)
    html = page.read_text()
    assert_well_formed(html)
    assert not re.search(r'(src|href)="(?!data:)|https?://|@import|<script|url\(', html)
    # Three scores choose the same three videos, each of which is there once; v4 no longer is.
    assert html.count('src="data:video/mp4;base64,') == 2
    assert html.count("the video is no longer there") == 1
    assert html.count("<span>depth, near = white</span>") == 2
    assert "best: subject_consistency 0.9400<br>worst: edge 0.9400<br>" in html
    assert "worst: subject_consistency 0.9000" in html
    assert "paper, Tables 2, 3, 4" in html and "weights=a|b" in html
    assert html.count('src="data:image/png;base64,') == 5
    for name in (
        "subject_consistency",
        "edge",
        "entities_histogram",
        "depth_rmse",
        "depth_rmse_share",
    ):
        with Image.open(tmp_path / "plots" / f"{name}.png") as image:
            assert image.width > 300


def test_a_damaged_sample_is_shown_as_damaged(tmp_path: Path) -> None:
    class Damaged(ArrayVideo):
        def rgb(self) -> np.ndarray:
            raise OSError("the disk is gone")

    videos = {f"v{i}": Damaged(name=f"v{i}", frames=video("x").frames) for i in range(5)}
    page = report.write_report([evaluation()], videos={"multi": videos}, folder=tmp_path)
    html = page.read_text()
    assert_well_formed(html)
    assert html.count("the disk is gone") == 3 and "<video" not in html


@pytest.mark.parametrize(
    "values", [{"a": [0.5]}, {"a": [0.5, 0.5], "b": [0.1, 0.9, 0.3]}, {"one": [0.0], "two": [1e9]}]
)
def test_plots_are_pictures(values) -> None:
    drawn = [
        plots.distributions(values, title="t", axis="a"),
        plots.cumulative(values, title="t", axis="a"),
        plots.histogram(
            {
                name: count_histogram("n", {"": [len(some)]}, axis="a")
                for name, some in values.items()
            },
            title="t",
        ),
    ]
    assert all(png.startswith(b"\x89PNG") for png in drawn)
    assert len(set(drawn)) == 3
