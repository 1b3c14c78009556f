"""GStreamer in the system's Python: real films and cameras, and users' words that stay words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.captiond.capture import gst_pipeline
from runtime.captiond.capture.backend import Backends
from runtime.captiond.capture.pipelines import decoders, device_of, fraction, pipeline_of
from runtime.captiond.capture.start import GST_PYTHON
from runtime.errors import SourceError
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
    need_gstreamer,
    source,
    tried,
)

CODECS = {"h264.mp4": X264, "h265.mkv": X265, "mjpeg.avi": MJPEG}
WIDTH = 66  # rows of 198 bytes: GStreamer pads them to 200


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    need_gstreamer()
    folder = tmp_path_factory.mktemp("films")
    return {
        name: film(folder / name, codec, size=f"{WIDTH}x48", shown="color=c=0xE02040") for name, codec in CODECS.items()
    }


@pytest.mark.parametrize("name", CODECS)
def test_each_frame_of_a_film_comes_once_in_order_and_in_its_colours(films: dict[str, Path], name: str) -> None:
    seen = tried(films[name], every_frame=True, first_seq=5, backend="gstreamer")
    assert [frame[0] for frame in seen.frames] == list(range(5, 25))
    assert (seen.said[0]["width"], seen.said[0]["height"], seen.said[0]["fps"]) == (WIDTH, 48, 30.0)
    assert (seen.cause, seen.status) == ("ended", 0)
    for row in range(48):  # a wrong step between rows would turn the colours
        red, green, blue = mean_colour((0, WIDTH, 1, seen.frames[3][3][row * 3 * WIDTH : (row + 1) * 3 * WIDTH]))
        assert abs(red - 0xE0) <= 6 and abs(green - 0x20) <= 6 and abs(blue - 0x40) <= 6


def test_films_are_scaled_refused_and_repeated_as_asked(films: dict[str, Path]) -> None:
    async def work(launcher: Any) -> list[Any]:
        path = films["h264.mp4"]
        small = await attempt(launcher, path, backend="gstreamer", max_side_px=64, frames=2)
        refused = await attempt(launcher, path, backend="gstreamer", max_pixels=4096 - 1000)
        again = await attempt(launcher, path, backend="gstreamer", loop=True, every_frame=True, frames=45)
        absent = await attempt(launcher, "/no/such/film.mp4", backend="gstreamer")
        return [small, refused, again, absent]

    small, refused, again, absent = launched(work)
    assert small.frames[0][1:3] == (64, 47)
    assert refused.cause == "too_large" and f"{WIDTH}x48 px, the limit is 3,096" in refused.last["message"]
    assert refused.frames == []
    assert [frame[0] for frame in again.frames] == list(range(45))
    assert absent.cause == "missing"


@pytest.mark.parametrize("codec", ["h264", "h265", "mjpeg"])
def test_a_real_rtsp_camera_gives_frames(codec: str) -> None:
    need_gstreamer()
    with RtspServer(codec=codec) as camera:
        seen = tried(camera.uri, backend="gstreamer", frames=5)
    assert len(seen.frames) == 5 and seen.frames[0][1:3] == (320, 240), seen.said


def test_audio_that_is_described_first_is_left_alone() -> None:
    need_gstreamer()
    with FaultyCamera() as camera:
        camera.behave("audio_first")
        seen = tried(camera.uri, backend="gstreamer", frames=5)
    assert len(seen.frames) == 5 and seen.frames[0][1:3] == (320, 240), seen.said


def test_credentials_are_properties_and_failures_have_their_causes() -> None:
    need_gstreamer()
    with RtspServer(user="us er", password='p"w ! fakesink') as camera:

        async def work(launcher: Any) -> list[Any]:
            password = 'p"w ! fakesink'
            good = await attempt(launcher, camera.uri, password=password, user="us er", backend="gstreamer", frames=3)
            wrong = await attempt(launcher, camera.uri, password="wr0ng", user="us er", backend="gstreamer")
            lost = await attempt(launcher, camera.uri + "x", password=password, user="us er", backend="gstreamer")
            refused = await attempt(launcher, "rtsp://127.0.0.1:1/live", backend="gstreamer")
            return [good, wrong, lost, refused]

        good, wrong, lost, refused = launched(work)
    assert len(good.frames) == 3, good.said
    assert [seen.cause for seen in (wrong, lost, refused)] == ["401", "404", "refused"]
    assert "wr0ng" not in str(wrong.said)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("silent", "timeout"), ("no_video", "no_video"), ("unknown_codec", "unsupported"), ("huge", "too_large")],
)
def test_a_faulty_camera_ends_the_attempt_with_its_cause(kind: str, cause: str) -> None:
    need_gstreamer()
    with FaultyCamera() as camera:
        camera.behave(kind)
        seen = tried(camera.uri, backend="gstreamer", open_timeout_s=2.0)
    assert seen.cause == cause and seen.frames == [] and seen.status == 5, seen.last


@pytest.mark.parametrize(
    "pipeline",
    [
        "videotestsrc pattern=red num-buffers=20 ! video/x-raw,width=66,height=48",
        "videotestsrc pattern=red num-buffers=20 ! video/x-raw,width=66,height=48 ! videoconvert ! appsink name=sink",
    ],
)
def test_a_pipeline_of_the_configuration_runs(pipeline: str) -> None:
    need_gstreamer()
    seen = tried(f"gst: {pipeline}", every_frame=True)
    assert len(seen.frames) == 20 and seen.cause == "ended"
    assert mean_colour(seen.frames[0])[0] > 250 and mean_colour(seen.frames[0])[1] < 5


@pytest.mark.parametrize("pipeline", ["nosuchelement ! appsink name=sink", "videotestsrc !", "fakesrc name=sink", ""])
def test_a_pipeline_that_cannot_be_made_says_so(pipeline: str) -> None:
    need_gstreamer()
    seen = tried(f"gst:{pipeline}", open_timeout_s=2.0)
    assert seen.cause in ("unsupported", "failed", "timeout") and seen.frames == []


# What a user, a page or a camera might put into a location, so that it ends a string, begins an element, opens another
# protocol or another file.
INJECTIONS = (
    'rtsp://127.0.0.1:1/" ! filesink location="{mark}',
    "rtsp://127.0.0.1:1/' ! filesink location='{mark}",
    "rtsp://127.0.0.1:1/x ! videotestsrc num-buffers=5 ! filesink location={mark}",
    "rtsp://127.0.0.1:1/x\nvideotestsrc num-buffers=5 ! filesink location={mark}",
    "rtsp://127.0.0.1:1/x\r\nHost: other",
    "rtsp://127.0.0.1:1/x location={mark}",
    'rtsp://127.0.0.1:1/x" protocols="http',
    "rtsp://127.0.0.1:1/$(touch {mark})",
    "rtsp://127.0.0.1:1/`touch {mark}`",
    "rtsp://127.0.0.1:1/x;touch {mark}",
    "rtsp://127.0.0.1:1/x|touch {mark}",
    "rtsp://127.0.0.1:1/x&&touch {mark}",
    "rtsp://127.0.0.1:1/%22%20!%20filesink%20location={mark}",
    "rtsp://file:{secret}",
    "rtsp://[::1]:1/x?tcp&listen",
    "rtsp://concat:{secret}|{secret}",
    "concat:{secret}|{secret}",
    "subfile,,start,0,end,10,,:{secret}",
    "file:{secret}|{secret}",
    "pipe:0",
    "data:video/x-matroska;base64,AAAA",
    "cache:file:{secret}",
    "crypto:{secret}",
    "tee:{mark}",
    "lavfi:color=red",
    "image2:{secret}",
    "movie={secret}",
    "{secret} ! filesink location={mark}",
    '{secret}" ! filesink location="{mark}',
    "{secret}\\ ! filesink location={mark}",
    "{secret}\x01",
    "{secret}%00.mp4",
)


@pytest.mark.parametrize("backend", ["opencv", "gstreamer"])
def test_no_location_runs_an_element_a_protocol_or_a_command(tmp_path: Path, backend: str) -> None:
    need_gstreamer()
    mark, secret = tmp_path / "mark", tmp_path / "secret.mp4"
    secret.write_bytes(film(tmp_path / "film.mkv", MJPEG, frames=3).read_bytes())

    async def work(launcher: Any) -> dict[str, Any]:
        found = {}
        for text in INJECTIONS:
            uri = text.format(mark=mark, secret=secret)
            found[uri] = await attempt(launcher, uri, backend=backend, open_timeout_s=1.0)
        return found

    found = launched(work)
    assert len(found) >= 30
    for uri, seen in found.items():
        assert not seen.frames and seen.last.get("type") == "failed", (uri, seen.said)
        assert seen.cause != "internal", (uri, seen.said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mkv", "secret.mp4"]


def test_a_location_stands_as_the_value_of_a_property() -> None:
    for text in INJECTIONS[:13]:
        pipeline: Any = pipeline_of(source(text))
        assert pipeline["elements"][0]["set"]["location"].replace("\n", "").startswith("rtsp://127.0.0.1:1/")
        assert len(pipeline["elements"]) == 1 and "launch" not in pipeline


def test_hardware_decoders_are_tried_before_software() -> None:
    for codec in ("H264", "H265", "JPEG"):
        made = [[element.get("make") for element in chain] for chain in decoders(codec)]
        assert "nvv4l2decoder" in made[0] and "nvvidconv" in made[0]
        assert all("nvv4l2decoder" not in chain for chain in made[1:]) and len(made) >= 2
        assert all("identity" in chain and chain.index("identity") < len(chain) - 2 for chain in made)
    assert decoders("THEORA") == []
    assert "enable-max-performance" not in str([decoders(codec) for codec in ("H264", "H265", "JPEG")])


def test_the_pipeline_of_a_camera_asks_for_what_the_settings_say() -> None:
    asked: Any = pipeline_of(source("/dev/video2", width=1280, height=720, fps=29.97))
    assert asked["elements"][0]["set"]["device"] == "/dev/video2" and asked["stamps"] == "exposure"
    wanted = asked["elements"][1]["caps"]
    assert wanted.startswith("image/jpeg,width=1280,height=720,framerate=30000/1001;video/x-raw,width=1280")
    secure: Any = pipeline_of(source("rtsps://u:p@camera/live", transport="tcp"))
    assert secure["elements"][0]["set"]["protocols"] == "tls"
    assert secure["elements"][0]["set"]["location"] == "rtsps://camera/live"


@pytest.mark.parametrize(
    ("uri", "device"),
    [("v4l2:///dev/video0", "/dev/video0"), ("v4l2://1", "/dev/video1"), ("/dev/video7", "/dev/video7")],
)
def test_devices_of_cameras(uri: str, device: str) -> None:
    assert device_of(uri) == device


@pytest.mark.parametrize("uri", ["v4l2:///etc/passwd", "v4l2:///dev/../etc/passwd", "v4l2://"])
def test_what_is_no_device_is_refused(uri: str) -> None:
    with pytest.raises(SourceError, match="not a camera device"):
        device_of(uri)


@pytest.mark.parametrize(
    ("fps", "text"), [(30.0, "30/1"), (29.97, "30000/1001"), (59.94, "60000/1001"), (7.5, "15/2"), (14.3, "14300/1000")]
)
def test_frame_rates_as_fractions(fps: float, text: str) -> None:
    assert fraction(fps) == text


async def choose(uri: str, python: str = GST_PYTHON, **settings: Any) -> Any:
    return await Backends(python).choose(source(uri, **settings))


@pytest.mark.parametrize(
    ("uri", "settings", "words"),
    [
        ("csi://0", {}, "CSI cameras"),
        ("csi://0", {"backend": "opencv"}, "needs GStreamer"),
        ("gst:videotestsrc", {"backend": "opencv"}, "needs GStreamer"),
        ("http://camera/", {"backend": "gstreamer"}, "not opened with GStreamer"),
        ("synthetic://", {"backend": "gstreamer"}, "not opened with GStreamer"),
    ],
)
def test_a_backend_that_cannot_open_a_source_is_refused(uri: str, settings: dict[str, str], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        launched(lambda _: choose(uri, **settings))


def test_opencv_is_the_choice_on_a_pc_and_gstreamer_where_it_is_asked_for() -> None:
    assert launched(lambda _: choose("rtsp://camera/live")) is None
    with pytest.raises(SourceError, match="apt-get install"):
        launched(lambda _: choose("rtsp://camera/live", "/no/such/python3", backend="gstreamer"))
    with pytest.raises(SourceError, match="GStreamer does not work with /bin/false"):
        launched(lambda _: choose("gst:videotestsrc", "/bin/false"))


class Said:
    """An error of the bus."""

    def __init__(self, domain: str, code: int, message: str) -> None:
        self.domain, self.code, self.message = f"gst-{domain}-error-quark", code, message


@pytest.mark.parametrize(
    ("said", "details", "cause"),
    [
        (Said("resource", 3, "Resource not found."), 'gstfilesrc.c(553): start ():\nNo such file "/x"', "missing"),
        (Said("resource", 9, "Could not read."), "gstrtspsrc.c(404): send ():\nGot error response: 403 (403)", "403"),
        (Said("resource", 15, "Unauthorized"), None, "401"),
        (Said("resource", 7, "Could not open resource."), "a.c(1): b ():\nFailed to connect. (Timeout)", "refused"),
        (Said("stream", 6, "No decoder."), None, "unsupported"),
        (Said("core", 12, "Missing."), None, "unsupported"),
        (Said("library", 1, "Something else."), None, "failed"),
    ],
)
def test_an_error_of_the_bus_has_its_cause(said: Any, details: str | None, cause: str) -> None:
    assert gst_pipeline._failure_of(said, details).cause == cause
