"""Paths inside a bundle: relative, plain, never through a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from runtime.errors import BundleError

MAX_PATH_CHARS = 240
MAX_PATH_PARTS = 6
_COPY_HINT = "copy the bundle with its files in place (cp -rL), or build it again"


def check_relative(relative: str, name: str) -> None:
    """Refuses a path text that is absolute, climbs, is empty, too long or could mean different files on two systems."""
    parts = relative.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and "\\" not in relative and ":" not in relative
    if not plain or not relative.isprintable():
        raise BundleError(f"{name}: {relative!r} is not a plain path inside the bundle", hint=_COPY_HINT)
    if len(relative) > MAX_PATH_CHARS or len(parts) > MAX_PATH_PARTS:
        limit = f"{MAX_PATH_CHARS} characters and {MAX_PATH_PARTS} levels"
        raise BundleError(f"{name}: {relative[:80]!r} is longer than the limit of {limit}", hint=_COPY_HINT)


def contained_file(root: Path, relative: str) -> Path:
    """The path of a regular file of the bundle; no component below ``root`` may be a symbolic link.

    Hard links are followed on purpose: installers link package data from their cache, and the hash of the content is
    checked in any case. Raises BundleError.
    """
    check_relative(relative, str(root))
    path = root
    parts = relative.split("/")
    for index, part in enumerate(parts):
        path = path / part
        try:
            mode = os.lstat(path).st_mode
        except OSError as problem:
            raise BundleError(f"{path}: cannot be read: {problem.strerror}", hint=_COPY_HINT) from problem
        if stat.S_ISLNK(mode):
            raise BundleError(f"{path}: is a symbolic link, which a bundle may not contain", hint=_COPY_HINT)
        last = index == len(parts) - 1
        if not (stat.S_ISREG(mode) if last else stat.S_ISDIR(mode)):
            raise BundleError(f"{path}: is not a {'regular file' if last else 'directory'}", hint=_COPY_HINT)
    return path
