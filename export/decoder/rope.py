"""Tables of rotary position embeddings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def rope_caches(head_dim: int, theta: float, factor: float, positions: int) -> tuple[F32, F32]:
    """(cos, sin), each f32 [positions, head_dim/2], of position / factor · theta^(−2i/head_dim).

    Frequencies and angles are rounded to f32 as in the models' own code, so that long contexts see the same angles that
    they were trained with; cos and sin of them are computed in f64.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = ((1.0 / theta**exponents).astype(np.float32) / np.float32(factor)).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)
