"""The calibration set: what is taken, in which order, what is left out, and its digest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from export.quantization import calibration as module
from export.quantization.calibration import QUESTIONS, CalibrationSet, read_calibration
from runtime.errors import ExportError


def picture(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20 + shade, 16), (shade, 0, 0)).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index in range(6):
        picture(tmp_path / "pictures" / f"{index}.png", index)
    return tmp_path / "pictures"


def asked(found: CalibrationSet) -> list[tuple[str, str]]:
    return [(sample.images[0].name, sample.text) for sample in found.samples]


def test_of_a_large_folder_a_seeded_choice_is_taken(pictures: Path) -> None:
    found = read_calibration(pictures, 4)
    names = [name for name, _ in asked(found)]
    assert len(set(names)) == 4
    assert names != sorted(names)
    assert found == read_calibration(pictures, 4)
    assert {text for _, text in asked(found)} == set(QUESTIONS[:4])


def test_pictures_of_a_small_folder_are_asked_several_questions(pictures: Path) -> None:
    found = asked(read_calibration(pictures, 15))
    assert len(set(found)) == 15
    assert len({name for name, _ in found[:6]}) == 6
    assert len(asked(read_calibration(pictures, 1000))) == 6 * len(QUESTIONS)


def test_digest_is_that_of_the_contents_alone(pictures: Path, tmp_path: Path) -> None:
    here = read_calibration(pictures, 6).digest
    there = tmp_path / "elsewhere"
    shutil.copytree(pictures, there)
    assert read_calibration(there, 6).digest == here
    picture(there / "3.png", 200)
    assert read_calibration(there, 6).digest != here
    assert read_calibration(pictures, 5).digest != here


def test_unreadable_pictures_are_named_and_left_out(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (pictures / "notes.md").write_text("no picture")
    monkeypatch.setattr(module, "MAX_IMAGE_PIXELS", 24 * 16)
    found = read_calibration(pictures, 100)
    assert {name for name, _ in asked(found)} == {"0.png", "1.png", "2.png", "3.png", "4.png"}
    assert len(found.skipped) == 2
    assert any("broken.png: cannot be read as a picture" in problem for problem in found.skipped)
    assert any("5.png: 25 × 16 pixels, at most 384" in problem for problem in found.skipped)


def test_large_files_and_decompression_bombs_are_left_out(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 16)
    picture(pictures / "x" / "bomb.png", 255)
    monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 300)
    (pictures / "huge.png").write_bytes(b"0" * 301)
    skipped = "\n".join(read_calibration(pictures, 100).skipped)
    assert "bomb.png: cannot be read as a picture" in skipped
    assert "huge.png: 301 bytes, at most 300" in skipped


def test_nothing_readable_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(ExportError, match="none of its 0 calibration prompts") as caught:
        read_calibration(folder, 4)
    assert "folder of pictures" in str(caught.value.hint)
    (folder / "a.jpg").write_bytes(b"")
    with pytest.raises(ExportError, match=r"none of its 1 calibration prompts.*a\.jpg: cannot be read"):
        read_calibration(folder, 4)


def test_text_files_have_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Hello.\n\n  What is 2 + 2?  \n" + "x" * (module.MAX_TEXT_CHARACTERS + 1) + "\n", encoding="utf-8")
    found = read_calibration(path, 10)
    assert sorted(sample.text for sample in found.samples) == ["Hello.", "What is 2 + 2?"]
    assert all(sample.images == () for sample in found.samples)
    assert found.skipped == ("a text of 65537 characters, at most 65536: " + repr("x" * 40) + "…",)


def test_json_lines_name_pictures_beside_the_file(tmp_path: Path) -> None:
    picture(tmp_path / "sub" / "a.png", 1)
    lines = [
        {"text": "Compare.", "images": ["sub/a.png", "sub/a.png"]},
        {"images": ["sub/a.png"]},
        {"text": "No picture."},
        {"text": "Gone.", "images": ["sub/b.png"]},
        {"text": "", "images": []},
        {"text": 3},
        {"question": "?"},
        {"text": "Many.", "images": ["sub/a.png"] * 17},
    ]
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n{not json\n", encoding="utf-8")
    found = read_calibration(path, 100)
    texts = {sample.text: sample.images for sample in found.samples}
    assert texts["Compare."] == (tmp_path / "sub" / "a.png",) * 2
    assert texts["No picture."] == ()
    assert sum(text in QUESTIONS for text in texts) == 1
    assert len(found.samples) == 3
    skipped = "\n".join(found.skipped)
    for part in ("b.png: cannot be read", ":5: neither", ":6: text must be", ":7: expected", "17 pictures", ":9: no J"):
        assert part in skipped


@pytest.mark.parametrize("name", ["set.csv", "missing.jsonl"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "set.csv").write_text("a,b")
    with pytest.raises(ExportError, match=name):
        read_calibration(tmp_path / name, 4)
