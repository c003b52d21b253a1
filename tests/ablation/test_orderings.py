"""Verdicts on the paper's claims, by scores that were made up."""

import pytest

from sat_udpdiff.ablation.orderings import (
    Claim,
    Verdict,
    claims,
    judge,
    judge_all,
    judge_curves,
    summary,
    verdict_of,
)
from sat_udpdiff.ablation.recipes import CURVES, Row
from sat_udpdiff.ablation.scores import ScoreBook
from sat_udpdiff.ablation.statistics import estimate
from tests.ablation.made_up import STEP, TINY, fill

FIRST = Row(label="first", arm="depth", task="depth", paper={"SC": 2.0, "FVD": 1.0})
SECOND = Row(label="second", arm="multitask", task="depth", paper={"SC": 1.0, "FVD": 2.0})


def claim(column="SC"):
    return Claim(table="Table 0", column=column, better=FIRST, worse=SECOND)


def verdict(first, second, *, column="SC"):
    book = ScoreBook()
    fill(book, FIRST.arm, FIRST.task, values=first)
    fill(book, SECOND.arm, SECOND.task, values=second)
    return judge(claim(column), book, columns=TINY, step=STEP).verdict


@pytest.mark.parametrize("column", ["SC", "FVD"])
def test_verdicts_follow_the_interval_of_the_difference(column):
    assert verdict([2.0, 2.1, 2.2], [1.0, 1.1, 1.3], column=column) is Verdict.HOLDS
    assert verdict([1.0, 1.1, 1.3], [2.0, 2.1, 2.2], column=column) is Verdict.FAILS
    assert verdict([1.0, 2.0, 1.0], [1.0, 1.1, 1.3], column=column) is Verdict.UNDECIDED
    # All equal: the interval is the point 0.
    assert verdict([1.0, 1.0], [1.0, 1.0], column=column) is Verdict.UNDECIDED


def test_one_seed_decides_nothing():
    assert verdict([9.0], [1.0]) is Verdict.MISSING
    assert verdict([9.0, 9.1], []) is Verdict.MISSING
    assert verdict_of(None) is Verdict.MISSING
    assert verdict_of(estimate([4.0])) is Verdict.MISSING


def test_the_difference_is_in_the_unit_of_the_table():
    book = ScoreBook()
    fill(book, FIRST.arm, FIRST.task, values=[0.52, 0.54])
    fill(book, SECOND.arm, SECOND.task, values=[0.51, 0.51])
    found = judge(claim("SC"), book, columns=TINY, step=STEP).difference
    assert found is not None and found.mean == pytest.approx(2.0)


def test_claims_are_the_papers_numbers():
    found = {str(claim) for claim in claims()}
    assert "Table 1, SC: depth above CogVideoX 5B" in found
    # The numbers decide and not the method: here the baseline is ahead.
    assert "Table 2, BC: CogVideoX 5B above segmentation" in found
    assert "Table 2, FVD: depth above CogVideoX 5B" in found
    assert "Table 5, FVD: task embedding above text prompt" in found
    assert "Table 6, MS: Pixelplanes above location-aware" in found
    assert "Table 11, BC: scratch, multi-task above scratch, single task" in found
    assert len(found) == len(list(claims())) == 42
    for one in claims():
        better, worse = (row.paper[one.column] for row in (one.better, one.worse))
        assert better < worse if one.column == "FVD" else better > worse


def test_every_table_is_judged(book):
    found = judge_all(book, columns=TINY, step=STEP)
    tables = {judgement.claim.table for judgement in found}
    numbers = ("1", "2", "5", "6", "7", "10", "11")
    assert tables == {f"Table {n}" for n in numbers} | {"Tables 1, 2", "Fig. 8"}
    by_claim = {str(judgement.claim): judgement.verdict for judgement in found}
    # Multi-task is the first of the made-up ranking, from which the paper's numbers differ here.
    assert by_claim["Table 10, SC: duplicate above random"] is Verdict.HOLDS
    assert by_claim["Table 1, SC: depth above CogVideoX 5B"] is Verdict.FAILS
    assert "45 orderings: " in summary(found)
    assert "does not hold" in summary(found) and "by chance" in summary(found)


def test_curves_are_compared_over_all_steps_that_both_have(book):
    single, both = CURVES
    found = judge_curves(book, columns=TINY)
    assert {judgement.claim.column for judgement in found} == {"SC", "BC", "MS"}
    # At the last step the ranking of the fixture is the other way round; the mean counts.
    assert [judgement.verdict for judgement in found] == [Verdict.HOLDS] * 3
    means = [0.1] * 3
    last = (1.0 - 0.05 * 10) - (1.0 - 0.05 * 9)
    expected = 100 * (sum(means) + last) / 4
    assert found[0].difference is not None
    assert found[0].difference.mean == pytest.approx(expected)
    fill(book, single.arm, single.task, values=[50.0] * 3, step=40)
    assert judge_curves(book, columns=TINY)[0].difference == found[0].difference
    assert both.label == "scratch, multi-task"


def test_a_seed_that_misses_a_step_is_left_out_of_its_curve(book):
    single, _ = CURVES
    for key, seeds in book.values.items():
        if (key.arm, key.step) == (single.arm, 160):
            del seeds[1]
    found = judge_curves(book, columns=TINY)[0].difference
    assert found is not None and found.count == 2


def test_nothing_is_judged_without_scores():
    found = judge_all(ScoreBook(), columns=TINY, step=STEP)
    assert {judgement.verdict for judgement in found} == {Verdict.MISSING}
    assert summary(found).startswith("45 orderings: 45 not measured.")
