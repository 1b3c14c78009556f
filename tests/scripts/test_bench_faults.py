"""The bench of faults knows its kinds, judges by the promised limits, and measures what it says."""

from __future__ import annotations

import pytest

from scripts.bench import faults, faults_camera

pytest.importorskip("cv2", reason="needs OpenCV: pip install 'jetson-vlm[video]'")

# What the camera of a daemon has to survive, and the names under which the bench does it.
PROMISED = (
    "refuse|silent accept|401|404|reset in handshake|reset mid-stream|bad SDP|audio first|no video|unknown codec|"
    "mid-GOP join|freeze|away for 30 s|trickle|bit flips|resolution switch|PTS jump|huge picture, 16384x16384|"
    "300 fps burst|child SIGKILL|child SIGSEGV|child SIGSTOP"
)


def test_every_kind_that_was_promised_is_there_and_most_against_a_real_server() -> None:
    assert set(PROMISED.split("|")) <= set(faults_camera.KINDS)
    assert sum(kind.real for kind in faults_camera.KINDS.values()) >= 12


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(SystemExit, match="no such kind: nothing; there are refuse"):
        faults.chosen(["camera"], "refuse,nothing")
    assert faults.chosen(["camera"], "401,refuse") == [("camera", "refuse"), ("camera", "401")]


def test_rows_beyond_the_promised_limits_are_named() -> None:
    row = {"group": "camera", "kind": "freeze", "noticed_s": {"p95": 2.01}, "back_s": {"p95": 5.0}}
    assert faults.beyond_limits(row) == ["freeze: noticed_s p95 2.01"]
    assert faults.beyond_limits(row | {"noticed_s": {"p95": 2.0}, "back_s": {"p95": 5.01}}) == [
        "freeze: back_s p95 5.01"
    ]
    assert faults.beyond_limits({"group": "engine", "kind": "kill", "back_s": {"p95": 9.0}}) == []


def test_percentiles_are_by_the_nearest_rank() -> None:
    values = [float(number) for number in range(1, 21)]
    assert [faults_camera._at(values, percent) for percent in (50, 95, 100)] == [10, 19, 20]
    assert faults_camera._at([3.0], 95) == 3


def test_a_reset_of_a_real_server_is_measured() -> None:
    reset = faults_camera.measured("reset mid-stream", 1)
    assert (reset["injections"], reset["recovered"], reset["failures"]) == (1, 1, [])
    assert reset["noticed_s"]["p50"] > 0
    assert 0 < reset["back_s"]["p50"] < faults_camera.PATIENCE_S
