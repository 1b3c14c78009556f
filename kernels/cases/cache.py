"""A KV cache and a decode state in device memory from host arrays, for cases and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kernels.arrays import Activation, DeviceArray, from_bf16, to_bf16
from kernels.kernel import F64
from kernels.launch.kv import KvDType, KvLayer, slot_bytes
from kernels.reference.kv import dequantize_i8, quantize_i8
from kernels.state import DECODE_STATE
from kernels.workbench import Workbench

Side = Literal["keys", "values"]


def rounded(values: npt.NDArray[Any], dtype: Activation) -> F64:
    """The f64 values that ``values`` have after rounding to f16 or bf16."""
    if dtype == "bf16":
        return from_bf16(to_bf16(values)).astype(np.float64)
    return values.astype(np.float16).astype(np.float64)


def stored(values: npt.NDArray[Any], dtype: KvDType) -> F64:
    """The f64 values that ``values`` [..., D] have in a cache of ``dtype``."""
    return dequantize_i8(*quantize_i8(values)) if dtype == "i8" else rounded(values, dtype)


@dataclass(frozen=True)
class Cache:
    """A layer, and the raw bytes u8 [slot_bytes] behind every entry of its tables."""

    layer: KvLayer
    slots: dict[Side, tuple[DeviceArray, ...]]

    def read(self, bench: Workbench, side: Side, slot: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[np.float16]]:
        """Data [kv_heads, capacity, D] (int8, or f16, or u16 for bf16) of a slot, and its scales [kv_heads, capacity];
        without scales an empty array."""
        layer = self.layer
        raw = bench.download(self.slots[side][slot])
        kinds: dict[str, type[np.generic]] = {"i8": np.int8, "f16": np.float16, "bf16": np.uint16}
        kind = kinds[layer.dtype]
        rows = layer.kv_heads * layer.capacity
        nbytes = rows * layer.head_dim * np.dtype(kind).itemsize
        data = raw[:nbytes].view(kind).reshape(layer.kv_heads, layer.capacity, layer.head_dim)
        scales = raw[nbytes:].view(np.float16)
        return data, scales.reshape(layer.kv_heads, layer.capacity) if scales.size else scales


def empty_cache(
    bench: Workbench,
    kv_heads: int,
    head_dim: int,
    capacity: int,
    dtype: KvDType,
    *,
    slots: int = 1,
    staged: bool = False,
) -> Cache:
    """A cache of 0xFF bytes: NaN in f16 and bf16, -1 times NaN in int8."""
    nbytes = slot_bytes(kv_heads, head_dim, capacity, dtype)
    memory: dict[Side, tuple[DeviceArray, ...]] = {
        "keys": tuple(bench.empty((nbytes,), "u8") for _ in range(slots)),
        "values": tuple(bench.empty((nbytes,), "u8") for _ in range(slots)),
    }
    tables = [bench.upload(np.array([array.ptr for array in arrays]), "u64") for arrays in memory.values()]
    return Cache(KvLayer(tables[0], tables[1], kv_heads, head_dim, capacity, dtype, staged), memory)


def filled_cache(
    bench: Workbench,
    keys: npt.NDArray[Any],
    values: npt.NDArray[Any],
    capacity: int,
    dtype: KvDType,
    *,
    slot: int = 0,
    slots: int = 1,
    staged: bool = False,
) -> Cache:
    """A cache with keys and values [kv_heads, T, D] in the first rows of ``slot``; everything else is 0xFF."""
    kv_heads, length, head_dim = keys.shape
    cache = empty_cache(bench, kv_heads, head_dim, capacity, dtype, slots=slots, staged=staged)
    sides: tuple[tuple[Side, npt.NDArray[Any]], ...] = (("keys", keys), ("values", values))
    for side, rows in sides:
        image = np.full(slot_bytes(kv_heads, head_dim, capacity, dtype), 0xFF, np.uint8)
        itemsize = 1 if dtype == "i8" else 2
        data = image[: kv_heads * capacity * head_dim * itemsize].reshape(kv_heads, capacity, head_dim * itemsize)
        if dtype == "i8":
            integers, scales = quantize_i8(rows)
            data[:, :length] = integers.view(np.uint8)
            image[data.size :].view(np.float16).reshape(kv_heads, capacity)[:, :length] = scales
        else:
            host = to_bf16(rows) if dtype == "bf16" else rows.astype(np.float16)
            data[:, :length] = np.ascontiguousarray(host).view(np.uint8)
        target = cache.slots[side][slot]
        bench.kernels.device.copy_in(target.ptr, image, bench.stream)
        bench.stream.synchronize()
    return cache


def decode_state(bench: Workbench, pos: int, *, slot: int = 0) -> DeviceArray:
    """A DecodeState at ``pos`` of ``slot``."""
    state = np.zeros(1, DECODE_STATE)
    state["pos"], state["slot"] = pos, slot
    return bench.upload(state.view(np.uint8), "u8")


def status_of(bench: Workbench, state: DeviceArray) -> int:
    """The status bits of a state."""
    return int(bench.download(state).view(DECODE_STATE)["status"][0])
