"""The decoder "cuda": int4 weights in layout T16, our own kernels (`kernels`), one CUDA graph per step.

`shape` what the model is · `plan`, `allocation` what it takes of device memory · `weight_file`, `upload`, `model`,
`table` how weights get there · `forward` which kernels a pass launches · `graphs`, `step_state`, `sampling` how a step
runs without the host · `cache` the slots · `engine` all of it on one device · `decoder` the protocol's rules.
"""

from __future__ import annotations

from runtime.decoder.cuda.decoder import CudaDecoder
from runtime.decoder.cuda.shape import CudaDecoderFiles

__all__ = ["CudaDecoder", "CudaDecoderFiles"]
