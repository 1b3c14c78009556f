"""Devices for the tests of this folder: the emulator, and a machine that stands in for a GPU and its libraries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernels.driver import Device, open_device
from tests.kernels.driver.backends import stand_ins
from tests.kernels.driver.machine import Machine


@pytest.fixture
def device() -> Iterator[Device]:
    made = open_device("emulator")
    yield made
    made.close()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with stand_ins(monkeypatch) as made:
        yield made
