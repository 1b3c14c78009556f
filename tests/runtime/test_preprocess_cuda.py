"""Tiles made by the kernels equal those of runtime.preprocess in every bit, for every way of cutting a picture."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernels.arrays import DType, from_host_dtype, to_host_dtype
from kernels.driver.opening import open_device
from kernels.errors import OutOfMemoryError
from kernels.loading import Kernels
from runtime.bundle.manifest import PreprocessSpec, ProjectorGraph, TilingSection, TowerGraph, VisionSection
from runtime.errors import ImageError, MemoryLimitError
from runtime.preprocess import preprocess
from runtime.preprocess_cuda import CudaPreprocessor
from runtime.tiling import layout_for

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TILE = 28
MODES: dict[str, dict[str, Any]] = {
    "resize": {},
    "crop": {"shortest_edge_px": 35},
    "pad": {},
    "pad with a colour": {"pad_rgb": (10, 200, 30)},
    "dynamic": {},
    "dynamic_s2": {"scales_px": (28, 56, 84)},
    "resize nearest": {"resample": "nearest"},
    "resize lanczos": {"resample": "lanczos"},
}
SIZES = [(48, 64), (108, 192), (64, 48), (28, 28), (1, 1), (1, 60), (60, 1), (27, 29), (300, 7), (9, 400)]


@pytest.fixture(scope="module")
def kernels() -> Iterator[Kernels]:
    if shutil.which("g++") is None:
        pytest.skip("the emulator compiles with g++, and there is none")
    device = open_device("emulator")
    yield Kernels(device)
    device.close()


def vision(name: str, resample: str = "bicubic", shortest_edge_px: int | None = None, **rest: Any) -> VisionSection:
    """A manifest section with what preprocessing and tiling read."""
    pad, scales = rest.get("pad_rgb"), rest.get("scales_px", ())
    spec = PreprocessSpec(name.split()[0], resample, shortest_edge_px, 1 / 255, CLIP_MEAN, CLIP_STD, pad)
    return VisionSection(
        TowerGraph("t.onnx", "tiles", "features", TILE, 4, 8, "fp32"),
        ProjectorGraph("p.onnx", "features", "image_embeds", ()),
        spec,
        TilingSection(TILE, 2, 1, 6 if not scales else 12, True, scales, -1 if scales else 0, 1, False, 8),
    )


def picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    rgb = np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rgb[: height // 2, : width // 2] = rgb[: height // 2, : width // 2] // 128 * 255
    return rgb


@pytest.mark.parametrize("mode", MODES)
def test_every_bit_is_that_of_the_cpu(kernels: Kernels, mode: str) -> None:
    """One preprocessor for all sizes, so that buffers are used again with other plans."""
    section, stream = vision(mode, **MODES[mode]), kernels.device.create_stream()
    device = CudaPreprocessor(kernels, stream, section)
    for size in SIZES:
        rgb, layout = picture(*size), layout_for(*size, section.tiling_spec())
        assert np.array_equal(device.host_tiles(rgb, layout), preprocess(rgb, layout, section)), size
    device.close()
    stream.close()


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_is_rounded_once(kernels: Kernels, dtype: DType) -> None:
    section, stream = vision("pad"), kernels.device.create_stream()
    device = CudaPreprocessor(kernels, stream, section, dtype=dtype)
    rgb, layout = picture(48, 64), layout_for(48, 64, section.tiling_spec())
    rounded = from_host_dtype(to_host_dtype(preprocess(rgb, layout, section), dtype), dtype)
    assert device.tiles(rgb, layout).dtype == dtype
    assert np.array_equal(device.host_tiles(rgb, layout), rounded)
    device.close()
    stream.close()


def test_a_stream_of_equal_frames_allocates_once_and_close_gives_everything_back(kernels: Kernels) -> None:
    section, stream = vision("dynamic"), kernels.device.create_stream()
    before = kernels.device.live()["memory"]
    device = CudaPreprocessor(kernels, stream, section)
    layout = layout_for(48, 64, section.tiling_spec())
    device.tiles(picture(48, 64), layout)
    held = kernels.device.live()["memory"]
    addresses = {device.tiles(picture(48, 64), layout).ptr for _ in range(3)}
    assert kernels.device.live()["memory"] == held > before
    assert device.nbytes > 7 * 3 * TILE * TILE * 4
    assert len(addresses) == 1
    device.close()
    device.close()
    assert device.nbytes == 0
    assert kernels.device.live()["memory"] == before
    stream.close()


def test_a_frame_of_another_kind_is_refused(kernels: Kernels) -> None:
    section, stream = vision("resize"), kernels.device.create_stream()
    device = CudaPreprocessor(kernels, stream, section)
    layout = layout_for(8, 8, section.tiling_spec())
    for wrong in (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(ImageError, match="preprocess takes u8"):
            device.tiles(wrong, layout)
    device.close()
    stream.close()


def test_memory_that_is_not_to_be_had_is_a_typed_error_and_nothing_is_lost(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, stream = vision("dynamic"), kernels.device.create_stream()
    before, rgb = kernels.device.live()["memory"], picture(48, 64)
    layout, allocate = layout_for(48, 64, section.tiling_spec()), kernels.device.alloc
    for place in range(5):
        device = CudaPreprocessor(kernels, stream, section)
        calls = iter(range(100))

        def alloc(nbytes: int, place: int = place, calls: Iterator[int] = calls) -> Any:
            if next(calls) == place:
                raise OutOfMemoryError("cuMemAlloc: out of memory", requested=nbytes)
            return allocate(nbytes)

        with monkeypatch.context() as patched:
            patched.setattr(kernels.device, "alloc", alloc)
            with pytest.raises(MemoryLimitError, match="making the tiles of a picture"):
                device.tiles(rgb, layout)
        assert np.array_equal(device.host_tiles(rgb, layout), preprocess(rgb, layout, section))
        device.close()
        assert kernels.device.live()["memory"] == before
    stream.close()
