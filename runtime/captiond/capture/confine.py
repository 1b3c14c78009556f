"""What a child process gives up before it touches a stranger's data. Standard library alone.

Linux: it dies with its parent, writes no core, is killed first when memory ends, and can take only so much of it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 15, 38
_MIB = 1 << 20


def confine(name: str, *, parent: int, oom_score_adj: int) -> None:
    """Make this process a child that can be killed at any time. ``parent``: its pid; when it is gone, exit at once.

    A session of its own, default signals (SIGPIPE stays ignored), no core dumps, no new privileges.
    """
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    if os.getsid(0) != os.getpid():
        os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/oom_score_adj").write_text(str(oom_score_adj), encoding="ascii")


def die_with_parent() -> None:
    """Be killed when the parent is gone, also while stopped: a process that is stopped reads no end of a socket."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def limit_memory(mib: int) -> None:
    """Let this process take ``mib`` MiB of private memory beyond what it has now; then allocations fail.

    RLIMIT_DATA, not RLIMIT_AS: shared frames, the text of libraries and the address space that the allocator reserves
    for each thread do not count, only what can be written and is private.
    """
    limit = private_bytes() + mib * _MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def private_bytes() -> int:
    """What RLIMIT_DATA counts of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def keep_only(fds: list[int]) -> None:
    """Close every open file but standard input, output, errors and ``fds``."""
    for fd in sorted(int(name) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208 - no path is wanted
        if fd > 2 and fd not in fds:
            try:
                os.close(fd)
            except OSError:  # the listing itself
                continue
