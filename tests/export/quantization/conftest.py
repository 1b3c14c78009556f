"""Quantised tiny checkpoints, shared by all tests of this folder. torch is loaded by those that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.export.quantization.quantized_runs import Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One set for all tests."""
    from tests.export.quantization.quantized_runs import Runs

    return Runs(tmp_path_factory.mktemp("quantised"))
