"""Finding one's way in CUDA source text: comments, brackets, statements."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"', re.DOTALL)
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True)
class Mutant:
    """``text[start:end]`` of ``file`` becomes ``replacement``.

    rule: which rule or kind made it; sources: those whose cases judge it, where not all that include the file do.
    """

    file: str
    rule: str
    line: int
    start: int
    end: int
    original: str
    replacement: str
    ordinal: int = 0
    sources: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File, rule and text: the same while that line stays, wherever it moves."""
        text = " ".join(self.original.split())
        judges = f" in {', '.join(self.sources)}" if self.sources else ""
        return f"{self.file}: {self.rule}{judges}: {text[:90]}" + (f" #{self.ordinal + 1}" if self.ordinal else "")

    def apply(self, text: str) -> str:
        """Return the file's text with the bug in it."""
        if text[self.start : self.end] != self.original:
            raise ValueError(f"{self.file} has changed since {self.name} was made")
        return text[: self.start] + self.replacement + text[self.end :]


def blanked(text: str) -> str:
    """The same text with spaces for comments and strings, so that positions stay."""
    return _COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def closing(text: str, opening: int) -> int:
    """The position of the bracket that closes the one at ``opening``."""
    depth = 0
    for at in range(opening, len(text)):
        if text[at] in _OPEN:
            depth += 1
        elif text[at] in _CLOSE:
            depth -= 1
            if depth == 0:
                return at
    raise ValueError(f"no bracket closes the one at {opening}")


def calls(text: str, names: str) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, start, opening bracket and end of every call of a function that matches ``names``."""
    for found in re.finditer(rf"\b({names})\s*(?:<[^<>()]*>)?\(", text):
        opening = found.end() - 1
        yield found.group(1), found.start(), opening, closing(text, opening) + 1


def arguments(text: str, opening: int) -> list[tuple[int, int]]:
    """Start and end of each argument of the call whose bracket opens here."""
    end, depth, first, found = closing(text, opening), 0, opening + 1, []
    for at in range(opening + 1, end):
        if text[at] in _OPEN:
            depth += 1
        elif text[at] in _CLOSE:
            depth -= 1
        elif text[at] == "," and depth == 0:
            found.append((first, at))
            first = at + 1
    return [*found, (first, end)]


def statement_after(text: str, start: int) -> str:
    """The statement that begins at ``start``, a block with its braces."""
    while text[start].isspace():
        start += 1
    if text[start] == "{":
        return text[start : closing(text, start) + 1]
    at = start
    while text[at] != ";":
        at = closing(text, at) + 1 if text[at] in _OPEN else at + 1
    return text[start : at + 1]


def condition_before(text: str, mark: int) -> int:
    """Where the condition of the ``?`` at ``mark`` begins."""
    at = mark - 1
    while at >= 0:
        if text[at] in _CLOSE:
            depth, close = 0, at
            while True:
                depth += (text[at] in _CLOSE) - (text[at] in _OPEN)
                if depth == 0:
                    break
                at -= 1
            if close < 0:
                break
        elif text[at] in "([{,;}?:" or text[at - 5 : at + 1] == "return" or _assigns(text, at):
            break
        at -= 1
    begin = at + 1
    while text[begin].isspace():
        begin += 1
    return begin


def _assigns(text: str, at: int) -> bool:
    return text[at] == "=" and text[at - 1] not in "=<>!" and text[at + 1] != "="


def lines_from(text: str, position: int) -> int:
    """The number of the line that holds ``position``."""
    return text.count("\n", 0, position) + 1


def read(directory: Path, file: str) -> str:
    """A file of csrc."""
    return (directory / file).read_text(encoding="utf-8")
