"""One decoder layer at a time as a torch module, filled from the checkpoint's files. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import LlamaConfig, Qwen2Config
from transformers.initialization import no_init_weights
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from export.quantization.source import BLOCK_BYTES, DecoderSource
from models.awq import LayerBatch
from runtime.errors import ExportError

_KINDS: Mapping[str, tuple[Any, Any, Any]] = {
    "llama": (LlamaConfig, LlamaDecoderLayer, LlamaRotaryEmbedding),
    "qwen2": (Qwen2Config, Qwen2DecoderLayer, Qwen2RotaryEmbedding),
}
# Fields that say how the checkpoint is stored or by whom it is loaded, not what a layer computes.
_LEFT_OUT = ("model_type", "architectures", "dtype", "torch_dtype", "auto_map", "_name_or_path")
# Norms, and the linears that read them: a norm's rounding to its stored dtype is made good in their columns.
_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


class LayerWindow:
    """The one decoder layer that is in memory, f32 on ``device``; ``load`` puts the next one in its place."""

    def __init__(self, source: DecoderSource, device: torch.device) -> None:
        self._source, self._device = source, device
        config_class, layer_class, rotary_class = _KINDS[source.decoder.config.family]
        text = source.raw_config.get("text_config", source.raw_config)
        fields = {key: value for key, value in text.items() if key not in _LEFT_OUT}
        try:
            config = config_class(**fields, attn_implementation="sdpa")
        except (ValueError, TypeError, KeyError, StrictDataclassError) as problem:
            raise ExportError(f"{source.folder}/config.json is refused by transformers: {problem}") from problem
        with no_init_weights():
            self.layer: nn.Module = layer_class(config, 0).to(device).eval().requires_grad_(False)
        self._rotary = rotary_class(config).to(device)

    def load(self, index: int) -> None:
        """Reads layer ``index``. Raises ExportError that names a tensor with values that are not finite."""
        parameters = dict(self.layer.named_parameters())
        stored = self._source.layer_tensors(index)
        assert set(parameters) == set(stored), f"{sorted(set(parameters) ^ set(stored))} of layer {index}"
        for inside, name in stored.items():
            fill_rows(parameters[inside], self._source, name)

    def batch(self, hidden: Tensor) -> LayerBatch:
        """``hidden`` f32 [1, n, D] with its positions, on the layer's device."""
        positions = torch.arange(hidden.shape[1], device=self._device)[None]
        moved = hidden.to(self._device)
        return LayerBatch(moved, self._rotary(moved, positions))


@torch.no_grad()
def fill_rows(parameter: Tensor, source: DecoderSource, name: str) -> None:
    """Copies a stored tensor into ``parameter`` block by block. Raises ExportError when it is not finite."""
    row = 0
    for block in source.iter_rows(name, BLOCK_BYTES):
        values = torch.from_numpy(block)
        if not torch.isfinite(values).all():
            raise ExportError(
                f"{source.folder}: {name} has values that are not finite", hint="copy or download the checkpoint again"
            )
        parameter[row : row + len(values)] = values.to(parameter.device)
        row += len(values)


@torch.no_grad()
def round_norms(layer: Any, dtypes: Mapping[str, torch.dtype]) -> None:
    """Rounds the layer's norms to the dtypes that they are stored in, and moves what is lost into the next columns.

    A gain g that becomes r leaves the layer's function as it is when the columns that read it are multiplied by g / r.
    """
    for name, readers in _READERS.items():
        gain = layer.get_submodule(name).weight
        rounded = gain.to(dtypes[name]).float()
        if not torch.isfinite(rounded).all():
            raise ExportError(f"{name}: a gain of {float(gain.abs().max()):g} is too large for {dtypes[name]}")
        factor = torch.where(rounded == 0, torch.ones_like(gain), gain / rounded)
        for reader in readers:
            layer.get_submodule(reader).weight.mul_(factor)
        gain.copy_(rounded)
