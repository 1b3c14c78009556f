"""Who owns what is open on a device: each handle is released once, and a device releases what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from kernels.driver.cuda_errors import CAPTURE_UNSUPPORTED
from kernels.errors import DeviceError, StickyError

T = TypeVar("T")
H = TypeVar("H", bound="Handle")
KINDS = ("memory", "pinned", "stream", "event", "module", "graph")


class Handle:
    """Something a driver has to give back; ``release`` does it and is called once, at most.

    Raises DeviceError when it is used after ``close``.
    """

    def __init__(self, owner: Handles, kind: str, release: Callable[[], object]) -> None:
        self._owner = owner
        self._kind = kind
        self._release: Callable[[], object] | None = release
        owner.add(self)

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self._kind

    def require_open(self) -> None:
        """Refuse the use of a closed handle."""
        if self._release is None:
            raise DeviceError(f"the {self._kind} was used after it was closed")
        self._owner.require_usable()

    def close(self) -> None:
        """Give it back; harmless when repeated."""
        release = self._release
        if release is None:
            return
        self._owner.permit_release(self._kind)
        self._release = None
        self._owner.remove(self)
        if self._owner.lost is None:
            release()


class Handles:
    """The open handles of one device, and whether the device can still be used."""

    def __init__(self) -> None:
        self._open: dict[int, Handle] = {}
        self.closed = False
        self.capturing = False
        self.lost: StickyError | None = None

    def add(self, handle: Handle) -> None:
        """Remember one that has just been opened."""
        self._open[id(handle)] = handle

    def remove(self, handle: Handle) -> None:
        """Forget one that is being released."""
        self._open.pop(id(handle), None)

    def require_usable(self) -> None:
        """Refuse every call on a device that is closed or lost."""
        if self.closed:
            raise DeviceError("the device was used after it was closed")
        if self.lost is not None:
            raise StickyError(
                f"the context is lost since an earlier error: {self.lost.message}",
                call=self.lost.call,
                code=self.lost.code,
                hint="start a new process",
            )

    def permit_release(self, kind: str) -> None:
        """Refuse to release memory while a stream is captured: the driver would, and would break the capture."""
        if self.capturing and kind in ("memory", "pinned"):
            raise DeviceError(
                f"{kind} cannot be freed while a graph is captured",
                call="cuMemFree",
                code=CAPTURE_UNSUPPORTED,
                hint="free it after the capture",
            )

    def require_no_capture(self, call: str) -> None:
        """Refuse what CUDA does not permit while a stream is captured, before it breaks the capture."""
        self.require_usable()
        if self.capturing:
            raise DeviceError(
                f"{call} is not permitted while a graph is captured",
                call=call,
                code=CAPTURE_UNSUPPORTED,
                hint="do it before the capture: allocate, load, and launch every kernel once",
            )

    def live(self) -> dict[str, int]:
        """Count what is open, by kind."""
        counts = Counter(handle.kind for handle in self._open.values())
        return {kind: counts[kind] for kind in KINDS}

    def close_all(self) -> None:
        """Release what is left, newest first; the first error is raised when all have been tried."""
        first: DeviceError | None = None
        for handle in reversed(list(self._open.values())):
            try:
                handle.close()
            except DeviceError as error:
                first = first or error
        self.closed = True
        if first is not None:
            raise first


def own(value: object, kind: type[T]) -> T:
    """Refuse handles of another backend."""
    if not isinstance(value, kind):
        raise DeviceError(f"a {type(value).__name__} of another backend was handed in, expected {kind.__name__}")
    return value


def opened(value: object, kind: type[H]) -> H:
    """Refuse handles of another backend, and closed ones."""
    handle = own(value, kind)
    handle.require_open()
    return handle


def stream_handle(stream: object) -> int:
    """Return the driver's handle of another library's stream.

    An address; or an object with ``__cuda_stream__`` (cuda.core), ``cuda_stream`` (torch) or ``handle`` (pycuda).
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "handle"):
        handle = getattr(stream, name, None)
        if handle is not None:
            return int(handle)
    raise DeviceError(f"a {type(stream).__name__} is no CUDA stream: a handle is expected, or an object that has one")
