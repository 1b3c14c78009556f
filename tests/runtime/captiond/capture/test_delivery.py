"""Frames are checked, scaled, put into the ring in RGB, and told without ever waiting for a slow daemon."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runtime.captiond.capture.delivery import Delivery, stamped
from runtime.captiond.capture.failures import CaptureFailed
from runtime.captiond.capture.plan import Plan
from runtime.captiond.capture.ring import READER_MAIN, Ring
from runtime.captiond.capture.start import arguments_of, scheme_of, slot_bytes, without_userinfo
from tests.runtime.captiond.capture.attempts import source

cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install 'jetson-vlm[video]'")


class Place:
    """A delivery, the ring that it fills and the daemon's end of its socket."""

    def __init__(self, **settings: Any) -> None:
        asked = source("/film.mp4", **settings)
        self.daemon, self.child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ring = Ring.create(slot_bytes(asked))
        self.writer = Ring.attach(os.dup(self.ring.fd))
        self.delivery = Delivery(self.child, self.writer, Plan.of(arguments_of(asked, None, 7, None)), cv2)

    def deliver(self, picture: Any, *, bgr: bool = False) -> None:
        self.delivery.deliver(picture, bgr=bgr, t_capture_ns=5, kind="arrival")

    def heard(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.daemon.recv(65536))
        return message


@pytest.fixture
def place() -> Iterator[Any]:
    made: list[Place] = []

    def make(**settings: Any) -> Place:
        made.append(Place(**settings))
        return made[-1]

    yield make
    for each in made:
        each.daemon.close()
        each.child.close()
        each.ring.close()
        each.writer.close()


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("bgr", [False, True])
def test_frames_are_rgb_in_the_ring_numbered_from_where_the_source_was(place: Any, bgr: bool) -> None:
    here, picture = place(), noise(5, 7)
    here.deliver(picture, bgr=bgr)
    here.deliver(picture, bgr=bgr)
    assert [here.heard()["seq"], here.heard()["seq"]] == [7, 8]
    with here.ring.take(READER_MAIN) as pinned:
        assert (pinned.header.width, pinned.header.height, pinned.header.seq) == (7, 5, 8)
        shown = np.frombuffer(pinned.view, np.uint8).reshape(5, 7, 3)
        assert np.array_equal(shown, picture[:, :, ::-1] if bgr else picture)
        del shown


def test_larger_frames_are_scaled_by_area_to_the_longer_side(place: Any) -> None:
    here, picture = place(max_side_px=64), noise(96, 256)
    here.deliver(picture)
    with here.ring.take(READER_MAIN) as pinned:
        shown = np.frombuffer(pinned.view, np.uint8).reshape(24, 64, 3)
        means = picture.reshape(24, 4, 64, 4, 3).mean((1, 3))  # what an area is, computed in another way
        assert np.abs(shown - means).max() <= 1
        del shown


def test_frames_above_the_limit_are_refused_with_both_numbers(place: Any) -> None:
    here = place(max_pixels=4096)
    with pytest.raises(CaptureFailed, match="frames of 100x50 px, the limit is 4,096 pixels") as failed:
        here.deliver(noise(50, 100))
    assert failed.value.cause == "too_large"
    with pytest.raises(CaptureFailed, match="the limit is"):
        here.delivery.opened(100, 50, None, "file")
    assert here.ring.newest() is None and not here.delivery.is_open


def test_a_daemon_that_does_not_read_costs_no_frame(place: Any) -> None:
    here, picture = place(), noise(4, 4)
    for _ in range(3000):  # far more than the socket holds
        here.deliver(picture)
    assert here.delivery.delivered == 3000
    assert here.ring.newest().seq == 7 + 2999
    here.daemon.setblocking(False)
    told = 0
    with pytest.raises(BlockingIOError):
        while here.daemon.recv(65536):
            told += 1
    assert 0 < told < 3000


def test_every_frame_waits_until_the_daemon_asks_for_the_next(place: Any) -> None:
    here, picture = place(every_frame=True), noise(4, 4)
    worker = threading.Thread(target=lambda: [here.deliver(picture) for _ in range(3)])
    worker.start()
    for seq in (7, 8, 9):
        assert here.heard()["seq"] == seq
        assert here.ring.newest().seq == seq
        time.sleep(0.05)
        assert here.ring.newest().seq == seq  # nothing comes before it is wanted
        here.daemon.send(b'{"type":"next"}')
    worker.join(30)
    assert not worker.is_alive()


def test_every_frame_ends_when_the_daemon_is_gone(place: Any) -> None:
    here = place(every_frame=True)
    here.daemon.shutdown(socket.SHUT_RDWR)
    with pytest.raises((CaptureFailed, OSError)):
        here.deliver(noise(4, 4))


def test_the_time_of_the_driver_is_believed_when_it_can_be_true() -> None:
    now = time.monotonic_ns()
    assert stamped(now - 1_000_000) == (now - 1_000_000, "exposure")
    for lie in (0.0, -1.0, now + 10**10, now - 10**10, float("nan"), float("inf")):
        t_ns, kind = stamped(lie)
        assert kind == "arrival" and 0 <= t_ns - now < 60 * 10**9


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("/a/b.mp4", "file"),
        ("photos/*.jpg", "file"),
        ("FILE:///a", "file"),
        ("/dev/video3", "v4l2"),
        ("RTSP://h/x", "rtsp"),
        ("gst:videotestsrc ! appsink", "gst"),
        ("c:/x", "file"),
        ("synthetic://", "synthetic"),
    ],
)
def test_the_scheme_of_a_source(uri: str, scheme: str) -> None:
    assert scheme_of(uri) == scheme


@pytest.mark.parametrize(
    ("uri", "bare", "user", "password"),
    [
        ("rtsp://h/x", "rtsp://h/x", None, None),
        ("rtsp://u:p%40w@h:554/x?a=1", "rtsp://h:554/x?a=1", "u", "p@w"),
        ("http://u@h/", "http://h/", "u", None),
        ("rtsp://u:p@w@h/x", "rtsp://h/x", "u", "p@w"),
        ("/films/a@b:c.mp4", "/films/a@b:c.mp4", None, None),
    ],
)
def test_credentials_are_taken_out_of_a_uri(uri: str, bare: str, user: str | None, password: str | None) -> None:
    assert without_userinfo(uri) == (bare, user, password)
    arguments = arguments_of(source(uri), None, 0, None)
    assert (arguments["uri"], arguments["user"], arguments["password"]) == (bare, user, password)


def test_credentials_of_the_settings_go_before_those_of_the_uri() -> None:
    arguments = arguments_of(source("rtsp://a:b@h/x", user="camera"), "secret", 0, None)
    assert (arguments["user"], arguments["password"]) == ("camera", "secret")
