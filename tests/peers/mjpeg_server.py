"""A camera that serves MJPEG over HTTP, as cheap ones do: ``multipart/x-mixed-replace``.

with MjpegServer() as camera:
    open_stream(camera.uri)
    camera.behave("freeze")     # good, silent, 401, 404, freeze, reset, trickle, damaged, endless_header, huge
"""

from __future__ import annotations

import asyncio
import base64
import functools
from pathlib import Path

from tests.peers.clips import clip
from tests.peers.looping import LoopingPeer, reset

KINDS = ("good", "silent", "401", "404", "freeze", "reset", "trickle", "damaged", "endless_header", "huge")
_END = b"\xff\xd9"


@functools.lru_cache(maxsize=8)
def pictures(path: Path) -> tuple[bytes, ...]:
    """The JPEG files of an MJPEG file."""
    return tuple(part + _END for part in path.read_bytes().split(_END) if part)


class MjpegServer(LoopingPeer):
    """Asks for ``user`` and ``password`` (Basic) when they are given."""

    def __init__(self, width: int = 320, height: int = 240, fps: int = 25, user: str = "", password: str = "") -> None:
        super().__init__()
        self.fps = fps
        self.kind = "good"
        self.sent = 0
        self._word = base64.b64encode(f"{user}:{password}".encode()).decode() if user else ""
        self._pictures = pictures(clip("mjpeg", width, height, fps, 2 * fps))

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}/video.mjpg"

    def behave(self, kind: str) -> None:
        """One of KINDS, from now on."""
        assert kind in KINDS, kind
        self.kind = kind

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, and pictures until the client is gone."""
        request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        while self.kind == "silent":
            await asyncio.sleep(0.02)
        if self.kind == "401" or (self._word and f"Basic {self._word}" not in request):
            writer.write(b'HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm="camera"\r\n\r\n')
        elif self.kind == "404":
            writer.write(b"HTTP/1.0 404 Not Found\r\n\r\n")
        else:
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=next\r\n\r\n")
            await self._stream(writer)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        while True:
            while self.kind in ("freeze", "silent"):
                await asyncio.sleep(0.02)
            if self.kind == "reset":
                reset(writer)
                return
            writer.write(self._part())
            self.sent += 1
            await writer.drain()
            await asyncio.sleep(1 if self.kind == "trickle" else 1 / self.fps)

    def _part(self) -> bytes:
        picture = self._pictures[self.sent % len(self._pictures)]
        if self.kind == "trickle":
            return b"-"
        if self.kind == "endless_header":
            return b"X-More: " + 100_000 * b"x"
        if self.kind == "damaged":
            picture = picture[: len(picture) // 3]
        if self.kind == "huge":  # the height and the width in the frame header
            at = picture.index(b"\xff\xc0")
            picture = picture[: at + 5] + b"\xff\xff\xff\xff" + picture[at + 9 :]
        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
        return head.encode() + picture + b"\r\n"
