"""The soak's own check: it finds what grew and nothing else, and one short run goes through it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from scripts.bench import soak

BEFORE = soak.Held(100.0, 90, 13, 7)


def test_findings_name_what_grew() -> None:
    assert soak.findings(BEFORE, replace(BEFORE, pss_mb=115.9)) == []
    assert soak.findings(BEFORE, replace(BEFORE, pss_mb=117.0)) == ["memory grew by 17.0 MB, the limit is 16"]
    assert soak.findings(BEFORE, replace(BEFORE, files=91)) == ["files were 90 and are 91"]
    assert soak.findings(BEFORE, replace(BEFORE, threads=14, children=6)) == [
        "threads were 13 and are 14",
        "children were 7 and are 6",
    ]


@pytest.mark.slow
def test_a_planted_leak_is_found_in_a_short_run() -> None:
    pytest.importorskip("cv2", reason="needs OpenCV")
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg (Debian: ffmpeg)")
    row = soak.measure(1200, 4, "files", seed=0)
    assert row["captions"] >= 1200 and row["reconnects"] >= 4
    assert [found for found in row["findings"] if found.startswith("files were")]
