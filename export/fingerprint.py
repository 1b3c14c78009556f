"""Digests that decide whether a stage has to run again: of a checkpoint's files, of our own code, of settings."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

from export.progress import Progress
from runtime.bundle import HashCache
from runtime.errors import ExportError

Sources = Mapping[str, tuple[str, ...]]
# What decides the traced graphs, by package and file. Texts are hashed with \n line ends.
TRACING_CODE: Sources = {
    "export": (
        "vision/capture.py",
        "vision/graph.py",
        "vision/load.py",
        "vision/names.py",
        "vision/streamed.py",
        "vision/trace.py",
        "vision/weights.py",
    ),
    "models": ("lazy_parameters.py", "mosaic.py", "projector.py", "s2_tower.py", "vision_tower.py"),
}
# What makes narrower graphs from traced ones.
NARROWING_CODE: Sources = {
    "export": ("vision/encoder_graph.py", "vision/half_graph.py", "vision/int8_graph.py", "vision/precision.py"),
    "models": ("vision_scales.py",),
}
# What decides everything else in a bundle: decoder files, prompt, manifest groups.
BUNDLE_CODE: Sources = {
    "export": ("decoder/*.py", "layouts/*.py", "*.py"),
    "kernels": ("packing/*.py",),
    "models": ("chat_templates.py",),
    "runtime": ("bundle/*.py", "prompt.py", "strict_json.py", "tiling.py", "tokenization.py"),
}


class Fingerprint:
    """SHA-256 of a checkpoint's files, each read once and remembered like those of a bundle."""

    def __init__(self, root: Path, files: Iterable[Path], progress: Progress | None = None) -> None:
        self._root = root
        self._digests: dict[Path, str] = {}
        cache, paths = HashCache(root), sorted(set(files))
        total, done = sum(_size(path) for path in paths), 0
        for path in paths:
            try:
                self._digests[path] = cache.sha256(path, _name(path, root))
            except OSError as problem:
                raise ExportError(f"{path}: cannot be read: {problem.strerror}", hint="check the disk") from problem
            done += _size(path)
            if progress:
                progress.update(done, total)
        cache.save()

    def of(self, files: Iterable[Path], *settings: object) -> str:
        """One SHA-256 over names and contents of some of the files, and over settings."""
        whole = hashlib.sha256()
        for path in sorted(set(files)):
            whole.update(f"{_name(path, self._root)}\0{self._digests[path]}\n".encode())
        for setting in settings:
            whole.update(f"{setting}\n".encode())
        return whole.hexdigest()


def code_digest(sources: Sources) -> str:
    """SHA-256 over source files of our packages, found without importing them."""
    whole = hashlib.sha256()
    for package, patterns in sources.items():
        folder = _package_folder(package)
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            text = path.read_bytes().replace(b"\r\n", b"\n")
            whole.update(f"{package}/{path.relative_to(folder).as_posix()}\0{len(text)}\n".encode() + text)
    return whole.hexdigest()


def _name(path: Path, root: Path) -> str:
    """A file's path inside the checkpoint; for one outside (a tower in a folder of its own) the end of its path."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else f"../{path.parent.name}/{path.name}"


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ExportError(f"the package {package} is not installed", hint="pip install 'jetson-vlm[export]'")
    return Path(next(iter(spec.submodule_search_locations)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
