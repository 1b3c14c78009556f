"""Tiny checkpoints shared by the tests of a session; tests that change one write their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import load_checkpoint
from tests.models import tiny


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``checkpoints("nvila", scales=None)``: the directory of a tiny checkpoint, written once."""
    written: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("checkpoints")

    def write(kind: str, **options: Any) -> Path:
        key = f"{kind}-{sorted(options.items())}"
        if key not in written:
            writer = tiny.write_llava if kind == "llava" else tiny.write_nvila
            written[key] = writer(root / str(len(written)), **options)
        return written[key]

    return write


@pytest.fixture(scope="session")
def loaded(checkpoints: Any) -> Any:
    """``loaded("llava")``: the model of a tiny checkpoint, loaded once."""
    models: dict[Path, Any] = {}

    def load(kind: str, **options: Any) -> Any:
        directory = checkpoints(kind, **options)
        if directory not in models:
            models[directory], _ = load_checkpoint(directory)
        return models[directory]

    return load
