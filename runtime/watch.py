"""Caption a source, frame after frame: the newest one when the model is free, or every one. Made by `Session.watch`."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from runtime.constraint import Constraint
from runtime.scheduling import Share
from runtime.text_stream import TextStream
from runtime.types import Answer, CaptureKind, Delta, Frame, GenerationParams

if TYPE_CHECKING:
    from runtime.session import Session
    from runtime.sources import Source

_NS_PER_MS = 1e6


class Caption:
    """What the model says about one frame, while it says it.

    Iterate it for its deltas (each is read once), or wait with ``text`` or ``answer()``. ``frame`` is the picture;
    ``skipped`` counts the frames between the caption before and this one. Ages are milliseconds since the frame's
    capture.
    """

    def __init__(self, frame: Frame, skipped: int, stream: TextStream) -> None:
        self.frame = frame
        self.skipped = skipped
        self._stream = stream

    @property
    def seq(self) -> int:
        """The frame's number in its source, from 0."""
        return self.frame.seq

    @property
    def source(self) -> str:
        """Where the frame came from, without credentials."""
        return self.frame.source

    @property
    def t_capture_ns(self) -> int:
        """When the frame was taken: CLOCK_MONOTONIC ns."""
        return self.frame.t_capture_ns

    @property
    def t_capture_kind(self) -> CaptureKind:
        """Whether ``t_capture_ns`` is the exposure or the arrival."""
        return self.frame.t_capture_kind

    @property
    def age_first_ms(self) -> float | None:
        """The frame's age when the first token was ready; None before that."""
        return self._age_ms(self._stream.first_t_ns)

    @property
    def age_last_ms(self) -> float | None:
        """The frame's age when the last token so far was ready; None before the first."""
        return self._age_ms(self._stream.last_t_ns)

    @property
    def text(self) -> str:
        """The whole caption; waits for it."""
        return self.answer().text

    @property
    def done(self) -> bool:
        """Whether ``text`` would return at once."""
        return self._stream.done

    def answer(self) -> Answer:
        """Wait for the end; raises what ended the request."""
        return self._stream.answer()

    async def answer_async(self) -> Answer:
        """``answer()`` for an event loop."""
        return await self._stream.answer_async()

    def settle(self) -> None:
        """Wait for the end without reading; raises an error that nobody has read yet."""
        self._stream.settle()

    def cancel(self) -> None:
        """End this caption within one token."""
        self._stream.cancel()

    def __iter__(self) -> Iterator[Delta]:
        return iter(self._stream)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._stream

    def _age_ms(self, t_ns: int | None) -> float | None:
        return None if t_ns is None else (t_ns - self.t_capture_ns) / _NS_PER_MS


class Watch:
    """Iterator of captions. ``next`` waits for the caption before it to be complete, then takes a frame and begins.

    Between two ``next`` nothing is computed. It ends with the source; `close` (or leaving it as a context manager, or
    letting go of it) cancels the caption that is being written and stops the capture. An error of a caption that nobody
    has read is raised by the ``next`` after it; the watch goes on with the ``next`` after that.
    """

    def __init__(
        self,
        session: Session,
        source: str | os.PathLike[str] | Source,
        prompt: str,
        *,
        every_frame: bool,
        params: GenerationParams,
        share: Share,
        constraint: Constraint | None,
    ) -> None:
        self._session = session
        self._prompt = prompt
        self._params = params
        self._share = share
        self._constraint = constraint
        self._source = _opened(source, every_frame)
        self._frames = iter(self._source)
        self._finalizer = weakref.finalize(self, self._source.close)
        self._caption: Caption | None = None
        self._last_seq = -1
        self.frames_skipped = 0

    @property
    def frames_seen(self) -> int:
        """Frames that the source has counted so far, captioned or skipped."""
        return self._last_seq + 1

    def close(self) -> None:
        """Cancel what is being written, stop the capture and close the source. Idempotent."""
        if self._caption is not None and not self._caption.done:
            self._caption.cancel()
        self._finalizer()

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Caption:
        if self._caption is not None:
            self._caption.settle()
        try:
            frame = next(self._frames)
        except BaseException:  # the end of the source, its error, or an interruption
            self.close()
            raise
        skipped = max(0, frame.seq - self._last_seq - 1)
        self._last_seq = frame.seq
        self.frames_skipped += skipped
        stream = self._session.stream(
            self._prompt,
            images=[frame],
            params=self._params,
            priority=self._share.priority,
            weight=self._share.weight,
            constraint=self._constraint,
        )
        self._caption = Caption(frame, skipped, stream)
        return self._caption

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Caption:
        caption = await asyncio.get_running_loop().run_in_executor(None, next, self, None)
        if caption is None:
            raise StopAsyncIteration
        return caption

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _opened(source: str | os.PathLike[str] | Source, every_frame: bool) -> Source:
    from runtime.sources import NewestFrames, open_source

    if isinstance(source, (str, os.PathLike)):
        return open_source(source, every_frame=every_frame)
    return NewestFrames(source) if source.live and not every_frame else source
