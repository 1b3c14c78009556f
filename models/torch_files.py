"""Files of torch's own format (.bin, .pt, .pth): read as tensors alone, in a limited child process.

Such a file is a pickle. torch's ``weights_only`` makes nothing but tensors and plain containers of it; the child
limits what a hole in that, or a file that claims to be huge, could do: memory, CPU time and the result's length are
bounded by the file's own size, and the result comes back as safetensors.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from models import torch_child
from runtime.errors import ExportError, OutputError

_MIB = 1 << 20
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True)
class Limits:
    """What the child may use: bytes of memory beyond torch's own, CPU seconds, and bytes of tensors."""

    memory_bytes: int
    cpu_s: int
    result_bytes: int

    @classmethod
    def for_size(cls, file_bytes: int) -> Limits:
        """Generous for an honest file: it is mapped once, and tensors that share memory are written out apart."""
        result = 4 * file_bytes + 16 * _MIB
        return cls(512 * _MIB + result, 60 + file_bytes // (20 * _MIB), result)


@dataclass(frozen=True)
class TorchContent:
    """``kind``: "table" (names to tensors), "list" or "tensor" (tensors named "0", "1", ...), "none", or "other
    <type>" without tensors. ``length``: items of the container; of one tensor its first dimension.
    """

    kind: str
    length: int
    tensors: dict[str, Tensor]


def read_torch_file(path: str | Path, limits: Limits | None = None) -> TorchContent:
    """What ``path`` holds, dtypes and values as they are; no code of the file is run.

    Raises ExportError for a missing, truncated or oversized file and for one that holds more than tensors and plain
    containers.
    """
    with tempfile.TemporaryDirectory(prefix="torch-file-") as folder:
        target = Path(folder) / "tensors.safetensors"
        convert_torch_file(path, target, limits)
        with safe_open(str(target), framework="pt") as opened:
            described = opened.metadata()
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    return TorchContent(described["kind"], int(described["length"]), tensors)


def read_torch_table(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file that maps names to tensors, also inside "state_dict". Raises ExportError for another."""
    content = read_torch_file(path)
    if content.kind != "table":
        raise ExportError(f"{path} is no table of tensors but {content.kind}", hint="only weights can be read")
    return content.tensors


def convert_torch_file(path: str | Path, target: Path, limits: Limits | None = None) -> TorchContent:
    """Write the tensors of ``path`` to ``target`` as safetensors; the answer's ``tensors`` are left out.

    In the child's memory there is one tensor at a time. Errors as ``read_torch_file``; OutputError when the disk is
    full.
    """
    source = Path(path)
    if not source.is_file():
        raise ExportError(f"{path} is missing", hint="point at a file that torch.save wrote")
    limits = limits or Limits.for_size(source.stat().st_size)
    try:
        _run_child(source.resolve(), target.resolve(), limits)
        with safe_open(str(target), framework="pt") as opened:
            described = opened.metadata()
        return TorchContent(described["kind"], int(described["length"]), {})
    except (SafetensorError, KeyError, TypeError) as error:
        target.unlink(missing_ok=True)
        raise ExportError(f"{path} cannot be read: its conversion left no usable result ({error})") from error
    except (ExportError, OutputError):
        target.unlink(missing_ok=True)
        raise


def _run_child(source: Path, target: Path, limits: Limits) -> None:
    request = {
        "source": str(source), "target": str(target), "paths": _package_paths(),
        "memory_bytes": limits.memory_bytes, "cpu_s": limits.cpu_s, "result_bytes": limits.result_bytes,
    }  # fmt: skip
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        # -I: neither the working directory nor the environment decides what is imported
        done = subprocess.run(
            [sys.executable, "-I", "-B", str(Path(torch_child.__file__).resolve()), json.dumps(request)],
            env=environment | {"OMP_NUM_THREADS": "1"},
            cwd=target.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60 + 4 * limits.cpu_s,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            f"{source} was not read in {error.timeout:.0f} s", hint="check the disk, and the file"
        ) from error
    if done.returncode != 0:
        raise _problem(source, done, limits)


def _package_paths() -> list[str]:
    """Where torch and numpy may lie: -I leaves out the user's own packages."""
    return [path for path in sys.path if path.rstrip("/").endswith(("site-packages", "dist-packages"))]


def _problem(source: Path, done: subprocess.CompletedProcess[bytes], limits: Limits) -> ExportError | OutputError:
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return ExportError(f"{source} took more than the {limits.cpu_s} s of CPU time that a file of its size may take")
    said = _last_line(done.stdout)
    if "No space left" in said:
        return OutputError(f"the tensors of {source} cannot be stored: {said}", hint="free some space, or set TMPDIR")
    if any(word in said for word in ("MemoryError", "can't allocate", "Cannot allocate", "bad_alloc", "ENOMEM")):
        mib = limits.memory_bytes // _MIB
        return ExportError(f"{source} asks for more than the {mib} MiB that a file of its size may take: {said}")
    reason = said or f"the child process ended with {done.returncode}: {_tail(done.stderr)}"
    return ExportError(
        f"{source} holds more than tensors, or is damaged: {reason}", hint="only weights can be read; copy it again"
    )


def _last_line(output: bytes) -> str:
    """The child's own word for a refusal, cut to what a terminal should show of a stranger's file."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    try:
        said = str(json.loads(lines[-1])["error"])
    except (IndexError, ValueError, KeyError, TypeError):
        return ""
    return "".join(letter for letter in said if letter.isprintable())[:300].strip()


def _tail(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines() or [""]
    return "".join(letter for letter in lines[-1] if letter.isprintable())[:200]
