"""Signals before, in and after training."""

import os
import signal

import pytest

from sat_udpdiff.training.stopping import STOPPED, StopRequest

NUMBERS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_in_training_is_noted_and_nothing_else(number: signal.Signals) -> None:
    before = handlers()
    with StopRequest() as stop, stop.noted():
        assert stop.name == ""
        os.kill(os.getpid(), number)
        assert stop.name == number.name
    assert handlers() == before


def test_before_the_first_step_there_is_nothing_to_save() -> None:
    before = handlers()
    with pytest.raises(SystemExit) as ended, StopRequest():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert ended.value.code == STOPPED
    assert handlers() == before


def test_after_the_last_step_a_time_limit_is_no_news() -> None:
    with StopRequest() as stop:
        with stop.noted():
            pass
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.name == ""


def test_a_second_ctrl_c_ends_at_once() -> None:
    with StopRequest() as stop, stop.noted():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
