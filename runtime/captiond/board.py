"""Telemetry of the board, where a package brings it: entry points of the group ``vlm.telemetry``.

An entry point is a function without arguments that returns a mapping of JSON values, or None where there is no board.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from runtime.captiond.clock import NS_PER_S, Clock

_log = logging.getLogger(__name__)
_KEEP_S = 1.0

Telemetry = Callable[[], Mapping[str, object] | None]


class BoardTelemetry:
    """What the board's sensors say, read at most once a second however many ask."""

    def __init__(self, clock: Clock, readers: tuple[Telemetry, ...]) -> None:
        self._clock = clock
        self._readers = readers
        self._read_ns: int | None = None
        self._latest: Mapping[str, object] | None = None

    def __call__(self) -> Mapping[str, object] | None:
        """The latest reading, None where there is no board."""
        now = self._clock.now_ns()
        if self._readers and (self._read_ns is None or now - self._read_ns >= _KEEP_S * NS_PER_S):
            self._read_ns = now
            self._latest = next((found for reader in self._readers if (found := reader()) is not None), None)
        return self._latest


def board_telemetry(clock: Clock) -> BoardTelemetry:
    """Telemetry by the installed packages; one that cannot be loaded is left out with a warning."""
    readers: list[Telemetry] = []
    for entry in entry_points(group="vlm.telemetry"):
        try:
            readers.append(entry.load())
        except (ImportError, AttributeError) as problem:
            _log.warning("telemetry %s cannot be loaded: %s", entry.value, problem)
    return BoardTelemetry(clock, tuple(readers))
