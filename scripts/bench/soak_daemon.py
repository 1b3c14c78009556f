#!/usr/bin/env python3
"""The daemon with a stand-in engine, and a leak where one is ordered. Started by soak.py with a configuration file.

VLM_SOAK_PLANT=memory|files|threads|children python scripts/bench/soak_daemon.py captiond.toml
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from runtime.captiond.__main__ import parse  # noqa: E402
from runtime.captiond.command import configuration  # noqa: E402
from runtime.captiond.daemon import Daemon  # noqa: E402
from runtime.captiond.events import CaptionFinished, Event  # noqa: E402
from runtime.captiond.frugal import give_memory_back  # noqa: E402
from runtime.captiond.logs import configure_logs  # noqa: E402
from tests.runtime.captiond.stand_in_engine import stand_in_command  # noqa: E402

WORDS = 3
LEAKED_BYTES = 1024
# One of these for so many captions: enough for a check that looks for any.
RARELY = 500


class Leak:
    """Keeps something of every caption, or of every 500th."""

    def __init__(self, kind: str) -> None:
        self._kept: list[object] = []
        self._count = 0
        kinds: dict[str, Callable[[], object]] = {
            "memory": lambda: bytearray(LEAKED_BYTES),
            "files": lambda: os.open(os.devnull, os.O_RDONLY),
            "threads": self._thread,
            "children": lambda: subprocess.Popen(["sleep", "600"], stderr=subprocess.DEVNULL),
        }
        self._make, self._every = kinds[kind], 1 if kind == "memory" else RARELY

    def __call__(self, event: Event) -> None:
        if isinstance(event, CaptionFinished):
            self._count += 1
            if self._count % self._every == 0:
                self._kept.append(self._make())

    @staticmethod
    def _thread() -> threading.Thread:
        thread = threading.Thread(target=threading.Event().wait, daemon=True)
        thread.start()
        return thread


def main() -> int:
    give_memory_back()
    options = parse(sys.argv[1:])
    config = configuration(options)
    redactor = configure_logs(config.log.level, sys.stderr)
    command = stand_in_command(words=WORDS)
    daemon = Daemon(config, lambda: config, os.environ, redactor, engine_command=command)
    plant = os.environ.get("VLM_SOAK_PLANT")
    if plant:
        daemon.bus.tap(Leak(plant))
    return asyncio.run(daemon.run())


if __name__ == "__main__":
    raise SystemExit(main())
