"""Which decoder a bundle is opened with: what was asked for, what the bundle has, and whether there is a device."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from runtime.bundle import Bundle
from runtime.decoder.options import CudaOptions
from runtime.errors import BundleError, EngineError, InputError

if TYPE_CHECKING:
    from kernels.driver.protocol import Device

_log = logging.getLogger(__name__)

DecoderKind = Literal["auto", "onnx", "cuda"]
BUILD_HINT = "build with --decoder both"
DEVICE_HINT = "python -m runtime.doctor says what is missing; decoder='onnx' runs on the CPU"


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """The device for the decoder "cuda". ``owned``: whoever uses it closes it."""

    device: Device
    owned: bool

    def close(self) -> None:
        """Close it if it is ours; harmless when repeated."""
        if self.owned:
            self.device.close()


def find_device(bundle: Bundle, kind: DecoderKind, options: CudaOptions) -> FoundDevice | None:
    """The device that the bundle's decoder runs on; None for the decoder "onnx".

    "auto" takes "cuda" when the bundle has it and a device is found that code of the kernels is there for, and logs why
    when it takes "onnx" instead.
    Raises InputError for an unknown kind, BundleError for one that the bundle has not, EngineError without a device.
    """
    if kind not in get_args(DecoderKind):
        raise InputError(f"decoder {kind!r} is not known", hint=f"one of {', '.join(get_args(DecoderKind))}")
    section = bundle.manifest.decoder
    if kind == "onnx" or (kind == "auto" and section.t16 is None):
        return None
    if section.t16 is None:
        found = ", ".join(section.kinds)
        raise BundleError(f"{bundle.path}: has no decoder 'cuda', only {found}", hint=BUILD_HINT)
    from kernels.driver import open_device
    from kernels.errors import KernelError, NoDeviceError

    other = kind == "auto" and section.onnx is not None
    if not isinstance(options.device, str):
        return FoundDevice(options.device, owned=False)
    try:
        device = open_device(options.device)
    except NoDeviceError as problem:
        if other:
            _log.info("no CUDA device (%s): the decoder 'onnx' runs on the CPU", problem.message)
            return None
        raise EngineError(f"the decoder 'cuda' found no device: {problem.message}", hint=DEVICE_HINT) from problem
    except KernelError as problem:
        raise EngineError(f"the decoder 'cuda': {problem.message}", hint=problem.hint or DEVICE_HINT) from problem
    if other and not _has_code_for(device):
        device.close()
        return None
    return FoundDevice(device, owned=True)


def _has_code_for(device: Device) -> bool:
    """Whether the kernels can run on a device: it is new enough, and compiled code or a compiler is there."""
    from kernels.errors import CompileError, ImageError
    from kernels.images import image_for

    if device.backend == "emulator":
        return True
    try:
        image_for(device, "gemv.cu")
    except (ImageError, CompileError) as problem:
        _log.warning("%s (%s): the decoder 'onnx' runs on the CPU", problem.message, problem.hint or DEVICE_HINT)
        return False
    return True
