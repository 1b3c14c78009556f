"""The child that holds the memory of the frames: JPEGs with words on them, and how much scenes have changed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from runtime.captiond.capture.ring import READER_PICTURES, Pinned, Ring, RingError
from runtime.captiond.pictures import drawing, scene
from runtime.captiond.pictures.child import Answer, Handler
from runtime.captiond.pictures.memory import fill

_log = logging.getLogger(__name__)
_MAX_SOURCES = 64


class Camera:
    """Draws frames of the rings that it was given, and compares scenes."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)  # the model needs the cores more than a picture does
        self.handlers: Mapping[str, Handler] = {
            "attach": self._attach, "detach": self._detach,
            "jpeg": self._jpeg, "keep": self._keep, "changed": self._changed,
        }  # fmt: skip
        self._rings: dict[str, Ring] = {}
        self._scenes: dict[str, scene.Scene] = {}

    def _attach(self, message: Mapping[str, Any], fds: Sequence[int]) -> None:
        self._detach(message, fds)
        if len(self._rings) < _MAX_SOURCES:
            try:
                self._rings[str(message["source"])] = Ring.attach(os.dup(fds[0]))
            except RingError:
                _log.exception("the memory of %s is no ring", message["source"])

    def _detach(self, message: Mapping[str, Any], fds: Sequence[int]) -> None:
        ring = self._rings.pop(str(message["source"]), None)
        self._scenes.pop(str(message["source"]), None)
        if ring is not None:
            ring.close()

    def _jpeg(self, message: Mapping[str, Any], fds: Sequence[int]) -> Answer:
        pinned = self._pinned(message)
        if pinned is None:
            return {}
        with pinned:
            bgr = drawing.scaled(_pixels(pinned), int(message["side"]))
            header = pinned.header
            if not pinned.release():
                return {}
        if message["overlay"] is not None:
            age_ms = max(0, time.monotonic_ns() - header.t_capture_ns) // 1_000_000
            drawing.draw_overlay(bgr, f"{message['source']}  {age_ms} ms", str(message["overlay"]))
        data = drawing.encoded(bgr, int(message["quality"]))
        fill(fds[0], data)
        height, width = bgr.shape[:2]
        return {"bytes": len(data), "seq": header.seq, "width": width, "height": height}

    def _keep(self, message: Mapping[str, Any], fds: Sequence[int]) -> Answer:
        found = self._scene(message)
        if found is None:
            return {"kept": False}
        self._scenes[str(message["source"])] = found
        return {"kept": True}

    def _changed(self, message: Mapping[str, Any], fds: Sequence[int]) -> Answer:
        before, now = self._scenes.get(str(message["source"])), self._scene(message)
        return {"changed": None if before is None or now is None else scene.difference(before, now)}

    def _scene(self, message: Mapping[str, Any]) -> scene.Scene | None:
        pinned = self._pinned(message)
        if pinned is None:
            return None
        with pinned:
            found = scene.scene_of(_pixels(pinned))
            return found if pinned.release() else None

    def _pinned(self, message: Mapping[str, Any]) -> Pinned | None:
        ring = self._rings.get(str(message["source"]))
        if ring is None:
            return None
        place = message["place"]
        if place is None:
            return ring.take(READER_PICTURES, int(message["after_seq"]))
        return ring.pin(READER_PICTURES, int(place[0]), int(place[1]))


def _pixels(pinned: Pinned) -> Any:
    return np.frombuffer(pinned.view, np.uint8).reshape(pinned.header.height, pinned.header.width, 3)
