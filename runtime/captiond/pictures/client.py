"""The daemon's side of pictures: asks children for JPEGs, scene changes and decoded images, and shares them."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.captiond.asks import SharedImage
from runtime.captiond.capture.ring import READER_PICTURES, Ring
from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.pictures.headers import read_header
from runtime.captiond.pictures.memory import image_in, jpeg_in, memory_file, number
from runtime.captiond.pictures.process import PictureProcess
from runtime.captiond.text import one_line
from runtime.errors import ImageError

if TYPE_CHECKING:
    from runtime.captiond.capture.launcher import Launcher
    from runtime.captiond.capture.messages import Message
    from runtime.captiond.capture.process import Child

Place = tuple[int, int]
_Key = tuple[str, object, int, int, "str | None"]

_MAX_OVERLAY_CHARS = 600
_KEPT_JPEGS, _KEPT_BYTES = 32, 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A picture of frame ``seq``, ``width`` x ``height`` px."""

    data: bytes
    seq: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class PictureStats:
    """Counts since the start: pictures encoded, requests served by one made already, images decoded, children lost."""

    encoded: int
    shared: int
    decoded: int
    deaths: int
    hangs: int


class Pictures:
    """JPEGs of the frames of attached sources, how much scenes have changed, and images of requests as pixels.

    ``max_bytes`` and ``max_pixels`` limit the images of requests. A child gets ``deadline_s`` for one request, then it
    is killed and the next request starts another; one that had nothing to do for ``idle_s`` is stopped. Methods do not
    raise but `decode`: a picture that cannot be had is None.
    """

    def __init__(
        self,
        launcher: Launcher,
        clock: Clock,
        *,
        max_bytes: int = 12_582_912,
        max_pixels: int = 16_777_216,
        deadline_s: float = 5.0,
        idle_s: float = 60.0,
    ) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._rings: dict[str, Ring] = {}
        self._kept: OrderedDict[_Key, Jpeg] = OrderedDict()
        self._making: dict[_Key, asyncio.Task[Jpeg | None]] = {}
        self._encoded = self._shared = self._decoded = 0
        self._camera = PictureProcess(
            launcher, "camera", clock, arguments={}, deadline_s=deadline_s, idle_s=idle_s,
            greet=self._greet, gone=self._unpin,
        )  # fmt: skip
        self._uploads = PictureProcess(
            launcher, "uploads", clock, arguments={"max_bytes": max_bytes, "max_pixels": max_pixels},
            deadline_s=deadline_s, idle_s=idle_s, greet=lambda child: None, gone=lambda: None,
        )  # fmt: skip

    @property
    def stats(self) -> PictureStats:
        """What was done so far."""
        deaths = self._camera.deaths + self._uploads.deaths
        hangs = self._camera.hangs + self._uploads.hangs
        return PictureStats(self._encoded, self._shared, self._decoded, deaths, hangs)

    @property
    def pids(self) -> list[int]:
        """The children that run now."""
        return [pid for pid in (self._camera.pid, self._uploads.pid) if pid is not None]

    def attach(self, name: str, ring: Ring) -> None:
        """Make pictures of this source from now on; a ring given before is forgotten."""
        self._forget(name)
        self._rings[name] = ring
        self._camera.tell({"type": "attach", "source": name}, (ring.fd,))

    def detach(self, name: str) -> None:
        """Make no more pictures of this source."""
        self._forget(name)
        if self._rings.pop(name, None) is not None:
            self._camera.tell({"type": "detach", "source": name})

    async def jpeg(
        self,
        source: str,
        *,
        slot: Place | None = None,
        after_seq: int = -1,
        max_side_px: int,
        quality: int = 80,
        overlay: str | None = None,
    ) -> Jpeg | None:
        """A JPEG of the frame at ``slot`` (slot and generation), or of the newest with ``seq > after_seq``.

        The longer side is at most ``max_side_px``. With ``overlay``, this text is drawn below, and the source's name
        and the frame's age above. None when there is no such frame (any more). Equal requests are served by one.
        """
        ring = self._rings.get(source)
        newest = None if ring is None or slot is not None else ring.newest()
        if ring is None or (slot is None and (newest is None or newest.seq <= after_seq)):
            return None
        which = slot if newest is None else newest.seq
        text = None if overlay is None else one_line(overlay, _MAX_OVERLAY_CHARS)
        key = (source, which, max_side_px, quality, text)
        kept = self._kept.get(key)
        if kept is not None:
            self._shared += 1
            return kept
        message: Message = {
            "type": "jpeg", "source": source, "place": slot, "after_seq": after_seq,
            "side": max_side_px, "quality": quality, "overlay": text,
        }  # fmt: skip
        return await self._once(key, message)

    async def keep_scene(self, source: str, slot: Place) -> bool:
        """Remember the frame at ``slot`` as the scene that `changed` compares with. False: it is gone."""
        answer = await self._camera.ask({"type": "keep", "source": source, "place": slot})
        return answer is not None and answer.get("kept") is True

    async def changed(self, source: str, slot: Place) -> float:
        """How much of the picture differs from the kept scene, 0..1; 1 where that cannot be known.

        `runtime.captiond.pictures.scene` says what is measured.
        """
        answer = await self._camera.ask({"type": "changed", "source": source, "place": slot})
        share = None if answer is None else answer.get("changed")
        return min(1.0, max(0.0, float(share))) if isinstance(share, (int, float)) else 1.0

    async def decode(self, data: bytes) -> SharedImage:
        """Decode a JPEG, PNG or WebP image, its EXIF orientation applied, into memory whose ``fd`` the caller closes.

        Raises ImageError for other formats, damaged images and images over the limits.
        """
        header = read_header(data, max_bytes=self._max_bytes, max_pixels=self._max_pixels)
        made = memory_file("vlm-image")
        try:
            files = (memory_file("vlm-upload", data), os.dup(made))
            answer = await self._uploads.ask({"type": "decode", "bytes": len(data)}, files)
            if answer is None:
                raise ImageError("the image takes too much time or memory to decode", hint="make it smaller")
            image = image_in(made, answer, header.width * header.height)
        except BaseException:
            os.close(made)
            raise
        self._decoded += 1
        return image

    async def frames(
        self, source: str, fps: float, side: int, overlay_text: Callable[[], str | None] | None = None
    ) -> AsyncIterator[Jpeg]:
        """Live pictures, at most ``fps`` per second, each of a newer frame; while there is none, nothing.

        All viewers wake at the same instants, so that those of one source share what is encoded.
        """
        seq = -1
        period_ns = max(1, int(NS_PER_S / fps))
        while True:
            text = None if overlay_text is None else overlay_text() or ""
            jpeg = await self.jpeg(source, after_seq=seq, max_side_px=side, overlay=text)
            if jpeg is not None and jpeg.seq > seq:
                seq = jpeg.seq
                yield jpeg
            elif self._restarted(source, seq):
                seq = -1
            await self._clock.sleep((period_ns - self._clock.now_ns() % period_ns) / NS_PER_S)

    async def close(self) -> None:
        """Stop the children."""
        await self._camera.close()
        await self._uploads.close()
        for task in list(self._making.values()):
            task.cancel()

    def _restarted(self, source: str, seq: int) -> bool:
        ring = self._rings.get(source)
        newest = None if ring is None else ring.newest()
        return newest is not None and newest.seq < seq

    async def _once(self, key: _Key, message: Message) -> Jpeg | None:
        task = self._making.get(key)
        if task is None:
            task = asyncio.ensure_future(self._make(key, message))
            self._making[key] = task
            task.add_done_callback(lambda _: self._making.pop(key, None))
        else:
            self._shared += 1
        return await asyncio.shield(task)

    async def _make(self, key: _Key, message: Message) -> Jpeg | None:
        made = memory_file("vlm-jpeg")
        try:
            answer = await self._camera.ask(message, (os.dup(made),))
            data = None if answer is None else jpeg_in(made, answer)
        finally:
            os.close(made)
        if answer is None or data is None:
            return None
        self._encoded += 1
        jpeg = Jpeg(data, number(answer, "seq"), number(answer, "width"), number(answer, "height"))
        self._keep(key, jpeg)
        return jpeg

    def _keep(self, key: _Key, jpeg: Jpeg) -> None:
        self._kept[key] = jpeg
        while len(self._kept) > _KEPT_JPEGS or sum(len(one.data) for one in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)

    def _forget(self, source: str) -> None:
        for key in [key for key in self._kept if key[0] == source]:
            del self._kept[key]

    def _greet(self, child: Child) -> None:
        for name, ring in self._rings.items():
            child.send({"type": "attach", "source": name}, (ring.fd,))

    def _unpin(self) -> None:
        for ring in self._rings.values():
            ring.unpin_all(READER_PICTURES)
