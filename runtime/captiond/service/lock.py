"""One daemon per run directory: two would fight for the camera, the MQTT name and the log file."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from runtime.errors import ConfigError

_NAME = "vlm-captiond.lock"


class InstanceLock:
    """Holds the lock of a run directory until `release`, or until the process ends however it ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock; makes the folder (0700) where it is missing. Raises ConfigError naming who holds it."""
        path = folder / _NAME
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(folder)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as problem:
            raise ConfigError(
                f"{path}: cannot be made: {problem.strerror or problem}", hint="set run_dir to a folder of your own"
            ) from problem
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise ConfigError(
                f"{folder}: another vlm-captiond (pid {holder}) runs with this run directory",
                hint="stop it, or give this one a run_dir of its own",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next one start; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def run_directory(setting: str | None, environment: Mapping[str, str]) -> Path:
    """Where the lock lies: the setting, systemd's RUNTIME_DIRECTORY, or a folder of the user's in the temporary one."""
    chosen = setting or environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"vlm-captiond-{os.getuid()}"


def _check_owner(folder: Path) -> None:
    """In a shared temporary directory a folder that somebody else made is not ours to trust."""
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise ConfigError(f"{folder}: not a folder of this user", hint="set run_dir to a folder of your own")
