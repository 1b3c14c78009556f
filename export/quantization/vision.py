"""Measures a checkpoint's vision tower on calibration pictures, for ``--vision-precision int8``. Imports torch late.

The tower runs layer by layer: memory holds one layer's weights and one hidden state of every tile. What comes out is
the checkpoint again with a folder ``vision_int8/`` (`models.vision_scales`): the maxima, alpha, and how they were made.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.checkpoint import Checkpoint, read_checkpoint
from export.progress import Progress
from export.quantization.calibration import CalibrationSet, read_calibration
from export.quantization.request import QuantizeRequest, QuantizeResult
from models.vision_scales import FILE, FOLDER, RECORD, write_scales
from runtime.bundle import sha256_file
from runtime.bundle.write import place_directory
from runtime.errors import OutputError, UsageError
from runtime.version import __version__

if TYPE_CHECKING:
    from models.smoothquant import Calibration

MAX_TILES = 64  # of all pictures together; more change the maxima little and take time and memory
_WEIGHTS = (".safetensors", ".data")


def quantize_vision(request: QuantizeRequest, progress: Progress) -> QuantizeResult:
    """Writes ``request.checkpoint`` with its vision tower's activation maxima to ``request.out``.

    Weight files are linked where the disk allows that, everything else is copied. The decoder may be quantised already.
    Raises UsageError, ExportError and OutputError; an interrupted run leaves nothing behind.
    """
    if request.calibration is None:
        raise UsageError(
            "--vision measures activations on pictures, and there are none",
            hint="add --calibration <folder of images or .jsonl>",
        )
    if request.device != "cpu":
        raise UsageError(f"--vision measures on the CPU, not on {request.device}", hint="leave --device out")
    _check_out(request)
    checkpoint = read_checkpoint(request.checkpoint)
    calibration = read_calibration(request.calibration, request.samples)
    pictures = list(dict.fromkeys(image for sample in calibration.samples for image in sample.images))
    if not pictures:
        raise UsageError(f"{request.calibration}: none of its prompts has a picture", hint="name a folder of pictures")
    plan = {"pictures": len(pictures), "at_most_tiles": MAX_TILES, "file": f"{FOLDER}/{FILE}"}
    if request.dry_run:
        return QuantizeResult(request.out, None, plan)
    from export.quantization.vision_layers import measure_layers

    measured = measure_layers(checkpoint, pictures, MAX_TILES, progress)
    record = _write(request, checkpoint, measured, calibration)
    progress.say(f"vision tower: {measured.scales.layers} layers on {measured.scales.tiles} tiles, {_chosen(measured)}")
    return QuantizeResult(request.out, record, plan)


def _chosen(measured: Calibration) -> str:
    error = measured.errors.get(measured.scales.alpha)
    return f"alpha {measured.scales.alpha}" + (f", features {error:.2%} from fp32" if error is not None else "")


def _check_out(request: QuantizeRequest) -> None:
    """Only what this command wrote is replaced, and only with ``force``."""
    root, out = request.checkpoint.resolve(), request.out.resolve()
    if root == out or root in out.parents or out in root.parents:
        raise UsageError(f"--out {request.out} and the checkpoint {root} lie in each other", hint="name another folder")
    if not os.path.lexists(request.out):
        return
    if not (request.out / FOLDER / FILE).is_file():
        raise OutputError(f"{request.out}: is there already, with other files in it", hint="name another --out")
    if not request.force:
        raise OutputError(f"{request.out}: a measured checkpoint is there", hint="add --force to replace it")


def _write(
    request: QuantizeRequest, checkpoint: Checkpoint, measured: Calibration, calibration: CalibrationSet
) -> dict[str, Any]:
    """The new checkpoint beside ``out`` first, moved there when it is complete; returns what is in its record."""
    out = request.out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            made = Path(scratch) / "checkpoint"
            _copy(checkpoint.root, made)
            shutil.rmtree(made / FOLDER, ignore_errors=True)
            write_scales(made / FOLDER / FILE, measured.scales)
            record = _record(made / FOLDER / FILE, measured, calibration)
            (made / FOLDER / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            place_directory(made, out)
    except OSError as problem:
        raise OutputError(
            f"{out}: cannot be written: {problem.strerror or problem}", hint="check the disk and its permissions"
        ) from problem
    return record


def _copy(source: Path, target: Path) -> None:
    """Copies a checkpoint's files; weights, which nobody edits, are linked where the disk allows that."""
    from export.vision.stored import link_or_copy

    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if any(part.startswith(".") for part in inside.parts):  # what downloads and version control leave
            continue
        place = target / inside
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif path.suffix in _WEIGHTS:
            link_or_copy(path.resolve(), place)
        elif path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _record(file: Path, measured: Calibration, calibration: CalibrationSet) -> dict[str, Any]:
    scales = measured.scales
    return {
        "tool": f"jetson-vlm {__version__}",
        "method": "smoothquant",
        "alpha": scales.alpha,
        "feature_errors": {str(alpha): error for alpha, error in measured.errors.items()},
        "layers": scales.layers,
        "tiles": scales.tiles,
        "calibration_digest": calibration.digest,
        "skipped": list(calibration.skipped),
        "sha256": sha256_file(file),
    }
