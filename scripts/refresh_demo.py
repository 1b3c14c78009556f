#!/usr/bin/env python3
"""Bring everything derived from the demo checkpoints up to date: traced graphs and embedded bundles. Needs torch.

    python scripts/refresh_demo.py

Traces the vision graphs into models/demo/<name>/onnx/ and builds the bundles of runtime/demo/<name>/ from them. To be
run after the checkpoints, the tracing code, the decoder writer or the bundle format have changed; a test says when.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from export.build_engines import main as build  # noqa: E402

NAMES = ("demo-llava", "demo-nvila")


def main() -> int:
    for name in NAMES:
        checkpoint, bundle = ROOT / "models" / "demo" / name, ROOT / "runtime" / "demo" / name
        status = build([str(checkpoint), "--stage", "onnx", "--trace", "--save-traced"])
        status = status or build([str(checkpoint), "--out", str(bundle), "--force"])
        if status:
            return status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
