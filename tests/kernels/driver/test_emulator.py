"""What the emulated device promises beyond the suite of all backends: fresh memory, its limit, stale addresses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kernels.driver.emulated_memory import KEPT_BYTES, EmulatedMemory
from kernels.driver.emulator import EmulatorDevice
from kernels.emulator import build_library
from kernels.errors import DeviceError, ImageError, OutOfMemoryError
from tests.kernels.driver.backends import TRIAL, needs_compiler

ONE = (1, 1, 1)


@pytest.fixture
def device() -> Iterator[EmulatorDevice]:
    made = EmulatorDevice(total_bytes=1 << 20)
    yield made
    made.close()


def test_fresh_memory_is_nan(device: EmulatorDevice) -> None:
    found = np.zeros(100, np.float32)
    device.copy_out(found, device.alloc(400).ptr, device.create_stream())
    assert np.isnan(found).all()


def test_memory_ends_where_the_device_says(device: EmulatorDevice) -> None:
    half = device.alloc(1 << 19)
    assert device.memory_info() == (1 << 19, 1 << 20)
    with pytest.raises(OutOfMemoryError, match="524289 bytes .* 524288 of 1048576 are free"):
        device.alloc((1 << 19) + 1)
    device.pinned(1 << 20)  # host memory is not counted
    device.alloc(1 << 19)
    half.free()
    assert device.memory_info()[0] == 1 << 19


def test_copies_beyond_an_allocation_are_refused(device: EmulatorDevice) -> None:
    memory, stream = device.alloc(100), device.create_stream()
    with pytest.raises(DeviceError, match="reaches 1 bytes beyond its allocation of 100 bytes"):
        device.copy_in(memory.ptr + 1, np.zeros(100, np.uint8), stream)
    with pytest.raises(DeviceError, match="source of a copy reaches 8 bytes"):
        device.copy_out(np.zeros(108, np.uint8), memory.ptr, stream)
    with pytest.raises(DeviceError, match="target of a fill"):
        device.fill(memory.ptr + 50, 0, 51, stream)
    with pytest.raises(DeviceError, match="source of a copy is a null pointer"):
        device.copy(memory.ptr, 0, 4, stream)
    device.fill(memory.ptr + 50, 0, 50, stream)


@needs_compiler
def test_stale_address_is_refused_by_launches_and_copies(device: EmulatorDevice) -> None:
    module, stream = device.load_module(build_library(TRIAL)), device.create_stream()
    gone, kept = device.alloc(64), device.alloc(64)
    ptr = gone.ptr
    gone.free()
    with pytest.raises(DeviceError, match="argument 1 of add_scaled points into 64 bytes that were freed"):
        module.function("add_scaled").launch(ONE, ONE, 0, stream, "PPfi", [kept.ptr, ptr + 8, 1.0, 1])
    with pytest.raises(DeviceError, match="target of a copy points into"):
        device.copy(ptr, kept.ptr, 4, stream)


@needs_compiler
def test_stale_address_in_a_table_reads_nan(device: EmulatorDevice) -> None:
    module, stream = device.load_module(build_library(TRIAL)), device.create_stream()
    gone, table, out = device.alloc(64), device.alloc(8), device.alloc(4)
    device.fill(gone.ptr, 0, 64, stream)
    device.copy_in(table.ptr, np.array([gone.ptr], np.uint64), stream)
    gone.free()
    module.function("follow").launch(ONE, (32, 1, 1), 0, stream, "PPi", [table.ptr, out.ptr, 1])
    found = np.zeros(1, np.float32)
    device.copy_out(found, out.ptr, stream)
    assert np.isnan(found[0])


def test_freed_memory_goes_back_to_the_system_in_the_end() -> None:
    memory = EmulatedMemory(1 << 30)
    first = memory.alloc(KEPT_BYTES // 2)
    memory.free(first)
    with pytest.raises(DeviceError, match="freed"):
        memory.check("x", first)
    memory.free(memory.alloc(KEPT_BYTES))
    memory.check("x", first)  # no longer ours: another library may have it now
    assert memory.used_bytes == 0
    memory.close()


def test_addresses_of_other_libraries_are_taken(device: EmulatorDevice) -> None:
    theirs, found = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    device.copy_out(found, theirs.ctypes.data, device.create_stream())
    assert found.tolist() == [0, 1, 2, 3]


@needs_compiler
def test_emulator_loads_libraries_of_kernels_alone(device: EmulatorDevice) -> None:
    with pytest.raises(ImageError, match="not 3 bytes of device code"):
        device.load_module(b"abc")
    with pytest.raises(ImageError, match="no library of emulated kernels"):
        device.load_module(TRIAL)
    assert device.live()["module"] == 0


@needs_compiler
def test_arguments_of_the_wrong_width_are_refused_before_the_kernel_runs(device: EmulatorDevice) -> None:
    module, stream, memory = device.load_module(build_library(TRIAL)), device.create_stream(), device.alloc(64)
    launch = module.function("add_scaled").launch
    with pytest.raises(DeviceError, match="argument 3 has 8 bytes, the kernel takes 4"):
        launch(ONE, ONE, 0, stream, "PPfq", [memory.ptr, memory.ptr, 1.0, 1])
    with pytest.raises(DeviceError, match="3 arguments given, the kernel takes 4"):
        launch(ONE, ONE, 0, stream, "PPf", [memory.ptr, memory.ptr, 1.0])
    launch(ONE, ONE, 0, stream, "PPfi", [memory.ptr, memory.ptr, 1.0, 1])  # the device is not lost
