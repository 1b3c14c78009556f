"""One attempt at one source, in a real child: what comes, in which order and colour, and what it says when it fails."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.captiond.capture import child, confine, ffmpeg, messages, opencv_stream, played
from runtime.captiond.capture.failures import CaptureFailed
from runtime.captiond.capture.plan import Plan
from runtime.captiond.capture.start import arguments_of
from runtime.errors import ImageError
from tests.peers.faulty_camera import FaultyCamera
from tests.peers.rtsp_server import RtspServer
from tests.runtime.captiond.capture.attempts import (
    MJPEG,
    X264,
    X265,
    attempt,
    film,
    launched,
    mean_colour,
    source,
    tried,
)

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2", reason="needs OpenCV: pip install 'jetson-vlm[video]'")

CODECS = {"h264.mp4": X264, "h265.mkv": X265, "mjpeg.avi": MJPEG}
CLOSED_PORT = 1


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    return {name: film(folder / name, codec, shown="color=c=0xE02040") for name, codec in CODECS.items()}


@pytest.mark.parametrize("name", CODECS)
def test_each_frame_of_a_film_comes_once_in_order_and_in_its_colours(films: dict[str, Path], name: str) -> None:
    seen = tried(films[name], every_frame=True, first_seq=100)
    assert [frame[0] for frame in seen.frames] == list(range(100, 120)) == seen.told
    assert seen.said[0] == {"type": "opened", "width": 64, "height": 48, "fps": 30.0, "what": "file"}
    assert (seen.cause, seen.status) == ("ended", 0)
    assert all(
        abs(have - want) <= 6 for have, want in zip(mean_colour(seen.frames[5]), (0xE0, 0x20, 0x40), strict=True)
    )


def test_a_film_plays_at_its_speed_and_begins_again(films: dict[str, Path]) -> None:
    began = time.monotonic()
    seen = tried(films["mjpeg.avi"], loop=True, frames=30)
    assert time.monotonic() - began >= 29 / 30 * 0.9  # 30 frames at 30 fps; slower machines take longer
    assert seen.status == -9 and seen.frames[-1][0] >= 29


def test_pictures_of_a_glob_come_in_order_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    for number, value in enumerate((10, 20, 30, 40)):
        Image.new("RGB", (8, 6), (value, 0, 0)).save(tmp_path / f"p{number}.png")
    (tmp_path / "p1.png").write_bytes((tmp_path / "p1.png").read_bytes()[:40])
    seen = tried(tmp_path / "*.png", every_frame=True)
    assert [mean_colour(frame)[0] for frame in seen.frames] == [10, 30, 40] and seen.cause == "ended"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "damaged"),
        (b"#EXTM3U\nhttp://127.0.0.1/secret\n", "unsupported"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "unsupported"),
        (b"\x1aE\xdf\xa3" + bytes(4096), "damaged"),
        (b"\0\0\0\x18ftypmp42" + b"\xff" * 4096, "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "damaged"),
    ],
    ids=["empty", "playlist", "concat", "mkv", "mp4", "png"],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    seen = tried(path)
    assert (seen.cause, seen.status, seen.frames) == (cause, 5, [])
    assert str(path) in seen.last["message"]


def test_large_films_are_refused_by_their_header(films: dict[str, Path]) -> None:
    seen = tried(films["h264.mp4"], max_pixels=4096 - 1025)
    assert seen.cause == "too_large" and "64x48 px, the limit is 3,071 pixels" in seen.last["message"]


def test_a_film_of_monstrous_frames_ends_the_child_and_not_the_machine(tmp_path: Path) -> None:
    path = film(
        tmp_path / "huge.mkv", ("-c:v", "mpeg4", "-threads", "1"), size="8000x8000", frames=1, shown="color=c=red"
    )
    seen = tried(path, memory_mib=128, max_pixels=134_217_728)
    assert seen.frames == [] and seen.status != 0
    assert seen.cause in ("memory", "damaged", "too_large", "None"), seen.last


class Damaged:
    """Pictures none of which can be decoded."""

    name = "photos"

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        raise ImageError("no picture")


def test_endless_damaged_pictures_end_the_attempt() -> None:
    pictures: Any = Damaged()
    with pytest.raises(CaptureFailed, match="100 pictures in a row cannot be decoded"):
        next(played._readable(pictures))


def test_larger_frames_are_scaled_down(tmp_path: Path) -> None:
    seen = tried(film(tmp_path / "wide.avi", MJPEG, size="320x160", frames=2), max_side_px=80, every_frame=True)
    assert [frame[1:3] for frame in seen.frames] == [(80, 40)] * 2
    assert (seen.said[0]["width"], seen.said[0]["height"]) == (320, 160)


@pytest.mark.parametrize(
    ("uri", "cause"),
    [
        ("/no/such/film.mp4", "missing"),
        ("/no/such/*.jpg", "missing"),
        ("v4l2:///dev/video63", "missing"),
        ("v4l2:///dev/null", "busy"),
        ("gopher://camera/", "unsupported"),
        ("ftp://camera/film.mp4", "unsupported"),
        (f"rtsp://127.0.0.1:{CLOSED_PORT}/live", "refused"),
        ("rtsp://nowhere.invalid/live", "refused"),
        ("synthetic://?fps=0", "damaged"),
    ],
)
def test_what_is_not_there_says_so_at_once(uri: str, cause: str) -> None:
    seen = tried(uri)
    assert (seen.cause, seen.status) == (cause, 5), seen.last


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_real_rtsp_camera_gives_frames_with_opencv(codec: str) -> None:
    with RtspServer(codec=codec, user="us er", password="p:w/@ss%") as camera:

        async def work(launcher: Any) -> list[Any]:
            good = await attempt(launcher, camera.uri, password="p:w/@ss%", user="us er", frames=5, backend="opencv")
            wrong = await attempt(launcher, camera.uri, password="wrong", user="us er", backend="opencv")
            lost = await attempt(launcher, camera.uri + "x", password="p:w/@ss%", user="us er", backend="opencv")
            return [good, wrong, lost]

        good, wrong, lost = launched(work)
    assert len(good.frames) == 5 and good.frames[0][1:3] == (320, 240)
    assert (wrong.cause, lost.cause) == ("401", "404")
    assert "p:w" not in str([wrong.said, lost.said]) and "wrong" not in str(wrong.said)


@pytest.mark.parametrize(
    ("kind", "causes"),
    [
        ("silent", {"timeout"}),
        ("trickle", {"timeout"}),
        ("freeze", {"timeout"}),
        ("401", {"401"}),
        ("404", {"404"}),
        ("reset_handshake", {"failed", "closed"}),
        ("bad_sdp", {"failed"}),
        ("no_video", {"failed", "no_video"}),
        ("huge", {"too_large"}),
        ("large", {"too_large"}),
    ],
)
def test_a_faulty_camera_ends_the_attempt_with_its_cause(kind: str, causes: set[str]) -> None:
    with FaultyCamera() as camera:
        camera.behave(kind)
        seen = tried(camera.uri, open_timeout_s=2.0, backend="opencv")
    assert seen.cause in causes and seen.frames == [] and seen.status == 5, seen.last


def test_a_camera_that_switches_its_size_goes_on() -> None:
    with FaultyCamera() as camera:
        seen = tried(camera.uri, backend="opencv", frames=60, on_frame=lambda child: camera.behave("switch"))
    assert len(seen.frames) == 60 and seen.status == -9 and len(seen.said) == 1
    assert {frame[1:3] for frame in seen.frames} <= {(320, 240), (160, 120)}


class FakeCapture:
    """An OpenCV capture whose decoder hands out a kept frame after a timeout, as FFmpeg's does."""

    def __init__(self, waits_s: list[float]) -> None:
        self.waits_s = waits_s

    def grab(self) -> bool:
        time.sleep(self.waits_s.pop(0))
        return True

    def retrieve(self) -> tuple[bool, Any]:
        return True, np.zeros((4, 4, 3), np.uint8)

    def get(self, what: int) -> float:
        return 0.0


