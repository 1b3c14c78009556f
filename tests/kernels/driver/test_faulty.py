"""The device that fails on demand fails when it is told to, and once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kernels.emulator import build_library
from kernels.errors import OutOfMemoryError, StickyError
from kernels.loading import Kernels
from kernels.workbench import Workbench
from tests.kernels.driver.backends import TRIAL, needs_compiler
from tests.kernels.driver.faulty import KINDS, FaultyDevice


def work(device: FaultyDevice) -> None:
    """One call of every kind at least; gives back what it opened."""
    kernels = Kernels(device, image=lambda device, source: build_library(TRIAL))
    try:
        with Workbench(kernels) as bench:
            x, y = bench.upload(np.ones(4), "f32"), bench.empty((4,), "f32")
            kernels.launch("add_scaled", (1, 1, 1), (32, 1, 1), 0, bench.stream, "PPfi", x.ptr, y.ptr, 1.0, 4,
                           source="trial.cu")  # fmt: skip
            device.pinned(4).free()
            device.create_event().close()
            with device.capture(bench.stream) as capture:
                pass
            capture.graph.close()
            bench.download(y)
    finally:
        kernels.close()


def counted(run: Callable[[FaultyDevice], None]) -> dict[str, int]:
    device = FaultyDevice()
    run(device)
    device.close()
    return dict(device.calls)


@needs_compiler
@pytest.mark.parametrize("sticky", [False, True])
def test_each_call_fails_in_turn_and_nothing_leaks(sticky: bool) -> None:
    calls = counted(work)
    assert set(calls) == set(KINDS)
    for kind, count in calls.items():
        for nth in range(1, count + 1):
            device = FaultyDevice()
            device.fail_at(kind, nth, sticky=sticky)
            with pytest.raises(StickyError if sticky else OutOfMemoryError, match=f"call {nth} of {kind}"):
                work(device)
            assert not any(device.live().values()), (kind, nth)
            if not sticky:
                work(device)  # once
            device.close()


def test_call_that_is_never_reached_fails_nothing() -> None:
    device = FaultyDevice()
    device.fail_at("alloc", 2)
    device.alloc(4).free()
    device.close()
