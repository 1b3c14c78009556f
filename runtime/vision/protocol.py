"""What every vision engine does. Implementations: `runtime.vision.onnx_vision`."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.tiling import TileLayout

F32 = npt.NDArray[np.float32]


class VisionEngine(Protocol):
    """Tiles in, image embeddings out, in two steps so that the features of a tile can be kept between them.

    T tiles of S x S px, P patches a tile, C channels, N = ``layout.num_image_tokens`` rows of width D. Engines are used
    by one thread at a time. After ``close`` every call raises ClosedError; closing twice is harmless.
    """

    def features(self, tiles: F32) -> F32:
        """Run the vision tower: f32 [T, 3, S, S] -> f32 [T, P, C]. Raises EngineError for other shapes."""
        ...

    def project(self, features: F32, layout: TileLayout) -> F32:
        """Merge scales and project all tiles of one picture: f32 [T, P, C] -> f32 [N, D], row-major over it."""
        ...

    def encode(self, tiles: F32, layout: TileLayout) -> F32:
        """Both steps: f32 [T, 3, S, S] of one picture -> f32 [N, D]."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...
