"""A real RTSP server: GStreamer's, with live H.264, H.265 or MJPEG, in a process of its own.

    with RtspServer(codec="h264", fps=25) as server:
        open_stream(server.uri)            # rtsp://127.0.0.1:<port>/live
        server.say("freeze")               # see gst_rtsp_server.py for the words
        server.kill(); server.restart()    # the same port again

Each picture carries its number in 24 blocks of 8 px in the first rows: `tests.peers.clips.number_of`.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
from pathlib import Path
from types import TracebackType

import pytest

from tests.peers.clips import clip

_PYTHON = "/usr/bin/python3"
_SCRIPT = Path(__file__).with_name("gst_rtsp_server.py")
_READY_S = 60.0


def need_gstreamer() -> None:
    """Skip the test where the server cannot run."""
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if not Path(_PYTHON).exists() or subprocess.run([_PYTHON, "-c", code], capture_output=True, check=False).returncode:
        pytest.skip("needs gst-rtsp-server (Debian: gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-ugly)")


class RtspServer:
    """Starts on a free port and keeps it over `restart`."""

    def __init__(
        self,
        codec: str = "h264",
        *,
        width: int = 320,
        height: int = 240,
        fps: int = 25,
        gop: int = 25,
        user: str = "",
        password: str = "",
        digest: bool = True,
        audio_first: bool = False,
        no_video: bool = False,
        demo: bool = False,
    ) -> None:
        need_gstreamer()
        self.port = 0
        self.fps = fps
        self._demo = demo
        self._options = {
            "codec": codec,
            "width": width,
            "height": height,
            "fps": fps,
            "gop": gop,
            "digest": digest,
            "user": user,
            "password": password,
            "audio_first": audio_first,
            "no_video": no_video,
            "raw": str(clip("yuv", width, height, fps, demo=demo)),
        }
        self._process: subprocess.Popen[str] | None = None

    @property
    def uri(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/live"

    def restart(self, **changed: object) -> None:
        """Start, with other options where given, and return when it listens."""
        self.kill()
        self._options |= changed
        options = json.dumps(self._options | {"port": self.port})
        command = [_PYTHON, str(_SCRIPT), options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.port = int(self._line().split()[1])

    def say(self, words: str) -> None:
        """Give an order and wait until it is done."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        self._line()

    def resize(self, width: int, height: int) -> None:
        """Go on with pictures of another size."""
        self.say(f"size {width} {height} {clip('yuv', width, height, self.fps, demo=self._demo)}")

    def signal(self, number: int) -> None:
        """SIGSTOP and SIGCONT: it accepts, and stays silent."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Gone at once; its port stays known for `restart`."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process = None

    def __enter__(self) -> RtspServer:
        self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _line(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _READY_S)[0]:
            raise TimeoutError(f"the RTSP server said nothing for {_READY_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the RTSP server ended")
        return line
