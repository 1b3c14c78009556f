"""What a session keeps in memory, by purpose. Made by `Session.memory_report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["device", "host"]


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes for one purpose. ``place``: device memory, or the host's (a Jetson has one memory for both).

    ``exact``: allocated by this project with that size; else an estimate from the manifest (what an engine library or
    a driver takes for itself).
    """

    purpose: str
    bytes: int
    place: Place
    exact: bool = True


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """All uses of a session's engines, largest first."""

    uses: tuple[MemoryUse, ...]

    @property
    def total_bytes(self) -> int:
        """Sum over both places."""
        return sum(use.bytes for use in self.uses)

    @property
    def device_bytes(self) -> int:
        """What lies in device memory."""
        return sum(use.bytes for use in self.uses if use.place == "device")

    @property
    def host_bytes(self) -> int:
        """What lies in the host's memory."""
        return sum(use.bytes for use in self.uses if use.place == "host")
