"""Where the stages of a build find finished work: an older bundle, the checkpoint's ``onnx/`` folder, the cache."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from export.fingerprint import TRACING_CODE, Fingerprint, code_digest
from export.vision.names import OPSET
from export.vision.stored import FOLDER, TracedGraphs, ours_alone, read_traced
from runtime.bundle import MANIFEST_NAME, Bundle, cache_directory, load_bundle
from runtime.errors import BundleError, ExportError, OutputError

BUILD_KEY = "x-build"  # in the manifest: the keys of the stages that made the bundle
Action = Literal["traced", "stored graphs", "cached graphs", "quantised", "unchanged", "converted", "skipped", "kept"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageReport:
    """What became of one stage, for people (``text``) and for ``--json``."""

    stage: str
    action: Action
    text: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Keys:
    """What each stage depends on, as one SHA-256 each; ``traced`` is that of the f32 graphs before conversion."""

    traced: str
    onnx: str
    weights: str

    def as_json(self) -> dict[str, str]:
        """As it stands under ``x-build`` in a manifest."""
        return {"onnx": self.onnx, "weights": self.weights}


def traced_key(fingerprint: Fingerprint, vision_files: tuple[Path, ...]) -> str:
    """The key of traced graphs: vision weights and configurations, tracing code, opset."""
    return fingerprint.of(vision_files, f"opset {OPSET}", code_digest(TRACING_CODE))


def previous_build(out: Path) -> tuple[Bundle | None, dict[str, str]]:
    """The bundle that lies at ``out`` and the keys of its stages; (None, {}) when there is none that can be read."""
    if not (out / MANIFEST_NAME).is_file():
        return None, {}
    try:
        bundle = load_bundle(out)
    except BundleError as problem:
        _log.warning("%s: built anew: %s", out, problem)
        return None, {}
    keys = bundle.manifest.extra.get(BUILD_KEY)
    return bundle, {str(name): str(key) for name, key in keys.items()} if isinstance(keys, dict) else {}


def stored_graphs(checkpoint_root: Path, key: str) -> tuple[TracedGraphs, Action] | None:
    """Graphs traced earlier for ``key``: beside the weights, or in the cache. Damaged ones there are an ExportError."""
    found = read_traced(checkpoint_root / FOLDER, key)
    if found is not None:
        return found, "stored graphs"
    folder = cached_graphs_folder(key)
    if not ours_alone(folder):
        return None
    try:
        found = read_traced(folder, key)
    except ExportError as problem:
        _log.warning("traced anew: %s", problem)
        return None
    return None if found is None else (found, "cached graphs")


def cached_graphs_folder(key: str) -> Path:
    """Where the stage "onnx" alone leaves its graphs for a later stage "weights"."""
    return cache_directory() / "traced" / key[:32]


@contextlib.contextmanager
def scratch_beside(folder: Path) -> Iterator[Path]:
    """A temporary directory on the same disk as ``folder``. Raises OutputError where none can be made."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=".traced-", dir=folder.parent)
    except OSError as problem:
        raise OutputError(
            f"{folder.parent}: traced graphs cannot be kept: {problem.strerror}", hint="set XDG_CACHE_HOME"
        ) from problem
    try:
        yield Path(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
