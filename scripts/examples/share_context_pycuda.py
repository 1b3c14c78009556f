"""An application on pycuda lends its context, its stream and its arrays to a kernel of this project: nothing is copied.

    python scripts/examples/share_context_pycuda.py

Needs pycuda and a GPU. The application makes a context and GPUArrays as it always did; ``open_device()`` finds that
pycuda is imported and works in that context. The result stands in the application's own array.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pycuda.driver as cuda
from pycuda import gpuarray

from kernels.driver import open_device
from kernels.foreign import as_device_array
from kernels.launch.norm import rmsnorm_residual
from kernels.loading import Kernels

EPS = 1e-6


def normalized(rows: npt.NDArray[np.float32], gamma: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """RMSNorm of f32 ``rows`` [M, H] by our kernel, on arrays and on a stream that belong to the application."""
    stream = cuda.Stream()
    x, weights = gpuarray.to_gpu(rows), gpuarray.to_gpu(gamma)
    y = gpuarray.empty(rows.shape, np.float16)
    device = open_device()  # "auto": pycuda, in the current context
    kernels = Kernels(device)
    try:
        residual, out = as_device_array(x, device), as_device_array(y, device, writable=True)
        ours = device.wrap_stream(stream)
        rmsnorm_residual(kernels, ours, residual, as_device_array(weights, device), out, eps=EPS)
        stream.synchronize()  # the application's own
    finally:
        kernels.close()
        device.close()  # the context, the stream and the arrays are the application's, and stay
    result: npt.NDArray[np.float16] = y.get()
    return result


def main() -> None:
    cuda.init()
    context = cuda.Device(0).make_context()
    try:
        rng = np.random.default_rng(0)
        rows, gamma = rng.standard_normal((4, 256), np.float32), rng.standard_normal(256, np.float32)
        found = normalized(rows, gamma)
    finally:
        context.pop()
    wide = rows.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * gamma
    print(f"largest difference from float64: {np.abs(found - expected).max():.2e}")


if __name__ == "__main__":
    main()
