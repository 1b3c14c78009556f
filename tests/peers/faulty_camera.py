"""An RTSP camera whose every step can go wrong: real H.264 over RTP over TCP, packetised here.

    with FaultyCamera() as camera:
        open_stream(camera.uri)
        camera.behave("freeze")            # any of KINDS; "good" again afterwards

Behaviour changes for streams that run and for connections to come. `refuse`, `accept` and `reset_all` are those of
`LoopingPeer`.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import Iterator

from tests.peers import rtp
from tests.peers.clips import clip
from tests.peers.looping import LoopingPeer, reset

KINDS = {
    "good": "frames at the usual rate",
    "silent": "accepts and never answers",
    "401": "wants credentials",
    "404": "knows no such stream",
    "reset_handshake": "RST at SETUP",
    "reset": "RST in the middle of the stream",
    "bad_sdp": "a description that is none",
    "audio_first": "a silent audio track is described before the video",
    "no_video": "describes audio alone",
    "unknown_codec": "describes a codec that nobody knows",
    "mid_gop": "begins between two key pictures, and describes no parameter sets",
    "freeze": "the stream stops, the connection stays",
    "trickle": "one byte per second",
    "bit_flips": "one in a hundred bytes of the pictures has a bit flipped",
    "truncated": "every other NAL unit is cut in half",
    "switch": "pictures of another size, with their parameter sets",
    "pts_jump": "timestamps an hour ahead, then over their wrap",
    "huge": "parameter sets of pictures of 16384x16384, which FFmpeg refuses",
    "large": "parameter sets of pictures of 8192x8192, which FFmpeg takes",
    "burst": "300 frames per second",
    "identical": "the same key picture again and again",
}
_PATH = "/live"
_AUDIO = "m=audio 0 RTP/AVP 0\r\na=control:audio\r\n"
_SSRC = 0x1234_5678
_HOUR_TICKS = 90_000 * 3600


class FaultyCamera(LoopingPeer):
    """Serves any number of clients; each gets a stream of its own from the clip."""

    def __init__(self, width: int = 320, height: int = 240, fps: int = 25, gop: int = 25, seed: int = 1) -> None:
        super().__init__()
        self.fps = fps
        self.kind = "good"
        self.sent = 0
        self.described = 0
        self._rng = random.Random(seed)
        self._units = rtp.access_units(clip("h264", width, height, fps, 2 * fps, gop))
        self._other = {
            "switch": rtp.access_units(clip("h264", width // 2, height // 2, fps, 2 * fps, gop)),
            "huge": rtp.with_sps(self._units, rtp.sequence_parameters(16_384, 16_384)),
            "large": rtp.with_sps(self._units, rtp.sequence_parameters(8192, 8192)),
        }

    @property
    def uri(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}{_PATH}"

    def behave(self, kind: str) -> None:
        """One of KINDS, from now on."""
        assert kind in KINDS, kind
        self.kind = kind

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests; a stream runs beside them once PLAY was asked for."""
        stream: asyncio.Task[None] | None = None
        channels: dict[str, int] = {}
        try:
            while request := await _request(reader):
                while self.kind == "silent":
                    await asyncio.sleep(0.02)
                method, headers = request
                if self.kind == "reset_handshake" and method == "SETUP":
                    reset(writer)
                    return
                track = "audio" if headers["uri"].endswith("audio") else "video"
                if method == "SETUP":
                    channels[track] = _channel(headers.get("transport", ""))
                await self._send(writer, self._answer(method, headers, track))
                if method == "PLAY" and stream is None:
                    stream = asyncio.ensure_future(self._stream(writer, channels))
                if method == "TEARDOWN":
                    return
        finally:
            if stream is not None:
                stream.cancel()
                await asyncio.gather(stream, return_exceptions=True)

    def _answer(self, method: str, headers: dict[str, str], track: str) -> bytes:
        status, extra, body = "200 OK", "", ""
        if self.kind == "401":
            status, extra = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
        elif self.kind == "404" and method == "DESCRIBE":
            status = "404 Not Found"
        elif method == "DESCRIBE":
            self.described += 1
            body = self._description()
            extra = f"Content-Base: rtsp://127.0.0.1:{self.port}{_PATH}/\r\nContent-Type: application/sdp\r\n"
        elif method == "SETUP":
            extra = f"Transport: {headers.get('transport', '')}\r\nSession: 4711;timeout=60\r\n"
        elif method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n"
        else:
            extra = "Session: 4711\r\n"
        head = f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq', '0')}\r\n{extra}"
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode() if body else f"{head}\r\n".encode()

    def _description(self) -> str:
        if self.kind == "bad_sdp":
            return "\x00\x01 this is no description m=video \xff" * 20
        head = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
        codec = "X-NOBODY-KNOWS/90000" if self.kind == "unknown_codec" else "H264/90000"
        video = f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 {codec}\r\na=control:video\r\n"
        if self.kind not in ("mid_gop", "unknown_codec"):
            units = self._units if self.kind == "switch" else self._other.get(self.kind, self._units)
            video += f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={rtp.parameter_sets(units)}\r\n"
        if self.kind == "no_video":
            return head + _AUDIO
        return head + (_AUDIO + video if self.kind == "audio_first" else video)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """All at once, or byte by byte while the camera trickles."""
        for at in range(len(data)):
            if self.kind != "trickle":
                writer.write(data[at:])
                break
            writer.write(data[at : at + 1])
            await asyncio.sleep(1)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, channels: dict[str, int]) -> None:
        """Pictures at their rate, and silence where audio was asked for, until the connection ends."""
        pictures = self._pictures()
        sequence, ticks = self._rng.randrange(65_536), self._rng.randrange(2**31)
        jumped = False
        due_s = time.monotonic()
        while True:
            while self.kind in ("freeze", "silent"):
                await asyncio.sleep(0.02)
                due_s = time.monotonic()
            if self.kind == "reset":
                reset(writer)
                return
            if self.kind == "pts_jump" and not jumped:
                ticks += _HOUR_TICKS if ticks < 2**31 else 2**32 - ticks % 2**32 - 90_000  # the wrap is a second away
            jumped = self.kind == "pts_jump"
            if "audio" in channels:
                silence = rtp.silence(self.sent, 8000 // self.fps, _SSRC + 1)
                await self._send(writer, b"$" + struct.pack(">BH", channels["audio"], len(silence)) + silence)
            for packet in rtp.packets(next(pictures), sequence, ticks, _SSRC) if "video" in channels else ():
                sequence += 1
                await self._send(writer, b"$" + struct.pack(">BH", channels["video"], len(packet)) + packet)
            self.sent += 1
            fps = 300 if self.kind == "burst" else self.fps
            ticks += 90_000 // fps
            due_s = max(due_s + 1 / fps, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    def _pictures(self) -> Iterator[rtp.AccessUnit]:
        """The clip again and again, as the camera behaves at each picture."""
        number = len(self._units) // 4 + 1 if self.kind == "mid_gop" else 0
        while True:
            kind = self.kind
            units = self._other.get(kind, self._units)
            unit = units[0 if kind == "identical" else number % len(units)]
            if kind in ("bit_flips", "truncated"):
                unit = tuple(self._damaged(nal, kind, at) for at, nal in enumerate(unit))
            yield unit
            number += 1

    def _damaged(self, nal: bytes, kind: str, at: int) -> bytes:
        if kind == "truncated":
            return nal if at % 2 and self._rng.random() < 0.5 else nal[: max(2, len(nal) // 2)]
        changed = bytearray(nal)
        for place in range(1, len(changed)):
            if self._rng.random() < 0.01:
                changed[place] ^= 1 << self._rng.randrange(8)
        return bytes(changed)


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    """The next request, past RTCP packets of the client; None at the end."""
    line = b""
    while not line.strip():
        first = await reader.read(1)
        if not first:
            return None
        if first == b"$":
            await reader.readexactly(struct.unpack(">xH", await reader.readexactly(3))[0])
            continue
        line = first + await reader.readline()
    method, _, rest = line.decode("latin-1").partition(" ")
    headers = {"uri": rest.rpartition(" ")[0]}
    while (line := await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return method, headers


def _channel(transport: str) -> int:
    """The first of the channels that a client wants its packets on."""
    _, _, rest = transport.partition("interleaved=")
    return int(rest.partition("-")[0] or 0) if rest else 0
