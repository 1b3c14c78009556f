"""Runs real capture children and collects what they say and show."""

from __future__ import annotations

import asyncio
import functools
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from runtime.captiond.capture.launcher import Launcher
from runtime.captiond.capture.process import Child
from runtime.captiond.capture.ring import READER_MAIN, Ring
from runtime.captiond.capture.start import GST_CHILD, GST_PYTHON, slot_bytes
from runtime.captiond.config.settings import SourceSettings
from tests.peers.clips import need

LONGEST_S = 60.0
T = TypeVar("T")


@dataclass
class Seen:
    """One attempt: its messages but for frames, the frames that were taken (seq, width, height, RGB), its exit."""

    said: list[dict[str, Any]] = field(default_factory=list)
    frames: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    status: int = 0

    @property
    def last(self) -> dict[str, Any]:
        return self.said[-1] if self.said else {}

    @property
    def cause(self) -> str:
        return str(self.last.get("cause", self.last.get("type")))


def source(uri: str | Path, **settings: Any) -> SourceSettings:
    return SourceSettings(name="camera", uri=str(uri), **settings)


def launched(work: Callable[[Launcher], Awaitable[T]]) -> T:
    """The result of ``work`` with a launcher, which is closed afterwards."""

    async def run() -> T:
        launcher = Launcher()
        try:
            return await asyncio.wait_for(work(launcher), LONGEST_S)
        finally:
            await launcher.close()

    return asyncio.run(run())


async def attempt(
    launcher: Launcher,
    uri: str | Path,
    *,
    password: str | None = None,
    frames: int = 1_000_000,
    first_seq: int = 0,
    on_frame: Callable[[Child], object] | None = None,
    **settings: Any,
) -> Seen:
    """One attempt; it is killed after ``frames`` frames."""
    settings_of = source(uri, **settings)
    ring = Ring.create(slot_bytes(settings_of))
    try:
        child = await launcher.launch_capture(settings_of, password, ring, first_seq)
        seen = await _listen(child, ring, frames, on_frame, settings_of.every_frame)
        seen.status = await child.wait()
        return seen
    finally:
        ring.close()


async def _listen(
    child: Child, ring: Ring, frames: int, on_frame: Callable[[Child], object] | None, every_frame: bool
) -> Seen:
    seen = Seen()
    async for message in child.messages():
        if message["type"] != "frame":
            seen.said.append(message)
            continue
        seen.told.append(int(str(message["seq"])))
        pinned = ring.take(READER_MAIN, seen.frames[-1][0] if seen.frames else -1)
        if pinned is not None:
            header = pinned.header
            seen.frames.append((header.seq, header.width, header.height, bytes(pinned.view)))
            assert pinned.release()
            del pinned
        if on_frame is not None:
            on_frame(child)
        if len(seen.frames) >= frames:
            child.kill()
        elif every_frame:
            child.send({"type": "next"})
    return seen


def tried(uri: str | Path, **options: Any) -> Seen:
    """One attempt with a launcher of its own."""
    return launched(lambda launcher: attempt(launcher, uri, **options))


@functools.lru_cache(maxsize=1)
def _gstreamer_missing() -> bool:
    try:
        return subprocess.run([GST_PYTHON, "-I", str(GST_CHILD), "check"], check=False).returncode != 0
    except OSError:
        return True


def need_gstreamer() -> None:
    """Skip the test where the system's Python has no GStreamer."""
    if _gstreamer_missing():
        pytest.skip("needs GStreamer (Debian: python3-gi gir1.2-gstreamer-1.0 gstreamer1.0-plugins-good -bad, -libav)")


X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-threads", "1")
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-x265-params", "log-level=error:pools=1")
MJPEG = ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", "2")


def film(path: Path, codec: Sequence[str], *, size: str = "64x48", frames: int = 20, shown: str = "testsrc2") -> Path:
    """A film at 30 fps made by ffmpeg of one of its sources; the test is skipped where there is no ffmpeg."""
    program = need("ffmpeg", "ffmpeg")
    picture = f"{shown}{':' if '=' in shown else '='}size={size}:rate=30"
    command = [program, "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", picture, "-frames:v", str(frames)]
    subprocess.run([*command, *codec, str(path)], check=True, capture_output=True)
    return path


def mean_colour(frame: tuple[int, int, int, bytes]) -> tuple[int, int, int]:
    """Mean red, green and blue of a frame."""
    _, width, height, rgb = frame
    return (*(round(sum(rgb[channel::3]) / (width * height)) for channel in range(3)),)  # type: ignore[return-value]
