"""Handles are given back once, newest first, and the first failure is told when all have been tried."""

from __future__ import annotations

import pytest

from kernels.driver.handles import Handle, Handles
from kernels.errors import DeviceError, StickyError


def test_what_is_left_is_released_newest_first_even_when_one_fails() -> None:
    handles, released = Handles(), list[str]()

    def failing() -> None:
        released.append("second")
        raise DeviceError("second failed")

    Handle(handles, "memory", lambda: released.append("first"))
    Handle(handles, "stream", failing)
    Handle(handles, "event", lambda: released.append("third"))
    with pytest.raises(DeviceError, match="second failed"):
        handles.close_all()
    assert released == ["third", "second", "first"]
    assert handles.closed and not any(handles.live().values())


def test_handle_is_released_once_even_when_that_fails() -> None:
    handles, released = Handles(), list[str]()

    def failing() -> None:
        released.append("once")
        raise DeviceError("failed")

    handle = Handle(handles, "module", failing)
    with pytest.raises(DeviceError, match="failed"):
        handle.close()
    handle.close()
    assert released == ["once"] and handles.live()["module"] == 0


def test_nothing_is_released_in_a_lost_context() -> None:
    handles, released = Handles(), list[str]()
    handle = Handle(handles, "memory", lambda: released.append("released"))
    handles.lost = StickyError("gone", call="cuLaunchKernel", code=719)
    handle.close()
    assert released == [] and handles.live()["memory"] == 0
    with pytest.raises(StickyError, match="lost since an earlier error: gone") as caught:
        handles.require_usable()
    assert (caught.value.call, caught.value.code) == ("cuLaunchKernel", 719)


def test_live_counts_every_kind() -> None:
    handles = Handles()
    for kind in ("memory", "memory", "graph"):
        Handle(handles, kind, lambda: None)
    assert handles.live() == {"memory": 2, "pinned": 0, "stream": 0, "event": 0, "module": 0, "graph": 1}
