"""Pictures of captions: thumbnails of the last ones, and the scene that the next frame is compared with."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from runtime.captiond.captioning.parts import PicturesView
from runtime.captiond.capture.ring import READER_MAIN, Ring
from runtime.captiond.capture.waiting import end_tasks
from runtime.captiond.events import CaptionFinished

HISTORY = 60
THUMBNAIL_SIDE_PX = 640
THUMBNAIL_QUALITY = 70


@dataclass(slots=True)
class HistoryEntry:
    """A caption and the JPEG of its frame, as soon as it was made."""

    finished: CaptionFinished
    jpeg: bytes | None


class Album:
    """The last captions of one source with the JPEGs of their frames. ``scene_change``: the threshold, 0 for none."""

    def __init__(self, source: str, pictures: PicturesView, ring: Ring, scene_change: float) -> None:
        self.history: deque[HistoryEntry] = deque(maxlen=HISTORY)
        self._source, self._pictures, self._ring = source, pictures, ring
        self._threshold = scene_change
        self._making: tuple[int, asyncio.Task[bytes | None]] | None = None

    def begin(self, caption: int, place: tuple[int, int] | None) -> None:
        """Make the picture of a caption's frame, unless the one before is still being made."""
        if place is not None and (self._making is None or self._making[1].done()):
            self._making = (caption, asyncio.create_task(self._make(place)))

    def keep(self, finished: CaptionFinished) -> None:
        """A caption is whole."""
        entry = HistoryEntry(finished, None)
        self.history.append(entry)
        if self._making is None or self._making[0] != finished.caption:
            return

        def made(task: asyncio.Task[bytes | None]) -> None:
            if not task.cancelled() and task.exception() is None:
                entry.jpeg = task.result()

        self._making[1].add_done_callback(made)

    async def jpeg_of(self, caption: int) -> bytes | None:
        """The picture of a caption, of the running one too: waits until it is made. None when there is none."""
        if self._making is not None and self._making[0] == caption:
            return await asyncio.shield(self._making[1])
        return next((entry.jpeg for entry in self.history if entry.finished.caption == caption), None)

    async def unchanged(self, after_seq: int) -> int | None:
        """The seq of the newest frame if it shows the same scene as the last captioned one; None if it is worth one."""
        if self._threshold <= 0:
            return None
        if self._making is not None:
            await asyncio.wait([self._making[1]])  # it keeps the scene too
        pinned = self._ring.take(READER_MAIN, after_seq)
        if pinned is None:
            return None
        with pinned:
            changed = await self._pictures.changed(self._source, (pinned.slot, pinned.generation))
        return pinned.header.seq if changed < self._threshold else None

    async def close(self) -> None:
        """Stop making."""
        if self._making is not None:
            await end_tasks(self._making[1])

    async def _make(self, place: tuple[int, int]) -> bytes | None:
        if self._threshold > 0:
            await self._pictures.keep_scene(self._source, place)
        jpeg = await self._pictures.jpeg(
            self._source, slot=place, max_side_px=THUMBNAIL_SIDE_PX, quality=THUMBNAIL_QUALITY
        )
        return None if jpeg is None else jpeg.data
