"""Which compiled code a device runs: the cubin of its SM, PTX for the driver's compiler, or NVRTC on the spot.

In this order, for a source of csrc: the installed cubin for exactly this SM; from compute capability 8.0 on the
installed PTX, when the driver knows its version; NVRTC with a cache on disk. ``VLM_JIT=1`` goes to NVRTC at once.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Protocol

from kernels.errors import CompileError, ImageError
from kernels.nvrtc import store
from kernels.nvrtc.cache import compiled_here
from kernels.nvrtc.compiler import Nvrtc, install_hint
from kernels.nvrtc.sources import Source, read_source
from kernels.nvrtc.targets import CUBINS, MINIMUM_CAPABILITY, PTX
from kernels.nvrtc.toolkit import Toolkit, find_toolkits

_log = logging.getLogger(__name__)


class DeviceFacts(Protocol):
    """What of a driver's Device decides."""

    @property
    def name(self) -> str:
        """As the driver calls it."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(8, 7) on Orin."""

    @property
    def driver_version(self) -> int:
        """12060 for CUDA 12.6."""


def image_for(device: DeviceFacts, source: str | Path) -> bytes:
    """The image of a source file (a name in csrc, or the path of another) for cuModuleLoadData on ``device``.

    Raises ImageError naming everything that was tried and the command that helps; CompileError when NVRTC refuses
    the source.
    """
    if device.compute_capability < MINIMUM_CAPABILITY:
        raise ImageError(
            f"{device.name} has compute capability {_dotted(device.compute_capability)}; the kernels need 8.0 or newer",
            hint="choose the decoder that runs on the CPU (decoder='onnx')",
        )
    text = read_source(source)
    reasons: list[str] = []
    if os.environ.get("VLM_JIT", "0") in ("", "0") and not isinstance(source, Path):
        image = _installed(device, text, reasons)
        if image is not None:
            return image
    image = _just_in_time(device, text, reasons)
    if image is not None:
        return image
    major = _driver(device)[0]
    raise ImageError(
        f"no compiled {text.name} for {device.name} (sm_{_number(device)}): {'; '.join(reasons)}",
        hint=f"python -m kernels.build, or {install_hint(12 if major <= 12 else 13)}",
    )


def installed_images(source: str, folder: Path = store.COMPILED) -> dict[str, str | None]:
    """For each target of a release, why its image of a source cannot be used, or None where it can (for reports)."""
    text = read_source(source)
    found: dict[str, str | None] = {}
    for target in (*CUBINS.values(), PTX):
        try:
            store.read_image(folder, store.read_manifest(folder), text, target)
            found[target.arch] = None
        except ImageError as problem:
            found[target.arch] = problem.message
    return found


def _installed(device: DeviceFacts, source: Source, reasons: list[str]) -> bytes | None:
    """The packaged cubin, else the packaged PTX, which ends in the NUL that the driver looks for."""
    target = CUBINS.get(_number(device))
    try:
        manifest = store.read_manifest(store.COMPILED)
        if target is None:
            reasons.append(f"releases have no cubin for sm_{_number(device)}")
        elif _driver(device)[0] < target.nvrtc[0]:
            reasons.append(f"the cubin needs a driver of CUDA {target.nvrtc[0]}, this is {_dotted(_driver(device))}")
        else:
            return store.read_image(store.COMPILED, manifest, source, target)
    except ImageError as problem:
        reasons.append(problem.message)
    if _driver(device) < PTX.nvrtc:
        reasons.append(f"the PTX needs a driver of CUDA {_dotted(PTX.nvrtc)}, this is {_dotted(_driver(device))}")
        return None
    try:
        return store.read_image(store.COMPILED, store.read_manifest(store.COMPILED), source, PTX) + b"\0"
    except ImageError as problem:
        if problem.message not in reasons:
            reasons.append(problem.message)
        return None


def _just_in_time(device: DeviceFacts, source: Source, reasons: list[str]) -> bytes | None:
    """Compile with the NVRTC here that suits the driver best; None, with the reason, where there is none."""
    arch = _number(device)
    candidates = []
    for toolkit in find_toolkits():
        try:
            candidates.append(_suitable(toolkit, device, arch))
        except CompileError as problem:
            reasons.append(problem.message)
    if not candidates:
        reasons.append("no NVRTC was found that this driver can follow")
        return None
    # Not newer than the driver when there is such a one, and then the newest.
    candidates.sort(key=lambda compiler: (compiler.version <= _driver(device), compiler.version), reverse=True)
    return compiled_here(candidates[0], source, f"sm_{arch}")


def _suitable(toolkit: Toolkit, device: DeviceFacts, arch: int) -> Nvrtc:
    """The compiler of a toolkit; CompileError when it cannot make code for the device."""
    if toolkit.major > _driver(device)[0]:
        raise CompileError(f"{toolkit.library} is newer than the driver, which is of CUDA {_dotted(_driver(device))}")
    if toolkit.includes is None:
        raise CompileError(f"{toolkit.library} has no CUDA headers beside it")
    compiler = Nvrtc(toolkit)
    if arch not in compiler.architectures:
        raise CompileError(f"NVRTC {_dotted(compiler.version)} does not know sm_{arch}")
    return compiler


def _number(device: DeviceFacts) -> int:
    return device.compute_capability[0] * 10 + device.compute_capability[1]


def _driver(device: DeviceFacts) -> tuple[int, int]:
    return device.driver_version // 1000, device.driver_version % 1000 // 10


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
