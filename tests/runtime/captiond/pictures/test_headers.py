"""Headers of images, read by our own code: as decoders read them, and what decoders never get to see."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime.captiond.pictures.headers import read_header
from runtime.errors import ImageError


def encoded(format: str, width: int, height: int, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(str(options.pop("mode", "RGB")), (width, height), 90).save(file, format, **options)
    return file.getvalue()


def read(data: bytes, max_bytes: int = 10**7, max_pixels: int = 10**7) -> tuple[str, int, int]:
    header = read_header(data, max_bytes=max_bytes, max_pixels=max_pixels)
    return header.format, header.width, header.height


@settings(max_examples=25)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_size_and_format_are_those_of_pillow(format: str, width: int, height: int, special: bool) -> None:
    options = {"JPEG": {"progressive": special}, "PNG": {"optimize": special}, "WEBP": {"lossless": special}}[format]
    assert read(encoded(format, width, height, **options)) == (format, width, height)


def test_other_kinds_of_the_three_formats_are_read_too() -> None:
    assert read(encoded("WEBP", 31, 17, mode="RGBA")) == ("WEBP", 31, 17)
    assert read(encoded("PNG", 31, 17, mode="P")) == ("PNG", 31, 17)
    assert read(encoded("JPEG", 31, 17, mode="CMYK")) == ("JPEG", 31, 17)
    ok, data = cv2.imencode(".jpg", np.zeros((17, 31, 3), np.uint8))
    assert ok and read(bytes(data.data)) == ("JPEG", 31, 17)
    animation = encoded("WEBP", 9, 8, save_all=True, append_images=[Image.new("RGB", (9, 8))])
    assert read(animation) == ("WEBP", 9, 8)


@pytest.mark.parametrize("format", ["BMP", "GIF", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(format: str) -> None:
    with pytest.raises(ImageError, match="neither JPEG nor PNG nor WebP"):
        read(encoded(format, 32, 32))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"<svg/>", b"%PDF-1.7", b"RIFF1234WAVEfmt ", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        read(data)


def test_limits_are_those_of_the_header_not_of_the_data() -> None:
    small = encoded("PNG", 16, 16)
    huge = small[:16] + (60_000).to_bytes(4, "big") * 2 + small[24:]
    with pytest.raises(ImageError, match="60000x60000 px, the limit is 10000000"):
        read(huge)
    with pytest.raises(ImageError, match="0x16"):
        read(small[:16] + bytes(4) + small[20:])
    with pytest.raises(ImageError, match=r"has \d+ bytes, the limit is 10"):
        read(small, max_bytes=10)
    assert read(small, max_pixels=256) == ("PNG", 16, 16)


def test_a_jpeg_of_endless_scans_twelve_bits_or_another_process_is_refused() -> None:
    data = encoded("JPEG", 64, 64, progressive=True)
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="more than 100 scans"):
        read(data[:-2] + scan * 100 + data[-2:])
    at = data.index(b"\xff\xc2")
    with pytest.raises(ImageError, match="12 bits"):
        read(data[: at + 4] + b"\x0c" + data[at + 5 :])
    with pytest.raises(ImageError, match="damaged"):
        read(data[: at + 1] + b"\xc3" + data[at + 2 :])


@settings(max_examples=300)
@given(st.data())
def test_damage_is_an_error_of_ours_or_harmless(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, min(len(whole) - 1, 200)))] = data.draw(st.integers(0, 255))
    try:
        _, width, height = read(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except ImageError as error:
        assert len(str(error)) < 200
    else:
        assert 0 < width * height <= 10**7


FILES = [encoded(format, 20, 30) for format in ("JPEG", "PNG", "WEBP")] + [encoded("WEBP", 20, 30, lossless=True)]
