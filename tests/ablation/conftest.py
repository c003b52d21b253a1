"""Made-up scores of every network."""

import pytest

from sat_udpdiff.ablation.recipes import ARMS, CURVES
from sat_udpdiff.ablation.scores import ScoreBook
from tests.ablation.made_up import fill


@pytest.fixture
def book() -> ScoreBook:
    """Every network at three seeds; the further down the list, the worse."""
    book = ScoreBook()
    for number, arm in enumerate(ARMS.values()):
        for task in arm.judged:
            level = 1.0 - 0.05 * number
            fill(book, arm.name, task, values=[level, level + 0.001, level - 0.001])
    for number, row in enumerate(CURVES):
        for step in (80, 160, 240):
            level = 0.1 * number + step / 1000
            fill(book, row.arm, row.task, values=[level, level + 0.01, level + 0.03], step=step)
    return book
