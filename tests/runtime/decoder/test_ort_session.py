"""ONNX Runtime as it is loaded here: it reports nothing to its maker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT

pytest.importorskip("onnxruntime")
DEMO = ROOT / "runtime" / "demo" / "demo-llava"


def test_loading_a_model_writes_nothing_to_the_home_folder(tmp_path: Path) -> None:
    """Telemetry of ONNX Runtime begins with a device's identity in the user's cache folder."""
    code = f"""
from runtime.session import Session
with Session.open({str(DEMO)!r}, decoder="onnx", verify="none") as session:
    session.generate("Hello?")
"""
    keep = {
        name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY")
    }
    environment = {**keep, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in str(path) or "Microsoft" in str(path)]
