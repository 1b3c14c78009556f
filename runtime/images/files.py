"""Picture files and PIL images: the only place of the runtime that touches PIL, and only when there is work for it.

Files are hostile until decoded: five formats, known by their first bytes; the size is read from the header and checked
before any pixel; what a decoder says about a broken file never reaches the message.
"""

from __future__ import annotations

import importlib
import io
import logging
import stat
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runtime.errors import ImageError
from runtime.images.arrays import over_black
from runtime.images.limits import ImageLimits
from runtime.types import ImageArray

if TYPE_CHECKING:
    from PIL import Image as PilImage

_log = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_PLUGINS = {
    "JPEG": "PIL.JpegImagePlugin",
    "PNG": "PIL.PngImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
    "BMP": "PIL.BmpImagePlugin",
    "GIF": "PIL.GifImagePlugin",
}
_KNOWN_BUT_REFUSED = (
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "PSD"),
    (b"<svg", "SVG"),
    (b"\x1aE\xdf\xa3", "a video"),
)
# What Pillow's decoders are known to raise on broken files; anything else is a bug that should be seen.
_DECODE_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Warning,  # where the application turns warnings into errors
)
_ORIENTATION_TAG = 0x0112
_DAMAGED_HINT = "open it in an image viewer and save it again"


def rgb_from_path(path: Path, limits: ImageLimits) -> ImageArray:
    """Read and decode a picture file. Raises ImageError that names the file."""
    try:
        data = _read(path, limits)
        return rgb_from_bytes(data, limits)
    except ImageError as error:
        raise ImageError(f"{path}: {error.message}", hint=error.hint) from None


def _read(path: Path, limits: ImageLimits) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"this is {kind}", hint="name one picture file; a source takes directories and globs")
        limits.check_bytes(status.st_size)
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)  # the file may grow while it is read
    except FileNotFoundError:
        remote = str(path).startswith(("http:", "https:", "data:"))
        hint = "remote pictures are not fetched: download it first, or pass bytes" if remote else "check the path"
        raise ImageError("there is no such file", hint=hint) from None
    except (OSError, ValueError) as error:
        code = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        raise ImageError(f"the file cannot be read ({code})", hint="check the path and its permissions") from None
    limits.check_bytes(len(data))
    return data


def rgb_from_bytes(data: bytes, limits: ImageLimits) -> ImageArray:
    """Decode an encoded picture to RGB u8 [H, W, 3]; limits are checked on the header."""
    limits.check_bytes(len(data))
    name = _sniff(data)
    importlib.import_module(_PLUGINS[name])  # registers this one format instead of all forty
    image_module = importlib.import_module("PIL.Image")
    bombs = (image_module.DecompressionBombError, image_module.DecompressionBombWarning)
    try:
        image = image_module.open(io.BytesIO(data), formats=(name,))
    except bombs:
        raise ImageError(
            f"the {name} picture has more pixels than the limit of {limits.max_pixels:,}", hint="make it smaller first"
        ) from None
    except _DECODE_ERRORS:
        raise ImageError(f"the {name} picture is damaged: its header cannot be read", hint=_DAMAGED_HINT) from None
    with image:
        return _decode(image, limits, name)


def rgb_from_pil(image: Any, limits: ImageLimits) -> ImageArray:
    """Convert a PIL image, which may still be undecoded, to RGB u8 [H, W, 3]."""
    return _decode(image, limits, image.format or "PIL")


def _decode(image: PilImage.Image, limits: ImageLimits, name: str) -> ImageArray:
    limits.check_size(*image.size)
    try:
        orientation = _orientation(image)
        rgb = _to_rgb(image)
    except MemoryError:
        size = f"{image.width}x{image.height}"
        raise ImageError(f"no memory for a picture of {size} px", hint="make it smaller") from None
    except _DECODE_ERRORS:
        raise ImageError(f"the {name} picture is damaged or cut short", hint=_DAMAGED_HINT) from None
    return _upright(rgb, orientation)


def _to_rgb(image: PilImage.Image) -> ImageArray:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image, np.uint8)
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        rgba = np.asarray(_straight(image).convert("RGBA"), np.uint8)
        return over_black(rgba[:, :, :3], rgba[:, :, 3])
    if image.mode.startswith("I"):
        _log.warning("a 16-bit gray picture: values above 255 become 255, as Pillow converts it")
    return np.asarray(image.convert("RGB"), np.uint8)


def _straight(image: PilImage.Image) -> PilImage.Image:
    """Undo premultiplied alpha, which Pillow converts only to its own straight form."""
    return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]) if image.mode in ("La", "RGBa") else image


def _orientation(image: PilImage.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or where it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        _log.info("the EXIF block of a picture cannot be read: taken as upright")
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(rgb: npt.NDArray[np.uint8], orientation: int) -> ImageArray:
    """Undo an EXIF orientation: 5 to 8 exchange rows and columns, the rest mirrors. Source: EXIF 2.3, tag 274."""
    if orientation >= 5:
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return rgb


def picture_format(data: bytes) -> str | None:
    """The format of `FORMATS` that a file with these first bytes has, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    return None


def _sniff(data: bytes) -> str:
    name = picture_format(data)
    if name:
        return name
    other = next((name for magic, name in _KNOWN_BUT_REFUSED if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        other = "HEIC, AVIF or a video"
    named = f"this looks like {other}" if other else "the format is unknown"
    raise ImageError(f"{named}; accepted are {', '.join(FORMATS)}", hint="convert it, for instance to JPEG")
