"""What every benchmark line carries: machine, versions, commit, date. Used by the scripts in this directory alone."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("numpy", "llguidance", "onnxruntime", "tokenizers", "torch", "transformers", "llama-cpp-python", "gguf")


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(("model name", "Model"))]
    return names[0] if names else "unknown"


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Machine, load, versions and commit of this run, ready for JSON."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "arch": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
    }


def write_line(row: dict[str, Any], out: Path | None) -> None:
    """Print one JSON line on stdout; append it to ``out`` too when that is given."""
    line = json.dumps(row, sort_keys=False)
    _emit(line, sys.stdout)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            _emit(line, file)


def _emit(line: str, stream: TextIO) -> None:
    stream.write(line + "\n")
    stream.flush()
