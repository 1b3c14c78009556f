"""Whatever a user calls an image becomes RGB u8 [H, W, 3]. Files are untrusted; arrays are checked, not guessed at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from runtime.errors import ImageError
from runtime.images.arrays import rgb_from_array
from runtime.images.device import array_from_cuda, array_from_dlpack
from runtime.images.files import rgb_from_bytes, rgb_from_path, rgb_from_pil
from runtime.images.limits import DEFAULT_LIMITS, ImageLimits
from runtime.types import Frame, ImageArray

__all__ = ["DEFAULT_LIMITS", "ImageLimits", "load_image"]


def load_image(
    obj: object, *, color: Literal["rgb", "bgr"] = "rgb", limits: ImageLimits = DEFAULT_LIMITS
) -> ImageArray:
    """Turn an image of any accepted kind into RGB u8 [H, W, 3], C-contiguous.

    >>> ok, frame = cv2.VideoCapture(0).read()  # OpenCV delivers blue first
    >>> rgb = load_image(frame, color="bgr")

    Accepted: a path, encoded bytes (JPEG, PNG, WebP, BMP, GIF), a PIL image, u8 arrays [H, W, 3], [H, W] (gray) and
    [H, W, 4] (alpha last), objects with DLPack or ``__cuda_array_interface__``, a `Frame`. ``color`` is the order of
    the channels of arrays; files, PIL images and frames know their own.

    The EXIF orientation is applied, transparent pixels lie over black, the first picture of an animation is taken.
    Other colour models go through Pillow's ``convert("RGB")``: CMYK is inverted without a profile, of 16-bit RGB the
    upper byte stays, and 16-bit gray values above 255 become 255 (divide by 256 first where that is not meant).

    An array that already is RGB u8 [H, W, 3] is returned itself, so do not write to it while the image is in use.
    Raises ImageError for anything else: unknown or damaged files, other types, shapes and ranges (the hint is the line
    that converts), and pictures above ``limits``, which are refused before they are decoded.
    """
    if color not in ("rgb", "bgr"):
        raise ImageError(f"color={color!r}", hint='color="rgb" or color="bgr"')
    rgb = _convert(obj, color, limits)
    limits.check_size(rgb.shape[1], rgb.shape[0])
    return np.ascontiguousarray(rgb)


def _convert(obj: object, color: str, limits: ImageLimits) -> ImageArray:
    if isinstance(obj, Frame):
        return rgb_from_array(obj.rgb, "rgb")
    if isinstance(obj, (str, os.PathLike)):
        return rgb_from_path(Path(os.fsdecode(obj)), limits)
    if isinstance(obj, (bytes, bytearray, memoryview)):
        return rgb_from_bytes(bytes(obj), limits)
    if isinstance(obj, np.ndarray):
        return rgb_from_array(obj, color)
    if _is_pil(obj):
        return rgb_from_pil(obj, limits)
    if hasattr(obj, "__cuda_array_interface__"):
        return rgb_from_array(array_from_cuda(obj), color)
    if hasattr(obj, "__dlpack__"):
        return rgb_from_array(array_from_dlpack(obj), color)
    raise ImageError(
        f"an image cannot be made from {type(obj).__module__}.{type(obj).__qualname__}",
        hint="pass a path, encoded bytes, a PIL image, an array u8 [H, W, 3] or a Frame",
    )


def _is_pil(obj: object) -> bool:
    """Whether this is a PIL image, without importing PIL for those who do not use it."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(obj).__mro__)
