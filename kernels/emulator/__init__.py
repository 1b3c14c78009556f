"""Run the CUDA kernels of csrc on the CPU: a compiler that makes shared libraries of them, and memory for them."""

from __future__ import annotations

from kernels.emulator.build import CSRC, Mode, build_library
from kernels.emulator.memory import allocate, release

__all__ = ["CSRC", "Mode", "allocate", "build_library", "release"]
