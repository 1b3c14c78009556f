"""Hostile and broken picture files: a typed error that names the file and says nothing of the decoder."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ImageError
from runtime.images import ImageLimits, load_image

Image = pytest.importorskip("PIL.Image")


def encode(name: str, height: int = 48, width: int = 64, **options: object) -> bytes:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, name, **options)
    return file.getvalue()


FILES = {name: encode(name) for name in ("JPEG", "PNG", "WEBP", "BMP", "GIF")}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(name: str, share: float) -> None:
    data = FILES[name]
    with pytest.raises(ImageError, match=r"damaged|format is unknown"):
        load_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_flipped_bytes_give_a_picture_or_an_image_error(name: str, data: st.DataObject) -> None:
    broken = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, min(len(broken), 700) - 1))
        broken[at] = data.draw(st.integers(0, 255))
    try:
        rgb = load_image(bytes(broken), limits=ImageLimits(max_pixels=1 << 20))
    except ImageError as error:
        assert error.hint
    else:
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3


@pytest.mark.parametrize("size", [(16_384, 16_384), (30_000, 30_000), (65_536, 1), (2**31 - 1, 2**31 - 1)])
def test_a_large_header_is_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"the limit|damaged"):
        load_image(png_of(*size))


def test_a_decompression_bomb_stops_at_the_header() -> None:
    """515 kB of zeros that unpack to 512 MB."""
    pressed = zlib.compressobj(9)
    body = b"".join(pressed.compress(bytes(1 << 20)) for _ in range(512)) + pressed.flush()
    with pytest.raises(ImageError, match="more pixels than the limit of 67,108,864"):
        load_image(png_of(13_000, 13_000, body))


def test_the_size_is_checked_before_the_first_byte_is_decoded() -> None:
    """There are no pixels behind this header; whoever decodes first calls the file damaged."""
    with pytest.raises(ImageError, match=r"9000x9000 px = 81,000,000 pixels, the limit is 67,108,864"):
        load_image(png_of(9_000, 9_000))


def test_16384_squared_is_refused() -> None:
    with pytest.raises(ImageError, match="more pixels than the limit of 67,108,864"):
        load_image(png_of(16_384, 16_384))


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (b"II*\0" + bytes(20), "TIFF"),
        (b"%PDF-1.7" + bytes(20), "PDF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20), "JPEG 2000"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (b"SIMPLE  =                    T" + bytes(60), "unknown"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(60), "unknown"),
        (b"hello", "unknown"),
    ],
)
def test_other_formats_are_refused_without_trying(head: bytes, named: str) -> None:
    with pytest.raises(ImageError, match=named):
        load_image(head)


def test_the_message_holds_nothing_of_the_decoder(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(FILES["JPEG"][:900])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert caught.value.message == f"{path}: the JPEG picture is damaged or cut short"
    assert caught.value.__cause__ is None and caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "url", "nul", "device", "large"])
def test_paths_that_are_no_picture(tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(FILES["PNG"])
    path, words = {
        "missing": (str(tmp_path / "no.png"), "there is no such file"),
        "directory": (str(tmp_path), "this is a directory"),
        "empty": (str(tmp_path / "empty.png"), "0 bytes"),
        "url": ("https://example.org/cat.jpg", "remote pictures are not fetched"),
        "nul": ("a\0b.png", "cannot be read"),
        "device": ("/dev/zero", "not a regular file"),
        "large": (str(tmp_path / "large.png"), "the limit is 100"),
    }[kind]
    with pytest.raises(ImageError) as caught:
        load_image(path, limits=ImageLimits(max_bytes=100))
    assert words in str(caught.value)
