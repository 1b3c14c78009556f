"""The engine's process: ``python -m runtime.captiond.engine.child --socket N``, started by `EngineClient` alone.

Everything that it needs comes over the inherited socket, so that nothing of the configuration stands in ``ps``. It
ends at the socket's end of file, whatever it is doing, and with the daemon.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine.server import Loader, Model, Server
from runtime.captiond.frugal import give_memory_back, let_go_of_code

EXIT_USAGE, EXIT_GAVE_UP = 2, 4
OOM_SCORE = 300  # when memory ends captures go first, then the engine, the daemon last
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the real model; does not return."""
    run(_load, socket_of(sys.argv[1:] if argv is None else argv))


def socket_of(argv: Sequence[str]) -> socket.socket:
    """The inherited socket that the command line names."""
    if len(argv) != 2 or argv[0] != "--socket" or not argv[1].isdecimal():
        sys.stderr.write("runtime.captiond.engine.child --socket N is started by the daemon alone\n")
        raise SystemExit(EXIT_USAGE)
    return socket.socket(fileno=int(argv[1]))


def run(load: Loader, end: socket.socket) -> None:
    """Serve ``end`` with what ``load`` loads; does not return.

    The process ends without clearing up: an engine that hangs could not be closed, and the kernel takes back what it
    has either way.
    """
    settle_in()
    hung_up = asyncio.run(_serve(load, end))
    sys.stderr.flush()
    os._exit(0 if hung_up else EXIT_GAVE_UP)


def settle_in() -> None:
    """Die with the daemon; be taken before it when memory ends."""
    give_memory_back()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    score = Path("/proc/self/oom_score_adj")
    if int(score.read_text(encoding="ascii")) < OOM_SCORE:
        score.write_text(str(OOM_SCORE), encoding="ascii")


async def _serve(load: Loader, end: socket.socket) -> bool:
    hung_up = await Server(load).serve(end)
    if hung_up:
        os._exit(0)  # now: a load on its thread would hold up the end of the loop
    return hung_up


def _load(settings: EngineSettings, captions: int) -> Model:
    from runtime.captiond.engine.model import load

    model = load(settings, captions)
    let_go_of_code()
    return model


if __name__ == "__main__":
    main()
