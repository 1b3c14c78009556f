"""Arrays as images: accepted as they are or refused with the line that converts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import ImageError
from runtime.types import ImageArray

_CHANNELS = (3, 4)
_ACCEPTED = "accepted are u8 arrays [H, W, 3], [H, W] and [H, W, 4]"


def rgb_from_array(array: npt.NDArray[Any], color: str) -> ImageArray:
    """Check an array and bring it to RGB u8 [H, W, 3]; ``color`` is the order of its first three channels.

    Raises ImageError whose hint is the expression that converts ``array``.
    """
    _check_dtype(array)
    _check_shape(array)
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    rgb = array[:, :, :3] if color == "rgb" else array[:, :, 2::-1]
    return over_black(rgb, array[:, :, 3]) if array.shape[2] == 4 else rgb


def over_black(rgb: ImageArray, alpha: ImageArray) -> ImageArray:
    """Lay a picture with opacity u8 [H, W] over black, rounded as Pillow's paste and alpha_composite round."""
    product = rgb.astype(np.uint32) * alpha[:, :, None].astype(np.uint32) + 128
    return ((product + (product >> 8)) >> 8).astype(np.uint8)


def _check_dtype(array: npt.NDArray[Any]) -> None:
    if array.dtype == np.uint8:
        return
    raise ImageError(
        f"the array is {array.dtype} {_shape(array)}{_range(array)}; an image holds uint8 values 0..255",
        hint=_conversion(array),
    )


def _conversion(array: npt.NDArray[Any]) -> str:
    kind = array.dtype.kind
    if kind == "b":
        return "array.astype(np.uint8) * 255"
    if kind not in "iuf" or array.size == 0:
        return f"{_ACCEPTED}"
    low, high = _extremes(array)
    if kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
        return "np.nan_to_num(array) first; then convert by the range that it really has"
    if kind == "f" and low >= 0 and high <= 1:
        return "(array * 255).round().astype(np.uint8)"
    if kind == "f" and low >= -1 and high <= 1:
        return "((array + 1) * 127.5).round().astype(np.uint8)"
    if low >= 0 and high <= 255:
        return "array.round().astype(np.uint8)" if kind == "f" else "array.astype(np.uint8)"
    if array.dtype == np.uint16:
        return "(array >> 8).astype(np.uint8)"
    return "np.clip(array, 0, 255).astype(np.uint8), or scale it by the range that it really has"


def _check_shape(array: npt.NDArray[Any]) -> None:
    shape = array.shape
    if array.ndim == 2 or (array.ndim == 3 and shape[2] in _CHANNELS):
        if array.size == 0:
            raise ImageError(f"the array is empty: {_shape(array)}", hint="each side must be at least 1 px")
        return
    raise ImageError(f"an array of shape {_shape(array)} is not an image; {_ACCEPTED}", hint=_reshaping(shape))


def _reshaping(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[0] == 1:
        inner = _reshaping(shape[1:]) if shape[3] not in _CHANNELS else "array"
        return inner.replace("array", "array[0]") if "array" in inner else "array[0]"
    if len(shape) == 4:
        return "pass the pictures of a batch one by one: list(array)"
    if len(shape) == 3 and shape[2] == 1:
        return "array[:, :, 0]"
    if len(shape) == 3 and shape[0] in _CHANNELS:
        return "the channels come first here: array.transpose(1, 2, 0)"
    if len(shape) == 3 and shape[0] == 1:
        return "array[0]"
    if len(shape) == 3 and shape[2] == 2:
        return "for gray with alpha keep the gray: array[:, :, 0]"
    return "reshape it to [H, W, 3]"


def _extremes(array: npt.NDArray[Any]) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def _range(array: npt.NDArray[Any]) -> str:
    if array.size == 0 or array.dtype.kind not in "iuf":
        return ""
    low, high = _extremes(array)
    return f" with values {low:g}..{high:g}"


def _shape(array: npt.NDArray[Any]) -> str:
    return "[" + ", ".join(str(side) for side in array.shape) + "]"
