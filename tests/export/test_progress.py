"""Progress: a bar on a terminal, lines elsewhere, nothing for short work."""

from __future__ import annotations

import io

import pytest

from export import progress
from export.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_short_work_shows_nothing() -> None:
    out = Terminal()
    bar = Progress(out)
    bar.begin("task")
    bar.update(1, 2)
    bar.end()
    assert out.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_shows_a_bar_or_lines(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = Terminal() if terminal else io.StringIO()
    bar = Progress(out)
    bar.begin("quantising")
    for second in range(1, 21):
        now[0] = float(second)
        bar.update(second, 20)
    bar.end()
    text = out.getvalue()
    if terminal:
        assert "quantising [" in text
        assert text.endswith("\r"), "the bar leaves the terminal"
    else:
        assert "\r" not in text
        assert text.splitlines()[-1] == "quantising: 100%"
        assert len(text.splitlines()) <= 5, "a line every five seconds, and the last one"


def test_lines_stand_alone() -> None:
    out = io.StringIO()
    Progress(out).say("done")
    assert out.getvalue() == "done\n"


def test_time_left_counts_from_what_was_there_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    bar = Progress(out)
    bar.begin("quantising")
    for second, done in ((10, 6), (20, 7), (80, 8), (9000, 9), (9100, 28)):  # six layers of an earlier run
        now[0] = float(second)
        bar.update(done, 28)
    assert out.getvalue().splitlines() == [
        "quantising: 21%",
        "quantising: 25%, 4 min left",  # 10 s a layer, 21 layers: 210 s
        "quantising: 29%, 12 min left",  # 35 s a layer, 20 layers: 700 s
        "quantising: 32%, 15 h 49 min left",
        "quantising: 100%",
    ]
