"""Schemes that other packages bring, found through the entry-point group ``vlm.sources``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from runtime.errors import SourceError
from runtime.sources.source import Source
from runtime.sources.uri import SourceUri

GROUP = "vlm.sources"
BUILT_IN = ("file", "rosbag", "synthetic")


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the caller of `open_source` asked for; the newest-frame mailbox is put around live sources afterwards."""

    every_frame: bool = False
    loop: bool = False


def open_registered(uri: SourceUri, options: SourceOptions) -> Source:
    """Open a URI with the factory of its scheme. Raises SourceError when there is none, or when it cannot be loaded."""
    entry = _entry_of(uri)
    try:
        factory = entry.load()
    except (ImportError, AttributeError) as problem:
        raise SourceError(
            f"{uri.name}: the source {entry.value!r} cannot be loaded ({problem})",
            hint="install what it needs, or remove the package that brings it",
        ) from problem
    source: Source = factory(uri.text, options)
    return source


def _entry_of(uri: SourceUri) -> EntryPoint:
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if uri.scheme in found:
        return found[uri.scheme]
    known = ", ".join(f"{name}://" for name in sorted({*BUILT_IN, *found}))
    if uri.scheme in ("http", "https"):
        raise SourceError(f"{uri.name}: remote files are not fetched", hint="download it and pass the path")
    raise SourceError(
        f"{uri.name}: nothing here opens {uri.scheme}://, known are {known}",
        hint=f"install a package with an entry point {uri.scheme!r} in the group {GROUP!r}",
    )
