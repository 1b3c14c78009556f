"""Writes a bundle so that a process killed at any point leaves the old bundle or none, never a mixture."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from runtime.bundle.parse import manifest_bytes, parse_manifest
from runtime.bundle.verify import sha256_file
from runtime.errors import BundleError, OutputError
from runtime.strict_json import parse_json

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_bundle(out: Path, fill: Callable[[Path], Manifest], *, replace: bool = False) -> Manifest:
    """Lets ``fill`` write the files of a bundle and makes it appear at ``out`` in one step.

    ``fill(directory)`` writes into an empty temporary directory beside ``out`` and returns the manifest; its ``files``
    are filled in here (size and SHA-256 of everything written). Everything is flushed to disk before the rename. With
    ``replace``, a bundle that is there already is exchanged in one system call (renameat2 EXCHANGE); where the file
    system lacks it, the old one is moved aside first, so that a kill in between leaves none.

    Raises OutputError when the disk does not take it (full, read-only, no permission), or when ``out`` exists and is
    not a bundle, or is one and ``replace`` is false; whatever ``fill`` raises passes through. Nothing is left behind.
    """
    out = Path.cwd() / out
    check_target(out, replace=replace)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_sibling(out) as directory:
            manifest = _complete(directory, fill(directory))
            (directory / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
            _flush_tree(directory)
            check_target(out, replace=replace)  # another build may have been faster
            _swap_in(directory, out)
            flush(out.parent)
    except OSError as problem:
        raise OutputError(f"{out}: cannot be written: {_reason(problem)}", hint=_hint(problem)) from problem
    return manifest


def check_target(out: Path, *, replace: bool, marker: str = MANIFEST_NAME, kind: str = "a bundle") -> None:
    """Refuses a target that would lose something: a directory without the file ``marker`` of its ``kind``, or one that
    has it without ``replace``. Raises OutputError.
    """
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise OutputError(f"{out}: exists and is not a directory", hint="name another --out")
    if not any(out.iterdir()):
        return
    if not (out / marker).is_file():
        raise OutputError(f"{out}: is a directory with other files in it, not {kind}", hint="name another --out")
    if not replace:
        raise OutputError(f"{out}: {kind} is there already", hint="add --force to replace it")


def _reason(problem: OSError) -> str:
    return f"{problem.strerror or problem}" + (f" ({problem.filename})" if problem.filename else "")


def _hint(problem: OSError) -> str:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some disk space, or name an --out on another disk"
    return "name an --out that this user may write to"


def _complete(directory: Path, manifest: Manifest) -> Manifest:
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(f"{path}: only plain files may stand in a bundle", hint="this is a bug of the exporter")
        if path.is_file():
            relative = path.relative_to(directory).as_posix()
            files[relative] = FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))
    manifest = dataclasses.replace(manifest, files=files)
    # What the runtime would refuse must not be written: read it back with the runtime's own parser.
    return parse_manifest(parse_json(manifest_bytes(manifest), name=MANIFEST_NAME, error=BundleError))


@contextlib.contextmanager
def _temporary_sibling(out: Path) -> Iterator[Path]:
    """A locked directory beside ``out``; removed at the end together with those of builds that were killed."""
    prefix = f".{out.name}.building-"
    for stale in out.parent.glob(f"{prefix}*"):
        with _locked(stale) as ours:
            if ours:
                shutil.rmtree(stale, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    with _locked(directory):
        try:
            directory.chmod(0o777 & ~_umask())
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)  # by now this is the old bundle, or what a failure left


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Holds a lock on a directory that ends with the process; yields False when another process holds it."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def flush(path: Path) -> None:
    """Brings a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            flush(Path(folder, name))
        flush(Path(folder))


def place_directory(directory: Path, out: Path) -> None:
    """Brings a finished directory to the disk and makes it appear at ``out``, beside it, in one step.

    What was there lies at ``directory`` afterwards, or is gone. Raises OutputError.
    """
    try:
        _flush_tree(directory)
        _swap_in(directory, out)
        flush(out.parent)
    except OSError as problem:
        raise OutputError(f"{out}: cannot be written: {_reason(problem)}", hint=_hint(problem)) from problem


def _swap_in(directory: Path, out: Path) -> None:
    if not out.is_dir() or not any(out.iterdir()):
        directory.rename(out)
        return
    if _exchange(directory, out):
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.building-", dir=out.parent))
    out.rename(aside)
    directory.rename(out)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two directories in one system call; False where kernel or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), os.fspath(second))
