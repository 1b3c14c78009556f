"""The probe tells why a camera says no, hangs on nothing, reads no more than it needs, and never shows a password."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.captiond.capture.probe import MissingDeviceError, SourceProbe, UnreachableError
from runtime.captiond.config.settings import SourceSettings
from runtime.errors import NetworkError, SourceError
from tests.peers.faulty_camera import FaultyCamera
from tests.peers.mjpeg_server import MjpegServer
from tests.peers.rtsp_server import RtspServer

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def cause_of(uri: str, password: str | None = None, timeout_s: float = 20.0, **more: Any) -> str:
    """The cause of the refusal; empty when there is none. Its message must not betray the password."""
    source = SourceSettings(name="door", uri=uri, **more)
    try:
        await SourceProbe()(source, password, timeout_s)
    except (UnreachableError, MissingDeviceError) as problem:
        assert isinstance(problem, (NetworkError, SourceError))
        assert "secret" not in str(problem)
        return problem.cause
    return ""


async def settled_cause_of(uri: str, password: str | None = None, **more: Any) -> str:
    """The same, once GStreamer's server has put away what it had made for the question before (503 until then)."""
    while (cause := await cause_of(uri, password, **more)) == "503":
        await asyncio.sleep(0.05)
    return cause


@contextlib.asynccontextmanager
async def answering(serve: Serve, scheme: str = "rtsp") -> Any:
    """A server that does ``serve`` with each connection; gives the URI."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/live"
    finally:
        server.close()
        await asyncio.sleep(0)


def saying(data: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    return serve


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def test_a_real_rtsp_server_is_told_from_a_locked_and_an_empty_one() -> None:
    with RtspServer(user="me", password="secret", fps=12) as server:

        async def main() -> None:
            assert await settled_cause_of(server.uri) == "401"
            assert await settled_cause_of(server.uri, "wrong secret", user="me") == "401"
            assert await settled_cause_of(server.uri, "secret", user="me") == ""
            assert await settled_cause_of(server.uri.replace("//", "//me:secret@")) == ""
            assert await settled_cause_of(server.uri + "/nothing", "secret", user="me") == "404"
            server.restart(digest=False)
            assert await settled_cause_of(server.uri, "wrong secret", user="me") == "401"
            assert await settled_cause_of(server.uri, "secret", user="me") == ""
            server.restart(no_video=True)
            assert await settled_cause_of(server.uri, "secret", user="me") == "no_video"
            server.kill()
            assert await settled_cause_of(server.uri, "secret", user="me") == "refused"

        asyncio.run(main())


def test_a_camera_that_goes_wrong_is_named() -> None:
    with FaultyCamera(160, 120, fps=12) as camera:

        async def main() -> None:
            for kind, cause in {
                "good": "",
                "401": "401",
                "404": "404",
                "no_video": "no_video",
                "audio_first": "",
                "mid_gop": "",
                "bad_sdp": "damaged",
                "unknown_codec": "unsupported",
            }.items():
                camera.behave(kind)
                assert await cause_of(camera.uri) == cause
            for kind in ("silent", "trickle"):
                camera.behave(kind)
                assert await cause_of(camera.uri, timeout_s=0.2) == "timeout"

        asyncio.run(main())


def test_an_http_camera_is_asked_with_its_password() -> None:
    with MjpegServer(160, 120, user="me", password="secret") as camera:

        async def main() -> None:
            assert await cause_of(camera.uri) == "401"
            assert await cause_of(camera.uri, "wrong secret", user="me") == "401"
            assert await cause_of(camera.uri, "secret", user="me") == ""
            assert await cause_of(camera.uri.replace("//", "//me:secret@")) == ""
            camera.behave("404")
            assert await cause_of(camera.uri, "secret", user="me") == "404"

        asyncio.run(main())


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "reset"),
        (b"RTSP/1.0 200", "garbage"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "garbage"),
        (b"\x00" * 100_000, "garbage"),
        (b"RTSP/1.0 200 OK\r\n" + b"A: b\r\n" * 100_000, "garbage"),
        (b"RTSP/1.0 200 OK\r\nA: " + b"b" * 100_000, "garbage"),
        (b"RTSP/1.0 200 OK\r\nA: b\r\n", "reset"),
        (b"RTSP/1.0 503 \xff\xfe\r\n\r\n", "503"),
        (b"HTTP/1.1 403 No\r\n\r\n", "403"),
        (b"RTSP/1.0 401 No\r\nWWW-Authenticate: Digest\r\nWWW-Authenticate: \xff\r\n\r\n", "401"),
        (b"RTSP/1.0 302 Found\r\nLocation: rtsp://elsewhere\r\n\r\n", ""),
    ],
)
def test_whatever_a_server_says_has_a_name(scheme: str, data: bytes, cause: str) -> None:
    async def main() -> None:
        async with answering(saying(data), scheme) as uri:
            assert await cause_of(uri, "secret", user="me") == cause

    asyncio.run(main())


@pytest.mark.parametrize("length", [b"99999999999999999999", b"-1", b"x", b"65536000"])
def test_a_body_is_not_read_beyond_its_limit(length: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"RTSP/1.0 200 OK\r\nContent-Length: " + length + b"\r\n\r\nv=0\nm=video" + b"\n" * 65_536)
        await reader.read()  # and nothing more is sent: whoever waits for the rest waits in vain

    async def main() -> None:
        async with answering(serve) as uri:
            assert await cause_of(uri, timeout_s=20) == ("" if length.isdigit() else "damaged")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ("m=video 0 RTP/AVP 96|a=fmtp:96 sprop-vps=QAEM/AAA;a/b|a=rtpmap:96 H265/90000", ""),
        ("m=audio 0 RTP/AVP 8|a=rtpmap:8 NOPE/8000|m=video 0 RTP/AVP 26", ""),
        ("m=video 0 RTP/AVP 96|a=rtpmap:97 NOPE/90000|a=rtpmap:96 h264/90000", ""),
        ("m=video 0 RTP/AVP 96|a=rtpmap:96 H264/90000|m=application 0 RTP/AVP 96|a=rtpmap:96 vnd.onvif/1", ""),
        ("m=video 0 RTP/AVP 96|a=rtpmap:96 NOPE/90000", "unsupported"),
        ("m=video", ""),
        ("m=audio 0 RTP/AVP 8|a=rtpmap:8 PCMA/8000", "no_video"),
    ],
)
def test_a_description_is_read_as_far_as_the_codec_of_its_video(lines: str, cause: str) -> None:
    body = ("v=0|" + lines).replace("|", "\r\n").encode()

    async def main() -> None:
        async with answering(saying(b"RTSP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))) as uri:
            assert await cause_of(uri) == cause

    asyncio.run(main())


def test_a_silent_server_costs_the_timeout_and_no_task() -> None:
    async def main() -> None:
        async with answering(_silent) as uri:
            assert await cause_of(uri, timeout_s=0.1) == "timeout"
            await asyncio.sleep(0)
            assert len(asyncio.all_tasks()) <= 2, "this one, and the server's"

    asyncio.run(main())


def test_tls_ports_are_only_tried() -> None:
    async def main() -> None:
        async with answering(_silent, "rtsps") as uri:
            assert await cause_of(uri) == ""

    asyncio.run(main())


@pytest.mark.parametrize("uri", ["rtsp://127.0.0.1:1/a\nb", "rtsp://127.0.0.1:99999/", "rtsp:///a", "http://[::1/"])
def test_a_uri_that_is_none_has_a_name_too(uri: str) -> None:
    async def main() -> None:
        assert await cause_of(uri, timeout_s=5)

    asyncio.run(main())


def test_a_name_that_is_not_found_is_looked_up_once_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        asked: list[str] = []
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def lookup(host: str, port: int, **_: object) -> Any:
            asked.append(host)
            return await answer

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        probe = SourceProbe()
        for _ in range(3):
            with pytest.raises(UnreachableError, match="does not answer"):
                await probe(SourceSettings(name="door", uri="rtsp://camera.local/1"), None, 0.02)
        assert asked == ["camera.local"]
        answer.set_result([])
        with pytest.raises(UnreachableError, match="refuses"):
            await probe(SourceSettings(name="door", uri="rtsp://camera.local/1"), None, 5)

    asyncio.run(main())


def test_a_device_must_be_there_and_may_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        device = tmp_path / "video 0"
        uri = f"v4l2://{tmp_path}/video%200"
        assert await cause_of(uri) == "missing"
        device.touch()
        assert await cause_of(uri) == ""
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert await cause_of(uri) == "denied"

    asyncio.run(main())


@pytest.mark.parametrize("uri", ["film.mp4", "file:///film.mp4", "synthetic://?fps=2", "csi://0", "gst:videotestsrc"])
def test_what_has_no_door_to_knock_at_is_left_to_its_capture_process(uri: str) -> None:
    assert asyncio.run(cause_of(uri)) == ""


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"RTSP/1.0 200 OK\r\n", b"RTSP/1.0 401 No\r\nWWW-Authenticate: "])
)
def test_no_answer_makes_it_fail_otherwise(data: bytes, head: bytes) -> None:
    async def main() -> None:
        async with answering(saying(head + data)) as uri:
            await cause_of(uri, "secret", user="me")

    asyncio.run(main())
