"""Telemetry of the board through entry points."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import EntryPoint

import pytest

from runtime.captiond import board
from runtime.captiond.board import BoardTelemetry, board_telemetry
from runtime.captiond.clock import NS_PER_S
from tests.runtime.captiond.clocks import ManualClock


def test_sensors_are_read_once_a_second_however_many_ask() -> None:
    readings: list[int] = []

    def read() -> Mapping[str, object]:
        readings.append(len(readings))
        return {"gpu_load": len(readings)}

    clock = ManualClock(5 * NS_PER_S)
    telemetry = BoardTelemetry(clock, (lambda: None, read))
    assert [telemetry(), telemetry()] == [{"gpu_load": 1}] * 2
    clock._now_ns += NS_PER_S
    assert telemetry() == {"gpu_load": 2}


def test_without_readers_there_is_no_board() -> None:
    assert BoardTelemetry(ManualClock(), ())() is None


def test_entry_points_bring_readers_and_a_broken_one_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [
        EntryPoint("gone", "no.such.module:read", "vlm.telemetry"),
        EntryPoint("here", "builtins:dict", "vlm.telemetry"),
    ]
    monkeypatch.setattr(board, "entry_points", lambda group: entries if group == "vlm.telemetry" else [])
    with caplog.at_level(logging.WARNING):
        assert board_telemetry(ManualClock())() == {}
    assert "no.such.module" in caplog.text
