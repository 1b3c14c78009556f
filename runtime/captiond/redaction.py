"""Keeps secrets out of the log: whatever a record says, credentials of URLs, tokens and known secrets are cut out."""

from __future__ import annotations

import logging
import re
from urllib.parse import quote, quote_plus

HIDDEN = "***"
# Shorter secrets would cut holes into every other word; whoever has one of three letters has none.
MIN_SECRET_CHARS = 4
_PATTERNS = (
    # scheme://user:password@host, also where the password holds an unescaped "/" or "@"
    (re.compile(r"(?P<keep>\b[a-z][a-z0-9+.-]*://)[^\s\"'<>?#]*@(?=[\w.\[-])", re.IGNORECASE), rf"\g<keep>{HIDDEN}@"),
    # Authorization: Bearer …, Basic …, Digest …
    (re.compile(r"(?P<keep>\bbearer\s+)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), rf"\g<keep>{HIDDEN}"),
    (
        re.compile(r"(?P<keep>\bauthorization[\"']?\s*[:=]\s*[\"']?)(?!bearer)[a-z]+\s+[^\r\n]+", re.IGNORECASE),
        rf"\g<keep>{HIDDEN}",
    ),
    # keys as this daemon makes them, and those of the API whose shape it speaks
    (re.compile(r"\b(?:vlm|sk)-[A-Za-z0-9_-]{16,}"), HIDDEN),
    # name=value, name: value, "name": "value"
    (
        re.compile(
            r"(?P<keep>[\"']?\b[\w-]*(?:password|passwd|user-pw|secret|api[_-]?key|access[_-]?token|set-cookie|cookie)\b[\"']?"
            r"\s*[=:]\s*)(?P<quote>[\"']?)(?:(?<=[\"'])[^\"']*|[^\s\"',;&]+)",
            re.IGNORECASE,
        ),
        rf"\g<keep>\g<quote>{HIDDEN}",
    ),
)


class Redactor(logging.Filter):
    """A filter for log handlers that rewrites records, and a function for other texts. Secrets are added as they are
    read; a text is searched for them as they stand, and as they are written in a URL."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets: set[str] = set()
        self._known: re.Pattern[str] | None = None

    def add(self, secret: str | None) -> None:
        """Cut this secret out from now on. None and what is too short is left alone."""
        if secret is None or len(secret) < MIN_SECRET_CHARS:
            return
        self._secrets |= {secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}
        longest_first = sorted(self._secrets, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first)))

    def text(self, text: str) -> str:
        """``text`` without secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a record: its message with its arguments, and the text of its exception."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit the message: our own slip, no reason to fail
            message = f"{record.msg} {record.args}"
        record.msg, record.args = self.text(message), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self.text(record.exc_text)
        if record.stack_info:
            record.stack_info = self.text(record.stack_info)
        return True
