"""Images in other libraries' memory: DLPack on the host, CUDA arrays through a copy."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from runtime.errors import ImageError
from runtime.images import load_image
from runtime.images.device import array_from_cuda

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


class OnlyDlpack:
    """An object with the DLPack protocol and nothing else."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self.array, self.device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)


class OnlyCuda:
    """A stand-in for a CUDA array that really lies on the host."""

    def __init__(self, array: np.ndarray, **more: object) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, True),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
            **more,
        }


def copy_on_the_host(pointer: int, out: np.ndarray, stream: int | None) -> None:
    ctypes.memmove(out.ctypes.data, pointer, out.nbytes)


@pytest.mark.parametrize("array", [RGB, RGB[::2, 1:], RGB[:, :, 0]], ids=["plain", "strided", "gray"])
def test_dlpack_equals_the_array(array: np.ndarray) -> None:
    np.testing.assert_array_equal(load_image(OnlyDlpack(array)), load_image(array))


def test_a_torch_tensor_is_an_image() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(load_image(torch.from_numpy(RGB)), RGB)
    with pytest.raises(ImageError, match=r"float32 \[6, 5, 3\]"):
        load_image(torch.rand(6, 5, 3))
    with pytest.raises(ImageError, match="cannot be viewed"):
        load_image(torch.rand(6, 5, 3, requires_grad=True))


@pytest.mark.parametrize("device", [2, 4, 14])
def test_dlpack_on_a_device_is_refused_with_the_copy(device: int) -> None:
    with pytest.raises(ImageError, match=r"image\.cpu\(\)"):
        load_image(OnlyDlpack(RGB, device))


VIEWS = {
    "plain": RGB,
    "rows backwards": RGB[::-1],
    "channels backwards": RGB[:, :, ::-1],
    "every second": RGB[::2, ::3],
    "turned": RGB.transpose(1, 0, 2),
    "one": RGB[:1, :1],
}


@pytest.mark.parametrize("view", VIEWS)
def test_cuda_arrays_of_any_strides_are_copied(view: str) -> None:
    got = array_from_cuda(OnlyCuda(VIEWS[view]), copy_on_the_host)
    np.testing.assert_array_equal(got, VIEWS[view])


def test_the_stream_of_the_producer_is_handed_to_the_copy() -> None:
    seen: list[int | None] = []
    array_from_cuda(OnlyCuda(RGB, stream=7), lambda pointer, out, stream: seen.append(stream))
    assert seen == [7]


def test_masked_and_enormous_cuda_arrays_are_refused() -> None:
    with pytest.raises(ImageError, match="mask"):
        array_from_cuda(OnlyCuda(RGB, mask=object()), copy_on_the_host)
    with pytest.raises(ImageError, match="spans"):
        array_from_cuda(OnlyCuda(RGB, shape=(1 << 20, 1 << 20, 3)), copy_on_the_host)


def test_without_a_driver_the_error_names_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(ImageError, match=r"no CUDA driver here.*image\.get\(\)"):
        load_image(OnlyCuda(RGB))


class FakeDriver:
    """Notes the calls; ``fail`` is the one that returns an error."""

    def __init__(self, fail: str = "") -> None:
        self.calls: list[str] = []
        self.fail = fail

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> int:
            self.calls.append(name)
            if name == "cuMemcpyDtoH_v2":
                target, source, size = arguments
                ctypes.memmove(target, source.value, size.value)
            return 700 if name == self.fail else 0

        return call


def test_the_driver_copies_in_the_owning_context(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    np.testing.assert_array_equal(load_image(OnlyCuda(RGB, stream=1)), RGB)
    assert driver.calls == [
        "cuInit",
        "cuPointerGetAttribute",
        "cuCtxPushCurrent_v2",
        "cuStreamSynchronize",
        "cuMemcpyDtoH_v2",
        "cuCtxPopCurrent_v2",
    ]


@pytest.mark.gpu
def test_an_image_on_a_gpu_is_copied() -> None:
    """Memory of the first GPU's primary context, filled and read through the CUDA driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("no CUDA driver")
    context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
    if cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0):
        pytest.skip("no NVIDIA GPU")
    size = ctypes.c_size_t(RGB.nbytes)
    assert cuda.cuCtxPushCurrent_v2(context) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), size) == 0
    assert cuda.cuMemcpyHtoD_v2(pointer, ctypes.c_void_p(RGB.ctypes.data), size) == 0
    assert cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())) == 0
    np.testing.assert_array_equal(load_image(OnlyCuda(RGB, data=(pointer.value, False), stream=1)), RGB)
    assert cuda.cuCtxPushCurrent_v2(context) == 0
    assert cuda.cuMemFree_v2(pointer) == 0
    assert cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())) == 0


def test_a_failed_copy_pops_the_context_and_names_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver("cuMemcpyDtoH_v2")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    with pytest.raises(ImageError, match="cuMemcpyDtoH returned 700"):
        load_image(OnlyCuda(RGB))
    assert driver.calls[-1] == "cuCtxPopCurrent_v2"
