"""A .cu file with the headers of ours that it needs, and a digest of all of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kernels.errors import ImageError

CSRC = Path(__file__).resolve().parent.parent / "csrc"
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"/]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Source:
    """``headers``: by the name in ``#include "…"``, those of them that lie beside the source or in csrc."""

    name: str
    text: str
    headers: Mapping[str, str]
    digest: str

    @property
    def stem(self) -> str:
        """The name without .cu."""
        return self.name.removesuffix(".cu")


def source_files() -> list[str]:
    """The names of all .cu files of csrc, in order."""
    return sorted(path.name for path in CSRC.glob("*.cu"))


def read_source(source: str | Path) -> Source:
    """A file of csrc by its name, or any other by its path. Raises ImageError when it is not there."""
    path = source if isinstance(source, Path) else CSRC / source
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise ImageError(
            f"{path}: {problem.strerror}", hint="the installation is incomplete: install jetson-vlm again"
        ) from problem
    headers = _headers(text, (path.parent, CSRC))
    digest = hashlib.sha256()
    for name, content in [(path.name, text), *sorted(headers.items())]:
        for part in (name.encode(), content.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return Source(path.name, text, headers, digest.hexdigest())


def _headers(text: str, folders: tuple[Path, ...]) -> dict[str, str]:
    """The quoted includes of a text and of what it includes; those found nowhere are left to the compiler."""
    found: dict[str, str] = {}
    open_names = _INCLUDE.findall(text)
    while open_names:
        name = open_names.pop()
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if name in found or path is None:
            continue
        found[name] = path.read_text(encoding="utf-8")
        open_names += _INCLUDE.findall(found[name])
    return found
