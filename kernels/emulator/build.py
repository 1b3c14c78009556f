"""Compile a kernel source for the CPU with g++, once per content: libraries stay in the user's cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

from kernels.errors import CompileError

Mode = Literal["fast", "asan", "tsan"]

INCLUDE = Path(__file__).resolve().parent / "include"
SHARED_MEMORY = INCLUDE / "emulator" / "shared.ld"
CSRC = Path(__file__).resolve().parent.parent / "csrc"

COMPILE_TIMEOUT_S = 600

# No contraction: a*b+c rounds twice on every machine, so that results do not depend on the CPU.
BASE_FLAGS = (
    "-x", "c++", "-std=gnu++17", "-DCUDA_EMULATOR", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique",
    "-fno-strict-aliasing", "-ffp-contract=off", "-fno-math-errno", "-fdata-sections", "-w",
)  # fmt: skip
MODE_FLAGS: dict[str, tuple[str, ...]] = {
    "fast": ("-O2",),
    # Optimised a little: only then does UBSan know the size of an array behind a pointer, and AddressSanitizer does not
    # guard static variables of templates.
    "asan": (
        "-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
    ),
    "tsan": ("-O1", "-g1", "-fsanitize=thread"),
}  # fmt: skip
# x86-64-v3 spelt out for compilers that do not know the name: F16C converts fp16 in one instruction.
X86_FEATURES = {"avx2": "-mavx2", "f16c": "-mf16c", "fma": "-mfma", "bmi2": "-mbmi2"}


def build_library(
    source: str | Path,
    mode: Mode = "fast",
    *,
    directory: Path = CSRC,
    defines: Sequence[str] = (),
    cache: Path | None = None,
) -> Path:
    """Compile ``source`` (a name in ``directory``, or a path) to a shared library for this CPU.

    mode: fast; asan (AddressSanitizer and UBSan; the process needs their runtimes in LD_PRELOAD); tsan (likewise).
    cache: folder of the libraries (default: `cache_folder`). The library is found again by the content of the source,
    of every header and by compiler and flags. Processes that ask for the same one at once compile it once. Raises
    CompileError without g++ or with the compiler's messages.
    """
    path = directory / source
    command = [compiler(), *BASE_FLAGS, *MODE_FLAGS[mode], *machine_flags(), *(f"-D{define}" for define in defines)]
    library = (cache or cache_folder()) / f"{path.stem}-{mode}-{_key(path, directory, command)}.so"
    if not library.exists():
        with _locked(library.with_suffix(".lock")):
            if not library.exists():
                _compile([*command, *_paths(path.parent, directory)], path, library)
    return library


def _paths(folder: Path, directory: Path) -> list[str]:
    """Where headers lie; messages name files without their folders, so that the library is the same everywhere."""
    found = [f"-I{INCLUDE}", f"-I{directory}", f"-Wl,-T,{SHARED_MEMORY}"]
    return found + [f"-ffile-prefix-map={place}/=" for place in {folder, directory, INCLUDE}]


def cache_folder() -> Path:
    """Name the folder of compiled kernels: $VLM_EMULATOR_CACHE, else one in the user's cache ($XDG_CACHE_HOME)."""
    if named := os.environ.get("VLM_EMULATOR_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetson-vlm" / "emulator"


def compiler() -> str:
    """Find g++; CompileError where there is none."""
    found = shutil.which("g++")
    if found is None:
        raise CompileError("the emulator needs g++, and there is none on PATH", hint="apt install g++")
    return found


def machine_flags() -> tuple[str, ...]:
    """Choose instruction sets that this CPU has."""
    if platform.machine() != "x86_64":
        return ()
    present = _cpu_flags()
    return tuple(X86_FEATURES.values()) if present.issuperset(X86_FEATURES) else ()


@lru_cache(maxsize=1)
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # a system without it: code for every CPU of this kind
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


@lru_cache(maxsize=4)
def _version(command: str) -> str:
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=False, timeout=60).stdout


def _key(path: Path, directory: Path, command: Sequence[str]) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CompileError(f"kernel source {path}: {error.strerror or error}") from error
    digest = hashlib.sha256(content)
    for header in [*sorted(directory.glob("*.cuh")), *sorted(INCLUDE.rglob("*.h")), SHARED_MEMORY]:
        digest.update(header.name.encode() + b"\0" + header.read_bytes())
    digest.update("\0".join([*command, _version(command[0])]).encode())
    return digest.hexdigest()[:24]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: Sequence[str], path: Path, library: Path) -> None:
    partial = library.with_suffix(f".{os.getpid()}.partial")
    try:
        done = subprocess.run(
            [*command, "-o", str(partial), str(path)],
            capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0:
            raise CompileError(f"g++ refused {path}:\n{done.stderr.strip()[-4000:]}")
        partial.replace(library)
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"g++ took more than {COMPILE_TIMEOUT_S} s over {path}") from error
    finally:
        partial.unlink(missing_ok=True)
