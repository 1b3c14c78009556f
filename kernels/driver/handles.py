"""Who owns what is open on a device: each handle is released once, and a device releases what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kernels.errors import DeviceError, StickyError

KINDS = ("memory", "pinned", "stream", "event", "module", "graph")


class Handle:
    """Something a driver has to give back; ``release`` does it and is called once, at most.

    Raises DeviceError when it is used after ``close``.
    """

    def __init__(self, owner: Handles, kind: str, release: Callable[[], None]) -> None:
        self._owner = owner
        self._kind = kind
        self._release: Callable[[], None] | None = release
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
                code=900,
                hint="free it after the capture",
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