class Counted:
    is_open = True

    def __init__(self) -> None:
        self.delivered = 0

    def deliver(self, picture: Any, **facts: Any) -> None:
        self.delivered += 1


def test_a_kept_frame_after_a_timeout_is_not_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.setattr(opencv_stream, "READ_TIMEOUT_S", 0.2)
    delivery: Any = Counted()
    plan = Plan.of(arguments_of(source("rtsp://camera/live"), None, 0, None))
    with pytest.raises(CaptureFailed, match="no frame for") as failed:
        opencv_stream._deliver(cv2, FakeCapture([0.0, 0.0, 0.25]), plan, delivery)
    assert failed.value.cause == "timeout" and delivery.delivered == 3


@pytest.mark.parametrize(
    ("said", "elapsed_s", "cause"),
    [
        ("[rtsp @ 0x1] method DESCRIBE failed: 401 Unauthorized", 0.1, "401"),
        ("[rtsp @ 0x1] method DESCRIBE failed: 503 Service Unavailable", 0.1, "503"),
        ("method PLAY failed: 454 Session Not Found", 0.1, "no_video"),
        ("[tcp @ 0x1] Connection to tcp://h:1 failed: Connection refused", 0.1, "refused"),
        ("[IMGUTILS @ 0x1] Picture size 70000x70000 is invalid", 0.1, "too_large"),
        ("", 9.9, "timeout"),
        ("", 0.1, "failed"),
    ],
)
def test_the_cause_is_found_in_what_ffmpeg_says(said: str, elapsed_s: float, cause: str) -> None:
    failed = ffmpeg.failure("rtsp://camera/live", said, elapsed_s, 10.0)
    assert failed.cause == cause and failed.message.startswith("rtsp://camera/live: ")


def test_a_library_that_is_missing_is_named_and_is_no_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(confine, "limit_memory", lambda mib: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    arguments = arguments_of(source(str(tmp_path / "film.avi")), None, 0, None)
    with ours, theirs:
        assert child.main(theirs, [], arguments) == 5
        received = messages.receive(ours)
    assert received is not None and received[0]["cause"] == "unsupported"
    assert "pip install opencv-python-headless" in str(received[0]["message"])
