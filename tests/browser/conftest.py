"""One browser for all tests of the page, a server of its own for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.chromium import Browser, chromium, missing
from tests.browser.stand_in import StandIn, source_state


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with chromium() as opened:
        yield opened


@pytest.fixture
def server() -> Iterator[StandIn]:
    """A daemon with one camera, "yard"."""
    stand_in = StandIn([source_state("yard")])
    yield stand_in
    stand_in.close()
