"""How much of a picture has changed since another one: what decides whether it is worth captioning again.

Both pictures become gray, 32 x 24 cells, each the mean of its pixels, so that noise averages out: a cell of a 640x480
frame is the mean of 400 pixels. Then a change of exposure is taken out: brightness may have been multiplied by a
factor within 0.5..2 and shifted by up to 32 of 255, both found from the cells that agree best. The measure is the
share of cells that still differ by more than 10 of 255. So it reads as an area: 0.05 is a twentieth of the picture,
0 nothing, 1 everything. It cannot see what is much smaller than a cell (1/768 of the picture), nor a change of
brightness that is the same everywhere; where the whole picture is more than twice as dark or as bright as before, as
when a light is switched, nothing is excused.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

CELLS = (32, 24)
DIFFERENT = 10.0
_GAIN = (0.5, 2.0)
_OFFSET = 32.0
_DARK = 8.0  # keeps noise in the dark from looking like a factor
_ROUNDS = 4
_BLACK, _WHITE = 2.0, 253.0

Scene = npt.NDArray[np.float32]


def scene_of(rgb: npt.NDArray[np.uint8]) -> Scene:
    """The cells of a frame u8 [H, W, 3]: gray 0..255, f32 [24, 32]."""
    small: npt.NDArray[Any] = cv2.resize(rgb, CELLS, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)


def difference(before: Scene, now: Scene) -> float:
    """The share of cells, 0..1, that differ otherwise than by exposure."""
    plain = np.abs(now - before)
    gain, offset = _exposure(before, now)
    explained = np.abs(now - np.clip(gain * before + offset, 0, 255))
    # The explanation may only excuse: a cell that stayed as it was has not changed, whatever the others did.
    return float(np.mean(np.minimum(plain, explained) > DIFFERENT))


def _exposure(before: Scene, now: Scene) -> tuple[float, float]:
    """Factor and shift of brightness, by least squares over the half of the cells that fits best, found in rounds."""
    brightness = (float(now.mean()) + _DARK) / (float(before.mean()) + _DARK)
    if not _GAIN[0] <= brightness <= _GAIN[1]:
        return 1.0, 0.0
    # Cells that are black or white in either picture have lost their brightness and tell nothing.
    usable = (before > _BLACK) & (before < _WHITE) & (now > _BLACK) & (now < _WHITE)
    x, y = before[usable], now[usable]
    if x.size < 8 or float(np.ptp(x)) < 1:
        return 1.0, float(np.clip(np.median(now - before), -_OFFSET, _OFFSET))
    gain, offset = 1.0, float(np.median(y - x))
    for _ in range(_ROUNDS):
        away = np.abs(y - (gain * x + offset))
        near = away <= np.median(away)
        px, py = x[near], y[near]
        spread = px - px.mean()
        power = float(spread @ spread)
        gain = float(np.clip(float(spread @ (py - py.mean())) / power if power > 1 else gain, *_GAIN))
        offset = float(py.mean() - gain * px.mean())
    return gain, float(np.clip(offset, -_OFFSET, _OFFSET))
