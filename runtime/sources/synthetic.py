"""``synthetic://``: moving coloured shapes, the same for the same seed. A camera for machines without one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from runtime.errors import SourceError
from runtime.sources.scene_render import Picture, moving_pictures
from runtime.sources.source import Clock, FrameSource, Pace
from runtime.sources.uri import SourceUri
from runtime.types import Frame

DEFAULTS = {"seed": "0", "width": "320", "height": "240", "fps": "10", "frames": ""}
_SIDE_PX = (32, 4096)
_MAX_ASPECT = 3.0
_MAX_FPS = 1000.0
_MAX_COUNT = 2**63 - 1

T = TypeVar("T", int, float)


class SyntheticSource(FrameSource):
    """Frames of `runtime.sources.scene_render.moving_pictures`; live and paced unless ``every_frame``.

    Parameters of the URI: ``seed`` (0), ``width`` and ``height`` in pixels (320 x 240), ``fps`` (10), ``frames``
    (endless). A loop begins the same film again. Raises SourceError for other names and for values out of range.
    """

    def __init__(
        self, uri: SourceUri, *, every_frame: bool = False, loop: bool = False, clock: Clock | None = None
    ) -> None:
        super().__init__(uri.name, live=not every_frame, clock=clock)
        given = uri.parameters()
        unknown = sorted(set(given) - set(DEFAULTS))
        if unknown:
            raise SourceError(f"{uri.name}: unknown parameter {unknown[0]!r}", hint=f"known are {', '.join(DEFAULTS)}")
        values = DEFAULTS | given
        self._seed = _number(uri, values, "seed", int, 0, _MAX_COUNT)
        self._width = _number(uri, values, "width", int, *_SIDE_PX)
        self._height = _number(uri, values, "height", int, *_SIDE_PX)
        self._fps = _number(uri, values, "fps", float, 0.01, _MAX_FPS)
        self._frames = _number(uri, values, "frames", int, 1, _MAX_COUNT) if values["frames"] else None
        if max(self._width, self._height) > _MAX_ASPECT * min(self._width, self._height):
            size = f"{self._width}x{self._height}"
            raise SourceError(f"{uri.name}: {size} is narrower than 1:{_MAX_ASPECT:g}", hint="choose a squarer picture")
        self._pace = None if every_frame else Pace(self._fps, self._clock)
        self._loop = loop
        self._seq = 0
        self._pictures = self._film()

    @property
    def fps(self) -> float | None:
        """As the URI says."""
        return self._fps

    def _next(self) -> Frame | None:
        if self._frames is not None and self._seq >= self._frames and not self._loop:
            return None
        if self._frames is not None and self._seq and self._seq % self._frames == 0:
            self._pictures = self._film()
        rgb = next(self._pictures).rgb
        seq, self._seq = self._seq, self._seq + 1
        t_ns = self._clock.now_ns() if self._pace is None else self._pace.wait(self._stop)
        return Frame(rgb, t_ns, seq, "arrival", self.name)

    def _film(self) -> Iterator[Picture]:
        return moving_pictures(np.random.default_rng(self._seed), self._width, self._height)


def _number(
    uri: SourceUri, values: Mapping[str, str], name: str, kind: Callable[[str], T], low: float, high: float
) -> T:
    try:
        value = kind(values[name])
    except ValueError:
        raise SourceError(f"{uri.name}: {name}={values[name]!r} is not a number") from None
    if not (math.isfinite(value) and low <= value <= high):
        raise SourceError(f"{uri.name}: {name}={values[name]} is outside {low:g}..{high:g}")
    return value
