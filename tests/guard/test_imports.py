"""What decides which tests need torch: imports that run on loading, followed through the repository."""

from __future__ import annotations

from pathlib import Path

from tests.imports import ROOT, names, reached

SOURCE = """
from __future__ import annotations
import json
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
else:
    import zlib
try:
    import cv2
except ImportError:
    cv2 = None
class Late:
    import bisect
    def use(self) -> None:
        import transformers
def lazy() -> None:
    from onnx import helper
"""


def test_only_imports_that_run_on_loading_count(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    assert {"json", "zlib", "cv2", "bisect"} <= names(path)
    assert not {"torch", "transformers", "onnx"} & names(path)
    assert {"torch", "transformers", "onnx", "onnx.helper"} <= names(path, everywhere=True)


def test_imports_are_followed_through_the_repository(tmp_path: Path) -> None:
    path = tmp_path / "test_module.py"
    path.write_text("from models import projector\n")
    assert "torch" in reached(path)
    path = tmp_path / "test_other.py"
    path.write_text("from runtime import doctor\n")
    assert "ctypes" in reached(path)
    assert "torch" not in reached(path)


def test_every_test_file_can_be_read() -> None:
    files = list((ROOT / "tests").rglob("test_*.py"))
    assert files
    assert all(isinstance(reached(path), frozenset) for path in files)
