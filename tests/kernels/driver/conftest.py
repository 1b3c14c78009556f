"""A test that takes `bench` or `opened` runs on every backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernels.driver.backends import BACKENDS, Bench, Open, bench_of


@pytest.fixture(params=BACKENDS)
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with bench_of(request.param, monkeypatch) as made:
        yield made


@pytest.fixture
def opened(bench: Bench) -> Iterator[Open]:
    device = bench.open()
    yield Open(device, device.create_stream(), device.load_module(bench.image(device)))
    device.close()
