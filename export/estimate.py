"""How large a bundle will be, before anything is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from export.checkpoint import Checkpoint
from export.decoder import DecoderCheckpoint
from export.decoder.t16 import t16_bytes
from export.decoder.weight_files import WeightFiles
from runtime.bundle.manifest import DecoderKind
from runtime.errors import OutputError

_VISION_NAMES = ("vision_tower.", "multi_modal_projector.", "mm_projector.")


def estimate_bytes(
    checkpoint: Checkpoint, decoder: DecoderCheckpoint, group_size: int, kinds: Sequence[DecoderKind] = ("onnx",)
) -> int:
    """Bytes of the bundle: vision weights as stored, the f16 table, and each form of the decoder."""
    table = decoder.embed_rows * decoder.config.hidden * 2
    forms = {"onnx": _onnx_bytes, "cuda": t16_bytes}
    return _vision_bytes(checkpoint) + table + sum(forms[kind](decoder, group_size) for kind in kinds)


def _onnx_bytes(decoder: DecoderCheckpoint, group_size: int) -> int:
    """Int4 linears with scales and zeros, and the head."""
    linears = sum(linear.n * linear.k for linear in decoder.linears())
    quantised = linears // 2 + linears // group_size * 9 // 2  # an f32 scale and half a byte of zero for each group
    head = decoder.head()
    return quantised + head.n * head.k * (decoder.head_bits - 4) // 8


def _vision_bytes(checkpoint: Checkpoint) -> int:
    files = [path for path in checkpoint.vision_files if path.suffix == ".safetensors"]
    apart = sum(path.stat().st_size for path in files if path.parent != checkpoint.root)
    if checkpoint.layout == "vila":
        return apart
    with WeightFiles(checkpoint.root) as weights:
        infos = [weights.info(name) for name in weights.names() if any(part in name for part in _VISION_NAMES)]
        return apart + sum(info.end - info.begin for info in infos)


def check_disk(out: Path, needed_bytes: int, *, what: str = "the bundle", ours_bytes: int = 0) -> None:
    """Raises OutputError when the disk that ``out`` will lie on has less room than ``what`` takes.

    ``ours_bytes``: what an interrupted run left there, which counts as room.
    """
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: no permission to write there", hint="name an --out that this user may write to")
    free = shutil.disk_usage(folder).free + ours_bytes
    if free < needed_bytes:
        raise OutputError(
            f"{out}: {what} takes about {needed_bytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free on that disk",
            hint="free some disk space, or name an --out on another disk",
        )
