"""Which regular expressions strings of an answer can be held to: those that mean the same to every reader.

JSON schema means ECMAScript's, a validator in Python uses `re`, llguidance a Rust library: what they read differently
is refused. The text is searched, as the draft says: ``^`` and ``$`` are to be written.
"""

from __future__ import annotations

import re

from runtime.errors import InputError

MAX_PATTERN_CHARS = 256
MAX_REPEAT = 1024
_ESCAPES = "dwsS" + r"""\^$.|?*+()[]{}/-"""
_GROUP = re.compile(r"\((?:\?(?!:))")
_STRANGE = re.compile(r"\[\[|\[:|&&|--|~~|\[\]|\[\^\]|[*+?}][+]")
_REPEAT = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def check_pattern(pattern: object, place: str) -> None:
    """Raises InputError, which names ``place``, for a pattern that is not supported."""
    if not isinstance(pattern, str):
        raise InputError(f"schema at {place}: 'pattern' is a {type(pattern).__name__}: a text is needed")
    if len(pattern) > MAX_PATTERN_CHARS:
        raise InputError(f"schema at {place}: 'pattern' has {len(pattern)} characters, the most is {MAX_PATTERN_CHARS}")
    problem = _problem(pattern)
    if problem:
        raise InputError(f"schema at {place}: the pattern {pattern!r} is not supported: {problem}")


def _problem(pattern: str) -> str | None:
    if any(not char.isprintable() for char in pattern):
        return "it has a control character"
    for escaped in re.findall(r"\\(.?)", pattern, re.DOTALL):
        if escaped not in _ESCAPES or not escaped:
            return f"\\{escaped} is read differently from one library to the next"
    bare = re.sub(r"\\.", "x", pattern)
    if _GROUP.search(bare):
        return "of the groups that begin with (? only (?: is"
    strange = _STRANGE.search(bare)
    if strange:
        return f"{strange.group()} is read differently from one library to the next"
    for repeat in _REPEAT.finditer(bare):
        if any(int(count) > MAX_REPEAT for count in repeat.groups() if count and len(count) < 9) or any(
            count and len(count) >= 9 for count in repeat.groups()
        ):
            return f"{repeat.group()} repeats more than {MAX_REPEAT} times"
    if re.search(r"\{", _REPEAT.sub("", bare)):
        return "a literal { is written \\{"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as problem:
        return str(problem)
    return None
