"""Launches RMSNorm with the residual addition before it (csrc/rmsnorm.cu)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.arrays import DeviceArray, check_array
from kernels.driver.protocol import Stream
from kernels.errors import ArrayError
from kernels.kernel import Kernel
from kernels.launch.products import pointer
from kernels.reference.norm import rmsnorm_residual as reference

if TYPE_CHECKING:
    from kernels.loading import Kernels

WIDTH_MULTIPLE = 8  # rows are read 16 bytes at a time
VALUES_PER_THREAD = 4
MAX_THREADS = 256
MAX_WIDTH = 32768  # of shared memory that every device has: a block keeps its row there
MAX_COPIES = 2


def rmsnorm_residual(
    kernels: Kernels,
    stream: Stream,
    residual: DeviceArray,
    gamma: DeviceArray,
    y: DeviceArray,
    *,
    eps: float,
    delta: DeviceArray | None = None,
    copies: int = 1,
) -> None:
    """residual += delta, then y = residual / sqrt(mean(residual²) + eps) · gamma, row by row.

    residual f32 [M, H], in place; delta T [M, H] or None; gamma f32 [H]; y T [M, copies·H], T f16 or bf16. ``copies``
    2 writes each row twice side by side (the activations of an 8-bit head). H a multiple of 8, at most 32768. A row's
    result does not depend on M. Raises ArrayError. Source: Zhang and Sennrich 2019.
    """
    check_array("residual", residual, "f32", (None, None))
    tokens, width = residual.shape
    if width % WIDTH_MULTIPLE or width > MAX_WIDTH:
        raise ArrayError(f"residual has rows of {width}, expected a multiple of {WIDTH_MULTIPLE} up to {MAX_WIDTH}")
    if not 1 <= copies <= MAX_COPIES:
        raise ArrayError(f"copies is {copies}, expected 1 to {MAX_COPIES}")
    if not 0.0 <= eps < 1.0:
        raise ArrayError(f"eps is {eps}, expected 0 to below 1")
    check_array("gamma", gamma, "f32", (width,))
    check_array("y", y, ("f16", "bf16"), (tokens, copies * width))
    if delta is not None:
        check_array("delta", delta, y.dtype, (tokens, width))
    kernels.launch(
        f"rmsnorm_residual_{y.dtype}",
        (tokens, 1, 1),
        (_threads(width), 1, 1),
        4 * width,
        stream,
        "PPPPiif",
        residual.ptr,
        pointer(delta),
        gamma.ptr,
        y.ptr,
        width,
        copies,
        eps,
    )


def _threads(width: int) -> int:
    """As many threads as the row keeps busy, in whole warps."""
    return min(-(-width // (32 * VALUES_PER_THREAD)) * 32, MAX_THREADS)


KERNELS = (
    Kernel(
        "rmsnorm_residual",
        "rmsnorm.cu",
        ("rmsnorm_residual_f16", "rmsnorm_residual_bf16"),
        rmsnorm_residual,
        reference,
    ),
)
