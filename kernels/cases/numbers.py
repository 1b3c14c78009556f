"""Pseudo-random inputs that are the same on every machine and every numpy: splitmix64, counter by counter.

Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64


def words(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """u64 [count]: the first ``count`` outputs of splitmix64 started at ``seed``."""
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(seed % WORD)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniform(seed: int, shape: tuple[int, ...], low: float, high: float) -> npt.NDArray[np.float64]:
    """f64 ``shape`` in [low, high): 53 random bits each."""
    unit = (words(seed, math.prod(shape)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (low + unit * (high - low)).reshape(shape)


def integers(seed: int, shape: tuple[int, ...], low: int, high: int) -> npt.NDArray[np.int64]:
    """i64 ``shape`` in low..high-1. high - low is at most 2**32, so that no value is favoured by more than 2**-32."""
    if not 0 < high - low <= 2**32:
        raise ValueError(f"integers from {low} to below {high}: 1 to 2**32 values are possible")
    return (low + (words(seed, math.prod(shape)) % np.uint64(high - low)).astype(np.int64)).reshape(shape)
