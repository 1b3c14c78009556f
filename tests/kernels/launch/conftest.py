"""The kernels on the emulator, as every launcher's tests use them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pytest

from kernels.driver.opening import open_device
from kernels.driver.protocol import Device, Image
from kernels.emulator import build_library
from kernels.loading import Kernels
from kernels.workbench import Workbench

SCHEDULES = (0, 1, 2, 3)
compiled = lru_cache(maxsize=None)(build_library)


def emulated(device: Device, source: str) -> Image:
    """Compile a source once per run of the tests."""
    return compiled(source)


@contextmanager
def opened() -> Iterator[Kernels]:
    """Kernels of a device of their own."""
    if shutil.which("g++") is None:
        pytest.skip("the emulator compiles with g++, and there is none")
    device = open_device("emulator")
    kernels = Kernels(device, image=emulated)
    try:
        yield kernels
    finally:
        kernels.close()
        device.close()


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    """Kernels of a fresh device: one that a test has lost is not the next one's."""
    with opened() as kernels:
        yield kernels


@pytest.fixture(scope="module")
def lasting_kernels() -> Iterator[Kernels]:
    """Kernels of one device for a whole file, as examples of hypothesis need them."""
    with opened() as kernels:
        yield kernels


@pytest.fixture
def bench(kernels: Kernels) -> Iterator[Workbench]:
    """Arrays on the emulated device."""
    with Workbench(kernels) as bench:
        yield bench


@pytest.fixture(params=SCHEDULES, ids="schedule{}".format)
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the test under each order of blocks and threads: 0 as they come, the others shuffled."""
    monkeypatch.setenv("EMULATOR_SEED", str(request.param))
    return int(request.param)
