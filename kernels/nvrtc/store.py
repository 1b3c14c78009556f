"""The folder of compiled images that a wheel carries, with its manifest: written by kernels.build, read by images.

An image is used only when its hash is the manifest's and it was made from the sources that lie in csrc now.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels.errors import ImageError
from kernels.nvrtc.cubin import Resources
from kernels.nvrtc.sources import Source
from kernels.nvrtc.targets import Target

COMPILED = Path(__file__).resolve().parent.parent / "compiled"
MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: what it was made from and with, and what its kernels take (nothing for PTX)."""

    source_sha256: str
    sha256: str
    bytes: int
    nvrtc: str
    options: tuple[str, ...]
    kernels: Mapping[str, Resources]


def image_name(source: Source, target: Target) -> str:
    """``gemv.sm_87.cubin``."""
    return f"{source.stem}.{target.suffix}"


def read_manifest(folder: Path) -> dict[str, Entry]:
    """The images of a folder by file name; empty where nothing was compiled. ImageError when it cannot be read."""
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if value["version"] != VERSION:
            raise ImageError(
                f"{folder / MANIFEST}: version {value['version']}, expected {VERSION}", hint="python -m kernels.build"
            )
        return {name: _entry(item) for name, item in value["images"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ImageError(
            f"{folder / MANIFEST} cannot be read: {problem!r}", hint="python -m kernels.build"
        ) from problem


def _entry(item: dict[str, Any]) -> Entry:
    kernels = {name: Resources(**values) for name, values in item["kernels"].items()}
    return Entry(**{**item, "options": tuple(item["options"]), "kernels": kernels})


def write_manifest(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Replace the manifest in one step."""
    images = {name: asdict(entries[name]) for name in sorted(entries)}
    text = json.dumps({"version": VERSION, "images": images}, indent=1, sort_keys=True)
    write_atomically(folder / MANIFEST, (text + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name beside ``path`` and rename: a reader sees the old file, or the new one whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_image(folder: Path, manifest: Mapping[str, Entry], source: Source, target: Target) -> bytes:
    """A compiled image. ImageError saying why there is none: not compiled, damaged, or of other sources."""
    name = image_name(source, target)
    entry = manifest.get(name)
    if entry is None:
        raise ImageError(f"{name} is not in this installation")
    if entry.source_sha256 != source.digest:
        raise ImageError(f"{name} was compiled from another {source.name} than the one installed")
    try:
        data = (folder / name).read_bytes()
    except OSError as problem:
        raise ImageError(f"{name}: {problem.strerror}") from problem
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ImageError(f"{name} is damaged: its SHA-256 is not the manifest's")
    return data
