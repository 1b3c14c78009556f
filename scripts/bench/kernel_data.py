"""Arrays for the benchmarks of the kernels: contents that cost no time to make and no NaN to compute with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.arrays import Activation, DeviceArray, DType
from kernels.launch.kv import KvDType, KvLayer, slot_bytes
from kernels.launch.weights import DTYPES, T16Weight
from kernels.packing.t16 import steps_of, tiles_of
from kernels.state import DECODE_STATE
from kernels.workbench import Workbench
from scripts.bench.device_timing import Effort, Launch, copies_of

BLOCK_BYTES = 2**22
SCALE = 2.0**-8


@dataclass(frozen=True)
class Benchmark:
    """One row: a launch of ``symbol`` with its ``sizes``, the bytes that it must move and the operations it must do."""

    symbol: str
    model: str
    sizes: dict[str, int]
    bytes: int
    operations: int
    prepare: Callable[[Lab], Launch]


class Lab:
    """Makes the arrays of one benchmark on a workbench."""

    def __init__(self, bench: Workbench, effort: Effort, dtype: Activation) -> None:
        self.bench = bench
        self.dtype = dtype
        self._effort = effort
        self._random = np.random.default_rng(0)

    def copies(self, nbytes: int) -> int:
        """How many copies of so many bytes keep every launch from finding its data in the cache."""
        return max(2, min(-(-self._effort.rotation_bytes // nbytes), self._effort.launches))

    def values(self, *shape: int, dtype: DType | None = None) -> DeviceArray:
        """Random values in [-1, 1), for integers over their whole range."""
        wanted = dtype or self.dtype
        if wanted in ("f16", "bf16", "f32"):
            return self.bench.upload(self._random.uniform(-1, 1, shape), wanted)
        limits = {"i8": (-128, 128), "u8": (0, 256), "u32": (0, 2**32), "i32": (0, 2**31)}[wanted]
        return self.bench.upload(self._random.integers(*limits, shape), wanted)

    def empty(self, *shape: int, dtype: DType | None = None) -> DeviceArray:
        """For results."""
        return self.bench.empty(shape, dtype or self.dtype)

    def weights(self, n: int, k: int, group_size: int) -> list[T16Weight]:
        """Copies of an int4 weight of random integers."""
        tiles, groups = tiles_of(n), k // group_size
        qw = self._random_words(tiles, steps_of(k), 32, 4)
        sc = self.bench.upload(np.full((tiles, groups, 8, 2), SCALE), DTYPES["sc"])
        zp = self.values(tiles, groups, 8, dtype="u8")
        count = self.copies(qw.nbytes)
        copied = zip(*(copies_of(array, self.bench, count) for array in (qw, sc, zp)), strict=True)
        return [T16Weight(words, scales, zeros, n, k, group_size) for words, scales, zeros in copied]

    def _random_words(self, *shape: int) -> DeviceArray:
        """u32 of one random block, repeated on the device."""
        target = self.bench.empty(shape, "u32")
        size = min(BLOCK_BYTES, target.nbytes)
        block = self.values(size // 4, dtype="u32")
        for start in range(0, target.nbytes, size):
            length = min(size, target.nbytes - start)
            self.bench.kernels.device.copy(target.ptr + start, block.ptr, length, self.bench.stream)
        return target

    def state(self, pos: int) -> DeviceArray:
        """A DecodeState at a position."""
        value = np.zeros(1, DECODE_STATE)
        value["pos"] = pos
        return self.bench.upload(value.view(np.uint8), "u8")

    def caches(
        self, kv_heads: int, head_dim: int, capacity: int, dtype: KvDType, *, staged: bool = False
    ) -> list[KvLayer]:
        """Copies of a layer's cache full of zeros, one slot each."""
        nbytes = slot_bytes(kv_heads, head_dim, capacity, dtype)
        layers = []
        for _ in range(self.copies(2 * nbytes)):
            tables = []
            for _table in range(2):
                data = self.bench.empty((nbytes,), "u8")
                self.bench.kernels.device.fill(data.ptr, 0, nbytes, self.bench.stream)
                tables.append(self.bench.upload(np.array([data.ptr], np.uint64), "u64"))
            layers.append(KvLayer(tables[0], tables[1], kv_heads, head_dim, capacity, dtype, staged))
        return layers


def rotating(items: list[Any], launch: Callable[[Any], None]) -> Launch:
    """Launch with item after item."""
    return lambda index: launch(items[index % len(items)])
