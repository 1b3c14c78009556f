"""Cameras and video decoding of NVIDIA Jetson boards, as GStreamer pipelines for the daemon.

`runtime.captiond` finds `pipeline` through the entry point group ``vlm.captures`` and never imports it. A pipeline is a
value (see `runtime.captiond.capture.pipelines`): elements, properties, filters; nothing is pasted into a text. Written
from NVIDIA's documentation of JetPack 6 and 7 and from pipelines that others ship; not run on a board.
"""

from __future__ import annotations

import re
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

from jetson.board import detect
from runtime.errors import SourceError

# What nvvidconv calls it, so that the picture turns the way the word says.
FLIPS = {
    "none": "none",
    "clockwise": "clockwise",
    "counterclockwise": "counterclockwise",
    "180": "rotate-180",
    "horizontal": "horizontal-flip",
    "vertical": "vertical-flip",
}
_TURNED = ("clockwise", "counterclockwise")
_SENSOR = re.compile(r"\d{1,2}")
_DEFAULT_SIZE, _DEFAULT_FPS = (1280, 720), 30.0
_GENERAL = ("rtsp", "rtsps", "v4l2")
_VIDEO_FILES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts", ".avi", ".h264", ".h265")


class Asked(Protocol):
    """What is read of a source's settings (`runtime.captiond.config.settings.SourceSettings`)."""

    @property
    def uri(self) -> str: ...

    @property
    def width(self) -> int | None: ...

    @property
    def height(self) -> int | None: ...

    @property
    def fps(self) -> float | None: ...

    @property
    def max_side_px(self) -> int: ...


def pipeline(source: Asked) -> dict[str, object] | None:
    """The pipeline of a source on this board; {} for the daemon's own one, whose decoders are hardware first.

    None on a machine that is not a Jetson, and for what GStreamer does not open. Raises SourceError for a camera that
    cannot be.
    """
    if detect() is None:
        return None
    scheme, separator, _ = source.uri.partition("://")
    if separator and scheme.lower() == "csi":
        return csi(source)
    if source.uri.startswith("/dev/video") or (separator and scheme.lower() in _GENERAL):
        return {}
    path = source.uri if not separator else urlsplit(source.uri).path
    is_file = not separator or scheme.lower() == "file"
    return {} if is_file and path.lower().endswith(_VIDEO_FILES) else None


def csi(source: Asked) -> dict[str, object]:
    """``csi://0?flip=180``: a camera on the board's connector, through Argus; scaled and turned by the VIC.

    ``flip``: none, clockwise, counterclockwise, 180, horizontal, vertical: how the picture is turned before it is
    shown. Width, height and fps of the settings choose the sensor's mode (1280x720 at 30).
    """
    parts = urlsplit(source.uri)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    flip = given.pop("flip", "none")
    if not _SENSOR.fullmatch(parts.netloc) or parts.path not in ("", "/") or given:
        raise SourceError(f"{source.uri}: not a camera", hint="csi://<number>, for instance csi://0?flip=180")
    if flip not in FLIPS:
        raise SourceError(f"{source.uri}: flip={flip}", hint=f"possible are {', '.join(FLIPS)}")
    width, height = source.width or _DEFAULT_SIZE[0], source.height or _DEFAULT_SIZE[1]
    fps = source.fps or _DEFAULT_FPS
    rate = f"{round(fps)}/1" if float(fps).is_integer() else f"{round(fps * 1001)}/1001"
    shown = _scaled(width, height, source.max_side_px)
    if flip in _TURNED:
        shown = (shown[1], shown[0])
    mode = f"video/x-raw(memory:NVMM),width={width},height={height},framerate={rate},format=NV12"
    return {
        "elements": [
            {"make": "nvarguscamerasrc", "name": "source", "set": {"sensor-id": int(parts.netloc)}},
            {"caps": mode},
            {"make": "nvvidconv", "set": {"flip-method": FLIPS[flip]}},
            {"caps": f"video/x-raw,format=BGRx,width={shown[0]},height={shown[1]}"},
        ]
    }


def _scaled(width: int, height: int, max_side_px: int) -> tuple[int, int]:
    """The size that is delivered: even numbers, as the hardware wants them."""
    scale = min(1.0, max_side_px / max(width, height))
    return max(2, round(width * scale) // 2 * 2), max(2, round(height * scale) // 2 * 2)
