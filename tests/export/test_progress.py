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
