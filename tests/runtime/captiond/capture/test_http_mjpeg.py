"""MJPEG over HTTP: a real server, faulty ones, and limits on everything that a server chooses."""

from __future__ import annotations

import io
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.captiond.capture.failures import CaptureFailed
from runtime.captiond.capture.http_mjpeg import MAX_PART_BYTES
from runtime.captiond.capture.http_stream import Body, get
from runtime.captiond.capture.jpeg import jpeg_size
from runtime.captiond.capture.plan import Plan
from runtime.captiond.capture.start import arguments_of
from tests.peers.mjpeg_server import MjpegServer
from tests.runtime.captiond.capture.attempts import attempt, launched, source, tried

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2", reason="needs OpenCV: pip install 'jetson-vlm[video]'")


def jpeg(width: int = 16, height: int = 8, colour: tuple[int, int, int] = (224, 32, 64), **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "JPEG", quality=95, **options)
    return out.getvalue()


@pytest.fixture
def server() -> Iterator[Callable[[Callable[[bytes], bytes]], str]]:
    """Answers each request with what a function makes of it, in as many pieces as TCP likes, and closes."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(60)
    answers: list[Callable[[bytes], bytes]] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(30)
                request = b""
                while b"\r\n\r\n" not in request:
                    data = connection.recv(65536)
                    if not data:
                        break
                    request += data
                try:
                    connection.sendall(answers[0](request))
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()

    def start(answer: Callable[[bytes], bytes]) -> str:
        answers.append(answer)
        return f"http://127.0.0.1:{listening.getsockname()[1]}/video"

    yield start
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def stream(*parts: bytes, head: bytes = b"multipart/x-mixed-replace; boundary=B", length: bool = True) -> bytes:
    body = b"".join(
        b"--B\r\nContent-Type: image/jpeg\r\n"
        + (b"Content-Length: %d\r\n" % len(part) if length else b"")
        + b"\r\n"
        + part
        + b"\r\n"
        for part in parts
    )
    return b"HTTP/1.1 200 OK\r\nContent-Type: " + head + b"\r\n\r\n" + body + b"--B--\r\n"


def chunked(answer: bytes, sizes: random.Random) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    pieces = []
    while body:
        count = sizes.randrange(1, 400)
        pieces.append(b"%x;note=1\r\n" % len(body[:count]) + body[:count] + b"\r\n")
        body = body[count:]
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(pieces) + b"0\r\n\r\n"


def test_a_real_server_with_a_password_gives_frames() -> None:
    with MjpegServer(user="camera", password="pa:ss") as camera:

        async def work(launcher: Any) -> list[Any]:
            good = await attempt(launcher, camera.uri, password="pa:ss", user="camera", frames=5)
            wrong = await attempt(launcher, camera.uri, password="nope", user="camera")
            return [good, wrong, await attempt(launcher, camera.uri)]

        good, wrong, none = launched(work)
    assert len(good.frames) == 5 and good.frames[0][1:3] == (320, 240)
    assert (wrong.cause, none.cause) == ("401", "401")


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("404", "404"), ("reset", "closed"), ("endless_header", "damaged"), ("huge", "too_large"), ("silent", "timeout")],
)
def test_a_faulty_camera_ends_the_attempt_with_its_cause(kind: str, cause: str) -> None:
    with MjpegServer() as camera:
        camera.behave(kind)
        seen = tried(camera.uri, open_timeout_s=1.0)
    assert seen.cause == cause and seen.status == 5, seen.last


@pytest.mark.parametrize("length", [True, False], ids=["lengths", "boundaries"])
@pytest.mark.parametrize("in_chunks", [True, False], ids=["chunked", "plain"])
def test_all_pictures_come_whole_and_a_damaged_one_is_left_out(server: Any, length: bool, in_chunks: bool) -> None:
    pictures = [jpeg(colour=(value, 0, 0)) for value in (40, 120, 200)]
    answer = stream(pictures[0], pictures[1][:-30], pictures[1], b"no picture", pictures[2], length=length)
    seen = tried(server(lambda _: chunked(answer, random.Random(7)) if in_chunks else answer), every_frame=True)
    reds = [frame[3][0] for frame in seen.frames]
    assert len(reds) == 3 and all(abs(have - want) < 8 for have, want in zip(reds, (40, 120, 200), strict=True))
    assert seen.cause == "closed" and seen.said[0]["width"] == 16


def opened(uri: str, user: str | None = None, password: str | None = None) -> Any:
    return get(Plan.of(arguments_of(source(uri, user=user, open_timeout_s=5.0), password, 0, None)))


def refused(uri: str, **credentials: Any) -> str:
    with pytest.raises(CaptureFailed) as failed:
        opened(uri, **credentials).body.close()
    return failed.value.cause


def redirect(place: str) -> Callable[[bytes], bytes]:
    return lambda request: (
        stream(jpeg())
        if b"GET /there" in request
        else b"HTTP/1.1 302 Found\r\nLocation: " + place.encode() + b"\r\nContent-Length: 0\r\n\r\n"
    )


def test_a_redirect_on_the_same_host_is_followed(server: Any) -> None:
    response = opened(server(redirect("/there")))
    assert response.status == 200
    response.body.close()


@pytest.mark.parametrize("place", ["http://localhost/there", "http://169.254.169.254/", "//10.0.0.1/there", "/around"])
def test_a_redirect_to_another_host_or_without_end_is_not(server: Any, place: str) -> None:
    assert refused(server(redirect(place))) == "redirect"


@pytest.mark.parametrize("place", ["file:///etc/passwd", "gopher://127.0.0.1/", "", "http://127.0.0.1:0/x"])
def test_a_redirect_to_something_else_is_not(server: Any, place: str) -> None:
    assert refused(server(redirect(place))) in ("unsupported", "redirect")


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_status_is_the_cause(server: Any, status: int) -> None:
    assert refused(server(lambda _: b"HTTP/1.1 %d No\r\n\r\n" % status)) == str(status)


def test_a_password_is_only_sent_when_it_is_asked_for(server: Any) -> None:
    requests: list[bytes] = []

    def answer(request: bytes) -> bytes:
        requests.append(request)
        if b"Authorization: Digest" in request:
            return stream(jpeg())
        offers = (b'Basic realm="x"', b'Digest realm="x", nonce="n"')
        return b"HTTP/1.1 401 No\r\n" + b"".join(b"WWW-Authenticate: %s\r\n" % offer for offer in offers) + b"\r\n"

    opened(server(answer), user="u", password="pw").body.close()
    assert len(requests) == 2 and b"Authorization" not in requests[0] and b"pw" not in requests[1]


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000,
        stream(jpeg(), head=b"multipart/x-mixed-replace"),
        stream(jpeg()).replace(b"--B\r\n", b"--C\r\n"),
        stream(jpeg()).replace(b"Content-Length: ", b"Content-Length: 99999999"),
        stream(jpeg()).replace(b"Content-Length: ", b"Content-Length: 9"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: multipart/x; boundary=B\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: multipart/x; boundary=B\r\n\r\nfffffffff\r\n",
    ],
    ids=range(13),
)
def test_what_is_no_mjpeg_stream_ends_the_attempt(server: Any, answer: bytes) -> None:
    seen = tried(server(lambda _: answer), open_timeout_s=2.0)
    assert seen.last["type"] == "failed" and seen.cause != "internal" and len(seen.frames) <= 1, seen.said


@pytest.mark.parametrize(
    "uri", ["http://", "http://h:0/", "http://h:99999/", "http://h/a b", "http://h/\r\nX: y", "ftp://h/", "https:///x"]
)
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    assert refused(uri) == "unsupported"


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 8), (640, 480), (4000, 3)])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_size_of_a_jpeg_is_what_a_decoder_says(width: int, height: int, progressive: bool) -> None:
    data = jpeg(width, height, progressive=progressive)
    assert jpeg_size(data) == (width, height) == Image.open(io.BytesIO(data)).size
    assert jpeg_size(data + b"\r\n\0") == (width, height)
    assert jpeg_size(data[:-3]) is None


@given(data=st.binary(max_size=200), cut=st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_no_bytes_upset_the_reader_of_sizes(data: bytes, cut: int) -> None:
    whole = jpeg()
    for changed in (data, b"\xff\xd8" + data + b"\xff\xd9", whole[:cut] + data + whole[cut:]):
        size = jpeg_size(changed)
        assert size is None or (0 < size[0] < 65536 and 0 < size[1] < 65536)


class Wire:
    """A socket that gives out bytes in pieces."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data, self.sizes = data, sizes

    def settimeout(self, seconds: float) -> None: ...

    def recv(self, most: int) -> bytes:
        count = self.sizes.pop(0) if self.sizes else most
        taken, self.data = self.data[:count], self.data[count:]
        return taken


@given(body=st.binary(max_size=600), sizes=st.lists(st.integers(1, 40), max_size=60), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_a_chunked_body_is_the_same_body_however_it_is_cut(body: bytes, sizes: list[int], seed: int) -> None:
    coded = chunked(b"\r\n\r\n" + body, random.Random(seed)).partition(b"\r\n\r\n")[2]
    wire: Any = Wire(coded, list(sizes))
    reader = Body(wire, "camera")
    reader.unchunk()
    assert reader.exactly(len(body)) == body
    with pytest.raises(CaptureFailed, match="the stream ended"):
        reader.exactly(1)


def test_a_part_without_end_is_given_up_at_the_limit() -> None:
    wire: Any = Wire(bytes(MAX_PART_BYTES + 100_000), [])
    with pytest.raises(CaptureFailed, match="a part of more than") as failed:
        Body(wire, "camera").until(b"--B", MAX_PART_BYTES)
    assert failed.value.cause == "too_large"
