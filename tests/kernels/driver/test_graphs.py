"""Graphs by capture, the same on every backend."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.errors import DeviceError
from tests.kernels.driver.backends import Open, add, needs_compiler

pytestmark = needs_compiler


def test_graph_replays_what_was_enqueued_and_capturing_runs_nothing(opened: Open) -> None:
    x, y = opened.upload(np.ones(32, np.float32)), opened.upload(np.zeros(32, np.float32))
    add(opened, x, x, 0.0, 32)  # loaded before the capture
    with opened.device.capture(opened.stream) as capture:
        add(opened, x, y, 1.0, 32)
        opened.device.copy(x, y, 128, opened.stream)
    assert opened.download(y, 32).tolist() == [0] * 32
    graph = capture.graph
    for _ in range(3):
        graph.launch(opened.stream)
    assert opened.download(y, 32).tolist() == [4] * 32  # 1, 2, 4: x is replaced in each replay
    graph.close()
    with pytest.raises(DeviceError, match="closed"):
        graph.launch(opened.stream)


def test_graph_launches_on_another_stream(opened: Open) -> None:
    x, y = opened.upload(np.ones(4, np.float32)), opened.upload(np.zeros(4, np.float32))
    with opened.device.capture(opened.stream) as capture:
        add(opened, x, y, 1.0, 4)
    other = opened.device.create_stream()
    capture.graph.launch(other)
    other.synchronize()
    assert opened.download(y, 4).tolist() == [1] * 4


def test_capture_refuses_what_cuda_does_not_permit(opened: Open) -> None:
    memory, pinned, event = opened.device.alloc(4), opened.device.pinned(4), opened.device.create_event()
    with opened.device.capture(opened.stream) as capture:
        for forbidden in (
            lambda: opened.device.alloc(4),
            lambda: opened.device.pinned(4),
            lambda: opened.device.load_module(b"x"),
            opened.stream.synchronize,
            opened.device.synchronize,
            event.synchronize,
            memory.free,
            pinned.free,
            lambda: opened.device.capture(opened.stream).__enter__(),
        ):
            with pytest.raises(DeviceError, match="while a graph is captured") as caught:
                forbidden()
            assert caught.value.code == 900
        with pytest.raises(DeviceError, match="has not ended"):
            _ = capture.graph
        opened.device.fill(memory.ptr, 7, 4, opened.stream)
    capture.graph.launch(opened.stream)
    assert opened.download(memory.ptr, 4, np.uint8).tolist() == [7] * 4
    memory.free()  # the refused call has not half-freed it
    assert opened.device.live()["memory"] == 0


def test_capture_that_fails_leaves_the_stream_usable(opened: Open) -> None:
    memory = opened.device.alloc(4)
    with pytest.raises(ZeroDivisionError):
        with opened.device.capture(opened.stream) as capture:
            opened.device.fill(memory.ptr, 1, 4, opened.stream)
            raise ZeroDivisionError
    with pytest.raises(DeviceError, match="ended with an error"):
        _ = capture.graph
    assert opened.device.live()["graph"] == 0
    opened.device.fill(memory.ptr, 2, 4, opened.stream)
    assert opened.download(memory.ptr, 4, np.uint8).tolist() == [2] * 4
