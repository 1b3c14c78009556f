"""Quantises a checkpoint's decoder layer by layer, so that neither memory nor a kill loses more than one layer.

The prompts go through the model's front once; then each layer is read, run on the states that the full layers before
it made, searched, rounded, packed and put down. ``quantize(request, progress)`` does all of it. Imports torch late.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from export.progress import Progress
from export.quantization.calibration import CalibrationSet, read_calibration
from export.quantization.head import MEAN_KL_LIMIT, choose_head_bits
from export.quantization.journal import Journal, open_journal, partial_folder
from export.quantization.output import LAYOUTS, RECORD, write_checkpoint, write_settings
from export.quantization.plan import (
    check_memory,
    check_request,
    check_room,
    describe,
    disk_bytes,
    memory_bytes,
    torch_device_name,
)
from export.quantization.request import SEED, QuantizeRequest, QuantizeResult
from export.quantization.source import DecoderSource, read_config
from runtime.bundle.write import place_directory
from runtime.errors import OutputError
from runtime.version import __version__

if TYPE_CHECKING:
    from export.quantization.search import Search

SCHEMA = 1
_RESULT = "result"  # folder in the journal where the checkpoint is put together
_FINISHED = "finished"  # the step after which only renaming is left


def quantize(request: QuantizeRequest, progress: Progress) -> QuantizeResult:
    """Writes the quantised checkpoint to ``request.out``, or says what would be done.

    Raises UsageError, ExportError, MemoryLimitError and OutputError. A run that was killed leaves ``<out>.partial``;
    the same request goes on there.
    """
    request.check()
    torch_device_name(request.device)
    if _was_finished(request):
        return _clean_up(request, progress)
    with DecoderSource(request.checkpoint) as source:
        check_request(request, source)
        calibration = None
        if request.calibration is not None:
            calibration = read_calibration(request.calibration, request.samples)
            _name_skipped(calibration, progress)
        plan = _plan(request, source, calibration)
        check_memory(plan["memory_bytes"])
        check_room(request.out, plan["disk_bytes"])
        if request.dry_run:
            _say_plan(plan, progress)
            return QuantizeResult(request.out, None, plan)
        describes = describe(request, source, calibration, progress)
        try:
            with open_journal(request.out.absolute(), describes, request.force) as journal:
                record = _Quantization(request, source, calibration, journal, progress).run(describes)
        except OSError as problem:
            where = f" ({problem.filename})" if problem.filename else ""
            raise OutputError(
                f"{request.out}: cannot be written: {problem.strerror or problem}{where}",
                hint="check room and permissions on that disk; the same command goes on where it stopped",
            ) from problem
        finally:
            progress.end()
    return QuantizeResult(request.out, record, plan)


class _Quantization:
    """One run: what the journal lacks is done, then the checkpoint is put together and placed."""

    def __init__(
        self,
        request: QuantizeRequest,
        source: DecoderSource,
        calibration: CalibrationSet | None,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._request, self._source, self._calibration = request, source, calibration
        self._journal, self._progress = journal, progress

    def run(self, describes: dict[str, Any]) -> dict[str, Any]:
        """Returns the record that lies beside the checkpoint as quantization.json."""
        from export.quantization.search import Search

        search = Search(self._request, self._source, self._calibration, self._journal, self._progress)
        calibrated = search.embed()
        layers = search.layers()
        head = self._head(search)
        record = {
            "schema": SCHEMA,
            "tool": f"jetson-vlm {__version__}",
            "source": describes["checkpoint"],
            "method": self._request.method,
            "bits": 4,
            "group_size": self._request.group_size,
            "format": LAYOUTS[self._request.format],
            "settings": None if search.settings is None else asdict(search.settings),
            "calibration": calibrated,
            "layers": layers,
            **head,
        }
        self._assemble(record)
        return record

    def _head(self, search: Search) -> dict[str, Any]:
        """``head_bits``, and how it was found."""
        asked = self._request.head_bits
        if self._calibration is None:
            return {"head_bits": int(asked), "head": {"requested": asked}}
        measured = search.head()
        bits = choose_head_bits(measured.candidates) if asked == "auto" else int(asked)
        for item in measured.candidates:
            self._progress.say(
                f"LM head in {item.bits} bits: KL {item.mean_kl:.2g} nats on average, {item.p99_kl:.2g} at the 99th "
                f"percentile, same first choice on {item.top1_agreement:.1%}"
                + (" (taken)" if item.bits == bits else "")
            )
        return {
            "head_bits": bits,
            "head": {
                "requested": asked,
                "mean_kl_limit": MEAN_KL_LIMIT,
                "positions": measured.positions,
                "held_out": measured.held_out,
                "candidates": [asdict(item) for item in measured.candidates],
            },
        }

    def _assemble(self, record: dict[str, Any]) -> None:
        request, out = self._request, self._request.out.absolute()
        result = self._journal.folder / _RESULT
        if not (self._journal.has(_FINISHED) and result.is_dir()):
            shutil.rmtree(result, ignore_errors=True)
            (result / self._source.folder.relative_to(self._source.root)).mkdir(parents=True)
            total, done = disk_bytes(request, self._source), 0
            self._progress.begin("writing")

            def wrote(size: int) -> None:
                nonlocal done
                done += size
                self._progress.update(done, max(total, done))

            write_checkpoint(result, self._source, self._journal, wrote)
            self._progress.end()
            write_settings(result, self._source, request.format, request.group_size, record)
            self._journal.finish(_FINISHED, {})
        place_directory(result, out)
        shutil.rmtree(self._journal.folder)


def _was_finished(request: QuantizeRequest) -> bool:
    """Whether a run was killed between placing its result and removing its journal."""
    folder = partial_folder(request.out.absolute())
    placed = (folder / f"{_FINISHED}.json").is_file() and not (folder / _RESULT).exists()
    return placed and (request.out / RECORD).is_file() and not request.force


def _clean_up(request: QuantizeRequest, progress: Progress) -> QuantizeResult:
    shutil.rmtree(partial_folder(request.out.absolute()))
    progress.say(f"{request.out}: an earlier run had finished")
    return QuantizeResult(request.out, read_config(request.out / RECORD), {})


def _plan(request: QuantizeRequest, source: DecoderSource, calibration: CalibrationSet | None) -> dict[str, Any]:
    linears = list(source.decoder.linears())[:-1]
    return {
        "family": source.decoder.config.family,
        "layers": source.decoder.config.layers,
        "weights": sum(linear.n * linear.k for linear in linears),
        "method": request.method,
        "group_size": request.group_size,
        "prompts": 0 if calibration is None else len(calibration.samples),
        "skipped": [] if calibration is None else list(calibration.skipped),
        "calibration_digest": None if calibration is None else calibration.digest,
        "seed": SEED,
        "disk_bytes": disk_bytes(request, source),
        "memory_bytes": memory_bytes(request, source),
    }


def _say_plan(plan: dict[str, Any], progress: Progress) -> None:
    progress.say(
        f"{plan['family']}, {plan['layers']} layers, {plan['weights'] / 1e6:.1f} M weights to int4 in groups of "
        f"{plan['group_size']} ({plan['method']}), {plan['prompts']} calibration prompts"
    )
    progress.say(f"about {plan['memory_bytes'] >> 20} MiB of memory and {plan['disk_bytes'] / 1e6:.1f} MB of disk")


def _name_skipped(calibration: CalibrationSet, progress: Progress) -> None:
    for problem in calibration.skipped:
        progress.say(f"skipped: {problem}")
    if calibration.skipped:
        progress.say(f"{len(calibration.skipped)} calibration prompts skipped, {len(calibration.samples)} used")
