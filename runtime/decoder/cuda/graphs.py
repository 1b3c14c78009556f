"""Steps as CUDA graphs: captured on their second use, replayed from then on."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

from kernels.driver.protocol import Device, Graph, Stream
from kernels.errors import DeviceError, StickyError

_log = logging.getLogger(__name__)

MAX_GRAPHS = 24


class StepGraphs:
    """Runs work that is the same whenever its key is the same.

    The first run of a key launches its kernels one by one (modules are loaded then, which a capture cannot do), the
    second captures them, later ones replay. At most ``MAX_GRAPHS`` are kept; the one used longest ago gives way.
    """

    def __init__(self, device: Device, stream: Stream, *, enabled: bool = True) -> None:
        self._device, self._stream, self._enabled = device, stream, enabled
        self._warm: set[Hashable] = set()
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Enqueue the work of ``key``, which ``enqueue`` launches kernel by kernel."""
        graph = self._graphs.get(key)
        if graph is None:
            if not self._enabled or key not in self._warm:
                enqueue()
                self._warm.add(key)
                return
            graph = self._captured(key, enqueue)
            if graph is None:
                enqueue()
                return
        self._graphs.move_to_end(key)
        graph.launch(self._stream)

    def close(self) -> None:
        """Destroy all graphs, once nothing of them runs any more; harmless when repeated."""
        self._warm.clear()
        while self._graphs:
            self._graphs.popitem()[1].close()

    def _captured(self, key: Hashable, enqueue: Callable[[], None]) -> Graph | None:
        """None, from now on for every key, where the driver backend cannot capture at all."""
        if len(self._graphs) >= MAX_GRAPHS:
            self._stream.synchronize()  # it may still run
            self._graphs.popitem(last=False)[1].close()
        try:
            recording = self._device.capture(self._stream)
        except StickyError:
            raise
        except DeviceError as problem:
            _log.warning("kernels are launched one by one: %s", problem.message)
            self._enabled = False
            return None
        with recording as capture:
            enqueue()
        graph = self._graphs[key] = capture.graph
        return graph
