"""What the camera child answers, asked in this process: JPEGs of frames in a ring, and how much scenes differ."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2", reason="needs OpenCV")

from runtime.captiond.capture.ring import READER_ENGINE, Ring
from runtime.captiond.pictures.camera import Camera
from runtime.captiond.pictures.memory import jpeg_in, memory_file

WIDTH, HEIGHT = 64, 48


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring.create(WIDTH * HEIGHT * 3)
    yield made
    made.close()


@pytest.fixture
def camera(ring: Ring) -> Iterator[Camera]:
    made = Camera()
    made.handlers["attach"]({"source": "door"}, [ring.fd])
    yield made
    made.handlers["detach"]({"source": "door"}, [])


def show(ring: Ring, seq: int, colour: tuple[int, int, int]) -> None:
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:] = colour
    ring.write(pixels.data, WIDTH, HEIGHT, seq, time.monotonic_ns(), "arrival")


def jpeg(camera: Camera, **changes: object) -> tuple[dict[str, object], Image.Image | None]:
    message = {"source": "door", "place": None, "after_seq": -1, "side": 640, "quality": 90, "overlay": None, **changes}
    fd = memory_file("jpeg")
    try:
        answer = camera.handlers["jpeg"](message, [fd])
        assert answer is not None
        data = jpeg_in(fd, answer)
        return answer, None if data is None else Image.open(io.BytesIO(data))
    finally:
        os.close(fd)


def test_newest_frame_is_drawn_in_its_colours_and_size(camera: Camera, ring: Ring) -> None:
    assert jpeg(camera) == ({}, None)  # nothing yet
    show(ring, 3, (200, 30, 60))
    answer, image = jpeg(camera, side=32)
    assert image is not None
    assert (answer["seq"], image.size) == (3, (32, 24))
    assert np.abs(np.asarray(image).reshape(-1, 3).mean(axis=0) - (200, 30, 60)).max() < 4
    assert jpeg(camera, after_seq=3) == ({}, None)


def test_frame_of_a_slot_is_that_frame_or_none(camera: Camera, ring: Ring) -> None:
    show(ring, 1, (10, 200, 10))
    with ring.take(READER_ENGINE) as pinned:  # type: ignore[union-attr]
        place = (pinned.slot, pinned.generation)
        for seq in range(2, 9):
            show(ring, seq, (250, 0, 0))
        answer, image = jpeg(camera, place=place)
        assert answer["seq"] == 1 and image is not None
        assert np.asarray(image)[0, 0, 1] > 150
    for seq in range(9, 16):
        show(ring, seq, (250, 0, 0))
    assert jpeg(camera, place=place) == ({}, None)


def test_change_is_counted_from_the_scene_that_was_kept(camera: Camera, ring: Ring) -> None:
    def changed() -> object:
        answer = camera.handlers["changed"]({"source": "door", "place": None, "after_seq": -1}, [])
        assert answer is not None
        return answer["changed"]

    show(ring, 1, (90, 90, 90))
    assert changed() is None  # nothing was kept
    assert camera.handlers["keep"]({"source": "door", "place": None, "after_seq": -1}, []) == {"kept": True}
    assert changed() == 0.0
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    pixels[:, : WIDTH // 2] = (250, 250, 250)
    ring.write(pixels.data, WIDTH, HEIGHT, 2, time.monotonic_ns(), "arrival")
    assert 0.3 < float(str(changed())) <= 1.0


def test_source_that_is_not_attached_has_no_picture(camera: Camera, ring: Ring) -> None:
    show(ring, 1, (1, 2, 3))
    assert jpeg(camera, source="other") == ({}, None)
    with open(os.devnull, "rb") as nothing:
        camera.handlers["attach"]({"source": "other"}, [nothing.fileno()])  # no ring: refused, logged
    assert jpeg(camera, source="other") == ({}, None)
