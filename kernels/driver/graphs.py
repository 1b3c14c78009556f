"""What a capture yields, and CUDA graphs through cuda-bindings for both backends that have a real driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from kernels.driver.cuda_calls import Calls
from kernels.driver.cuda_errors import CAPTURE_INVALIDATED
from kernels.driver.handles import Handle, Handles
from kernels.driver.protocol import Graph, Stream
from kernels.errors import DeviceError, KernelError

Activate = Callable[[], AbstractContextManager[None]]
"""Makes the device's context current for a block."""


class CudaGraph(Handle):
    """An instantiated graph."""

    def __init__(self, handles: Handles, calls: Calls, activate: Activate, executable: Any) -> None:
        self._calls, self._activate, self._executable = calls, activate, executable
        super().__init__(handles, "graph", self._destroy)

    def launch(self, stream: Stream) -> None:
        self.require_open()
        handle = self._calls.library.CUstream(stream.handle)
        with self._activate():
            self._calls("cuGraphLaunch", self._executable, handle)

    def _destroy(self) -> None:
        with self._activate():
            self._calls("cuGraphExecDestroy", self._executable)


class CaptureResult:
    """What a capture yields; the graph is there once it has ended."""

    def __init__(self) -> None:
        self.finished: Graph | None = None

    @property
    def graph(self) -> Graph:
        if self.finished is None:
            raise DeviceError("the capture has not ended, or ended with an error", code=CAPTURE_INVALIDATED)
        return self.finished


@contextmanager
def captured(handles: Handles, calls: Calls, activate: Activate, stream: Stream) -> Iterator[CaptureResult]:
    """Record what the block enqueues on ``stream``, then instantiate it."""
    if stream.handle == 0:
        raise DeviceError("the default stream cannot be captured", code=1, hint="device.create_stream()")
    handle, capture = calls.library.CUstream(stream.handle), CaptureResult()
    # Thread-local: other threads of the application may allocate meanwhile.
    mode = calls.library.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    with activate():
        calls("cuStreamBeginCapture", handle, mode)
    handles.capturing = True
    try:
        yield capture
    except BaseException:
        handles.capturing = False
        _abandon(calls, activate, handle)
        raise
    handles.capturing = False
    with activate():
        graph = calls("cuStreamEndCapture", handle)
        try:
            executable = calls("cuGraphInstantiate", graph, 0)
        finally:
            calls("cuGraphDestroy", graph)
    capture.finished = CudaGraph(handles, calls, activate, executable)


def _abandon(calls: Calls, activate: Activate, handle: Any) -> None:
    """End a capture whose block has failed, so that the stream can be used again."""
    try:
        with activate():
            graph = calls("cuStreamEndCapture", handle)
            if int(graph) != 0:
                calls("cuGraphDestroy", graph)
    except KernelError:
        return  # the capture was invalid already; the block's own error says more
