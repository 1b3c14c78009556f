"""Text of a model, a peer or a user for places where control characters would do something. Imports nothing."""

from __future__ import annotations

import re

# C0 and C1 controls, and the characters that turn the direction of text or hide in it. Line breaks become spaces.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
_BREAK = re.compile("[\n\r\t\v\f\x85\u2028\u2029]+")


def printable(text: str) -> str:
    """``text`` for a terminal: line breaks become spaces, other controls go. A model's words are untrusted."""
    return _CONTROL.sub("", _BREAK.sub(" ", text))
