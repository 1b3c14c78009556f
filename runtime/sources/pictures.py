"""Picture files as a source: one, a directory or a glob. Each is a frame that waits until it is taken."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from runtime.errors import SourceError
from runtime.images import load_image
from runtime.sources.source import Clock, FrameSource
from runtime.types import Frame

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_WILD = re.compile(r"[*?\[]")


class PictureSource(FrameSource):
    """Decodes one picture per frame; ``seq`` is its place in the list, going on in the next round of a loop.

    A picture that cannot be decoded raises ImageError when its turn comes, and reading on gives the one after it.
    """

    def __init__(self, name: str, paths: list[Path], *, loop: bool = False, clock: Clock | None = None) -> None:
        super().__init__(name, clock=clock)
        self._paths = paths
        self._loop = loop
        self._seq = 0

    def _next(self) -> Frame | None:
        if self._seq >= len(self._paths) and not self._loop:
            return None
        seq, self._seq = self._seq, self._seq + 1
        path = self._paths[seq % len(self._paths)]
        rgb = load_image(path)
        return Frame(rgb, self._clock.now_ns(), seq, "arrival", str(path))


def picture_paths(path: str) -> list[Path]:
    """The pictures of a directory, or what a glob matches (``**`` goes down), in natural order of their names.

    Raises SourceError when there are none.
    """
    if Path(path).is_dir():
        found = [entry for entry in Path(path).iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file()]
        if not found:
            raise SourceError(f"{path}: no pictures in this directory", hint=f"looked for {', '.join(SUFFIXES)}")
    else:
        # Path.glob takes no absolute patterns
        matches = glob.glob(path, recursive=True)  # noqa: PTH207
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise SourceError(f"{path}: no file matches", hint="quote a glob, so that the shell leaves it alone")
    return sorted(found, key=_natural)


def is_glob(path: str) -> bool:
    """Whether a path has wildcards and is not the name of something that exists."""
    return bool(_WILD.search(path)) and not os.path.lexists(path)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key in which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]
