"""Arrays go to the device and come back as they were, and everything is given back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kernels.arrays import from_bf16, to_bf16
from kernels.driver import Device, open_device
from kernels.driver.cuda_bindings import BindingsDevice
from kernels.errors import ArrayError, OutOfMemoryError
from kernels.loading import Kernels
from kernels.state import DECODE_STATE
from kernels.workbench import Workbench
from tests.kernels.driver.backends import stand_ins
from tests.kernels.driver.faulty import FaultyDevice


@pytest.fixture
def device() -> Iterator[Device]:
    made = open_device("emulator")
    yield made
    made.close()


def test_values_come_back_in_their_dtype(device: Device) -> None:
    values = np.array([[0, 1, 100], [7, 3, 2]])
    with Workbench(Kernels(device)) as bench:
        for dtype in ("f16", "f32", "i8", "u8", "i32", "u32", "u64"):
            array = bench.upload(values, dtype)  # type: ignore[arg-type]
            assert array.shape == (2, 3) and array.dtype == dtype and array.ptr % 256 == 0
            assert np.array_equal(bench.download(array), values)


def test_bf16_is_rounded_on_the_way_in_and_widened_on_the_way_out(device: Device) -> None:
    values = np.array([1.0, 1.0 + 2**-9, 1e30, -0.3])
    with Workbench(Kernels(device)) as bench:
        found = bench.download(bench.upload(values, "bf16"))
    assert found.dtype == np.float32
    assert np.array_equal(found, from_bf16(to_bf16(values)))


def test_structures_go_as_bytes(device: Device) -> None:
    state = np.zeros(1, DECODE_STATE)
    state["pos"] = 17
    with Workbench(Kernels(device)) as bench:
        found = bench.download(bench.upload(state.view(np.uint8), "u8")).view(DECODE_STATE)
    assert found["pos"][0] == 17


def test_unwritten_values_show(device: Device) -> None:
    with Workbench(Kernels(device)) as bench:
        reused = bench.upload(np.ones(8), "f32")
        assert bench.download(reused).tolist() == [1] * 8
        for dtype in ("f16", "bf16", "f32"):
            assert np.isnan(bench.download(bench.empty((2, 4), dtype))).all()  # type: ignore[arg-type]
        assert (bench.download(bench.empty((3,), "i32")) == -1).all()


def test_empty_array_is_refused(device: Device) -> None:
    with Workbench(Kernels(device)) as bench:
        with pytest.raises(ArrayError, match="0 bytes"):
            bench.empty((0, 4), "f32")


def test_everything_is_given_back(device: Device) -> None:
    bench = Workbench(Kernels(device))
    bench.upload(np.ones(4), "f32")
    bench.empty((4,), "u8")
    assert device.live()["memory"] == 2 and device.live()["stream"] == 1
    bench.close()
    bench.close()
    assert not any(device.live().values())


def test_host_waits_for_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_ins(monkeypatch) as machine:
        device = BindingsDevice(0)
        with Workbench(Kernels(device)) as bench:
            bench.download(bench.upload(np.ones(4), "f32"))
        device.close()
        calls = [name for name, *_ in machine.log]
    for copy in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"):
        later = [name for name in calls[calls.index(copy) + 1 :] if not name.startswith("cuCtx")]
        assert later[0] == "cuStreamSynchronize"


def test_nothing_leaks_when_memory_runs_out() -> None:
    device = FaultyDevice()
    device.fail_at("alloc", 2)
    with pytest.raises(OutOfMemoryError), Workbench(Kernels(device)) as bench:
        bench.upload(np.ones(4), "f32")
        bench.upload(np.ones(4), "f32")
    assert not any(device.live().values())
    device.close()
