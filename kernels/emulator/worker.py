"""Run functions in processes under a sanitizer: one that has loaded everything forks for every job.

AddressSanitizer and ThreadSanitizer must be in a process from its start, and end it at their first finding. So a
`Worker` keeps one process with the sanitizer preloaded, which forks per job; a job that ends badly takes its fork
with it, and what the sanitizer wrote is in the `Outcome`.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kernels.emulator.build import Mode, compiler
from kernels.errors import KernelError

SANITIZERS: Mapping[Mode, tuple[str, ...]] = {"fast": (), "asan": ("asan", "ubsan"), "tsan": ("tsan",)}
OPTIONS = {
    # CPython frees little at its end, and fibers have their own stacks.
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "exitcode=66:halt_on_error=1:die_after_fork=0:report_signal_unsafe=0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
START_TIMEOUT_S = 120
MAX_MAPPING_BITS = 28  # more random bits in addresses than this, and TSan finds its shadow memory taken
FINDINGS = (
    ("WARNING: ThreadSanitizer", "race"),
    ("ERROR: AddressSanitizer", "address"),
    ("runtime error:", "undefined"),
)


@dataclass(frozen=True)
class Outcome:
    """How a job ended. ``kind``: done, error (Python's), race, address, undefined, crash or hang.

    value: what the function returned; report: the error, or what the sanitizer wrote.
    """

    kind: str
    value: Any = None
    report: str = ""


class Worker:
    """A process for jobs under ``mode``'s sanitizer, ended by ``close`` or the end of a ``with``. Not thread-safe."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        command = [*_fixed_addresses(mode), sys.executable, "-m", "kernels.emulator.worker"]
        environment = {**os.environ, **OPTIONS, "LD_PRELOAD": " ".join(preloaded(mode))}
        environment["PYTHONPATH"] = os.pathsep.join(path or "." for path in sys.path)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.run("builtins:int", timeout_s=START_TIMEOUT_S)

    def prepare(self, function: str, **arguments: Any) -> None:
        """Call ``package.module:function`` in the process itself, for what later jobs then find done.

        Under TSan it must launch no kernel: a fork of a process with several threads orders nothing any more.
        """
        outcome = self._ask({"function": function, "arguments": arguments, "fork": False}, START_TIMEOUT_S)
        if outcome.kind != "done":
            raise KernelError(f"the emulator's {self.mode} process could not prepare:\n{outcome.report}")

    def run(self, function: str, *, timeout_s: float = 60, **arguments: Any) -> Outcome:
        """Call ``package.module:function`` in a fork; arguments and result travel as JSON."""
        job = {"function": function, "arguments": arguments, "fork": True, "timeout_s": timeout_s}
        return self._ask(job, timeout_s + START_TIMEOUT_S)

    def close(self) -> None:
        """End the process; harmless when repeated."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, job: Mapping[str, Any], timeout_s: float) -> Outcome:
        sent, answers = self._process.stdin, self._process.stdout
        if sent is None or answers is None or self._process.poll() is not None:
            raise KernelError(f"the emulator's {self.mode} process has ended")
        sent.write(json.dumps(job) + "\n")
        sent.flush()
        ready, _, _ = select.select([answers], [], [], timeout_s)
        line = answers.readline() if ready else ""
        if not line:
            self.close()
            raise KernelError(
                f"the emulator's {self.mode} process did not start or answer",
                hint="under vm.mmap_rnd_bits above 28 it needs setarch" if self.mode == "tsan" else None,
            )
        return Outcome(**json.loads(line))


def preloaded(mode: Mode) -> list[str]:
    """Paths of the sanitizers' runtimes that g++ brings; KernelError when one is missing."""
    paths = []
    for name in SANITIZERS[mode]:
        asked = [compiler(), f"-print-file-name=lib{name}.so"]
        path = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60).stdout.strip()
        if not Path(path).is_absolute():
            raise KernelError(f"g++ has no lib{name}.so", hint="apt install libgcc-dev")
        paths.append(path)
    return paths


def _fixed_addresses(mode: Mode) -> list[str]:
    """A prefix that turns address randomisation off where TSan needs it and can have it."""
    bits = Path("/proc/sys/vm/mmap_rnd_bits")
    setarch = shutil.which("setarch")
    if mode != "tsan" or setarch is None or not bits.exists() or int(bits.read_text()) <= MAX_MAPPING_BITS:
        return []
    prefix = [setarch, "-R"]
    allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False, timeout=60).returncode == 0
    return prefix if allowed else []


# ---- The other side


def serve() -> None:
    """Answer jobs, one JSON line each, until the input ends."""
    os.environ.pop("LD_PRELOAD", None)  # not for g++, should a job need it
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a job prints is no answer
    for line in sys.stdin:
        job = json.loads(line)
        answers.write(json.dumps(vars(_forked(job) if job["fork"] else _called(job))) + "\n")
        answers.flush()


def _called(job: Mapping[str, Any]) -> Outcome:
    module, _, name = job["function"].partition(":")
    try:
        return Outcome("done", getattr(importlib.import_module(module), name)(**job["arguments"]))
    except Exception as error:  # noqa: BLE001 - a job's error is its result, told with its traceback
        return Outcome("error", None, "".join(traceback.format_exception(error)))


def _forked(job: Mapping[str, Any]) -> Outcome:
    receive, send = os.pipe()
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            os.dup2(errors.fileno(), 2)
            os.write(send, json.dumps(vars(_called(job))).encode())
            os._exit(0)
        os.close(send)
        answer, ended = _awaited(child, receive, float(job["timeout_s"]))
        os.close(receive)
        errors.seek(0)
        report = errors.read().decode(errors="replace")
    if not ended:
        return Outcome("hang", None, f"no end within {job['timeout_s']} s")
    kind = next((kind for text, kind in FINDINGS if text in report), None)
    if kind is None and answer:
        return Outcome(**json.loads(answer))
    return Outcome(kind or "crash", None, report)


def _awaited(child: int, receive: int, timeout_s: float) -> tuple[bytes, bool]:
    """Read what the child writes until it has ended; kill it after the time. Returns the text and whether it ended."""
    deadline, parts = time.monotonic() + timeout_s, []
    while True:
        ready, _, _ = select.select([receive], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(receive, 1 << 16) if ready else b""
        if not part:
            break
        parts.append(part)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return b"".join(parts), bool(ready)


if __name__ == "__main__":
    serve()
