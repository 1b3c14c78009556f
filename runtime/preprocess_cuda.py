"""From a picture to tiles on a device: `runtime.preprocess`, bit for bit, by the kernels of csrc/resize.cu."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import NUMPY, DeviceArray, DType, from_host_dtype
from kernels.driver.protocol import DeviceMemory, Stream
from kernels.launch.resize import AxisWeights, ResizePlan, resize_normalize
from kernels.loading import Kernels
from runtime.bundle.manifest import VisionSection
from runtime.device_errors import device_errors
from runtime.preprocess import Tiles, bounding_region, by_size, canvas_of, check_frame, value_table
from runtime.resample import Canvas, Region, Resample, axis_weights, height_first
from runtime.tiling import TileLayout
from runtime.types import ImageArray

CHANNELS = 3
MAKING = "making the tiles of a picture"


class CudaPreprocessor:
    """Makes the tiles of one model's pictures, f32 (or f16, bf16: rounded once) [T, 3, S, S], in device memory.

    Its buffers grow to the largest picture and layout so far; a stream of equal frames plans and allocates once. Use it
    from one thread; close() gives the memory back. Raises ImageError for an array that is not u8 [H, W, 3], and the
    runtime's errors for what the device refuses.
    """

    def __init__(self, kernels: Kernels, stream: Stream, vision: VisionSection, *, dtype: DType = "f32") -> None:
        self._kernels, self._stream, self._vision, self._dtype = kernels, stream, vision, dtype
        self._memory: dict[str, DeviceMemory] = {}
        self._planned: tuple[tuple[int, int], TileLayout] | None = None
        self._plans: list[tuple[ResizePlan, DeviceArray]] = []
        self._held: list[object] = []  # host arrays that copies may still read
        spec = vision.preprocess
        values = value_table(spec.rescale, spec.mean, spec.std)
        with device_errors(MAKING):
            self._values = self._copied("values", values, "f32")

    def tiles(self, rgb: ImageArray, layout: TileLayout) -> DeviceArray:
        """Enqueue everything and return the tiles; they hold until the next call, and other streams wait for this one.

        rgb u8 [H, W, 3], left alone by the caller until the stream has been synchronised.
        """
        check_frame(rgb)
        size = (rgb.shape[0], rgb.shape[1])
        tile_px = self._vision.tower.tile_px
        with device_errors(MAKING):
            self._stream.synchronize()
            self._held.clear()
            if self._planned != (size, layout):
                self._plan(size, layout)
            image = self._copied("image", np.ascontiguousarray(rgb), "u8")
            tiles = self._array("tiles", (layout.num_tiles, CHANNELS, tile_px, tile_px), self._dtype)
            scratch = self._array("scratch", (max(plan.scratch_bytes for plan, _ in self._plans),), "u8")
            for plan, tables in self._plans:
                resize_normalize(self._kernels, self._stream, image, plan, tables, self._values, scratch, tiles)
        return tiles

    def host_tiles(self, rgb: ImageArray, layout: TileLayout) -> Tiles:
        """The tiles f32 in host memory, for an engine that takes them from there."""
        tiles = self.tiles(rgb, layout)
        host = np.empty(tiles.shape, NUMPY[self._dtype])
        with device_errors(MAKING):
            self._kernels.device.copy_out(host, tiles.ptr, self._stream)
            self._stream.synchronize()
        return from_host_dtype(host, self._dtype).astype(np.float32, copy=False)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that its buffers take now."""
        return sum(memory.nbytes for memory in self._memory.values())

    def close(self) -> None:
        """Give the device memory back; harmless when repeated."""
        self._planned = None
        self._plans.clear()
        while self._memory:
            self._memory.popitem()[1].free()

    def _plan(self, size: tuple[int, int], layout: TileLayout) -> None:
        self._planned = None
        plans = resize_plans(size, layout, self._vision)
        self._plans = [(plan, self._copied(f"tables {i}", plan.tables(), "i32")) for i, plan in enumerate(plans)]
        self._planned = (size, layout)

    def _copied(self, name: str, values: npt.NDArray[Any], dtype: DType) -> DeviceArray:
        array = self._array(name, values.shape, dtype)
        self._kernels.device.copy_in(array.ptr, values, self._stream)
        self._held.append(values)
        return array

    def _array(self, name: str, shape: tuple[int, ...], dtype: DType) -> DeviceArray:
        """A part of the buffer of this name, which is made anew when it is too small."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(NUMPY[dtype]).itemsize
        memory = self._memory.get(name)
        if memory is None or memory.nbytes < nbytes:
            if memory is not None:
                del self._memory[name]
                memory.free()
            memory = self._memory[name] = self._kernels.device.alloc(nbytes)
        return DeviceArray(memory.ptr, shape, dtype, memory)


def resize_plans(size: tuple[int, int], layout: TileLayout, vision: VisionSection) -> list[ResizePlan]:
    """One plan per size that tiles are cut from, for a picture of ``size`` (height, width)."""
    spec, tile_px = vision.preprocess, vision.tower.tile_px
    canvas = canvas_of(layout, spec) or Canvas(0, 0, *size, (0, 0, 0))
    plans = []
    for (height, width), boxes in by_size(layout.tiles).items():
        area = bounding_region([box for _, box in boxes], tile_px)
        rows, columns = _axes(size, canvas, (height, width), area, spec.resample)
        places = [(index, box.top - area.top, box.left - area.left) for index, box in boxes]
        tall = height_first(canvas.height, canvas.width, height, width)
        plans.append(ResizePlan(rows, columns, places, tall, canvas.rgb))
    return plans


def _axes(
    size: tuple[int, int], canvas: Canvas, resized: tuple[int, int], area: Region, resample: Resample
) -> tuple[AxisWeights, AxisWeights]:
    rows = axis_weights(canvas.height, resized[0], area.top, area.top + area.height, resample)
    columns = axis_weights(canvas.width, resized[1], area.left, area.left + area.width, resample)
    return AxisWeights(*rows, size[0], canvas.top), AxisWeights(*columns, size[1], canvas.left)
