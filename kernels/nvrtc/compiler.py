"""libnvrtc through ctypes: CUDA C++ in, a cubin or PTX out. Needs no GPU, no driver and no nvcc."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from kernels.errors import CompileError
from kernels.nvrtc.sources import Source
from kernels.nvrtc.toolkit import HEADER, Toolkit

# The report of registers and spills on stdout of ptxas arrives in the log; it does not change the code.
OPTIONS = ("--std=c++17", "--ptxas-options=-v")
PACKAGES = {
    12: "nvidia-cuda-nvrtc-cu12==12.6.85 nvidia-cuda-runtime-cu12==12.6.77",
    13: "nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.96",
}


def install_hint(major: int) -> str:
    """The command that brings the compiler of one CUDA version."""
    return f"python -m pip install {PACKAGES[major]}"


@dataclass(frozen=True, slots=True)
class Compiled:
    """``image``: a cubin, or PTX text without a final NUL; ``log``: warnings and the report of ptxas."""

    image: bytes
    log: str


class Nvrtc:
    """One loaded libnvrtc; several versions can be loaded side by side. Threads may share it."""

    def __init__(self, toolkit: Toolkit) -> None:
        self.toolkit = toolkit
        # Newer libraries look for their builtins by bare name, which works only once these are loaded.
        for builtins in sorted(toolkit.library.parent.glob("libnvrtc-builtins.so.*")):
            _load(builtins)
        self._library = _load(toolkit.library)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        self.version = self._version()
        self.architectures = self._architectures()

    def _call(self, name: str, *arguments: object) -> int:
        """Call a function whose failure has no explanation but its code; CompileError with that."""
        code = int(getattr(self._library, name)(*arguments))
        if code != 0:
            text = self._library.nvrtcGetErrorString(code).decode()
            raise CompileError(f"{self.toolkit.library}: {name} failed: {text}")
        return code

    def _version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def _architectures(self) -> frozenset[int]:
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        values = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", values)
        return frozenset(values)

    def compile(self, source: Source, arch: str) -> Compiled:
        """Compile for ``arch``: sm_87 gives a cubin, compute_80 gives PTX. CompileError with the compiler's words."""
        if int(arch.partition("_")[2]) not in self.architectures:
            known = ", ".join(str(number) for number in sorted(self.architectures))
            raise CompileError(f"NVRTC {self.version[0]}.{self.version[1]} does not know {arch}; it knows {known}")
        if self.toolkit.includes is None:
            raise CompileError(
                f"{HEADER} is not beside {self.toolkit.library}", hint=install_hint(12 if self.version[0] <= 12 else 13)
            )
        program = ctypes.c_void_p()
        names = [name.encode() for name in source.headers]
        texts = [text.encode() for text in source.headers.values()]
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            source.text.encode(),
            source.name.encode(),
            len(names),
            (ctypes.c_char_p * len(names))(*texts),
            (ctypes.c_char_p * len(names))(*names),
        )
        try:
            return self._compile(program, source.name, arch, self.toolkit.includes)
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _compile(self, program: ctypes.c_void_p, name: str, arch: str, includes: Path) -> Compiled:
        options = [f"--gpu-architecture={arch}", f"--include-path={includes}", *OPTIONS]
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = int(self._library.nvrtcCompileProgram(program, len(options), encoded))
        log = self._output(program, "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
        if code != 0:
            raise CompileError(f"NVRTC {self.version[0]}.{self.version[1]} refused {name} for {arch}:\n{log.strip()}")
        if arch.startswith("sm_"):
            return Compiled(self._output(program, "nvrtcGetCUBIN"), log)
        return Compiled(self._output(program, "nvrtcGetPTX").rstrip(b"\0"), log)

    def _output(self, program: ctypes.c_void_p, getter: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{getter}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(max(1, size.value))
        self._call(getter, program, buffer)
        return buffer.raw[: size.value]


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as problem:
        raise CompileError(f"{path} cannot be loaded: {problem}", hint="install it again") from problem
