"""A device on which the n-th call of a kind fails: to prove that whatever was opened before it is given back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kernels.driver.emulator import EmulatorDevice
from kernels.driver.protocol import Dim3, Function, Image, Stream
from kernels.errors import OutOfMemoryError, StickyError

KINDS = ("alloc", "pinned", "load_module", "create_stream", "create_event", "capture", "launch", "copy", "graph")


class FaultyDevice(EmulatorDevice):
    """The emulator, failing as told.

    ``fail_at(kind, nth, sticky=False)``: the nth call of that kind (1: the next) raises OutOfMemoryError, or
    StickyError, after which everything does. ``calls`` counts every kind, so that a test can first run without a
    fault and then let each call fail in turn. copy: copy_in, copy_out, copy and fill. graph: the end of a capture.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.calls: Counter[str] = Counter()
        self._fault: tuple[str, int, bool] | None = None

    def fail_at(self, kind: str, nth: int, *, sticky: bool = False) -> None:
        """Let the nth call from now fail; once."""
        assert kind in KINDS, kind
        self._fault = kind, self.calls[kind] + nth, sticky

    def step(self, kind: str, nbytes: int = 0) -> None:
        """Count a call, and fail when it is the one."""
        self.handles.require_usable()
        self.calls[kind] += 1
        if self._fault is None or self._fault[:2] != (kind, self.calls[kind]):
            return
        sticky, self._fault = self._fault[2], None
        told = f"injected: call {self.calls[kind]} of {kind}"
        if sticky:
            self.handles.lost = StickyError(told, call=kind, code=719)
            raise self.handles.lost
        raise OutOfMemoryError(told, requested=nbytes, call=kind, code=2)

    def alloc(self, nbytes: int) -> Any:
        self.step("alloc", nbytes)
        return super().alloc(nbytes)

    def pinned(self, nbytes: int, *, mapped: bool = False) -> Any:
        self.step("pinned", nbytes)
        return super().pinned(nbytes, mapped=mapped)

    def create_stream(self) -> Any:
        self.step("create_stream")
        return super().create_stream()

    def create_event(self, *, timing: bool = False) -> Any:
        self.step("create_event")
        return super().create_event(timing=timing)

    def load_module(self, image: Image) -> Any:
        self.step("load_module")
        return FaultyModule(self, super().load_module(image))

    def copy_in(self, ptr: int, source: Any, stream: Stream) -> None:
        self.step("copy")
        super().copy_in(ptr, source, stream)

    def copy_out(self, target: Any, ptr: int, stream: Stream) -> None:
        self.step("copy")
        super().copy_out(target, ptr, stream)

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        self.step("copy")
        super().copy(target, source, nbytes, stream)

    def fill(self, ptr: int, value: int, nbytes: int, stream: Stream) -> None:
        self.step("copy")
        super().fill(ptr, value, nbytes, stream)

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[Any]:
        self.step("capture")
        with super().capture(stream) as capture:
            yield capture
            self.step("graph")


class FaultyModule:
    """A module whose kernels count."""

    def __init__(self, device: FaultyDevice, module: Any) -> None:
        self._device, self._module = device, module

    def function(self, name: str) -> FaultyFunction:
        return FaultyFunction(self._device, self._module.function(name))

    def close(self) -> None:
        self._module.close()


class FaultyFunction:
    """A kernel whose launches count."""

    def __init__(self, device: FaultyDevice, function: Function) -> None:
        self._device, self._function = device, function

    @property
    def name(self) -> str:
        return self._function.name

    def attributes(self) -> dict[str, int]:
        return self._function.attributes()

    def launch(
        self, grid: Dim3, block: Dim3, shared_bytes: int, stream: Stream, signature: str, args: Sequence[Any]
    ) -> None:
        self._device.step("launch")
        self._function.launch(grid, block, shared_bytes, stream, signature, args)
