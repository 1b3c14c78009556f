"""Pictures of a source: the newest frame, a live stream of JPEGs (newest wins), and those of past captions."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

from aiohttp import HttpVersion11, web

from runtime.captiond.clock import NS_PER_S
from runtime.captiond.events import as_json
from runtime.captiond.http.errors import HttpError
from runtime.captiond.http.feed import Framing, framed
from runtime.captiond.http.json_answer import json_answer
from runtime.captiond.http.latest import Latest
from runtime.captiond.http.route import Route
from runtime.captiond.http.services import JpegView, Services, SourceView
from runtime.captiond.http.watchers import Watcher, Watchers

BOUNDARY = b"frame"
MIN_SIDE_PX = 64
MAX_SIDE_PX = 4096
THUMBNAIL_WAIT_S = 2.0
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(eq=False, slots=True)
class Live:
    """A live picture that somebody watches: of one source, drawn one way, encoded once for all who watch it."""

    source: str
    overlay: bool
    viewers: dict[Watcher, Framing] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


class Pictures:
    """GET picture.jpg, live.mjpg, history and history/{caption}.jpg of a source."""

    def __init__(self, services: Services, latest: Latest, watchers: Watchers) -> None:
        self._services, self._latest, self._watchers = services, latest, watchers
        self._live: dict[tuple[str, bool], Live] = {}

    def routes(self) -> list[Route]:
        """Their declarations."""
        path = "/api/sources/{name}/"
        return [
            Route("GET", path + "picture.jpg", self._picture, ("read",)),
            Route("GET", path + "live.mjpg", self._stream, ("read",), stream=True),
            Route("GET", path + "history", self._history, ("read",)),
            Route("GET", path + "history/{caption}.jpg", self._thumbnail, ("read",)),
        ]

    async def _picture(self, request: web.Request) -> web.Response:
        view = self._source(request)
        side = request.query.get("side", str(self._services.server.picture_side_px))
        if _NUMBER.fullmatch(side) is None or not MIN_SIDE_PX <= int(side) <= MAX_SIDE_PX:
            raise HttpError(400, f"side is from {MIN_SIDE_PX} to {MAX_SIDE_PX} px", param="side", code="invalid_value")
        name = view.settings.name
        picture = None
        if view.runner.newest() is not None:
            picture = await self._encode(name, int(side), _flag(request, "overlay"), after_seq=-1)
        if picture is None:
            raise HttpError(
                503, "no signal", kind="service_unavailable_error", code="no_signal", headers={"Retry-After": "1"}
            )
        headers = {"Cache-Control": "no-store", "X-Frame-Seq": str(picture.seq)}
        newest = view.runner.newest()
        if newest is not None and newest.seq == picture.seq:
            headers["X-Frame-Age-Ms"] = f"{age_ms(self._services.clock.now_ns(), newest.t_capture_ns):.0f}"
        return web.Response(body=picture.data, content_type="image/jpeg", headers=headers)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        view, overlay = self._source(request), _flag(request, "overlay")
        framing: Framing = "chunked" if request.version >= HttpVersion11 else "plain"
        with self._watchers.enter(request, "mjpeg") as watcher:
            content_type = f"multipart/x-mixed-replace; boundary={BOUNDARY.decode()}"
            response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-store"})
            if framing == "chunked":
                response.enable_chunked_encoding()
            response.force_close()
            await response.prepare(request)
            await response.write(b"--" + BOUNDARY + b"\r\n")
            watcher.connection.hang_up_hearing()
            live = self._join(view.settings.name, overlay, watcher, framing)
            try:
                await watcher.gone.wait()
            finally:
                self._leave(live, watcher)
        return response

    def _join(self, source: str, overlay: bool, watcher: Watcher, framing: Framing) -> Live:
        live = self._live.setdefault((source, overlay), Live(source, overlay))
        live.viewers[watcher] = framing
        if live.task is None or live.task.done():
            live.task = asyncio.get_running_loop().create_task(self._produce(live))
        return live

    def _leave(self, live: Live, watcher: Watcher) -> None:
        live.viewers.pop(watcher, None)
        if not live.viewers:
            if live.task is not None:
                live.task.cancel()
            if self._live.get((live.source, live.overlay)) is live:
                del self._live[live.source, live.overlay]

    async def _produce(self, live: Live) -> None:
        """Encode the newest frame at most `picture_fps` times a second; who is busy with the last one skips it."""
        seq = -1
        while True:
            settings = self._services.server
            view = self._services.sources.get(live.source)
            picture = None
            if view is not None and view.runner.newest() is not None:
                picture = await self._encode(live.source, settings.picture_side_px, live.overlay, after_seq=seq)
            if picture is not None:
                seq = picture.seq
                self._show(live, picture)
            await self._services.clock.sleep(1.0 / settings.picture_fps)

    def _show(self, live: Live, picture: JpegView) -> None:
        # The boundary follows each picture at once: browsers show a part when they see the next one begin.
        head = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\nX-Frame-Seq: %d\r\n\r\n"
        part = head % (len(picture.data), picture.seq) + picture.data + b"\r\n--" + BOUNDARY + b"\r\n"
        for watcher, framing in live.viewers.items():
            if not watcher.full:
                watcher.write(framed(part, framing))

    async def _encode(self, source: str, side_px: int, overlay: bool, *, after_seq: int) -> JpegView | None:
        caption = self._latest.of(source).caption
        text = ("" if caption is None else caption.text) if overlay else None
        return await self._services.pictures.jpeg(source, after_seq=after_seq, max_side_px=side_px, overlay=text)

    async def _history(self, request: web.Request) -> web.Response:
        view = self._source(request)
        entries = [as_json(entry.finished) | {"picture": entry.jpeg is not None} for entry in view.captioner.history]
        return json_answer({"captions": entries[::-1]})

    async def _thumbnail(self, request: web.Request) -> web.Response:
        """The picture of a caption; of the one being written too, as soon as it is made."""
        view, number = self._source(request), request.match_info["caption"]
        if _NUMBER.fullmatch(number) is None:
            raise HttpError(404, "there is no such caption", code="not_found")
        try:
            data = await asyncio.wait_for(view.captioner.jpeg_of(int(number)), THUMBNAIL_WAIT_S)
        except asyncio.TimeoutError:
            data = None
        if data is None:
            raise HttpError(404, "there is no picture of this caption", code="not_found")
        return web.Response(
            body=data, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600, immutable"}
        )

    def _source(self, request: web.Request) -> SourceView:
        view = self._services.sources.get(request.match_info["name"])
        if view is None:
            raise HttpError(404, "there is no such source", param="name", code="unknown_source")
        return view


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "0") in ("1", "true", "yes")


def age_ms(now_ns: int, t_capture_ns: int) -> float:
    """Milliseconds since a frame was captured."""
    return (now_ns - t_capture_ns) * 1000 / NS_PER_S
