"""Evaluations come back from JSON as they were."""

import json
from pathlib import Path

import numpy as np
import pytest

from sat_udpdiff.evaluation.measure import Histogram, Score
from sat_udpdiff.evaluation.results import read_results, write_results
from sat_udpdiff.evaluation.run import Cost, Evaluation, Group

SCORES = (
    Score(
        name="depth_rmse",
        value=0.1,
        higher_is_better=False,
        per_video={"a": 0.05, "b": 0.15},
        interval=(0.05, 0.15),
        facts={"align": "none", "n": 2, "scale": 1.5, "is_exact": True, "weights": None},
    ),
    Score(name="fvd", value=302.5, higher_is_better=False),
)
EVALUATION = Evaluation(
    name="multitask",
    groups=(
        Group(
            name="depth",
            videos=("a", "b", "c"),
            scores=SCORES,
            histograms=(
                Histogram(name="error", axis="m", edges=(0.0, 0.5, 1.0), shares={"": (0.25, 0.75)}),
            ),
            exclusions={"depth": {"c": "one frame"}},
            failures={"motion": "no video could be judged"},
        ),
    ),
    left_out={"d": "half written: no sample.json"},
    reference_exclusions={"fvd": {"r": "damaged"}},
    costs={"depth": Cost(seconds=1.25, videos=3)},
    facts={"torch": "2.13"},
)


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results([EVALUATION, EVALUATION], path)
    assert read_results(path) == [EVALUATION, EVALUATION]
    assert json.loads(path.read_text())["version"] == 1


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    facts = {"n": 3, "share": np.float64(0.5), "is_exact": True}
    score = Score(name="x", value=np.float64(1.5), higher_is_better=True, facts=facts)
    write_results(
        [Evaluation(name="r", groups=(Group(name="depth", videos=("a",), scores=(score,)),))],
        tmp_path / "results.json",
    )
    (found,) = read_results(tmp_path / "results.json")
    assert dict(found.groups[0].scores[0].facts) == facts


def test_no_file_holds_nan(tmp_path: Path) -> None:
    score = Score(name="x", value=float("nan"), higher_is_better=True)
    group = Group(name="depth", videos=("a",), scores=(score,))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results([Evaluation(name="r", groups=(group,))], tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 2, "evaluations": []}',
             '{"version": 1, "evaluations": [{"name": "x"}]}'],
)  # fmt: skip
def test_other_files_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json: expected results of an evaluation"):
        read_results(path)
    with pytest.raises(ValueError, match=r"none\.json: expected results of an evaluation: No such"):
        read_results(tmp_path / "none.json")
