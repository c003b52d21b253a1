"""The progress bar where nobody looks."""

import io

from data_loaders.progress_bar import progress_bar


def test_a_file_keeps_the_first_state_and_the_last_of_quick_work(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setattr("time.time", iter(range(1, 10_000)).__next__)  # a second per look
    assert list(progress_bar(range(60), desc="work", unit="step", file=file)) == list(range(60))
    states = [state for state in file.getvalue().split("\r") if state]
    assert len(states) <= 4
    assert states[0].startswith("work:   0%") and states[-1].startswith("work: 100%")


def test_a_terminal_is_shown_more(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", file)
    bar = progress_bar(total=60, unit="step", file=file)
    assert (bar.mininterval, bar.maxinterval) == (0.1, 10.0)
    bar.close()
