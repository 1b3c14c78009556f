"""Activation-aware weight quantisation (AWQ): int4 decoders that keep the channels which matter.

    integers = quantize_model(llm, inputs_embeds, AwqSettings(group_size=128))

Layer by layer: ``search_layer`` finds scales and clip maxima on calibration inputs, ``apply_search`` moves the scales
into the layer in place without changing what it computes, ``quantize_layer`` rounds, on the calibration inputs so that
errors make up for each other. ``AwqSettings.published()`` is the published method alone. Llama and Qwen2 decoders.
Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (MLSys 2024).
"""

from __future__ import annotations

from models.awq.apply import ClipChoice, LayerSearch, ScaleChoice, apply_search
from models.awq.layers import LINEARS, LayerBatch, run_layer
from models.awq.model import quantize_layer, quantize_model, search_layer
from models.awq.quantizer import fake_quantize, integer_weight
from models.awq.search import AwqSettings

__all__ = [
    "LINEARS",
    "AwqSettings",
    "ClipChoice",
    "LayerBatch",
    "LayerSearch",
    "ScaleChoice",
    "apply_search",
    "fake_quantize",
    "integer_weight",
    "quantize_layer",
    "quantize_model",
    "run_layer",
    "search_layer",
]
