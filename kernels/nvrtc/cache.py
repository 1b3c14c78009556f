"""Cubins compiled on this machine, kept in ``~/.cache/jetson-vlm/kernels``.

A file's name is the hash of everything that decides its contents; its last 32 bytes are the SHA-256 of those before
them (a cubin's reader stops at its own end). Entries are used only when nobody else could have written them. Two
processes that compile the same thing both do it, and the last rename wins with equal contents.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

from kernels.nvrtc.compiler import OPTIONS, Nvrtc
from kernels.nvrtc.sources import Source

_log = logging.getLogger(__name__)
_DIGEST_BYTES = 32


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/jetson-vlm/kernels``, by default below ``~/.cache`` (not created here)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "jetson-vlm" / "kernels"


def cache_path(compiler: Nvrtc, source: Source, arch: str) -> Path:
    """Where the cubin of a source for ``arch``, made by this compiler, belongs."""
    version = f"{compiler.version[0]}.{compiler.version[1]}"
    parts = (source.digest, *OPTIONS, version, arch)
    return cache_folder() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}.cubin"


def compiled_here(compiler: Nvrtc, source: Source, arch: str) -> bytes:
    """The cubin from the cache, else compiled now and kept. Raises CompileError.

    Damaged entries are compiled again; a cache that cannot be written costs the time again at the next start.
    """
    path = cache_path(compiler, source, arch)
    known = _read(path)
    if known is not None:
        return known
    _log.info("compiling %s for %s", source.name, arch)
    image = compiler.compile(source, arch).image
    try:
        _write(path, image)
    except OSError as problem:
        _log.warning("%s is not kept: %s", source.name, problem)
    return image


def _read(path: Path) -> bytes | None:
    try:
        folder = path.parent.stat()
        with open(path, "rb", opener=_open_plain) as file:
            if not _only_ours(folder) or not _only_ours(os.fstat(file.fileno())):
                _log.warning("%s: ignored, because others could have written it", path)
                return None
            data = file.read()
    except FileNotFoundError:
        return None
    except OSError as problem:
        _log.warning("%s: ignored: %s", path, problem)
        return None
    image, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(image).digest() != digest:
        _log.warning("%s: damaged, compiled again", path)
        return None
    return image


def _write(path: Path, image: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _only_ours(path.parent.stat()):
        raise PermissionError(f"others can write to {path.parent}")
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")  # created with mode 0600
    try:
        with open(handle, "wb") as file:
            file.write(image + hashlib.sha256(image).digest())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _only_ours(state: os.stat_result) -> bool:
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
