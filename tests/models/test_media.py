"""Pictures and frames of a prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage

from models.media import Image, Video, frame_indices, load_image, load_video
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
