"""Folders like those of NVRTC's wheels, around a stub library; and cubins made by hand."""

from __future__ import annotations

import atexit
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

from kernels.nvrtc.cubin import Resources

LAYOUTS = {
    12: ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cuda_runtime/include"),
    13: ("nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/include"),
}
KERNEL = {"scale": Resources(registers=40, shared_bytes=256, local_bytes=0, spill_bytes=0)}


@dataclass(frozen=True)
class Stub:
    """``root`` is what ``find_toolkits`` takes; ``images`` has one file per arch, and ``log``."""

    root: Path
    images: Path
    calls: Path

    def compiled(self) -> list[str]:
        """What was compiled, as "name arch"."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []


def make_stub(folder: Path, version: tuple[int, int]) -> Stub:
    """Lay out a stub of ``version`` with an image for every arch that the tests use. Skips without g++."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to build a stand-in for libnvrtc")
    library, headers = (folder / part for part in LAYOUTS[version[0]])
    images, calls = folder / "images", folder / "calls"
    for path in (library.parent, headers, images):
        path.mkdir(parents=True)
    (headers / "cuda_fp16.h").write_text("")
    for arch in ("sm_80", "sm_87", "sm_89", "sm_90", "sm_110"):
        (images / arch).write_bytes(make_cubin(KERNEL, padding=arch.encode()))
    (images / "compute_80").write_text("// ptx")
    (images / "log").write_text(make_log(KERNEL))
    (folder / "version").write_text(f"{version[0]} {version[1]}")
    shutil.copy(_library(), library)
    return Stub(folder, images, calls)


@lru_cache(maxsize=1)
def _library() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="stub-nvrtc-"))
    atexit.register(shutil.rmtree, folder)
    command = [
        "g++",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-o",
        str(folder / "stub.so"),
        Path(__file__).with_suffix(".cpp"),
    ]
    subprocess.run(command, check=True, timeout=120)
    return folder / "stub.so"


def make_log(kernels: Mapping[str, Resources]) -> str:
    """A log in the words of ptxas."""
    return "".join(
        f"ptxas info    : Compiling entry function '{name}' for 'sm_87'\n"
        f"ptxas info    : Function properties for {name}\n"
        f"ptxas         .     {taken.local_bytes} bytes stack frame, {taken.spill_bytes} bytes spill stores, "
        f"0 bytes spill loads\nptxas info    : Used {taken.registers} registers\n"
        for name, taken in kernels.items()
    )


def make_cubin(kernels: Mapping[str, Resources], padding: bytes = b"") -> bytes:
    """An ELF file with the sections of a cubin that matter. (name, type, contents, size in memory)"""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in kernels)
    symbols, info = bytes(24), b""
    for index, (name, taken) in enumerate(kernels.items(), 1):
        symbols += struct.pack("<IBBHQQ", strings.index(b"\0" + name.encode() + b"\0") + 1, 0x12, 0, 0, 0, 0)
        info += struct.pack("<BBHHH", 3, 0x1B, 255, 0, 0)[:4]  # an attribute without a length
        info += struct.pack("<BBHII", 4, 0x2F, 8, index, taken.registers)
        info += struct.pack("<BBHII", 4, 0x11, 8, index, taken.local_bytes)
    parts = [("", 0, b"", 0), (".strtab", 3, strings, 0), (".symtab", 2, symbols, 0), (".nv.info", 1879048192, info, 0)]
    for name, taken in kernels.items():
        parts.append((f".text.{name}", 1, bytes(16), 0))
        parts.append((f".nv.shared.{name}", 8, b"", taken.shared_bytes))
    return _elf([*parts, (".padding", 1, padding, 0)])


def _elf(parts: list[tuple[str, int, bytes, int]]) -> bytes:
    names = b"\0".join(part[0].encode() for part in parts) + b"\0.shstrtab\0"
    parts = [*parts, (".shstrtab", 3, names, 0)]
    body, headers, position = b"", b"", 64
    for name, kind, data, size in parts:
        at = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        headers += struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, position, size or len(data), 0, 0, 1, 0)
        body, position = body + data, position + len(data)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, position, 0, 64, 0, 0, 64, len(parts), len(parts) - 1)
    return ident + head + body + headers
