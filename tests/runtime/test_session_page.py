"""docs/session.md: its examples run, one after the other, on a session with fake engines."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import startup
from runtime.bundle import Bundle
from tests.runtime.fakes import CONTEXT, FakeDecoder, FakeVision, fake_bundle

PAGE = Path(__file__).resolve().parents[2] / "docs" / "session.md"


def test_every_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    context = 4 * CONTEXT
    fake_bundle(tmp_path / "demo-llava.bundle", context=context)
    Image.fromarray(np.full((30, 40, 3), 99, np.uint8)).save(tmp_path / "photo.jpg")
    decoders: list[FakeDecoder] = []

    def open_fake(bundle: Bundle, *, slots: int, **options: object) -> FakeDecoder:
        decoders.append(FakeDecoder(context))
        decoders[-1].open(slots)
        return decoders[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(startup, "open_decoder", open_fake)
    monkeypatch.setattr(startup, "open_vision", lambda bundle, **options: FakeVision())
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 10
    namespace: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{PAGE.name} example {number}", "exec"), namespace)
    assert [decoder.closed for decoder in decoders] == [1, 1]
    assert "no-such-file.jpg" in capsys.readouterr().out  # the last example prints an error's message and hint
