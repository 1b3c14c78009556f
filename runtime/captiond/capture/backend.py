"""Which program decodes a source: OpenCV, or GStreamer where it was asked for or a board's package knows how.

A package brings pipelines for a board by an entry point of the group ``vlm.captures``: a function ``(source:
SourceSettings) -> pipeline or None`` (see `runtime.captiond.capture.pipelines`). An empty pipeline stands for the one
that is made here, with the board's decoders; None when this is not its board, or the source is none for GStreamer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from importlib.metadata import entry_points

from runtime.captiond.capture.pipelines import Pipeline, pipeline_of
from runtime.captiond.capture.start import GST_CHILD, scheme_of
from runtime.captiond.config.settings import SourceSettings
from runtime.errors import SourceError

GROUP = "vlm.captures"
_PACKAGES = (
    "python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-libav"
)
_log = logging.getLogger(__name__)


class Backends:
    """Chooses, and remembers whether GStreamer works here."""

    def __init__(self, gst_python: str) -> None:
        self._gst_python = gst_python
        self._works: bool | None = None

    async def choose(self, source: SourceSettings) -> Pipeline | None:
        """The pipeline for the GStreamer child, or None for OpenCV. Raises SourceError for what cannot be."""
        scheme = scheme_of(source.uri)
        if source.backend == "opencv":
            if scheme in ("gst", "csi"):
                raise SourceError(f"{scheme}: needs GStreamer", hint='set backend = "auto"')
            return None
        boards = board_pipeline(source)
        if scheme not in ("gst", "csi") and source.backend == "auto":
            if boards is None or not await self.gstreamer_works():
                return None
            return boards or pipeline_of(source)
        if scheme == "csi" and boards is None:
            raise SourceError(
                f"{source.uri}: nothing here knows this machine's CSI cameras",
                hint="csi:// needs an NVIDIA Jetson and the package jetson-vlm, installed with pip",
            )
        pipeline = boards or pipeline_of(source)
        if not await self.gstreamer_works():
            raise SourceError(
                f"GStreamer does not work with {self._gst_python}", hint=f"sudo apt-get install {_PACKAGES}"
            )
        return pipeline

    async def gstreamer_works(self) -> bool:
        """Whether the system's Python has GStreamer; asked once, of a process of its own."""
        if self._works is None:
            self._works = await _exit_status([self._gst_python, "-I", str(GST_CHILD), "check"]) == 0
        return self._works


def board_pipeline(source: SourceSettings) -> Pipeline | None:
    """What the packages for boards say about a source."""
    for entry in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found: Pipeline | None = entry.load()(source)
        except (ImportError, AttributeError) as problem:
            _log.warning("the entry point %s of %s cannot be used: %s", entry.name, GROUP, problem)
            continue
        if found is not None:
            return found
    return None


async def _exit_status(command: list[str]) -> int:
    nothing = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    except OSError:
        return 127
    ended = asyncio.Event()
    pidfd = os.pidfd_open(process.pid)
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        process.kill()  # nothing when it has ended
        status = process.wait()
    return status
