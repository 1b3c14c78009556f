"""What a quantisation will do, checked before it starts: settings against the checkpoint, disk, memory. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.decoder.weight_files import WeightFiles
from export.estimate import check_disk
from export.fingerprint import Fingerprint, Sources, code_digest
from export.progress import Progress
from export.quantization.calibration import CalibrationSet
from export.quantization.journal import partial_folder
from export.quantization.output import LAYOUTS, RECORD, copied_files, packed_bytes
from export.quantization.request import QuantizeRequest
from export.quantization.source import DecoderSource, check_group_size
from runtime.budget import available_memory
from runtime.bundle import check_target
from runtime.errors import MemoryLimitError, UsageError

HELD_OUT_EVERY = 8
# Peak memory beside weights and activations: the interpreter with torch, transformers and their working space.
_BASE_BYTES = 500 << 20
_TILES_BYTES = 500 << 20  # four tiles of 1,024 patches in a SigLIP-so400m
# What decides the result: our own code.
CODE: Sources = {
    "export": ("quantization/*.py", "vision/load.py", "checkpoint.py", "image_processor.py", "decoder/*.py"),
    "models": ("*.py", "awq/*.py"),
    "kernels": ("packing/*.py",),
    "runtime": ("tiling.py",),
}


@dataclass(frozen=True, slots=True)
class Split:
    """Which prompts the search sees, and which are held out for measuring the head (none of a single prompt)."""

    searched: tuple[int, ...]
    held_out: tuple[int, ...]


def split(count: int) -> Split:
    """Every eighth prompt is held out, at least one of two or more."""
    held = [index for index in range(count) if index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]
    if not held and count > 1:
        held = [count - 1]
    return Split(tuple(index for index in range(count) if index not in held), tuple(held))


def check_request(request: QuantizeRequest, source: DecoderSource) -> None:
    """Raises UsageError, ExportError or OutputError for what cannot be done with this checkpoint or target."""
    check_group_size(source, request.group_size)
    root, out = request.checkpoint.resolve(), request.out.resolve()
    if root == out or root in out.parents:
        raise UsageError(f"--out {request.out} lies in the checkpoint {request.checkpoint}", hint="name another folder")
    check_quantised_target(request.out, request.force)


def check_quantised_target(out: Path, force: bool) -> None:
    """Only a quantised checkpoint is replaced, and only with ``force``."""
    check_target(out, replace=force, marker=RECORD, kind="a quantised checkpoint")


def describe(
    request: QuantizeRequest, source: DecoderSource, calibration: CalibrationSet | None, progress: Progress
) -> dict[str, Any]:
    """Everything that decides the result, for the journal: two runs with the same description write the same bytes."""
    files = [*source.weights, *(source.root / relative for relative in copied_files(source))]
    progress.begin("reading the checkpoint")
    digest = Fingerprint(source.root, files, progress).of(files)
    progress.end()
    return {
        "checkpoint": digest,
        "calibration": None if calibration is None else calibration.digest,
        "method": request.method,
        "group_size": request.group_size,
        "format": LAYOUTS[request.format],
        "head_bits": request.head_bits,
        "samples": request.samples,
        "max_seq_len": request.max_seq_len,
        "tokens": request.tokens,
        "clip": request.clip,
        "device": request.device.partition(":")[0],
        "code": code_digest(CODE),
    }


def disk_bytes(request: QuantizeRequest, source: DecoderSource) -> int:
    """Room for the result, the finished layers before they are put together, and hidden states of two layers."""
    decoder = packed_bytes(source, request.format, request.group_size)
    copied = sum((source.root / relative).stat().st_size for relative in copied_files(source))
    linears = sum(linear.n * linear.k for linear in source.decoder.linears()) // 2
    return 2 * 4 * request.tokens * source.decoder.config.hidden + decoder + copied + linears


def check_room(out: Path, needed: int) -> None:
    """Raises OutputError when the disk has less room; what an interrupted run left counts as room."""
    left = sum(path.stat().st_size for path in partial_folder(out).rglob("*") if path.is_file())
    check_disk(out, needed, what="quantising", ours_bytes=left)


def memory_bytes(request: QuantizeRequest, source: DecoderSource) -> int:
    """About the most that will be resident: a few tiles in the tower, or one layer with all that its linears see.

    Tower and projector are themselves in memory only on their way to another device.
    """
    config = source.decoder.config
    linears = [linear.n * linear.k for linear in source.decoder.layer(0).values()]
    weights = 4 * (sum(linears) + 2 * max(linears) + 4 * max(linears))
    seen = 4 * request.tokens * (3 * config.hidden + config.ffn) if request.method == "awq" else 0
    longest = 4 * request.max_seq_len * (4 * config.hidden + 3 * config.ffn)
    vision = _vision_sizes(source)
    front = _TILES_BYTES + 4 * (max(vision, default=0) if request.device == "cpu" else sum(vision) * 3 // 2)
    return _BASE_BYTES + max(weights + seen + longest, front)


def check_memory(needed: int) -> None:
    """Raises MemoryLimitError when that much is not free."""
    available = available_memory()
    if available is not None and available < needed:
        raise MemoryLimitError(
            f"quantising takes about {needed >> 20} MiB, {available >> 20} MiB are free",
            hint="lower --tokens and --max-seq-len, or close other programs",
        )


def _vision_sizes(source: DecoderSource) -> list[int]:
    """How many numbers each tensor of tower and projector has."""
    if source.folder == source.root:
        ours = (source.prefix, source.head)
        return [math.prod(info.shape) for name, info in source.tensors.items() if not name.startswith(ours)]
    sizes = []
    for part in ("vision_tower", "mm_projector"):
        with WeightFiles(source.root / part) as files:
            sizes += [math.prod(files.info(name).shape) for name in files.names()]
    return sizes


def torch_device_name(name: str) -> str:
    """The device's name when it looks like one. Raises UsageError."""
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UsageError(f"--device {name}", hint="cpu, cuda or cuda:N")
    return name
