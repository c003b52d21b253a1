"""The learning rate is a function of the step alone."""

import pytest

from sat_udpdiff.config import OptimizerConfig
from sat_udpdiff.training.optimizer import learning_rate


def rates(total: int, **values) -> list[float]:
    config = OptimizerConfig(lr=8.0, **values)
    return [learning_rate(step, config=config, total_steps=total) for step in range(total)]


def test_warm_up_rises_to_the_rate_and_stays():
    assert rates(8, warmup_steps=4, schedule="constant") == [2, 4, 6, 8, 8, 8, 8, 8]


def test_linear_falls_to_zero_at_the_end_of_the_run():
    assert rates(8, warmup_steps=4, schedule="linear") == [2, 4, 6, 8, 8, 6, 4, 2]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_without_a_warm_up_the_first_step_has_the_full_rate(schedule):
    assert rates(4, warmup_steps=0, schedule=schedule)[0] == 8


def test_a_warm_up_longer_than_the_run_never_falls():
    assert rates(3, warmup_steps=400, schedule="linear") == [0.02, 0.04, 0.06]
