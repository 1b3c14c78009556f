"""Events as JSON lines in a file that rotates."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import JsonlSettings
from runtime.captiond.events import EVENT_TYPES
from runtime.captiond.outputs.lines_file import LinesFile
from runtime.captiond.outputs.output import Output, ended
from runtime.captiond.outputs.payload import as_written, json_text
from runtime.captiond.outputs.worker import Worker
from runtime.errors import OutputError

_log = logging.getLogger(__name__)
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 3.0
_FINISH_S = 1.0


class Jsonl(Output):
    """Writes `LinesFile` from a thread of its own, so that a slow disk costs events of this output alone.

    A line is flushed to the disk at most ``sync_s`` after it was written (0: at once). A disk that takes nothing more
    is tried again every 0.5 to 3 s: meanwhile events wait in the subscription, and the oldest of them are dropped.
    """

    def __init__(self, settings: JsonlSettings, bus: Bus, clock: Clock) -> None:
        assert settings.path is not None
        types = [kind for kind in EVENT_TYPES if kind.type in settings.events]
        super().__init__("jsonl", bus, clock, types)
        self._sync_s = settings.sync_s
        self._file = LinesFile(settings.path, max_bytes=settings.max_bytes, keep=settings.keep)
        self._worker = Worker("jsonl")

    async def _work(self) -> None:
        await self._open()
        flusher = asyncio.ensure_future(self._flush_now_and_then())
        try:
            async for event in self.subscription:
                events = self._more(event)
                lines = [json_text(one, as_written).encode("ascii") + b"\n" for one in events]
                await self._write(lines)
        finally:
            await ended(flusher)
            await self._finish()

    async def _open(self) -> None:
        """Open the file as soon as that is possible."""
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                await self._worker.run(self._file.open)
                break
            except OutputError as error:
                self._trouble(str(error), "error")
            await self._clock.sleep(retry_s)
            retry_s = min(2 * retry_s, _LAST_RETRY_S)
        if self._file.repaired:
            cut = self._file.repaired
            what = "completed" if cut < 0 else f"cut off ({cut} bytes)"
            self._tell("warning", f"{self._file.path}: its last line was torn and has been {what}")
        self._well(f"{self._file.path} can be written")

    async def _write(self, lines: list[bytes]) -> None:
        """Write these lines as soon as the disk takes them."""
        retry_s = _FIRST_RETRY_S
        try:
            while lines:
                try:
                    count = await self._worker.run(partial(self._put, lines))
                    lines = lines[count:]
                    self.delivered += count
                    self._well(f"{self._file.path} is written again")
                    continue
                except (OSError, OutputError) as error:
                    reason = error.strerror if isinstance(error, OSError) else str(error)
                    self._trouble(f"{self._file.path} takes no more: {reason}", "error")
                await self._clock.sleep(retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
        finally:
            self.lost += len(lines)

    def _put(self, lines: list[bytes]) -> int:
        count = self._file.append(lines)
        if self._sync_s == 0:
            self._file.sync()
        return count

    async def _flush_now_and_then(self) -> None:
        while self._sync_s > 0:
            await self._clock.sleep(self._sync_s)
            try:
                if self._file.dirty:
                    await self._worker.run(self._file.sync)
            except OSError as error:
                self._trouble(f"{self._file.path} does not reach the disk: {error.strerror or error}", "error")

    async def _finish(self) -> None:
        """Flush and close, without waiting for a disk that hangs: the process may be told to end."""
        closing = asyncio.ensure_future(self._worker.run(self._close))
        await asyncio.wait({closing}, timeout=_FINISH_S)
        closing.cancel()
        self._worker.close()

    def _close(self) -> None:
        try:
            self._file.sync()
        except OSError:
            _log.exception("%s does not reach the disk", self._file.path)
        self._file.close()
