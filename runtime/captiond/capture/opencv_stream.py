"""RTSP and Video4Linux cameras through OpenCV."""

from __future__ import annotations

import math
import os
import stat
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from runtime.captiond.capture import ffmpeg
from runtime.captiond.capture.delivery import Delivery, stamped
from runtime.captiond.capture.failures import CaptureFailed
from runtime.captiond.capture.pipelines import device_of
from runtime.captiond.capture.plan import Plan

READ_TIMEOUT_S = 5.0
_MAX_UNDECODED = 300
_FPS_RANGE = (0.1, 1000.0)
# How long FFmpeg looks at a stream before it gives out the first frame: all that comes meanwhile is old by then.
_QUICK = {"fpsprobesize": "0", "analyzeduration": "100000"}
_LARGE_PX = 640 * 480


def run(plan: Plan, delivery: Delivery) -> None:
    """Deliver frames until the stream ends, which for a camera is a failure."""
    import cv2

    began = time.monotonic()
    capture, said = ffmpeg.heard(lambda: _begun(cv2, plan, delivery))
    if capture is None and plan.scheme == "v4l2":
        hint = "close what else uses it (fuser -v /dev/video*); v4l2-ctl --list-formats shows what it can"
        raise CaptureFailed("busy", f"{plan.uri}: no camera that gives a frame", hint=hint)
    if capture is None:
        raise ffmpeg.failure(plan.uri, said, time.monotonic() - began, plan.open_timeout_s)
    ffmpeg.silence()
    try:
        _deliver(cv2, capture, plan, delivery)
    finally:
        capture.release()


def _begun(cv2: Any, plan: Plan, delivery: Delivery) -> Any | None:
    """The capture with its first frame grabbed; None when there is none. The size is checked before that."""
    capture = _camera(cv2, plan) if plan.scheme == "v4l2" else _stream(cv2, plan)
    if capture.isOpened():
        width, height = (int(capture.get(what)) for what in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        delivery.check_size(max(0, width), max(0, height))
        if capture.grab():
            return capture
    capture.release()
    return None


def _deliver(cv2: Any, capture: Any, plan: Plan, delivery: Delivery) -> None:
    undecoded = 0
    while undecoded < _MAX_UNDECODED:
        t_ns, kind = stamped(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6 if plan.scheme == "v4l2" else 0.0)
        whole, bgr = capture.retrieve()
        if whole and bgr is not None and bgr.size:
            undecoded = 0
            if not delivery.is_open:
                delivery.opened(bgr.shape[1], bgr.shape[0], _rate(cv2, capture), plan.scheme)
            delivery.deliver(bgr, bgr=True, t_capture_ns=t_ns, kind=kind)
        else:
            undecoded += 1
        _grab(capture, plan)
    raise CaptureFailed("damaged", f"{plan.uri}: {_MAX_UNDECODED} frames in a row cannot be decoded")


def _grab(capture: Any, plan: Plan) -> None:
    """Go to the next frame. After a timeout a decoder may still hand out what it had kept: that is no new frame."""
    began = time.monotonic()
    grabbed = capture.grab()
    waited_s = time.monotonic() - began
    if waited_s >= 0.9 * min(READ_TIMEOUT_S, plan.open_timeout_s):
        raise CaptureFailed("timeout", f"{plan.uri}: no frame for {waited_s:.1f} s")
    if not grabbed:
        raise CaptureFailed("closed", f"{plan.uri}: the stream ended")


def _stream(cv2: Any, plan: Plan) -> Any:
    parts = urlsplit(plan.uri)
    if not parts.hostname or any(character in plan.uri for character in "\r\n\0 "):
        raise CaptureFailed("unsupported", f"{plan.uri!r}: not the address of a stream")
    layers = {"rtsp": "rtsp,rtp,rtcp,tcp,udp", "rtsps": "rtsps,rtsp,rtp,rtcp,tls,tcp,udp"}[plan.scheme]
    ffmpeg.permit(layers, rtsp_transport=plan.transport, allowed_media_types="video", **_QUICK)
    options = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        round(plan.open_timeout_s * 1000),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        round(min(READ_TIMEOUT_S, plan.open_timeout_s) * 1000),
    ]
    if hasattr(cv2, "CAP_PROP_N_THREADS"):  # frames wait in decoding threads, and cost memory there
        options += [cv2.CAP_PROP_N_THREADS, 1]
    return cv2.VideoCapture(_with_credentials(plan), cv2.CAP_FFMPEG, options)


def _with_credentials(plan: Plan) -> str:
    if plan.user is None:
        return plan.uri
    parts = urlsplit(plan.uri)
    userinfo = f"{quote(plan.user, safe='')}:{quote(plan.password or '', safe='')}"
    return parts._replace(netloc=f"{userinfo}@{parts.netloc}").geturl()


def _camera(cv2: Any, plan: Plan) -> Any:
    device = device_of(plan.uri)
    check_device(device)
    wanted: list[int] = []
    if (plan.width or 0) * (plan.height or 0) > _LARGE_PX:  # USB carries larger pictures as JPEG alone
        wanted += [cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG")]
    for what, value in (
        (cv2.CAP_PROP_FRAME_WIDTH, plan.width),
        (cv2.CAP_PROP_FRAME_HEIGHT, plan.height),
        (cv2.CAP_PROP_FPS, None if plan.fps is None else round(plan.fps)),
    ):
        wanted += [] if value is None else [what, value]
    return cv2.VideoCapture(device, cv2.CAP_V4L2, wanted)


def check_device(device: str) -> None:
    """Raises CaptureFailed for a device that is not there, may not be read, or is none."""
    try:
        mode = Path(device).stat().st_mode
        if not stat.S_ISCHR(mode):
            raise CaptureFailed("unsupported", f"{device}: not a camera device")
        os.close(os.open(device, os.O_RDWR | os.O_NONBLOCK))
    except FileNotFoundError:
        raise CaptureFailed("missing", f"{device}: there is no such device", hint="ls /dev/video*") from None
    except PermissionError:
        raise CaptureFailed("403", f"{device}: may not be opened", hint="sudo usermod -aG video <user>") from None
    except OSError as problem:
        raise CaptureFailed("busy", f"{device}: cannot be opened ({problem.strerror})") from None


def _rate(cv2: Any, capture: Any) -> float | None:
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return round(fps, 3) if math.isfinite(fps) and _FPS_RANGE[0] <= fps <= _FPS_RANGE[1] else None
