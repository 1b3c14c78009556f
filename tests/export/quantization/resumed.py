"""Kills a quantisation at every step and goes on; run as a program by test_run.py. Prints one JSON line.

Each run is a forked child, so that torch is loaded once; the parent computes nothing with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from export.progress import Progress
from export.quantization import journal, run
from export.quantization.request import QuantizeRequest


class Quiet(Progress):
    """Says nothing, but remembers in a file what was said."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def say(self, text: str) -> None:
        """A line of its own."""
        with self._log.open("a") as file:
            file.write(text + "\n")

    def update(self, done: int, total: int) -> None:
        """Nothing is shown."""


def child(work: Callable[[], None]) -> int:
    """The signal that ended a forked child, 0 when it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            work()
            os._exit(0)
        finally:  # an error: a child never goes on as its parent
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def killed_at(step: int) -> None:
    """From now on the process dies at the ``step``-th file of the journal: half of them before it is there."""
    write, place = journal.Journal.write, run.place_directory
    count = 0

    def counted(self: journal.Journal, name: str, fill: Any) -> Path:
        nonlocal count
        count += 1
        if count == step and step % 2:
            fill(self.folder / f".{Path(name).name}.writing")
            os.kill(os.getpid(), signal.SIGKILL)
        path = write(self, name, fill)
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return path

    def placed(directory: Path, out: Path) -> None:
        if count == step - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        place(directory, out)
        os.kill(os.getpid(), signal.SIGKILL)

    journal.Journal.write = counted  # type: ignore[method-assign]
    run.place_directory = placed


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def main(root: Path, calibration: Path, folder: Path, steps: list[int]) -> None:
    """Quantises once without a kill, and once with one at each step."""

    def quantised(name: str, step: int | None = None) -> int:
        def work() -> None:
            if step:
                killed_at(step)
            request = QuantizeRequest(root, folder / name, calibration, group_size=32, samples=2, clip=False)
            run.quantize(request, Quiet(folder / f"{name}.log"))

        (folder / f"{name}.log").touch()
        return child(work)

    assert quantised("whole") == 0
    wanted = digests(folder / "whole")
    outcomes = []
    for step in steps:
        out = folder / f"killed-{step}"
        signals = [quantised(out.name, step), quantised(out.name)]
        said = (folder / f"{out.name}.log").read_text().splitlines()
        outcomes.append(
            {
                "step": step,
                "signals": signals,
                "same": out.is_dir() and digests(out) == wanted,
                "left": (folder / f"{out.name}.partial").exists(),
                "resumed": [line for line in said if "going on at" in line or "had finished" in line],
            }
        )
    sys.stdout.write(json.dumps({"files": len(wanted), "outcomes": outcomes}) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), list(map(int, sys.argv[4:])))
