"""The KV cache: one set of keys and values per slot, and how many positions of each are filled."""

from __future__ import annotations

import numpy as np

from kernels.arrays import DeviceArray
from kernels.driver.protocol import Device, Stream
from kernels.launch.kv import SCALE_BYTES, KvLayer
from runtime.decoder.cuda.allocation import Allocation
from runtime.decoder.cuda.plan import cache_items
from runtime.decoder.cuda.shape import CudaDecoderFiles
from runtime.decoder.options import KvForm
from runtime.memory import MemoryUse


class KvCache:
    """``slots`` empty slots in device memory."""

    def __init__(self, device: Device, stream: Stream, files: CudaDecoderFiles, kv: KvForm, slots: int) -> None:
        self._device, self._stream, self._files = device, stream, files
        self._kv = kv
        self.lengths = [0] * slots
        self._allocation = Allocation(device, cache_items(files, kv, slots))
        try:
            self._parts = [
                [self._allocation.arrays[f"kv.{layer}.{part}.{slot}"] for slot in range(slots)]
                for layer in range(files.layers)
                for part in ("k", "v")
            ]
            addresses = np.array([[part.ptr for part in parts] for parts in self._parts], np.uint64)
            table = self._allocation.arrays["kv.addresses"]
            device.copy_in(table.ptr, addresses, stream)
            stream.synchronize()
            rows = table.reshape(2 * files.layers, slots)
            self.layers = tuple(self._layer(rows, 2 * layer) for layer in range(files.layers))
        except BaseException:
            self.close()
            raise

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Enqueue copies of the first ``length`` positions of every layer and head."""
        files = self._files
        width = files.head_dim * (1 if self._kv == "i8" else 2)
        runs = [(head * files.max_seq_len * width, length * width) for head in range(files.kv_heads)]
        if self._kv == "i8":
            scales = files.kv_heads * files.max_seq_len * width
            runs += [
                (scales + head * files.max_seq_len * SCALE_BYTES, length * SCALE_BYTES)
                for head in range(files.kv_heads)
            ]
        for parts in self._parts if length else ():
            for offset, size in runs:
                self._device.copy(parts[target].ptr + offset, parts[source].ptr + offset, size, self._stream)

    def uses(self) -> list[MemoryUse]:
        """Its bytes."""
        return self._allocation.uses()

    def close(self) -> None:
        """Free it; harmless when repeated. There are no slots then."""
        self.lengths = []
        self._allocation.close()

    def _layer(self, rows: DeviceArray, row: int) -> KvLayer:
        files = self._files
        slots = rows.shape[1]
        keys, values = (rows.rows(row + part, row + part + 1).reshape(slots) for part in (0, 1))
        dtype = "i8" if self._kv == "i8" else files.activations
        return KvLayer(keys, values, files.kv_heads, files.head_dim, files.max_seq_len, dtype)
