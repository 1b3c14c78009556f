"""Makes the words of models, peers and users harmless before they are shown, logged or published."""

from __future__ import annotations

import re

# C0 and C1 controls, and the characters that turn the direction of text or hide in it. Line breaks become spaces.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
_BREAK = re.compile("[\n\r\t\v\f\x85\u2028\u2029]+")
_URL_USER = re.compile(r"(?<=://)[^/?#\s@]*@")
MAX_SHOWN_CHARS = 4000


def one_line(text: str, limit: int = MAX_SHOWN_CHARS) -> str:
    """``text`` on one line, without controls, cut to ``limit`` characters with an ellipsis."""
    shown = _CONTROL.sub("", _BREAK.sub(" ", text[: 2 * limit + 64]))
    return shown if len(shown) <= limit and len(text) <= 2 * limit + 64 else shown[: limit - 1] + "…"


def redacted(text: str) -> str:
    """``text`` without the credentials of URLs."""
    return _URL_USER.sub("***@", text)
