"""The steps of a quantisation that compute: embeddings, one layer, the head. Imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.decoder.safetensors_file import F32
from export.progress import Progress
from export.quantization.calibration import CalibrationSet
from export.quantization.front import load_front
from export.quantization.head import BLOCK_BYTES, MAX_POSITIONS, Divergence, measure_head
from export.quantization.journal import Journal
from export.quantization.layers import LayerWindow, round_norms
from export.quantization.output import LAYOUTS, kept_dtype, layer_file
from export.quantization.plan import Split, split
from export.quantization.request import SEED, QuantizeRequest
from export.quantization.shards import Entry, array_entry, write_safetensors
from export.quantization.source import NORMS, DecoderSource
from export.quantization.states import StateBatches, States
from kernels.packing import IntWeight, WeightDigest, pack
from models.awq import AwqSettings, LayerSearch, apply_search, quantize_layer, run_layer, search_layer
from runtime.errors import EngineError, ExportError

_EMBEDDED = "embedded"
_TORCH = {"F16": torch.float16, "BF16": torch.bfloat16}
_HEAD = "head"
_STEPS, _RUN_STEPS = 100, 5  # of the progress bar for a layer, and those of them for running it


@dataclass(frozen=True)
class HeadMeasure:
    """What was measured on how many positions; ``held_out``: of prompts that the search did not see."""

    candidates: list[Divergence]
    positions: int
    held_out: bool


class Search:
    """Does one step after the other; a step that the journal has is not done again."""

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
        self._device = torch_device(request.device)
        self._window = LayerWindow(source, self._device)
        #: How AWQ searches; None for plain rounding.
        self.settings = (
            AwqSettings(group_size=request.group_size, clip=request.clip) if request.method == "awq" else None
        )
        self._count = 0
        self._split = Split((), ())

    def embed(self) -> dict[str, Any] | None:
        """Puts all prompts through the front; returns what the record says of the calibration, None without one."""
        if self._calibration is None:
            return None
        if not self._journal.has(_EMBEDDED):
            self._journal.finish(_EMBEDDED, {"positions": self._embed_all(self._calibration)})
        positions: list[int] = self._journal.record(_EMBEDDED)["positions"]
        self._count, self._split = len(positions), split(len(positions))
        return {
            "digest": self._calibration.digest,
            "prompts": self._count,
            "held_out": len(self._split.held_out),
            "positions": sum(positions),
            "skipped": len(self._calibration.skipped),
            "max_seq_len": self._request.max_seq_len,
            "tokens": self._request.tokens,
            "seed": SEED,
        }

    def _embed_all(self, calibration: CalibrationSet) -> list[int]:
        """Positions of each prompt that was taken, until all together reach the limit."""
        states = States(self._journal, 0, len(calibration.samples))
        self._progress.begin("calibration prompts")
        positions: list[int] = []
        with load_front(self._source.root, self._source, self._device) as front:
            for index, sample in enumerate(calibration.samples):
                room = self._request.tokens - sum(positions)
                if room <= 0:
                    break
                if not states.has(index):
                    embedded = front.prompt(sample, min(room, self._request.max_seq_len))
                    self._journal.write_array(_text_name(index), embedded.is_text.cpu().numpy())
                    states.write(index, embedded.states)
                positions.append(len(states.read(index)))
                self._progress.update(index + 1, len(calibration.samples))
        self._progress.end()
        return positions

    def layers(self) -> list[dict[str, Any]]:
        """Quantises what layers are left; returns what the record says of each."""
        count = self._source.decoder.config.layers
        left = [index for index in range(count) if not self._journal.has(_step(index))]
        if 0 < len(left) < count:
            self._progress.say(f"going on at layer {left[0]} of {count}")
        self._progress.begin("quantising")
        for index in left:
            self._progress.update(_STEPS * index, _STEPS * count)
            self._journal.finish(_step(index), self._quantize(index))
            States(self._journal, index, self._count).drop()
        self._progress.end()
        return [self._journal.record(_step(index)) for index in range(count)]

    def _quantize(self, index: int) -> dict[str, Any]:
        """The next states are those of the layer as it was; then it is searched, rounded and written."""
        window = self._window
        window.load(index)
        before = States(self._journal, index, self._count)
        self._run(index, before, range(self._count))
        found, rounding = None, None
        if self.settings is not None:
            batches = StateBatches(before, self._split.searched, window.batch)
            found = search_layer(window.layer, batches, self.settings)
            apply_search(window.layer, found)
            rounding = batches if self.settings.compensate else None
        names = self._source.layer_tensors(index)
        kinds = {inside: kept_dtype(self._source.tensors[name]) for inside, name in names.items()}
        round_norms(window.layer, {norm: _TORCH[kinds[f"{norm}.weight"]] for norm in NORMS})
        try:
            integers = quantize_layer(window.layer, self._request.group_size, rounding)
        except ValueError as problem:
            raise ExportError(f"layer {index}: a linear {problem}", hint="check the checkpoint's weights") from problem
        self._journal.write(
            layer_file(index), lambda path: write_safetensors(path, self._layer_entries(names, kinds, integers))
        )
        return {"search": [] if found is None else _groups(found), "weights": _digests(index, integers)}

    def _run(self, index: int, before: States, prompts: Iterable[int]) -> None:
        after = States(self._journal, index + 1, self._count)
        count = self._source.decoder.config.layers
        for done, prompt in enumerate(prompts):
            states = run_layer(self._window.layer, self._window.batch(before.read(prompt)[None]))[0]
            if not torch.isfinite(states).all():
                raise ExportError(
                    f"layer {index}: its output for calibration prompt {prompt} is not finite",
                    hint="check the checkpoint, or leave this prompt out",
                )
            after.write(prompt, states)
            self._progress.update(_STEPS * index + _RUN_STEPS * done // self._count, _STEPS * count)

    def _layer_entries(
        self, names: dict[str, str], kinds: dict[str, str], integers: dict[str, IntWeight]
    ) -> list[Entry]:
        """The tensors of the layer in memory as they are stored."""
        entries = []
        for linear, weight in integers.items():
            stem = names[f"{linear}.weight"].removesuffix(".weight")
            packed = pack(weight, LAYOUTS[self._request.format])
            entries += [array_entry(f"{stem}.{name}", array) for name, array in packed.items()]
        parameters = dict(self._window.layer.named_parameters())
        for inside, name in names.items():
            if inside.removesuffix(".weight") not in integers:
                entries.append(_tensor_entry(name, parameters[inside], kinds[inside]))
        return entries

    def head(self) -> HeadMeasure:
        """Compares heads on the text positions of the prompts that were held out, at most 512 of them."""
        if not self._journal.has(_HEAD):
            self._journal.finish(_HEAD, self._measure_head())
        record = self._journal.record(_HEAD)
        candidates = [Divergence(**item) for item in record["candidates"]]
        return HeadMeasure(candidates, record["positions"], record["held_out"])

    def _measure_head(self) -> dict[str, Any]:
        states = States(self._journal, self._source.decoder.config.layers, self._count)
        prompts = self._split.held_out or self._split.searched
        text = [self._journal.read_array(_text_name(prompt)) for prompt in prompts]
        hidden = np.concatenate([states.read(prompt).numpy()[mask] for prompt, mask in zip(prompts, text, strict=True)])
        chosen = np.linspace(0, len(hidden) - 1, min(len(hidden), MAX_POSITIONS)).round().astype(int)
        normed = final_norm(hidden[chosen], self._source)
        rows = self._source.decoder.vocab
        self._progress.begin("measuring the LM head")
        done = 0

        def measured(count: int) -> None:
            nonlocal done
            done += count
            self._progress.update(done, rows)

        found = measure_head(
            normed,
            lambda: self._source.iter_rows(self._source.head, BLOCK_BYTES),
            self._request.group_size,
            measured,
        )
        self._progress.end()
        return {
            "candidates": [asdict(item) for item in found],
            "positions": len(normed),
            "held_out": bool(self._split.held_out),
        }


def torch_device(name: str) -> torch.device:
    """The device of that name. Raises EngineError when it is not there."""
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise EngineError(f"--device {name}: there are {count} CUDA devices", hint="use --device cpu")
    return device


def final_norm(hidden: F32, source: DecoderSource) -> F32:
    """Hidden states [n, D] as the head gets them: RMS norm in f64, f32 out."""
    wide = hidden.astype(np.float64)
    root = np.sqrt((wide**2).mean(axis=1, keepdims=True) + source.decoder.config.rms_eps)
    normed: F32 = (wide / root * source.decoder.norm("norm")).astype(np.float32)
    return normed


def _step(index: int) -> str:
    return layer_file(index).removesuffix(".safetensors")


def _text_name(prompt: int) -> str:
    return f"text/{prompt:05d}"


def _tensor_entry(name: str, tensor: Tensor, dtype: str) -> Entry:
    """A norm or a bias in its stored dtype."""
    values = tensor.detach().to(_TORCH[dtype]).cpu().contiguous()
    if not torch.isfinite(values).all():
        raise ExportError(f"{name}: has values that are too large for {dtype}")
    raw = values.view(torch.int16).numpy()
    return Entry(name, dtype, tuple(values.shape), raw.nbytes, lambda: [raw.tobytes()])


def _groups(found: LayerSearch) -> list[dict[str, Any]]:
    """Ratio and losses of each group of linears; the first loss is that of plain rounding."""
    return [
        {"linears": list(choice.linears), "ratio": choice.ratio, "loss": choice.loss, "rtn_loss": choice.losses[0]}
        for choice in found.scales
    ]


def _digests(index: int, integers: dict[str, IntWeight]) -> dict[str, str]:
    """A `WeightDigest` of each matrix under its canonical name."""
    digests = {}
    for linear, weight in integers.items():
        name = f"layers.{index}.{linear}"
        digest = WeightDigest()
        digest.add(name, weight)
        digests[name] = digest.hexdigest()
    return digests
