"""MJPEG over HTTP (multipart/x-mixed-replace), as most cameras without RTSP offer it."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from runtime.captiond.capture.delivery import Delivery
from runtime.captiond.capture.failures import CaptureFailed
from runtime.captiond.capture.ffmpeg import silence
from runtime.captiond.capture.http_stream import READ_TIMEOUT_S, Body, get
from runtime.captiond.capture.jpeg import jpeg_size
from runtime.captiond.capture.plan import Plan

MAX_PART_BYTES = 16_777_216
_MAX_DAMAGED = 100
_BOUNDARY = re.compile(r'boundary="?([^";]{1,120})"?', re.IGNORECASE)


def run(plan: Plan, delivery: Delivery) -> None:
    """Deliver the pictures of the stream until it ends, which for a camera is a failure.

    A picture that is cut short or cannot be decoded is left out; a hundred in a row end the attempt.
    """
    import cv2

    response = get(plan)
    silence()  # libjpeg has a line for each damaged picture
    try:
        boundary = _boundary(plan, (response.headers.get("content-type") or [""])[0])
        _to_first_part(plan, response.body, boundary)
        damaged, more = 0, True
        while more and damaged < _MAX_DAMAGED:
            data, more = _part(plan, response.body, boundary)
            t_ns = time.monotonic_ns()
            picture = None if data is None else _decoded(cv2, data, delivery)
            damaged = 0 if picture is not None else damaged + 1
            if picture is not None:
                delivery.deliver(picture, bgr=True, t_capture_ns=t_ns, kind="arrival")
        if not more:
            raise CaptureFailed("closed", f"{plan.uri}: the stream ended")
        raise CaptureFailed("damaged", f"{plan.uri}: {_MAX_DAMAGED} pictures in a row cannot be decoded")
    finally:
        response.body.close()


def _boundary(plan: Plan, kind: str) -> bytes:
    found = _BOUNDARY.search(kind)
    if not kind.lower().startswith("multipart/") or found is None:
        raise CaptureFailed(
            "unsupported",
            f"{plan.uri}: sends {kind.split(';')[0][:60]!r}, expected multipart/x-mixed-replace",
            hint="give the address of the camera's MJPEG stream",
        )
    return b"--" + found[1].strip().removeprefix("--").encode("latin-1")


def _to_first_part(plan: Plan, body: Body, boundary: bytes) -> None:
    for _ in range(16):
        if body.line().startswith(boundary):
            return
    raise CaptureFailed("damaged", f"{plan.uri}: the first part does not begin where it should")


def _part(plan: Plan, body: Body, boundary: bytes) -> tuple[bytes | None, bool]:
    """One part (None when it is no JPEG), and whether another one follows."""
    body.deadline = time.monotonic() + max(READ_TIMEOUT_S, plan.open_timeout_s)
    headers = body.headers()
    kind = (headers.get("content-type") or ["image/jpeg"])[0].lower()
    length = (headers.get("content-length") or [""])[0]
    if length.isascii() and length.isdecimal():
        if len(length) > 9 or int(length) > MAX_PART_BYTES:
            text = f"{plan.uri}: a part of {length[:20]} bytes, the limit is {MAX_PART_BYTES}"
            raise CaptureFailed("too_large", text)
        data = body.exactly(int(length))
        more = _next_part_follows(plan, body, boundary)
    else:
        data = body.until(boundary, MAX_PART_BYTES)
        more = not body.line().startswith(b"--")
    return data if kind.startswith(("image/jpeg", "image/jpg")) else None, more


def _next_part_follows(plan: Plan, body: Body, boundary: bytes) -> bool:
    for _ in range(4):
        line = body.line()
        if line.startswith(boundary):
            return not line.startswith(boundary + b"--")
    raise CaptureFailed("damaged", f"{plan.uri}: a part does not end where its length says")


def _decoded(cv2: Any, data: bytes, delivery: Delivery) -> Any:
    """BGR of a whole JPEG; None for a damaged one. Raises CaptureFailed above the limits, before it is decoded."""
    size = jpeg_size(data)
    if size is None:
        return None
    if not delivery.is_open:
        delivery.opened(*size, None, "http")
    delivery.check_size(*size)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
