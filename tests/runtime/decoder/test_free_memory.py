"""Freed memory goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runtime.decoder.free_memory import return_free_memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_freed_small_blocks_are_returned_to_the_system() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if "musl" in sys.version.lower():
        pytest.skip("musl has no malloc_trim")
    blocks = [bytearray(64_000) for _ in range(2_000)]
    pin = bytearray(64_000)  # keeps the top of the heap, so that freeing alone gives nothing back
    del blocks
    before = resident_bytes()
    return_free_memory()
    assert resident_bytes() < before - 64_000_000
    del pin
