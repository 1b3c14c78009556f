"""load_image: every accepted kind gives the same pixels; Pillow is the reference for files."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import ImageError
from runtime.images import ImageLimits, load_image
from runtime.types import Frame

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")


def picture(height: int = 5, width: int = 7, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(image: object, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


RGB = picture()


def test_all_kinds_of_one_picture_agree(tmp_path: Path) -> None:
    png = encode(Image.fromarray(RGB), "PNG")
    (tmp_path / "a.png").write_bytes(png)
    kinds = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        png,
        bytearray(png),
        memoryview(png),
        Image.fromarray(RGB),
        Image.open(io.BytesIO(png)),
        RGB,
        Frame(RGB, 0, 0),
    ]
    for kind in kinds:
        np.testing.assert_array_equal(load_image(kind), RGB, err_msg=repr(type(kind)))
    np.testing.assert_array_equal(load_image(RGB[:, :, ::-1], color="bgr"), RGB)
    np.testing.assert_array_equal(load_image(Frame(RGB, 0, 0), color="bgr"), RGB)  # a frame knows its order


@pytest.mark.parametrize(("name", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("WEBP", "RGB"), ("BMP", "RGB")])
def test_each_format_decodes_as_pillow_does(name: str, mode: str) -> None:
    data = encode(Image.fromarray(picture(40, 30)), name)
    np.testing.assert_array_equal(load_image(data), np.asarray(Image.open(io.BytesIO(data)).convert(mode)))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"])
def test_colour_models_convert_as_pillow_does(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.array([[0, 100, 255, 256, 65535]], np.uint16))
    elif mode == "LAB":
        image = Image.frombytes("LAB", (7, 5), RGB.tobytes())
    else:
        image = Image.fromarray(RGB).convert("L" if mode in ("I", "F") else "RGB").convert(mode)
    np.testing.assert_array_equal(load_image(image), np.asarray(image.convert("RGB")))


def test_gray_of_16_bits_is_clipped_at_255_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    data = encode(Image.fromarray(np.array([[7, 255, 256, 65535]], np.uint16)), "PNG")
    assert load_image(data)[0, :, 0].tolist() == [7, 255, 255, 255]
    assert "values above 255 become 255" in caplog.text


def test_cmyk_jpeg_is_not_inverted() -> None:
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)  # red ink
    red, green, blue = load_image(data)[4, 4]
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_over_black(mode: str) -> None:
    rgba = picture(9, 11, 4)
    image = Image.fromarray(rgba, "RGBA").convert(mode)
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    expected = np.asarray(Image.alpha_composite(black, image.convert("RGBA")).convert("RGB"))
    np.testing.assert_array_equal(load_image(image), expected)
    np.testing.assert_array_equal(load_image(encode(image, "PNG")), expected)
    if mode == "RGBA":
        np.testing.assert_array_equal(load_image(rgba), expected)
        np.testing.assert_array_equal(load_image(rgba[:, :, [2, 1, 0, 3]], color="bgr"), expected)


def test_a_transparent_palette_lies_over_black() -> None:
    image = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    data = encode(image, "PNG", transparency=0)
    got = load_image(data)
    indices = np.asarray(Image.open(io.BytesIO(data)))
    assert (indices == 0).any() and (got[indices == 0] == 0).all()
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(got[indices != 0], expected[indices != 0])


def test_gray_arrays_become_three_equal_channels() -> None:
    gray = RGB[:, :, 0]
    np.testing.assert_array_equal(load_image(gray), np.stack([gray] * 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = Image.fromarray(picture(16, 8))
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encode(image, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(load_image(data), expected)
    np.testing.assert_array_equal(load_image(Image.open(io.BytesIO(data))), expected)


@pytest.mark.parametrize("orientation", [0, 9, 40_000])
def test_an_impossible_orientation_means_upright(orientation: int) -> None:
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(load_image(encode(image, "PNG", exif=exif)), RGB)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_means_upright() -> None:
    data = encode(Image.fromarray(picture(16, 8)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert load_image(data).shape == (16, 8, 3)


def test_the_first_picture_of_an_animation_is_taken() -> None:
    first, second = Image.new("RGB", (6, 4), (255, 0, 0)), Image.new("RGB", (6, 4), (0, 0, 255))
    for name in ("GIF", "WEBP"):
        options = {"lossless": True} if name == "WEBP" else {}
        data = encode(first, name, save_all=True, append_images=[second], **options)
        assert (load_image(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_extreme_shapes_load(size: tuple[int, int]) -> None:
    rgb = picture(*size)
    np.testing.assert_array_equal(load_image(encode(Image.fromarray(rgb), "PNG")), rgb)


REFUSED = [
    (np.zeros((4, 5, 3), np.float32), "(array * 255).round().astype(np.uint8)"),
    (np.full((4, 5, 3), -0.5), "((array + 1) * 127.5).round().astype(np.uint8)"),
    (np.full((4, 5, 3), 200.0), "array.round().astype(np.uint8)"),
    (np.full((4, 5, 3), np.nan), "np.nan_to_num(array)"),
    (np.full((4, 5, 3), 300, np.int32), "np.clip(array, 0, 255).astype(np.uint8)"),
    (np.full((4, 5, 3), 30, np.int64), "array.astype(np.uint8)"),
    (np.full((4, 5, 3), 3000, np.uint16), "(array >> 8).astype(np.uint8)"),
    (np.zeros((4, 5, 3), bool), "array.astype(np.uint8) * 255"),
    (np.zeros((3, 4, 5), np.uint8), "array.transpose(1, 2, 0)"),
    (np.zeros((1, 3, 4, 5), np.uint8), "array[0].transpose(1, 2, 0)"),
    (np.zeros((1, 4, 5, 3), np.uint8), "array[0]"),
    (np.zeros((2, 4, 5, 3), np.uint8), "list(array)"),
    (np.zeros((4, 5, 1), np.uint8), "array[:, :, 0]"),
    (np.zeros((1, 4, 5), np.uint8), "array[0]"),
]


@pytest.mark.parametrize(("array", "line"), REFUSED, ids=[line for _, line in REFUSED])
def test_other_arrays_are_refused_with_the_line_that_converts(array: np.ndarray, line: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(array)
    assert line in (caught.value.hint or "")
    if line.startswith(("array", "(", "np.clip")) and "list" not in line:
        converted = eval(line, {"np": np, "array": array})  # the hint must be runnable and must work
        assert load_image(converted).shape[2] == 3


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0), (5,), (), (5, 4, 2), (2, 5, 4, 3, 3)])
def test_shapes_that_are_no_image_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"empty|is not an image"):
        load_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("thing", [None, 3, object(), [RGB], {"a": 1}])
def test_other_things_are_refused_by_type(thing: object) -> None:
    with pytest.raises(ImageError, match="an image cannot be made from"):
        load_image(thing)


def test_an_unknown_colour_order_is_refused() -> None:
    with pytest.raises(ImageError, match="color='gbr'"):
        load_image(RGB, color="gbr")


def test_limits_are_checked_for_files_and_arrays() -> None:
    data = encode(Image.fromarray(picture(20, 30)), "PNG")
    for obj in (data, picture(20, 30), Image.fromarray(picture(20, 30))):
        with pytest.raises(ImageError, match="30x20 px = 600 pixels, the limit is 599"):
            load_image(obj, limits=ImageLimits(max_pixels=599))
        with pytest.raises(ImageError, match="the limit of a side is 29 px"):
            load_image(obj, limits=ImageLimits(max_side_px=29))
        load_image(obj, limits=ImageLimits(max_pixels=600, max_side_px=30))
    with pytest.raises(ImageError, match="bytes, the limit is 10"):
        load_image(data, limits=ImageLimits(max_bytes=10))


def test_the_stored_default_limits_are_the_documented_ones() -> None:
    assert ImageLimits() == ImageLimits(8192 * 8192, 65_535, 64 << 20)


def test_loading_arrays_imports_no_pil() -> None:
    code = "import sys, numpy as np; from runtime.images import load_image; load_image(np.zeros((2, 2, 3), np.uint8))"
    check = f"{code}; assert not any(name.split('.')[0] in ('PIL', 'cv2') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
