"""Pipelines of Jetson cameras as values; what NVIDIA's elements do with them is known on a board alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jetson.camera import FLIPS, pipeline
from runtime.captiond.config.settings import SourceSettings
from runtime.errors import SourceError
from tests.jetson.test_board import board_root


def made(uri: str, **settings: Any) -> Any:
    return pipeline(SourceSettings(name="camera", uri=uri, **settings))


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_BOARD_ROOT", str(board_root(tmp_path)))


def test_a_csi_camera_is_scaled_and_turned_by_the_hardware(board: None) -> None:
    argus, mode, converter, shown = made("csi://1?flip=180", width=1920, height=1080, fps=29.97, max_side_px=640)[
        "elements"
    ]
    assert argus == {"make": "nvarguscamerasrc", "name": "source", "set": {"sensor-id": 1}}
    assert mode == {"caps": "video/x-raw(memory:NVMM),width=1920,height=1080,framerate=30000/1001,format=NV12"}
    assert converter == {"make": "nvvidconv", "set": {"flip-method": "rotate-180"}}
    assert shown == {"caps": "video/x-raw,format=BGRx,width=640,height=360"}
    assert "enable-max-performance" not in str(argus)


def test_a_quarter_turn_exchanges_the_sides(board: None) -> None:
    assert made("csi://0?flip=clockwise", max_side_px=1280)["elements"][3]["caps"].endswith("width=720,height=1280")
    assert made("csi://0")["elements"][2]["set"]["flip-method"] == FLIPS["none"] == "none"


@pytest.mark.parametrize(
    "uri", ["csi://", "csi://a", "csi://0/x", "csi://0?flip=2", "csi://0?x=1", "csi://0 ! fakesink"]
)
def test_what_is_no_camera_is_refused(board: None, uri: str) -> None:
    with pytest.raises(SourceError, match="csi://"):
        made(uri)


@pytest.mark.parametrize(
    ("uri", "general"),
    [
        ("rtsp://camera/live", True),
        ("/dev/video0", True),
        ("v4l2:///dev/video0", True),
        ("/films/a.MP4", True),
        ("file:///films/a.mkv", True),
        ("/photos/*.jpg", False),
        ("http://camera/", False),
        ("synthetic://", False),
    ],
)
def test_other_sources_use_the_daemons_own_pipeline_or_none(board: None, uri: str, general: bool) -> None:
    assert made(uri) == ({} if general else None)


def test_a_machine_that_is_no_jetson_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_BOARD_ROOT", str(tmp_path))
    assert made("csi://0") is None and made("rtsp://camera/live") is None
