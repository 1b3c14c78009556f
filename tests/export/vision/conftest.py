"""Graphs that several test files use, traced once: tracing takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.export.vision.graphs import Traced


@pytest.fixture(scope="session")
def traced_llava(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """CLIP, stored in f16: constants are widened by Casts."""
    import torch

    from tests.export.vision.graphs import trace
    from tests.models.tiny import write_llava

    return trace(write_llava(tmp_path_factory.mktemp("llava") / "llava", dtype=torch.float16))


@pytest.fixture(scope="session")
def traced_nvila(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """SigLIP, stored in f32; the checkpoint holds its graphs and its measured scales."""
    from tests.export.vision.graphs import keep, trace
    from tests.models.tiny import write_nvila

    return keep(trace(write_nvila(tmp_path_factory.mktemp("nvila") / "nvila")))
