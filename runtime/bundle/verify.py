"""Sizes and SHA-256 of a bundle's files, remembered per machine so that a large bundle is read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from runtime.bundle.manifest import FileEntry
from runtime.bundle.paths import contained_file
from runtime.errors import BundleError

Verify = Literal["cached", "full", "none"]
_log = logging.getLogger(__name__)
_CHUNK_BYTES = 4 << 20
_MAX_CACHE_BYTES = 1 << 20


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/jetson-vlm``, by default ``~/.cache/jetson-vlm`` (not created here)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "jetson-vlm"


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def verify_files(root: Path, files: Mapping[str, FileEntry], verify: Verify) -> None:
    """Checks that each listed file is there with its size and hash.

    "cached" hashes a file again only when its device, inode, size or times differ from when it was last hashed here;
    "full" hashes all; "none" checks the sizes alone. Raises BundleError that names the file and both values.
    """
    hashes = HashCache(root, read=verify == "cached")
    for relative, entry in files.items():
        path = contained_file(root, relative)
        size = path.stat().st_size
        if size != entry.bytes:
            raise _damaged(path, f"files[{relative!r}].bytes", f"{size} bytes", f"{entry.bytes}")
        if verify == "none":
            continue
        try:
            digest = hashes.sha256(path, relative)
        except OSError as problem:
            raise BundleError(f"{path}: cannot be read: {problem.strerror}", hint="check the disk") from problem
        if digest != entry.sha256:
            raise _damaged(path, f"files[{relative!r}].sha256", f"SHA-256 {digest}", entry.sha256)
    hashes.save()


def _damaged(path: Path, field: str, found: str, expected: str) -> BundleError:
    return BundleError(
        f"{path}: has {found}, the manifest's {field} says {expected}",
        hint="the file is damaged or was changed: copy the bundle again, or build it again with --force",
    )


class HashCache:
    """SHA-256 of the files below one directory, remembered by device, inode, size and times.

    One JSON file per directory below the cache directory; ignored unless it is ours alone to write.
    """

    def __init__(self, root: Path, *, read: bool = True) -> None:
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
        self._path = cache_directory() / "hashes" / f"{name}.json"
        self._known = self._read() if read else {}
        self._seen: dict[str, list[Any]] = {}

    def sha256(self, path: Path, key: str) -> str:
        """The hash of a file, known under ``key``; read only when the file changed. Raises OSError."""
        state = path.stat()
        identity = [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
        known = self._known.get(key)
        unchanged = isinstance(known, list) and known[:-1] == identity
        digest = str(known[-1]) if unchanged and known else sha256_file(path)
        self._seen[key] = [*identity, digest]
        return digest

    def _read(self) -> dict[str, Any]:
        try:
            folder = self._path.parent.stat()
            with open(self._path, "rb", opener=_open_plain) as file:
                if not _only_ours(folder) or not _only_ours(os.fstat(file.fileno())):
                    _log.warning("%s: ignored, because others could have written it", self._path)
                    return {}
                value = json.loads(file.read(_MAX_CACHE_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as problem:
            _log.warning("%s: ignored: %s", self._path, problem)
            return {}
        return value if isinstance(value, dict) else {}

    def save(self) -> None:
        """Remembers what was asked for; where nothing can be written, each start takes the time again."""
        if self._seen == self._known or not self._seen:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _only_ours(self._path.parent.stat()):
                return
            handle, temporary = tempfile.mkstemp(dir=self._path.parent)  # created with mode 0600
            try:
                with open(handle, "w") as file:
                    json.dump(self._seen, file)
                Path(temporary).replace(self._path)
            except OSError:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
                raise
        except OSError as problem:
            _log.debug("hashes are not remembered: %s", problem)


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _only_ours(state: os.stat_result) -> bool:
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
