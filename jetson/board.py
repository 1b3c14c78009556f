"""What board this is: the facts of an NVIDIA Jetson that limits and reports depend on.

The runtime finds `detect` through the entry point ``vlm.board`` and never imports it. It reads three small files and
nothing else. Written from the documented formats of these files and tested on copies of them; not run on a board.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ConfigError

# "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"
RELEASE = re.compile(r"^#\s*R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)")


@dataclass(frozen=True, slots=True)
class Board:
    """An NVIDIA Jetson.

    ``model``: as the device tree names it. ``l4t``: release of Linux for Tegra as numbers, (36, 4, 3) for R36.4.3; None
    where its file is missing, as in most containers. ``memory_bytes``: what the kernel hands out, for CPU and GPU
    together.
    """

    model: str
    l4t: tuple[int, ...] | None
    memory_bytes: int


def detect(root: Path | None = None) -> Board | None:
    """Recognise the board, or return None on a machine that is not a Jetson.

    ``root`` stands for ``/``; VLM_BOARD_ROOT names another one where it is not given. Raises ConfigError naming the
    file whose content is not of the documented form.
    """
    base = root if root is not None else Path(os.environ.get("VLM_BOARD_ROOT", "/"))
    model = _text(base / "proc/device-tree/model")
    if model is None or "jetson" not in model.lower():
        return None
    return Board(
        model=model, l4t=_l4t(base / "etc/nv_tegra_release"), memory_bytes=_memory_bytes(base / "proc/meminfo")
    )


def _text(path: Path) -> str | None:
    """Return the file's text without the NUL that ends strings of the device tree; None where there is no such file."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace").strip("\0 \n")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _l4t(path: Path) -> tuple[int, ...] | None:
    text = _text(path)
    if text is None:
        return None
    match = RELEASE.match(text)
    if match is None:
        raise ConfigError(
            f"{path} begins with {text[:60]!r}, not with '# R<major> (release), REVISION: <minor>'",
            hint="reinstall the package nvidia-l4t-core, which owns this file",
        )
    return (int(match[1]), *(int(part) for part in match[2].split(".")))


def _memory_bytes(path: Path) -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB$", _text(path) or "", re.MULTILINE)
    if match is None:
        raise ConfigError(f"{path} has no line 'MemTotal: <number> kB'", hint="mount /proc in this container")
    return int(match[1]) * 1024
