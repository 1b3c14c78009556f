"""Pictures and frames of a prompt."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage

from models.media import Image, Video, load_image, load_video
from models.video_file import frame_indices
from runtime.errors import ImageError, InputError
from tests.models.tiny import picture


@given(count=st.integers(1, 500), wanted=st.integers(1, 64))
def test_frames_are_spread_evenly_and_never_lost(count: int, wanted: int) -> None:
    indices = frame_indices(count, wanted)
    assert len(indices) == wanted
    assert indices[0] == 0
    assert indices == sorted(indices)
    assert max(indices) < count
    if wanted > 1:
        assert indices[-1] == count - 1
    assert indices == [int(i) for i in np.round(np.linspace(0, count - 1, wanted))]


def test_unreadable_frames_are_replaced_by_their_neighbours(tmp_path: Path) -> None:
    for index in range(5):
        PilImage.new("RGB", (4, 4), (index * 10, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "0.png").write_bytes(b"broken")
    (tmp_path / "3.png").write_bytes(b"")
    frames = load_video(Video(tmp_path), 5)
    assert [frame.getpixel((0, 0))[0] for frame in frames] == [10, 10, 20, 20, 40]  # type: ignore[index]
    for file in tmp_path.iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(InputError, match="none of the 5 frames"):
        load_video(Video(tmp_path), 2)


def test_frames_come_from_directories_animations_and_sequences(tmp_path: Path) -> None:
    colours = [(0, 0, 0), (80, 80, 80), (160, 160, 160)]
    pictures = [PilImage.new("RGB", (4, 4), colour) for colour in colours]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    arrays = [np.asarray(item) for item in pictures]
    for video in (Video(tmp_path / "a.gif"), Video(pictures), Video(arrays)):
        assert [frame.getpixel((0, 0)) for frame in load_video(video, 3)] == colours
    assert len(load_video(Video(pictures), 7)) == 7


def test_what_is_no_video_or_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0" * 64)
    with pytest.raises(InputError, match=r"a\.mp4"):
        load_video(Video(tmp_path / "a.mp4"), 2)
    with pytest.raises(InputError, match="no frames"):
        load_video(Video(tmp_path), 2)
    with pytest.raises(InputError, match="without frames"):
        frame_indices(0, 3)
    with pytest.raises(ImageError, match=r"none\.png"):
        load_image(Image(tmp_path / "none.png"))
    with pytest.raises(ImageError, match="float32"):
        load_image(np.zeros((2, 2, 3), np.float32))
    with pytest.raises(InputError, match="int"):
        load_image(3)


def test_pictures_come_from_files_pillow_and_arrays(tmp_path: Path) -> None:
    image = picture(20, 10)
    image.save(tmp_path / "a.png")
    for part in (Image(tmp_path / "a.png"), image, np.asarray(image)):
        assert np.array_equal(np.asarray(load_image(part)), np.asarray(image))


def write_video(path: Path, count: int, codec: str = "MJPG") -> list[int]:
    """A video of ``count`` grey frames, and their levels."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    levels = [10 + 200 * index // max(1, count - 1) for index in range(count)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (32, 24))
    assert writer.isOpened()
    for level in levels:
        writer.write(np.full((24, 32, 3), level, np.uint8))
    writer.release()
    return levels


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("a.mp4", "mp4v")])
@pytest.mark.parametrize("wanted", [1, 3, 8, 20])
def test_video_files_give_evenly_spread_frames_and_never_lose_count(
    name: str, codec: str, wanted: int, tmp_path: Path
) -> None:
    levels = write_video(tmp_path / name, 11, codec)
    frames = load_video(Video(tmp_path / name), wanted)
    assert len(frames) == wanted
    assert {frame.size for frame in frames} == {(32, 24)}
    expected = [levels[round(place)] for place in np.linspace(0, 10, wanted)]
    assert [frame.getpixel((16, 12))[0] for frame in frames] == pytest.approx(expected, abs=6)


def test_video_colours_are_in_rgb_order(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 24))
    writer.write(np.full((24, 32, 3), (0, 0, 250), np.uint8))  # OpenCV's order: this is red
    writer.release()
    red, green, blue = load_video(Video(tmp_path / "a.avi"), 1)[0].getpixel((16, 12))
    assert red > 200
    assert max(green, blue) < 50


class _Lying:
    """A capture that declares more frames than it gives, or none at all."""

    declared = 0
    CAP_PROP_FRAME_COUNT = 7

    def VideoCapture(self, path: str) -> _Lying:
        self.place = -1
        return self

    def isOpened(self) -> bool:
        return True

    def get(self, _: int) -> float:
        return float(self.declared)

    def grab(self) -> bool:
        self.place += 1
        return self.place < 6

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((2, 2, 3), 10 * self.place, np.uint8)

    def release(self) -> None:
        self.place = 99


@pytest.mark.parametrize("declared", [0, -1, 4, 6, 9, 600])
def test_a_container_that_declares_another_count_loses_none(
    declared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no picture")
    capture = _Lying()
    capture.declared = declared
    monkeypatch.setitem(sys.modules, "cv2", capture)
    frames = load_video(Video(tmp_path / "a.mp4"), 4)
    last = 3 if declared == 4 else 5  # a shorter count is believed
    assert [frame.getpixel((0, 0))[0] // 10 for frame in frames] == [round(x) for x in np.linspace(0, last, 4)]


def test_without_opencv_a_video_file_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no picture")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"a\.mp4 is a video file.*OpenCV is not installed") as found:
        load_video(Video(tmp_path / "a.mp4"), 4)
    assert found.value.hint is not None
    assert "opencv-python-headless" in found.value.hint


def test_damaged_frames_of_animations_and_sequences_are_replaced_by_their_neighbours(tmp_path: Path) -> None:
    pictures = [PilImage.new("RGB", (40, 40), (60 * index, 0, 0)) for index in range(4)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    whole = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(whole[: len(whole) - 30])  # inside the last frame
    frames = load_video(Video(tmp_path / "a.gif"), 4)
    assert len(frames) == 4
    assert [frame.getpixel((0, 0))[0] for frame in frames[:3]] == [0, 60, 120]
    parts = [Image(tmp_path / "none.png"), pictures[1], Image(tmp_path / "none.png"), pictures[3]]
    frames = load_video(Video(parts), 4)
    assert [frame.getpixel((0, 0))[0] for frame in frames] == [60, 60, 60, 180]
    with pytest.raises(InputError, match="none of the 2 frames"):
        load_video(Video(parts[::2]), 3)
    with pytest.raises(InputError, match="without frames"):
        load_video(Video([]), 3)
