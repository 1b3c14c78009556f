"""Images of ROS bags, written by the package rosbags itself; lies in a message are refused by name."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ImageError, SourceError
from runtime.sources import open_source
from runtime.sources.ros_message import read_compressed, read_image

rosbag1 = pytest.importorskip("rosbags.rosbag1", reason="needs rosbags: pip install 'jetson-vlm[rosbag]'")
rosbag2 = pytest.importorskip("rosbags.rosbag2")
typesys = pytest.importorskip("rosbags.typesys")

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
WIDTH, HEIGHT = 6, 4


def picture(value: int) -> Any:
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[..., 0], rgb[..., 1], rgb[..., 2] = value, np.arange(WIDTH) * 10, 7
    return rgb


def image(store: Any, rgb: Any, encoding: str = "rgb8", padding: int = 0, **changed: Any) -> Any:
    rows = {"rgb8": rgb, "bgr8": rgb[:, :, ::-1], "mono8": rgb[:, :, :1]}[encoding].reshape(HEIGHT, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    types = store.types
    stamp = types["builtin_interfaces/msg/Time"](sec=1, nanosec=2)
    extra = {"seq": 1} if "seq" in types["std_msgs/msg/Header"].__dataclass_fields__ else {}
    fields = {
        "header": types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera", **extra),
        "height": HEIGHT,
        "width": WIDTH,
        "encoding": encoding,
        "is_bigendian": 0,
        "step": rows.shape[1],
        "data": np.ascontiguousarray(rows).reshape(-1),
    }
    return types[IMAGE](**(fields | changed))


def write_bag(path: Path, ros1: bool, made: list[tuple[str, Any]]) -> Path:
    stores = typesys.Stores
    store = typesys.get_typestore(stores.ROS1_NOETIC if ros1 else stores.ROS2_HUMBLE)
    writer = rosbag1.Writer(path) if ros1 else rosbag2.Writer(path, version=8)
    with writer:
        connections: dict[str, Any] = {}
        for number, (topic, build) in enumerate(made):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, IMAGE, typestore=store)
            message = build(store)
            data = store.serialize_ros1(message, IMAGE) if ros1 else store.serialize_cdr(message, IMAGE)
            writer.write(connections[topic], number * 1_000_000, data)
    return path


@pytest.mark.parametrize("ros1", [True, False], ids=["ros1", "ros2"])
def test_images_of_a_bag_come_in_order_whatever_their_encoding_and_step(tmp_path: Path, ros1: bool) -> None:
    made = [
        ("/camera", lambda store, n=n: image(store, picture(n), ("rgb8", "bgr8")[n % 2], padding=n)) for n in range(6)
    ]
    path = write_bag(tmp_path / ("run.bag" if ros1 else "run"), ros1, made)
    with open_source(f"rosbag://{path}", every_frame=True) as source:
        frames = list(source)
    assert [frame.seq for frame in frames] == list(range(6))
    assert all(np.array_equal(frame.rgb, picture(number)) for number, frame in enumerate(frames))


def test_mono_is_grey_and_a_lie_is_refused_while_the_next_image_comes(tmp_path: Path) -> None:
    made = [
        ("/camera", lambda store: image(store, picture(50), "mono8")),
        ("/camera", lambda store: image(store, picture(1), step=1)),
        ("/camera", lambda store: image(store, picture(9))),
    ]
    path = write_bag(tmp_path / "run", False, made)
    with open_source(f"rosbag://{path}", every_frame=True) as source:
        frames = iter(source)
        assert (next(frames).rgb == 50).all()
        with pytest.raises(ImageError, match="step is 1, a row of 6 px of rgb8 has 18 bytes"):
            next(frames)
        assert np.array_equal(next(frames).rgb, picture(9))


def test_a_topic_is_chosen_by_name_where_there_are_several(tmp_path: Path) -> None:
    made = [(topic, lambda store, n=n: image(store, picture(n))) for n, topic in enumerate(("/a", "/b"))]
    path = write_bag(tmp_path / "run", False, made)
    with open_source(f"rosbag://{path}?topic=/b", every_frame=True) as source:
        assert next(iter(source)).rgb[0, 0, 0] == 1
    with open_source(f"rosbag://{path}", every_frame=True) as source:
        with pytest.raises(SourceError, match="2 topics have images") as raised:
            next(iter(source))
    assert "/a, /b" in (raised.value.hint or "")
    with pytest.raises(SourceError, match="unknown parameter 'topc'"):
        open_source(f"rosbag://{path}?topc=/a")


def test_what_is_no_bag_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bag").write_bytes(b"#ROSBAG V2.0\nrubbish")
    for uri, words in (
        (f"rosbag://{tmp_path}/x.bag", "not a bag"),
        (f"rosbag://{tmp_path}/none", "no such bag"),
        ("rosbag://host/x.bag", "three slashes"),
    ):
        with pytest.raises(SourceError) as raised:
            open_source(uri)
        assert words in str(raised.value)


def test_the_package_is_named_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rosbags.rosbag1", None)
    with pytest.raises(SourceError, match="rosbags") as raised:
        open_source(f"rosbag://{tmp_path}")
    assert "jetson-vlm[rosbag]" in (raised.value.hint or "")


def message(encoding: bytes = b"rgb8", width: int = 2, height: int = 2, step: int = 6, **changed: Any) -> bytes:
    """An Image as ROS 1 writes it."""
    data = changed.get("data", bytes(step * height))
    head = struct.pack("<III", 1, 2, 3) + struct.pack("<I", 6) + b"camera"
    body = struct.pack("<II", height, width) + struct.pack("<I", len(encoding)) + encoding
    return (
        head
        + body
        + bytes([changed.get("big_endian", 0)])
        + struct.pack("<II", step, changed.get("length", len(data)))
        + data
    )


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"encoding": b"16UC1"}, "encoding '16UC1', known are rgb8"),
        ({"width": 0}, "0x2 px"),
        ({"width": 2**31}, "sides are 1 to 16384"),
        ({"step": 5}, "step is 5"),
        ({"big_endian": 7}, "is_bigendian is 7"),
        ({"data": bytes(11)}, "11 bytes of data, 2 rows of 6 bytes are declared"),
        ({"length": 2**32 - 1}, "are declared"),
        ({"encoding": b"nv12", "width": 3, "step": 3}, "holds pairs"),
    ],
)
def test_lies_of_a_message_are_named(lie: dict[str, Any], words: str) -> None:
    assert read_image(message(), True).data == bytes(12)
    with pytest.raises(ImageError) as raised:
        read_image(message(**lie), True)
    assert words in raised.value.message


@given(data=st.binary(max_size=120), cut=st.integers(0, 80), ros1=st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_bytes_upset_the_reader(data: bytes, cut: int, ros1: bool) -> None:
    for changed in (data, message()[:cut] + data + message()[cut:]):
        for read in (read_image, read_compressed):
            try:
                found: Any = read(changed, ros1)
            except ImageError:
                continue
            assert len(found.data) <= len(changed)


def test_a_compressed_image_is_what_its_format_says() -> None:
    head = struct.pack("<III", 1, 2, 3) + struct.pack("<I", 0)

    def compressed(named: bytes, data: bytes) -> bytes:
        return head + struct.pack("<I", len(named)) + named + struct.pack("<I", len(data)) + data

    assert read_compressed(compressed(b"rgb8; jpeg compressed bgr8", b"\xff\xd8\xff\xe0"), True).data[:2] == b"\xff\xd8"
    for named, data in (
        (b"jpeg", b"\x89PNG\r\n\x1a\n"),
        (b"tiff", b"II*\0"),
        (b"16UC1; compressedDepth png", b"\x89PNG\r\n\x1a\n"),
    ):
        with pytest.raises(ImageError, match="neither JPEG nor PNG"):
            read_compressed(compressed(named, data), True)
