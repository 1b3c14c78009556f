"""One suite over every backend: the same calls do the same on each of them."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from kernels.errors import ArrayError, DeviceError, ImageError, OutOfMemoryError, StickyError
from tests.kernels.driver.backends import ONE, Bench, Open, add, needs_compiler

NOTHING_OPEN = {"memory": 0, "pinned": 0, "stream": 0, "event": 0, "module": 0, "graph": 0}
pytestmark = needs_compiler


def test_bytes_come_back_as_they_went(opened: Open) -> None:
    values = np.arange(1000, dtype=np.float32)
    source, target = opened.upload(values), opened.device.alloc(4000)
    opened.device.fill(target.ptr, 0x7F, 4000, opened.stream)
    opened.device.copy(target.ptr + 400, source + 40, 2000, opened.stream)
    found = opened.download(target.ptr, 1000)
    assert np.array_equal(found[100:600], values[10:510])
    assert np.array_equal(found[:100].view(np.uint8), np.full(400, 0x7F, np.uint8))
    assert np.array_equal(found[600:].view(np.uint8), np.full(1600, 0x7F, np.uint8))


def test_memory_is_aligned_and_counted(opened: Open) -> None:
    free, total = opened.device.memory_info()
    blocks = [opened.device.alloc(size) for size in (1, 3, 1000, 5 << 20)]
    assert all(block.ptr % 256 == 0 for block in blocks)
    assert [block.nbytes for block in blocks] == [1, 3, 1000, 5 << 20]
    now, still = opened.device.memory_info()
    assert still == total
    assert free - now >= 5 << 20
    assert opened.device.live()["memory"] == 4


@pytest.mark.parametrize("nbytes", [0, -1])
def test_allocation_below_one_byte_is_refused(opened: Open, nbytes: int) -> None:
    with pytest.raises(ArrayError, match=f"{nbytes} bytes"):
        opened.device.alloc(nbytes)
    with pytest.raises(ArrayError, match=f"{nbytes} bytes"):
        opened.device.pinned(nbytes)
    assert opened.device.live()["memory"] == opened.device.live()["pinned"] == 0


def test_out_of_memory_names_what_was_asked_for(opened: Open) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        opened.device.alloc(1 << 50)
    assert caught.value.requested == 1 << 50
    assert str(1 << 50) in str(caught.value)
    assert opened.device.live()["memory"] == 0
    opened.device.alloc(16).free()  # the device works on


def test_launch_reads_its_arguments(opened: Open) -> None:
    x, y = opened.upload(np.arange(32, dtype=np.float32)), opened.upload(np.ones(32, np.float32))
    add(opened, x, y, -1.5, 20)
    expected = np.where(np.arange(32) < 20, 1 - 1.5 * np.arange(32), 1).astype(np.float32)
    assert np.array_equal(opened.download(y, 32), expected)


def test_every_letter_is_packed_in_its_width(opened: Open) -> None:
    out = opened.device.alloc(48)
    args = [-7, out.ptr, 2**32 - 2, -(2**40), np.float32(0.1), 2**64 - 3, 0]
    opened.function("write_arguments").launch(ONE, (32, 1, 1), 0, opened.stream, "iPIqfQP", args)
    found = opened.download(out.ptr, 6, np.float64)
    assert found[:4].tolist() == [-7, 2**32 - 2, -(2**40), float(np.float32(0.1))]
    assert int(found[4:5].view(np.uint64)[0]) == 2**64 - 3
    assert found[5] == 1


@pytest.mark.parametrize(
    ("signature", "args", "told"),
    [
        ("PPf", [256, 256, 1.0, 4], "takes 3 arguments"),
        ("PPfi", [256, 256, 1.0, 2**31], "argument 3 of add_scaled is 2147483648"),
        ("PPfi", [-1, 256, 1.0, 4], "argument 0 of add_scaled is -1"),
        ("PPfi", [256, 256, "1", 4], "argument 2 of add_scaled is a str"),
        ("PPfi", [256, 256, True, 4], "argument 2 of add_scaled is a bool"),
        ("PPfi", [256, 256, 1.0, 4.0], "argument 3 of add_scaled is a float"),
        ("PPfi", [256, None, 1.0, 4], "argument 1 of add_scaled is a NoneType, expected an address"),
        ("PPfz", [256, 256, 1.0, 4], "letter 'z'"),
    ],
)
def test_argument_that_does_not_fit_is_refused(opened: Open, signature: str, args: list[Any], told: str) -> None:
    with pytest.raises(ArrayError, match=told):
        opened.function("add_scaled").launch(ONE, ONE, 0, opened.stream, signature, args)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "told"),
    [
        ((0, 1, 1), ONE, 0, "grid is .0, 1, 1."),
        ((1, 65536, 1), ONE, 0, "grid is"),
        ((1, 1, 65536), ONE, 0, "grid is"),
        ((2**31, 1, 1), ONE, 0, "grid is"),
        (ONE, (0, 1, 1), 0, "block is"),
        (ONE, (1, 1, 65), 0, "block is"),
        (ONE, (32, 33, 1), 0, "1056 threads"),
        (ONE, ONE, -1, "-1 bytes of dynamic shared memory"),
        (ONE, ONE, 1 << 20, "1048576 bytes of dynamic shared memory"),
    ],
)
def test_geometry_that_no_device_takes_is_refused(opened: Open, grid: Any, block: Any, shared: int, told: str) -> None:
    with pytest.raises(ArrayError, match=told):
        opened.function("add_scaled").launch(grid, block, shared, opened.stream, "PPfi", [256, 256, 1.0, 1])


@pytest.mark.parametrize("count", [100, 12 * 1024 + 1, 20 * 1024])
def test_shared_memory_beyond_48_kib_is_asked_for(opened: Open, count: int) -> None:
    out = opened.device.alloc(56)
    launch = opened.function("sum_shared").launch
    launch((2, 3, 1), (64, 2, 1), 4 * count, opened.stream, "Pi", [out.ptr, count])
    launch((2, 3, 1), (64, 2, 1), 4 * count, opened.stream, "Pi", [out.ptr, count])
    assert opened.download(out.ptr, 7, np.int64).tolist() == [count * (count - 1) // 2, 2, 3, 1, 64, 2, 1]


def test_attributes_are_numbers_of_every_name(opened: Open) -> None:
    attributes = opened.function("add_scaled").attributes()
    assert set(attributes) == {"registers", "shared_bytes", "local_bytes", "max_threads", "binary_version"}
    assert 32 <= attributes["max_threads"] <= 1024
    assert opened.function("add_scaled").name == "add_scaled"


def test_kernels_follow_addresses_in_memory(opened: Open) -> None:
    values = [opened.upload(np.full(1, value, np.float32)) for value in (2, 3, 5)]
    table, out = opened.upload(np.array(values, np.uint64)), opened.device.alloc(12)
    opened.function("follow").launch(ONE, (32, 1, 1), 0, opened.stream, "PPi", [table, out.ptr, 3])
    assert opened.download(out.ptr, 3).tolist() == [2, 3, 5]


def test_kernel_that_does_not_exist_is_an_image_error(opened: Open) -> None:
    with pytest.raises(ImageError, match="no kernel named no_such_kernel"):
        opened.module.function("no_such_kernel")


def test_code_for_another_device_is_an_image_error(opened: Open) -> None:
    with pytest.raises(ImageError):
        opened.device.load_module(b"\x7fELF a cubin for another device")
    assert opened.device.live()["module"] == 1


def test_mapped_memory_is_seen_by_kernels(opened: Open) -> None:
    pinned = opened.device.pinned(128, mapped=True)
    pinned.array[:] = 0
    host = pinned.array.view(np.float32)
    host[:] = 1
    x = opened.upload(np.arange(32, dtype=np.float32))
    add(opened, x, pinned.device_ptr, 2.0, 32)
    opened.stream.synchronize()
    assert np.array_equal(host, 1 + 2 * np.arange(32, dtype=np.float32))


def test_page_locked_memory_is_copied_from_and_into(opened: Open) -> None:
    pinned = opened.device.pinned(64)
    assert pinned.device_ptr == 0
    pinned.array[:] = np.arange(64)
    memory = opened.device.alloc(64)
    opened.device.copy_in(memory.ptr, pinned.array, opened.stream)
    back = opened.device.pinned(64)
    opened.device.copy_out(back.array, memory.ptr, opened.stream)
    opened.stream.synchronize()
    assert back.array.tolist() == list(range(64))


def test_host_arrays_that_are_not_one_run_of_bytes_are_refused(opened: Open) -> None:
    memory = opened.device.alloc(64)
    wide = np.zeros((4, 8), np.float32)
    with pytest.raises(ArrayError, match="not contiguous"):
        opened.device.copy_in(memory.ptr, wide[:, ::2], opened.stream)
    with pytest.raises(ArrayError, match="not contiguous"):
        opened.device.copy_out(wide.T, memory.ptr, opened.stream)
    wide.flags.writeable = False
    with pytest.raises(ArrayError, match="read-only"):
        opened.device.copy_out(wide[:2], memory.ptr, opened.stream)


def test_events_mark_points_and_measure(opened: Open) -> None:
    start, end = opened.device.create_event(timing=True), opened.device.create_event(timing=True)
    start.record(opened.stream)
    end.record(opened.stream)
    end.synchronize()
    assert start.done() and end.done()
    assert end.elapsed_ms(start) >= 0
    untimed = opened.device.create_event()
    untimed.record(opened.stream)
    other = opened.device.create_stream()
    other.wait(untimed)
    other.synchronize()
    with pytest.raises(DeviceError):
        untimed.elapsed_ms(start)


def test_default_stream_is_wrapped(opened: Open) -> None:
    stream, memory = opened.device.wrap_stream(0), opened.device.alloc(4)
    assert stream.handle == 0
    opened.device.fill(memory.ptr, 9, 4, stream)
    event = opened.device.create_event()
    event.record(stream)
    stream.wait(event)
    stream.synchronize()
    assert opened.download(memory.ptr, 4, np.uint8).tolist() == [9] * 4


def test_streams_have_handles_of_their_own(opened: Open) -> None:
    other = opened.device.create_stream()
    assert other.handle not in (0, opened.stream.handle)


def test_everything_that_is_closed_refuses_use(opened: Open) -> None:
    device = opened.device
    memory, pinned, event = device.alloc(4), device.pinned(4, mapped=True), device.create_event()
    stream, function = device.create_stream(), opened.function("add_scaled")
    with device.capture(opened.stream) as capture:
        pass
    for handle in (event, stream, opened.module, capture.graph):
        handle.close()
        handle.close()
    for block in (memory, pinned):
        block.free()
        block.free()
    uses = (
        lambda: memory.ptr,
        lambda: pinned.array,
        lambda: pinned.device_ptr,
        event.done,
        lambda: event.record(opened.stream),
        lambda: stream.handle,
        stream.synchronize,
        lambda: device.fill(1, 0, 1, stream),
        lambda: opened.module.function("add_scaled"),
        lambda: function.launch(ONE, ONE, 0, opened.stream, "PPfi", [256, 256, 1.0, 1]),
        lambda: capture.graph.launch(opened.stream),
    )
    for use in uses:
        with pytest.raises(DeviceError, match="after it was closed"):
            use()
    assert device.live() == {**NOTHING_OPEN, "stream": 1}


def test_device_closes_what_is_left_once(bench: Bench) -> None:
    device = bench.open()
    stream = device.create_stream()
    device.load_module(bench.image(device))
    device.alloc(4), device.pinned(4), device.create_event()
    with device.capture(stream):
        pass
    assert device.live() == dict.fromkeys(NOTHING_OPEN, 1)
    device.close()
    device.close()
    assert device.live() == NOTHING_OPEN
    gc.collect()
    if bench.machine is not None:
        assert bench.machine.kinds() == {}
        assert bench.machine.warnings == []
        assert bench.machine.stack == []
        assert not +bench.machine.retained
    opening = (lambda: device.alloc(4), lambda: device.pinned(4), device.create_stream, device.create_event)
    for use in (*opening, lambda: device.load_module(b""), device.memory_info, device.synchronize):
        with pytest.raises(DeviceError, match="closed"):
            use()


def test_facts_of_the_device(opened: Open) -> None:
    device = opened.device
    assert device.backend in ("emulator", "pycuda", "cuda_bindings")
    assert device.name and device.multiprocessors >= 1
    assert device.compute_capability >= (8, 0)
    assert isinstance(device.integrated, bool)
    assert device.driver_version >= 0


def test_handles_of_another_backend_are_refused(opened: Open) -> None:
    class Foreign:
        handle = 0

    with pytest.raises(DeviceError, match="a Foreign of another backend"):
        opened.device.fill(256, 0, 1, Foreign())  # type: ignore[arg-type]


def test_lost_context_is_sticky_and_closes_cleanly(opened: Open, bench: Bench) -> None:
    if bench.machine is None and opened.device.backend != "emulator":
        pytest.skip("would take the context of the whole process with it")
    memory = opened.device.alloc(64)
    with pytest.raises(StickyError) as caught:
        add(opened, memory.ptr, 8, 1.0, 16)  # address 8 is nobody's
        opened.stream.synchronize()
    assert caught.value.code in (700, 719)
    for use in (lambda: opened.device.alloc(4), lambda: memory.ptr, opened.stream.synchronize):
        with pytest.raises(StickyError, match="lost since") as again:
            use()
        assert again.value.hint
    memory.free()
    opened.device.close()
    assert opened.device.live() == NOTHING_OPEN
