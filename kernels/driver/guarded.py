"""The part of a device that all backends share: what is refused before the driver is called, and who owns what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property

from kernels.driver.handles import Handles
from kernels.driver.protocol import DeviceMemory, Event, Image, Module, PinnedMemory


class GuardedDevice(ABC):
    """Calls the backend where the device is usable and, for what CUDA forbids in a capture, nothing is captured."""

    def __init__(self) -> None:
        self.handles = Handles()

    def alloc(self, nbytes: int) -> DeviceMemory:
        self.handles.require_no_capture("cuMemAlloc")
        return self._alloc(nbytes)

    def pinned(self, nbytes: int, *, mapped: bool = False) -> PinnedMemory:
        self.handles.require_no_capture("cuMemHostAlloc")
        return self._pinned(nbytes, mapped)

    def create_event(self, *, timing: bool = False) -> Event:
        self.handles.require_usable()
        return self._create_event(timing)

    def load_module(self, image: Image) -> Module:
        self.handles.require_no_capture("cuModuleLoadData")
        return self._load_module(image)

    def synchronize(self) -> None:
        self.handles.require_no_capture("cuCtxSynchronize")
        self._synchronize()

    def live(self) -> dict[str, int]:
        return self.handles.live()

    def close(self) -> None:
        if not self.handles.closed:
            self._close()

    @abstractmethod
    def _alloc(self, nbytes: int) -> DeviceMemory: ...

    @abstractmethod
    def _pinned(self, nbytes: int, mapped: bool) -> PinnedMemory: ...

    @abstractmethod
    def _create_event(self, timing: bool) -> Event: ...

    @abstractmethod
    def _load_module(self, image: Image) -> Module: ...

    @abstractmethod
    def _synchronize(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...


class GpuDevice(GuardedDevice):
    """A device with a context of the real driver."""

    @cached_property
    def multiprocessors(self) -> int:
        return self._attribute("MULTIPROCESSOR_COUNT")

    @cached_property
    def integrated(self) -> bool:
        return bool(self._attribute("INTEGRATED"))

    @cached_property
    def shared_limit_bytes(self) -> int:
        """Shared memory that a block may ask for."""
        return self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Make the context current for a block of calls, and leave what was current."""

    def releasing(self, release: Callable[..., object], *args: object) -> Callable[[], None]:
        """Return what gives a handle back, in the context."""

        def in_context() -> None:
            with self.active():
                release(*args)

        return in_context

    def _close(self) -> None:
        """A lost context cannot even be given back."""
        try:
            self.handles.close_all()
        finally:
            if self.handles.lost is None:
                self._release_context()

    @abstractmethod
    def _attribute(self, name: str) -> int:
        """The CUdevice_attribute of that name."""

    @abstractmethod
    def _release_context(self) -> None: ...
