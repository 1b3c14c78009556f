"""Makes the words of models, peers and users harmless before they are shown, logged or published."""

from __future__ import annotations

import re

from runtime.printable import printable

_URL_USER = re.compile(r"(?<=://)[^/?#\s@]*@")
MAX_SHOWN_CHARS = 4000


def one_line(text: str, limit: int = MAX_SHOWN_CHARS) -> str:
    """``text`` on one line, without controls, cut to ``limit`` characters with an ellipsis."""
    shown = printable(text[: 2 * limit + 64])
    return shown if len(shown) <= limit and len(text) <= 2 * limit + 64 else shown[: limit - 1] + "…"


def redacted(text: str) -> str:
    """``text`` without the credentials of URLs."""
    return _URL_USER.sub("***@", text)
