"""Decoding of images of requests: equal to Pillow's, oriented, and within limits of size, time and memory."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from runtime.captiond.pictures import uploads
from runtime.captiond.pictures.memory import memory_file
from runtime.errors import ImageError

ROOT = Path(__file__).resolve().parents[4]


def file_of(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(width: int = 40, height: int = 24) -> Image.Image:
    pixels = np.random.default_rng(4).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8)))


def decoded(data: bytes, max_pixels: int = 10**6) -> np.ndarray:
    given, made = memory_file("given", data), memory_file("made")
    try:
        width, height = uploads.decode(given, made, size=len(data), max_bytes=10**7, max_pixels=max_pixels)
        return np.frombuffer(os.pread(made, 10**8, 0), np.uint8).reshape(height, width, 3)
    finally:
        os.close(given)
        os.close(made)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_those_of_pillow_turned_as_the_camera_was_held(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(picture(), format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(decoded(data), np.asarray(expected))


def test_transparent_gray_and_palette_pictures_become_rgb() -> None:
    for mode in ("L", "RGBA", "P", "LA"):
        assert decoded(file_of(picture().convert(mode), "PNG")).shape == (24, 40, 3)
    assert decoded(file_of(picture().convert("CMYK"), "JPEG")).shape == (24, 40, 3)


def test_damaged_pictures_are_errors_without_the_words_of_a_library() -> None:
    whole = file_of(picture(), "PNG")
    webp, jpeg = (file_of(picture(400, 400), format) for format in ("WEBP", "JPEG"))
    for data in (whole[: len(whole) // 2], webp[: len(webp) // 2], jpeg[: len(jpeg) // 2]):
        with pytest.raises(ImageError) as caught:
            decoded(data)
        assert not any(word in str(caught.value) for word in ("0x", "PIL", "truncated file", "zlib", "buffer"))


def test_more_pixels_than_permitted_are_not_decoded() -> None:
    with pytest.raises(ImageError, match="limit is 100 px"):
        decoded(file_of(picture(), "PNG"), max_pixels=100)


def test_a_child_that_computes_for_too_long_is_killed() -> None:
    script = "from runtime.captiond.pictures.uploads import limit_time\nlimit_time(0)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60)
    assert done.returncode == -24  # SIGXCPU
