"""Finding and launching kernels by name: each source is built or read once per device, on the first use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from kernels.driver.protocol import Device, Dim3, Function, Image, Module, Stream
from kernels.errors import ImageError
from kernels.registry import SOURCES


def compiled_image(device: Device, source: str) -> Image:
    """Return what ``device`` runs for a file of csrc. ImageError or CompileError when there is none."""
    if device.backend == "emulator":
        from kernels.emulator import build_library

        return build_library(source)
    from kernels.images import image_for

    return image_for(device, source)


class Kernels:
    """The kernels of one device. ``launched`` counts launches per entry, replays of a graph not among them."""

    def __init__(self, device: Device, *, image: Callable[[Device, str], Image] = compiled_image) -> None:
        self.device = device
        self.launched: Counter[str] = Counter()
        self._image = image
        self._modules: dict[str, Module] = {}
        self._functions: dict[str, Function] = {}

    def launch(
        self,
        entry: str,
        grid: Dim3,
        block: Dim3,
        shared_bytes: int,
        stream: Stream,
        signature: str,
        *args: Any,
        source: str | None = None,
    ) -> None:
        """Enqueue ``entry``; letters of ``signature``: kernels.driver.protocol.Function.

        source: the file in csrc, for an entry that the registry does not know. Raises ImageError for an unknown
        entry, ArrayError for arguments or a grid that no device takes.
        """
        self.function(entry, source).launch(grid, block, shared_bytes, stream, signature, args)
        self.launched[entry] += 1

    def load(self, *entries: str) -> None:
        """Load entries now: a capture cannot."""
        for entry in entries:
            self.function(entry)

    def function(self, entry: str, source: str | None = None) -> Function:
        """Return the compiled function, loading its module on the first use."""
        found = self._functions.get(entry)
        if found is None:
            file = source or SOURCES.get(entry)
            if file is None:
                raise ImageError(f"no kernel is named {entry}")
            found = self._functions[entry] = self._module(file).function(entry)
        return found

    def close(self) -> None:
        """Unload what was loaded; harmless when repeated."""
        self._functions.clear()
        while self._modules:
            self._modules.popitem()[1].close()

    def _module(self, source: str) -> Module:
        found = self._modules.get(source)
        if found is None:
            found = self._modules[source] = self.device.load_module(self._image(self.device, source))
        return found
