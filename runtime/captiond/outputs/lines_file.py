"""A file of JSON lines that is whole to its last line, whatever happens: a killed process, a full disk, a power cut.

Blocking; one thread at a time. `runtime.captiond.outputs.jsonl` calls it from a thread of its own.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

from runtime.errors import OutputError

_TAIL_BYTES = 4 * 1024 * 1024
_MODE = 0o640


class LinesFile:
    """Appends lines to ``path``; at ``max_bytes`` it becomes ``path.1``, that one ``path.2``, up to ``keep`` of them.

    Raises OutputError when the file cannot be opened, is not one of JSON lines, or is written by another process.
    """

    def __init__(self, path: str, *, max_bytes: int, keep: int) -> None:
        self.path = Path(path)
        self.repaired = 0  # bytes of a torn line that were taken off, or -1 when its end was put on
        self.dirty = False
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1
        self._size = 0

    def open(self) -> None:
        """Open or create the file, and mend its end: a line that a crash has torn is cut off."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
            self._lock()
            self._size = os.fstat(self._fd).st_size
            self._mend()
        except OSError as error:
            self.close()
            raise OutputError(f"{self.path} cannot be opened: {error.strerror or error}") from error
        except OutputError:
            self.close()
            raise

    def append(self, lines: list[bytes]) -> int:
        """Write as many of these lines, each with its line break, as belong into one file: how many, at least one.

        Raises OSError or OutputError, and then nothing of them is in the file.
        """
        if self._fd >= 0 and self._moved():
            self.close()
        if self._fd < 0:
            self.open()
        if self._size and self._size + len(lines[0]) > self._max_bytes:
            self._rotate()
        count, data = 1, lines[0]
        while count < len(lines) and self._size + len(data) + len(lines[count]) <= self._max_bytes:
            data += lines[count]
            count += 1
        try:
            _write_all(self._fd, data)
        except OSError:
            # A disk that is full may have taken a part; giving it back needs no space.
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        self.dirty = True
        return count

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        if self.dirty and self._fd >= 0:
            os.fdatasync(self._fd)
        self.dirty = False

    def close(self) -> None:
        """Close without waiting for the disk."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # file systems without locks
            raise OutputError(f"{self.path} is written by another process", hint="give each its own path") from None

    def _moved(self) -> bool:
        """Whether somebody has renamed or deleted the file: log rotation by others."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        own = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino)

    def _mend(self) -> None:
        """Cut off or complete a last line without its end, and what a power cut leaves instead of data: zeros."""
        self.repaired = 0
        if self._size == 0:
            return
        if os.pread(self._fd, 1, 0) not in (b"{", b"\0"):
            raise OutputError(f"{self.path} is not a file of JSON lines", hint="give another path in output.jsonl")
        start = max(0, self._size - _TAIL_BYTES)
        tail = os.pread(self._fd, self._size - start, start)
        kept = tail.rstrip(b"\0")
        last = kept.rfind(b"\n") + 1
        if last < len(kept) and _is_json(kept[last:]):
            os.ftruncate(self._fd, start + len(kept))
            _write_all(self._fd, b"\n")
            self.repaired, self._size = -1, start + len(kept) + 1
        elif last < len(tail):
            os.ftruncate(self._fd, start + last)
            self.repaired, self._size = len(tail) - last, start + last

    def _rotate(self) -> None:
        self.sync()
        self.close()
        if self._keep == 0:
            self.path.unlink(missing_ok=True)
        for number in range(self._keep, 0, -1):
            older = self.path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self.open()
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _write_all(fd: int, data: bytes) -> None:
    with memoryview(data) as view:
        at = 0
        while at < len(view):
            at += os.write(fd, view[at:])
