"""Newest frame wins: a capture thread reads a live source into a mailbox with one place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType

from runtime.errors import ClosedError, VlmError
from runtime.sources.source import Source
from runtime.types import Frame

_JOIN_S = 5.0


class NewestFrames:
    """A source whose reader always gets the newest frame of another; frames that nobody took in time are dropped.

    Memory: one frame waits, one is being read. ``dropped`` counts what was lost. An error of the inner source reaches
    the reader after the frame that waits. The thread starts with the first read and ends with the source or `close`.
    """

    def __init__(self, inner: Source) -> None:
        self._inner = inner
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._error: VlmError | None = None
        self._ended = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self.dropped = 0

    @property
    def live(self) -> bool:
        """False: whoever reads this needs no mailbox of their own."""
        return False

    @property
    def name(self) -> str:
        """The name of the inner source."""
        return self._inner.name

    def __iter__(self) -> Iterator[Frame]:
        if self._closed:
            raise ClosedError(f"{self.name}: the source is closed", hint="open it again with open_source")
        return self

    def __next__(self) -> Frame:
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._read, name=f"capture {self.name}", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._frame is not None or self._ended or self._closed)
            frame, self._frame = self._frame, None
            if frame is not None and not self._closed:
                return frame
            error, self._error = self._error, None
            if error is not None and not self._closed:
                raise error
            raise StopIteration

    def __enter__(self) -> NewestFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wake the reader, close the inner source and wait for the capture thread; idempotent, from any thread."""
        with self._changed:
            self._closed = True
            self._frame = None
            self._changed.notify_all()
            thread = self._thread
        self._inner.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)

    def _read(self) -> None:
        error: VlmError | None = None
        try:
            for frame in self._inner:
                if not self._post(frame):
                    return
        except VlmError as raised:
            error = None if isinstance(raised, ClosedError) else raised  # closed before the first frame: the end
        except Exception as raised:  # noqa: BLE001 - a worker hands everything over: the reader must not wait for ever
            error = VlmError(f"{self.name}: the source failed: {type(raised).__name__}: {raised}")
            error.__cause__ = raised
        finally:
            with self._changed:
                self._error = error
                self._ended = True
                self._changed.notify_all()

    def _post(self, frame: Frame) -> bool:
        with self._changed:
            if self._closed:
                return False
            self.dropped += self._frame is not None
            self._frame = frame
            self._changed.notify_all()
            return True
