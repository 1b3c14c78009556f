"""What the driver and the kernels refuse, in the runtime's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kernels.errors import CompileError, ImageError, KernelError, NoDeviceError, OutOfMemoryError, StickyError
from kernels.state import STATUS_BAD_IMAGE_ROW, STATUS_BAD_LOGITS, STATUS_BAD_TOKEN, STATUS_FULL
from runtime.errors import DeviceLostError, EngineError, MemoryLimitError, VlmError

MIB = 1 << 20
LOST_HINT = "the CUDA context is lost: start the process again, and look at dmesg for what the driver says"
NO_DEVICE_HINT = "python -m runtime.doctor says what is missing; decoder='onnx' runs on the CPU"
NO_IMAGE_HINT = "python -m kernels.build compiles the kernels for this device"
MEMORY_HINT = "close other programs, or take kv='i8', embeddings='i8' or fewer chats"
STATUS_TEXTS = {
    STATUS_BAD_TOKEN: "a token id is outside the table",
    STATUS_BAD_LOGITS: "the logits are not finite",
    STATUS_FULL: "a position is beyond the KV cache",
    STATUS_BAD_IMAGE_ROW: "an image row does not exist",
}


@contextmanager
def device_errors(doing: str) -> Iterator[None]:
    """Errors of `kernels` as EngineError or MemoryLimitError that say what was being done."""
    try:
        yield
    except KernelError as problem:
        raise as_runtime_error(doing, problem) from problem


def as_runtime_error(doing: str, problem: KernelError) -> VlmError:
    """The runtime's error for one of `kernels`; its own hint is kept where it has one."""
    message = f"{doing}: {problem.message}"
    if isinstance(problem, OutOfMemoryError):
        return MemoryLimitError(f"{message} ({problem.requested / MIB:.1f} MiB wanted)", hint=MEMORY_HINT)
    fallback = None
    if isinstance(problem, StickyError):
        return DeviceLostError(message, hint=problem.hint or LOST_HINT)
    if isinstance(problem, NoDeviceError):
        fallback = NO_DEVICE_HINT
    elif isinstance(problem, (ImageError, CompileError)):
        fallback = NO_IMAGE_HINT
    return EngineError(message, hint=problem.hint or fallback)


def status_error(status: int, where: str) -> EngineError:
    """What the status bits of a step say."""
    texts = [text for bit, text in STATUS_TEXTS.items() if status & bit] or [f"status {status:#x}"]
    hint = "the weights are damaged: python -m runtime.doctor --bundle DIR, then build the bundle again"
    return EngineError(f"the decoder failed {where}: {', '.join(texts)}", hint=hint)
