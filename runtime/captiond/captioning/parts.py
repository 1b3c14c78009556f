"""What the caption loop needs of the daemon's other parts, as protocols."""

from __future__ import annotations

from typing import Protocol

from runtime.captiond.asks import Ask
from runtime.captiond.capture.ring import FrameHeader, Ring
from runtime.captiond.engine.asked import Asked
from runtime.captiond.events import EngineChanged


class Runner(Protocol):
    """`runtime.captiond.capture.supervisor.SourceRunner`."""

    ring: Ring

    def newest(self) -> FrameHeader | None: ...
    async def wait_frame(self, after_seq: int = -1) -> FrameHeader: ...


class Engine(Protocol):
    """`runtime.captiond.engine.client.EngineClient`."""

    state: EngineChanged

    @property
    def answering(self) -> bool: ...
    @property
    def model(self) -> str | None: ...
    async def wait_answering(self) -> None: ...
    def ask(self, ask: Ask) -> Asked: ...


class JpegView(Protocol):
    """`runtime.captiond.pictures.client.Jpeg`."""

    @property
    def data(self) -> bytes: ...


class PicturesView(Protocol):
    """`runtime.captiond.pictures.client.Pictures`."""

    async def jpeg(
        self, source: str, *, slot: tuple[int, int] | None = None, max_side_px: int, quality: int = 80
    ) -> JpegView | None: ...
    async def changed(self, source: str, slot: tuple[int, int]) -> float: ...
    async def keep_scene(self, source: str, slot: tuple[int, int]) -> bool: ...
