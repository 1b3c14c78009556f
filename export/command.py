"""What the commands of this package share: exit codes of errors and signals, and the one place that writes."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from runtime.errors import VlmError


def run_command(work: Callable[[], None], *, as_json: bool, interrupted: str) -> int:
    """Runs ``work``; returns the exit code: 0, that of a VlmError (told on stderr, with ``as_json`` on stdout too), or
    130 after Ctrl-C, with the line ``interrupted``. SIGTERM unwinds, so that temporary folders go away, and exits 143.
    """
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        work()
    except VlmError as problem:
        _tell(problem, as_json)
        return problem.exit_code
    except KeyboardInterrupt:
        err(interrupted)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def out(line: str) -> None:
    """A line of data."""
    sys.stdout.write(line + "\n")


def err(line: str) -> None:
    """A line for people."""
    sys.stderr.write(line + "\n")


def positive(text: str) -> int:
    """An argument that is an integer from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _tell(problem: VlmError, as_json: bool) -> None:
    err(f"error: {problem.message}")
    if problem.hint:
        err(f"hint: {problem.hint}")
    if as_json:
        out(json.dumps({"error": problem.message, "hint": problem.hint, "exit_code": problem.exit_code}))


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(143)
