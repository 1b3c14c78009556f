"""What a capture child was told: `runtime.captiond.capture.start.arguments_of`, as an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Plan:
    """One attempt. ``uri`` is without credentials, so it may stand in messages."""

    uri: str
    scheme: str
    user: str | None
    password: str | None
    first_seq: int
    transport: str
    fps: float | None
    width: int | None
    height: int | None
    max_side_px: int
    max_pixels: int
    memory_mib: int
    open_timeout_s: float
    loop: bool
    every_frame: bool

    @classmethod
    def of(cls, arguments: Mapping[str, object]) -> Plan:
        """Take what is known by name; the daemon, which made them, has checked them."""
        known: dict[str, object] = {item.name: arguments[item.name] for item in fields(cls)}
        return cls(**known)  # type: ignore[arg-type]
