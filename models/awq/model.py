"""AWQ for one decoder layer, and for a whole decoder in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.packing import IntWeight
from models.awq.apply import LayerSearch, apply_search
from models.awq.clip import search_clips
from models.awq.compensate import compensated, error_factors
from models.awq.layers import LINEARS, SHARED_INPUT, LayerBatch, run_layer, watch
from models.awq.quantizer import integer_weight
from models.awq.search import AwqSettings, search_scales

Progress = Callable[[int, int, LayerSearch], None]  # layers done, layers, what was found for the last


def search_layer(layer: nn.Module, batches: Sequence[LayerBatch], settings: AwqSettings) -> LayerSearch:
    """Scales, then clip maxima on the scaled weights, for a Llama or Qwen2 decoder layer, which is not changed.

    Beyond the layer it takes 4·tokens·(3·hidden + ffn) bytes for what the linears see, and the two widest weights in
    f32. Raises ExportError for other layers and for inputs that are not finite.
    """
    seen = watch(layer, batches, settings.relative)
    scales = search_scales(layer, seen, settings)
    return LayerSearch(scales, search_clips(layer, seen, scales, settings) if settings.clip else [])


@torch.no_grad()
def quantize_layer(
    layer: nn.Module, group_size: int, batches: Sequence[LayerBatch] | None = None
) -> dict[str, IntWeight]:
    """The integers of the seven linears, by name inside the layer, which is not changed; after ``apply_search``.

    Without ``batches`` each weight is rounded to nearest; with the layer's calibration inputs errors make up for each
    other (``models.awq.compensate``). Raises ValueError for values that are not finite and groups that do not fit.
    """
    seen = None if batches is None else watch(layer, batches, relative=True)
    found: dict[str, IntWeight] = {}
    factors: list[Tensor] = []
    for name in LINEARS:
        weight = layer.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        if seen is not None:
            if name not in SHARED_INPUT:  # a linear with the input of the one before has its factors
                factors = error_factors(seen, name)
            weight = compensated(weight, factors, group_size)
        found[name] = integer_weight(weight, group_size)
    return found


@torch.no_grad()
def quantize_model(
    llm: Any, batches: Sequence[Tensor], settings: AwqSettings, progress: Progress | None = None
) -> dict[str, IntWeight]:
    """The integers of all decoder layers of a causal language model, by full name ("model.layers.0.mlp.up_proj").

    ``batches``: inputs_embeds [B, n, D] without padding, of any lengths, on the model's device. Scales and clips are
    applied in place: the model keeps full weights, and is as good as it was but for the clips. Each layer is
    calibrated on the outputs of the original layers before it.
    """
    decoder = llm.model
    inputs = [
        LayerBatch(embeds, decoder.rotary_emb(embeds, torch.arange(embeds.shape[1], device=embeds.device)[None]))
        for embeds in batches
    ]
    found: dict[str, IntWeight] = {}
    for index, layer in enumerate(decoder.layers):
        outputs = [run_layer(layer, batch) for batch in inputs]
        search = search_layer(layer, inputs, settings)
        apply_search(layer, search)
        rounding = inputs if settings.compensate else None
        for name, weight in quantize_layer(layer, settings.group_size, rounding).items():
            found[f"model.layers.{index}.{name}"] = weight
        inputs = [replace(batch, hidden=hidden) for batch, hidden in zip(inputs, outputs, strict=True)]
        if progress is not None:
            progress(index + 1, len(decoder.layers), search)
    return found
