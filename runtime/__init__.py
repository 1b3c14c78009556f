"""Vision-language models on small machines: camera frames in, streaming text out.

    import runtime

    with runtime.Session.open("demo-llava.bundle") as session:
        for delta in session.stream("Describe the image.", images=["photo.jpg"]):
            ...

Names are loaded when they are first used, so that ``import runtime`` costs nothing. docs/session.md shows more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from runtime.version import __version__

if TYPE_CHECKING:
    from runtime.bundle import Bundle, Manifest, load_bundle
    from runtime.chat import Chat
    from runtime.decoder.options import CudaOptions
    from runtime.errors import (
        BundleError,
        BusyError,
        ClosedError,
        ConfigError,
        DeadlineError,
        DeviceLostError,
        EngineError,
        ExportError,
        ImageError,
        InputError,
        MemoryLimitError,
        NetworkError,
        OutputError,
        PromptError,
        SourceError,
        UsageError,
        VlmError,
    )
    from runtime.images import load_image
    from runtime.memory import MemoryReport, MemoryUse
    from runtime.prompt import ImagePart, Message
    from runtime.session import Session
    from runtime.sources import Source, open_source
    from runtime.text_stream import TextStream
    from runtime.types import Answer, Delta, Frame, GenerationParams, Timings, Usage
    from runtime.watch import Caption, Watch

__all__ = [
    "Answer",
    "Bundle",
    "BundleError",
    "BusyError",
    "Caption",
    "Chat",
    "ClosedError",
    "ConfigError",
    "CudaOptions",
    "DeadlineError",
    "Delta",
    "DeviceLostError",
    "EngineError",
    "ExportError",
    "Frame",
    "GenerationParams",
    "ImageError",
    "ImagePart",
    "InputError",
    "Manifest",
    "MemoryLimitError",
    "MemoryReport",
    "MemoryUse",
    "Message",
    "NetworkError",
    "OutputError",
    "PromptError",
    "Session",
    "Source",
    "SourceError",
    "TextStream",
    "Timings",
    "Usage",
    "UsageError",
    "VlmError",
    "Watch",
    "__version__",
    "load_bundle",
    "load_image",
    "open_source",
]

_HOMES = {
    "runtime.bundle": ("Bundle", "Manifest", "load_bundle"),
    "runtime.chat": ("Chat",),
    "runtime.decoder.options": ("CudaOptions",),
    "runtime.errors": tuple(name for name in __all__ if name.endswith("Error")),
    "runtime.images": ("load_image",),
    "runtime.memory": ("MemoryReport", "MemoryUse"),
    "runtime.prompt": ("ImagePart", "Message"),
    "runtime.session": ("Session",),
    "runtime.sources": ("Source", "open_source"),
    "runtime.text_stream": ("TextStream",),
    "runtime.types": ("Answer", "Delta", "Frame", "GenerationParams", "Timings", "Usage"),
    "runtime.watch": ("Caption", "Watch"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # a type checker would take every name for granted

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'runtime' has no attribute {name!r}")
        value = getattr(importlib.import_module(home), name)
        globals()[name] = value  # the next look-up does not come here
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
