"""Messages of the daemon on standard error: one line each, without secrets, without control characters."""

from __future__ import annotations

import logging
import os
from typing import TextIO

from runtime.captiond.redaction import Redactor
from runtime.captiond.text import one_line

_SYSTEMD_LEVELS = {logging.DEBUG: "<7>", logging.INFO: "<6>", logging.WARNING: "<4>", logging.ERROR: "<3>"}


class LineFormatter(logging.Formatter):
    """One line per record; the time is left to the journal where the journal reads standard error."""

    def __init__(self, journal: bool) -> None:
        super().__init__("%(message)s" if journal else "%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = one_line(super().format(record), 2000)
        return _SYSTEMD_LEVELS.get(record.levelno, "<6>") + text if self._journal else text


def configure_logs(level: str, out: TextIO) -> Redactor:
    """Send this program's messages to ``out``; returns the redactor that knows its secrets."""
    handler = logging.StreamHandler(out)
    redactor = Redactor()
    handler.addFilter(redactor)
    handler.setFormatter(LineFormatter(journal="JOURNAL_STREAM" in os.environ))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("runtime").setLevel(level.upper())
    return redactor
