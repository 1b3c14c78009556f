"""The peers are what they say: strangers to this project read their good mode, and see their faults."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import time

import pytest

from tests.peers import rtp
from tests.peers.clips import clip, need, number_of
from tests.peers.faulty_camera import FaultyCamera
from tests.peers.mjpeg_server import MjpegServer
from tests.peers.proxy import Fault, FaultProxy
from tests.peers.rtsp_server import RtspServer

_SECONDS = 30


def probed(uri: str, *options: str) -> list[tuple[str, int | None, int | None]]:
    """Codec, width and height of each stream, as ffprobe sees them."""
    command = [need("ffprobe", "ffmpeg"), "-v", "error", "-of", "json", "-show_streams", *options, uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    streams = json.loads(done.stdout or "{}").get("streams", [])
    return [(stream["codec_name"], stream.get("width"), stream.get("height")) for stream in streams]


def pictures(uri: str, count: int, width: int = 320, height: int = 240) -> list[bytes]:
    """The first pictures of a stream as RGB, decoded by ffmpeg."""
    command = [need("ffmpeg", "ffmpeg"), "-nostdin", "-loglevel", "error", *_tcp(uri), "-i", uri, "-an"]
    command += ["-frames:v", str(count), "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    size = 3 * width * height
    return [done.stdout[at : at + size] for at in range(0, len(done.stdout), size)]


def _tcp(uri: str) -> list[str]:
    return ["-rtsp_transport", "tcp"] if uri.startswith("rtsp") else []


@pytest.mark.parametrize(("codec", "name"), [("h264", "h264"), ("h265", "hevc"), ("mjpeg", "mjpeg")])
def test_the_rtsp_server_serves_numbered_pictures(codec: str, name: str) -> None:
    with RtspServer(codec) as server:
        assert probed(server.uri, *_tcp(server.uri)) == [(name, 320, 240)]
        numbers = [number_of(picture, 320) for picture in pictures(server.uri, 10)]
    assert len(numbers) == 10
    assert all(sooner < later for sooner, later in itertools.pairwise(numbers)), numbers
    assert 0 < numbers[-1] - numbers[0] < 30


def test_the_rtsp_server_can_have_audio_first_no_video_and_a_login() -> None:
    with RtspServer(audio_first=True) as server:
        assert [stream[0] for stream in probed(server.uri)] == ["pcm_alaw", "h264"]
        server.restart(audio_first=False, no_video=True)
        assert [stream[0] for stream in probed(server.uri)] == ["pcm_alaw"]
        server.restart(no_video=False, user="me", password="secret")
        assert probed(server.uri) == []
        assert probed(server.uri.replace("//", "//me:secret@")) == [("h264", 320, 240)]
        server.say("open")
        assert probed(server.uri) == [("h264", 320, 240)]
        server.say("unmount")
        assert probed(server.uri) == []
        server.say("mount")
        assert probed(server.uri) == [("h264", 320, 240)]


def test_the_faulty_camera_is_a_good_one_first() -> None:
    with FaultyCamera() as camera:
        assert probed(camera.uri, *_tcp(camera.uri)) == [("h264", 320, 240)]
        assert len(set(pictures(camera.uri, 10))) == 10
        camera.behave("audio_first")
        assert [stream[0] for stream in probed(camera.uri, *_tcp(camera.uri))] == ["pcm_mulaw", "h264"]
        camera.behave("mid_gop")
        assert len(pictures(camera.uri, 5)) == 5
        camera.behave("no_video")
        assert pictures(camera.uri, 1) == []


@pytest.mark.parametrize(("side", "seen"), [(640, b"width=640"), (8192, b"width=8192"), (16_384, b"16384x16384")])
def test_a_made_up_sps_says_the_size_that_it_was_made_for(side: int, seen: bytes) -> None:
    units = rtp.with_sps(rtp.access_units(clip("h264")), rtp.sequence_parameters(side, side))
    stream = b"".join(b"\0\0\0\1" + nal for nal in units[0])
    command = [need("ffprobe", "ffmpeg"), "-v", "error", "-f", "h264", "-show_entries", "stream=width,height", "-"]
    done = subprocess.run(command, input=stream, capture_output=True, timeout=_SECONDS, check=False)
    assert seen in done.stdout + done.stderr


def test_the_mjpeg_server_serves_pictures_to_those_who_may() -> None:
    with MjpegServer(user="me", password="secret") as camera:
        assert probed(camera.uri, "-f", "mpjpeg") == []
        good = camera.uri.replace("//", "//me:secret@")
        assert probed(good) == [("mjpeg", 320, 240)]
        assert len(set(pictures(good, 5))) == 5


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)


def _ask(client: socket.socket) -> None:
    client.sendall(b"OPTIONS rtsp://camera/live RTSP/1.0\r\nCSeq: 1\r\n\r\n")


def test_the_proxy_passes_and_then_does_what_networks_do() -> None:
    with FaultyCamera() as camera, FaultProxy(camera.port) as proxy:
        with _connected(proxy.port) as client:
            _ask(client)
            good = client.recv(1000)
            assert good.startswith(b"RTSP/1.0 200")
            proxy.fault = Fault(silent=True)
            _ask(client)
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1000)
        proxy.fault = Fault(flip_share=1.0, flip_after_bytes=0)
        with _connected(proxy.port) as client:
            _ask(client)
            assert all((ours ^ theirs).bit_count() == 1 for ours, theirs in zip(good, client.recv(1000), strict=True))
        proxy.fault = Fault(bytes_per_s=20)
        with _connected(proxy.port) as client:
            _ask(client)
            begun = time.monotonic()
            assert client.recv(1) + client.recv(1) == b"RT"
            assert time.monotonic() - begun > 0.04
        for fault in (Fault(reset_on_accept=True), Fault(reset_after_bytes=10)):
            proxy.fault = fault
            with _connected(proxy.port) as client, pytest.raises(ConnectionResetError):
                _ask(client)
                client.recv(1000)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            _connected(proxy.port)
        proxy.fault = Fault()
        proxy.accept()
        assert probed(camera.uri.replace(str(camera.port), str(proxy.port)), "-rtsp_transport", "tcp")


def test_a_stopped_rtsp_server_accepts_and_says_nothing() -> None:
    with RtspServer() as server:
        server.signal(signal.SIGSTOP)
        with _connected(server.port) as client:
            _ask(client)
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
            server.signal(signal.SIGCONT)
            client.settimeout(_SECONDS)
            assert client.recv(4) == b"RTSP"
