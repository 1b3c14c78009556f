"""Builds a bundle from a checkpoint, stage by stage; what has not changed is taken from where it lies.

Stages: "onnx" (two vision graphs; the only one that may need torch), "weights" (int4 decoder, tokenizer, prompt
segments, manifest) and "plans" (TensorRT, on the device that runs them).
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.chat_template import read_template
from export.checkpoint import Checkpoint, read_checkpoint
from export.decoder import (
    DecoderCheckpoint,
    choose_group_size,
    choose_kinds,
    open_decoder_checkpoint,
    write_decoder,
)
from export.decoder.kinds import DecoderChoice
from export.estimate import check_disk, estimate_bytes
from export.fingerprint import BUNDLE_CODE, NARROWING_CODE, Fingerprint, code_digest
from export.manifest_groups import context_tokens, default_max_seq_len, prompt_request, vision_section
from export.progress import Progress
from export.prompt_export import TOKENIZER_NAME, PromptExport, export_prompt
from export.stages import (
    BUILD_KEY,
    Action,
    Keys,
    StageReport,
    cached_graphs_folder,
    previous_build,
    scratch_beside,
    stored_graphs,
    traced_key,
)
from export.vision.names import GRAPH_FILES
from export.vision.stored import FOLDER, TracedGraphs, link_or_copy, write_traced
from runtime.bundle import SCHEMA, Manifest, check_target, sha256_file, write_bundle
from runtime.bundle.manifest import (
    Activations,
    ChecksSection,
    DecoderSection,
    QuantizationSection,
    Source,
    VisionPrecision,
)
from runtime.bundle.parse import parse_group
from runtime.errors import EngineError, ExportError, OutputError, UsageError
from runtime.version import __version__

Stage = Literal["onnx", "weights", "plans", "all"]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What the command line asks for. ``out`` may be None for the stage "onnx" alone."""

    checkpoint: Path
    out: Path | None
    stage: Stage = "all"
    decoder: DecoderChoice = "auto"
    activations: Activations = "f16"
    group_size: int | None = None
    max_seq_len: int | None = None
    vision_precision: VisionPrecision = "fp32"
    trace: bool = False
    save_traced: bool = False
    dry_run: bool = False
    force: bool = False
    template_file: Path | None = None


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What became of each stage; ``manifest`` of the bundle at ``out``, None when none was written or found."""

    stages: tuple[StageReport, ...]
    out: Path | None
    manifest: Manifest | None
    estimated_bytes: int


def build(request: BuildRequest, progress: Progress) -> BuildResult:
    """Runs the stages that are asked for. Raises ExportError, OutputError, UsageError or EngineError."""
    _check_request(request)
    checkpoint = read_checkpoint(request.checkpoint)
    with open_decoder_checkpoint(request.checkpoint) as decoder:
        return _Build(request, checkpoint, decoder, progress).run()


def _check_request(request: BuildRequest) -> None:
    if request.stage == "plans":
        raise EngineError(
            "--stage plans: TensorRT plans are built on the device that runs them, and this version builds none",
            hint="leave the stage out: vision runs through ONNX Runtime",
        )
    if request.out is None and request.stage != "onnx":
        raise UsageError(f"--stage {request.stage} writes a bundle, so --out is needed", hint="add --out <bundle>")


class _Build:
    """One build: what is there, what has to be done, and doing it."""

    def __init__(
        self, request: BuildRequest, checkpoint: Checkpoint, decoder: DecoderCheckpoint, progress: Progress
    ) -> None:
        self._request, self._checkpoint, self._decoder, self._progress = request, checkpoint, decoder, progress
        self._context = context_tokens(checkpoint, decoder.config)
        self._group_size = choose_group_size(request.group_size, decoder.group_size)
        self._kinds, self._left_out = choose_kinds(request.decoder, decoder)
        self._max_seq_len = request.max_seq_len or default_max_seq_len(self._context)
        progress.begin("reading the checkpoint")
        self._files = Fingerprint(checkpoint.root, (*checkpoint.files, *decoder.files), progress)
        progress.end()
        self._keys = self._make_keys()
        previous, keys = previous_build(request.out) if request.out else (None, {})
        self._previous = previous
        same = {} if request.force else keys
        self._same_graphs = previous is not None and same.get("onnx") == self._keys.onnx and not request.trace
        self._same_weights = previous is not None and same.get("weights") == self._keys.weights
        self._stored = None
        if not request.trace and not self._same_graphs:
            self._stored = stored_graphs(checkpoint.root, self._keys.traced)
        self._estimate = estimate_bytes(checkpoint, decoder, self._group_size, self._kinds)
        self._reports: list[StageReport] = []

    def _make_keys(self) -> Keys:
        request = self._request
        traced = traced_key(self._files, self._checkpoint.vision_files)
        template = read_template(request.template_file) if request.template_file else ""
        forms = " ".join((*self._kinds, request.activations if "cuda" in self._kinds else ""))
        settings = (self._group_size, self._max_seq_len, forms, template, code_digest(BUNDLE_CODE))
        weights = self._files.of((*self._checkpoint.files, *self._decoder.files), *settings)
        return Keys(traced, f"{traced} {self._precision()}", weights)

    def _precision(self) -> str:
        """What the vision graphs compute in, and what else decides narrow ones. ExportError for int8 without scales."""
        precision = self._request.vision_precision
        if precision == "fp32":
            return precision
        from export.vision.precision import scales_file

        scales = sha256_file(scales_file(self._checkpoint.root)) if precision == "int8" else ""
        return f"{precision} {code_digest(NARROWING_CODE)} {scales}"

    def run(self) -> BuildResult:
        request = self._request
        if request.stage == "weights" and not self._same_graphs and self._stored is None:
            raise ExportError(
                f"{request.checkpoint}: no traced vision graphs for these weights",
                hint="run --stage onnx first (it needs torch), or --stage all",
            )
        if request.dry_run:
            return self._planned()
        if self._same_graphs and self._same_weights and self._previous is not None:
            self._report("onnx", "unchanged", "vision graphs: unchanged")
            self._report("weights", "unchanged", "decoder and prompt: unchanged")
            if request.save_traced:
                self._progress.say("nothing was traced, so nothing was saved")
            return self._result(self._previous.manifest)
        if request.stage == "onnx" and not self._same_weights:
            return self._only_graphs()
        assert request.out is not None
        self._check_target(request.out)
        check_disk(request.out, self._estimate)
        manifest = write_bundle(request.out, self._fill, replace=True)
        self._plans_line()
        return self._result(manifest)

    def _check_target(self, out: Path) -> None:
        """A bundle of another checkpoint is only replaced with --force; an older one of this checkpoint always."""
        source = self._previous.manifest.source if self._previous else None
        ours = source is not None and source.name == self._checkpoint.name and source.family == self._checkpoint.family
        if source is not None and not ours and not self._request.force:
            raise OutputError(f"{out}: a bundle of {source.name!r} is there", hint="add --force to replace it")
        check_target(out, replace=ours or self._request.force)

    def _fill(self, directory: Path) -> Manifest:
        """Writes the bundle's files; the prompt first, because it fails fastest."""
        prompt = self._prompt(directory)
        traced = self._graphs(directory)
        groups = self._weights(directory)
        checkpoint = self._checkpoint
        return Manifest(
            schema=SCHEMA,
            source=Source(
                name=checkpoint.name,
                family=checkpoint.family,
                digest=self._files.of(checkpoint.files),
                tool=f"jetson-vlm {__version__}",
            ),
            files={},
            vision=vision_section(checkpoint, self._request.vision_precision),
            prompt=prompt.section,
            decoder=groups[0],
            quantization=groups[1],
            checks=dataclasses.replace(traced, prompt_conversations=prompt.conversations),
            extra={BUILD_KEY: self._keys.as_json()},
        )

    def _prompt(self, directory: Path) -> PromptExport:
        prompt = export_prompt(prompt_request(self._checkpoint, self._context, self._request.template_file))
        (directory / TOKENIZER_NAME).write_bytes(prompt.tokenizer_json)
        return prompt

    def _graphs(self, directory: Path) -> ChecksSection:
        """Puts both vision graphs into the bundle; returns their checks."""
        if self._same_graphs and self._previous is not None:
            for name in GRAPH_FILES:
                if name in self._previous.manifest.files:
                    link_or_copy(self._previous.file(name), directory / name)
            self._report("onnx", "unchanged", "vision graphs: unchanged, taken from the bundle that is there")
            return self._previous.manifest.checks
        # Inside the bundle to be: on its disk, where nothing has to be copied, and not in a /tmp that may be memory.
        with tempfile.TemporaryDirectory(prefix=".traced-", dir=directory) as scratch:
            graphs = self._f32_graphs(Path(scratch))
            limits = {"vision_error": graphs.error_limit}
            if self._request.vision_precision == "fp32":
                for name in graphs.files:
                    (shutil.move if self._stored is None else shutil.copyfile)(graphs.folder / name, directory / name)
            else:
                limits |= self._convert(graphs, directory)
        return ChecksSection(graphs.tower_max_error, graphs.projector_max_error, limits, prompt_conversations=0)

    def _convert(self, graphs: TracedGraphs, directory: Path) -> dict[str, float]:
        from export.vision.precision import LIMITS, convert

        precision = self._request.vision_precision
        tile_px, root = self._checkpoint.tiling.tile_px, self._checkpoint.root
        error = convert(graphs.folder, directory, precision, tile_px, root)
        self._report("onnx", "converted", f"vision graphs: {precision}, {error:.2g} of the largest value from fp32")
        return {f"{precision}_relative_error": LIMITS[precision]}

    def _f32_graphs(self, scratch: Path) -> TracedGraphs:
        """Stored graphs, or newly traced ones in ``scratch``; with --save-traced also beside the weights."""
        root, key = self._checkpoint.root, self._keys.traced
        if self._stored is not None:
            graphs, action = self._stored
            self._report("onnx", action, f"vision graphs: {action} of {graphs.folder}")
        else:
            graphs = _trace(self._checkpoint, scratch, self._progress)
            worst = max(graphs.tower_max_error, graphs.projector_max_error)
            self._report("onnx", "traced", f"vision graphs: traced, at most {worst:.2g} from torch")
        if self._request.save_traced:
            write_traced(graphs, root / FOLDER, key)
            self._progress.say(f"kept in {root / FOLDER}")
        return graphs

    def _only_graphs(self) -> BuildResult:
        """The stage "onnx" without a decoder to go with it: the graphs wait in the cache for the stage "weights"."""
        cached = cached_graphs_folder(self._keys.traced)
        folder = self._checkpoint.root / FOLDER if self._request.save_traced else cached
        with scratch_beside(cached) as scratch:
            graphs = self._f32_graphs(scratch)
            if not self._request.save_traced:
                write_traced(graphs, folder, self._keys.traced)
        self._report("weights", "skipped", f"graphs kept in {folder}; --stage weights completes the bundle")
        return self._result(None)

    def _weights(self, directory: Path) -> tuple[DecoderSection, QuantizationSection]:
        if self._same_weights and self._previous is not None:
            manifest = self._previous.manifest
            for name in manifest.files:
                if name.startswith("decoder/"):
                    link_or_copy(self._previous.file(name), directory / name)
            self._report("weights", "unchanged", "decoder: unchanged, taken from the bundle that is there")
            return manifest.decoder, manifest.quantization
        self._progress.begin("quantising the decoder")
        record = write_decoder(
            self._decoder,
            directory,
            max_seq_len=self._max_seq_len,
            group_size=self._group_size,
            kinds=self._kinds,
            activations=self._request.activations,
            progress=self._progress.update,
        )
        self._progress.end()
        self._report("weights", "quantised", f"decoder: {self._forms()}, {self._max_seq_len} positions")
        decoder = parse_group(DecoderSection, record["decoder"], "decoder")
        return decoder, parse_group(QuantizationSection, record["quantization"], "quantization")

    def _forms(self) -> str:
        """What the decoder's stage writes, and what "auto" leaves out."""
        shown = f"int4 in groups of {self._group_size} ({' and '.join(self._kinds)})"
        return f"{shown}, {self._left_out}" if self._left_out else shown

    def _planned(self) -> BuildResult:
        """What would be done, for --dry-run."""
        if self._same_graphs:
            self._report("onnx", "unchanged", "vision graphs: unchanged")
        elif self._stored is not None:
            self._report("onnx", self._stored[1], f"vision graphs: {self._stored[1]} of {self._stored[0].folder}")
        else:
            self._report("onnx", "traced", "vision graphs: would be traced (needs torch)")
        if self._same_weights:
            self._report("weights", "unchanged", "decoder and prompt: unchanged")
        else:
            self._report("weights", "quantised", f"decoder: would be {self._forms()}")
        self._progress.say(f"the bundle would take about {self._estimate / 1e6:.1f} MB")
        return self._result(self._previous.manifest if self._previous else None)

    def _plans_line(self) -> None:
        if self._request.stage == "all":
            self._report("plans", "skipped", "plans: skipped, this version builds no TensorRT plans")

    def _report(self, stage: str, action: Action, text: str) -> None:
        self._reports.append(StageReport(stage, action, text))
        self._progress.say(text)

    def _result(self, manifest: Manifest | None) -> BuildResult:
        return BuildResult(tuple(self._reports), self._request.out, manifest, self._estimate)


def _trace(checkpoint: Checkpoint, folder: Path, progress: Progress) -> TracedGraphs:
    try:
        from export.vision.trace import ERROR_LIMIT, trace_vision
    except ImportError as problem:
        raise ExportError(
            f"{checkpoint.root}: no stored graphs for these weights and this version, and tracing needs {problem.name}",
            hint="pip install 'jetson-vlm[export,cpu]'",
        ) from problem
    errors = trace_vision(checkpoint, folder, progress.say)
    return TracedGraphs(folder, errors.tower_max_error, errors.projector_max_error, ERROR_LIMIT)
