"""The daemon's log: one line a message, without secrets, without control characters."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from runtime.captiond.logs import configure_logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("runtime")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_message_is_one_line_without_secrets_and_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    out = io.StringIO()
    redactor = configure_logs("info", out)
    redactor.add("hunter2-secret")
    log = logging.getLogger("runtime.captiond.somewhere")
    log.info("camera rtsp://viewer:pass@10.0.0.2/1 said\n\x1b[2Jhunter2-secret")
    log.debug("not shown")
    logging.getLogger("elsewhere").info("not ours")
    (line,) = out.getvalue().splitlines()
    assert line.endswith("INFO camera rtsp://***@10.0.0.2/1 said [2J***")


def test_journal_gets_levels_and_its_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1234")
    out = io.StringIO()
    configure_logs("debug", out)
    log = logging.getLogger("runtime.captiond")
    log.error("broken")
    log.debug("small")
    try:
        raise ValueError("inner\nlines")
    except ValueError:
        log.exception("failed")
    first, second, third = out.getvalue().splitlines()
    assert (first, second) == ("<3>broken", "<7>small")
    assert third.startswith("<3>failed Traceback") and "inner lines" in third
