"""Shape and constants of a decoder from the ``config.json`` of a Llama or Qwen2 checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from export.decoder.rope import Rope, read_rope
from runtime.errors import ExportError

# What transformers assumes where a configuration is silent (LLaVA's text_config relies on it).
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"intermediate_size": 11008, "max_position_embeddings": 2048, "num_key_value_heads": None},
    "qwen2": {"intermediate_size": 22016, "max_position_embeddings": 32768, "num_key_value_heads": 32},
}
COMMON = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6}
FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "llava": "llama",  # LLaVA's own layout; transformers' has the decoder in text_config
    "llava_llama": "llama",
    "llava_qwen": "qwen2",
    "llava_qwen2": "qwen2",
}
HEAD_DIM_STEP = 16
SUPPORTED_HINT = "Llama and Qwen2 decoders can be exported"


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder's shape."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int | None
    max_position_embeddings: int
    rope: Rope
    rms_eps: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    tied: bool

    @property
    def max_context(self) -> int:
        """Positions that the checkpoint was made for, linear scaling included."""
        return self.rope.context(self.max_position_embeddings)


def decoder_config(config: Any, where: str) -> DecoderConfig:
    """Reads a parsed ``config.json`` (a causal LM's, or one with ``text_config``); ``where`` names it in messages.

    Raises ExportError for another architecture, head sizes that are not a multiple of 16, RoPE that
    :func:`export.decoder.rope.read_rope` does not know, an activation other than SiLU, and values out of range.
    """
    if not isinstance(config, dict):
        raise ExportError(f"{where}: is not a table", hint=SUPPORTED_HINT)
    outer = config
    if isinstance(config.get("text_config"), dict):
        config, where = config["text_config"], f"{where}: text_config"
    model_type = config.get("model_type", "llama" if config is not outer else None)
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ExportError(f"{where}: model_type is {model_type!r}", hint=SUPPORTED_HINT)
    fields = _Fields(where, {**COMMON, **DEFAULTS[family], **{k: v for k, v in config.items() if v is not None}})
    hidden, heads = fields.count("hidden_size", 1 << 16), fields.count("num_attention_heads", 1024)
    kv_heads = fields.count("num_key_value_heads", 1024, default=heads)
    head_dim = fields.count("head_dim", 1024, default=hidden // heads)
    _check_heads(where, heads, kv_heads, head_dim)
    _check_activation(where, config)
    context = fields.count("max_position_embeddings", 1 << 24)
    _check_window(where, config, context)
    llama_bias = family == "llama" and bool(config.get("attention_bias"))
    return DecoderConfig(
        family=family,
        hidden=hidden,
        layers=fields.count("num_hidden_layers", 1024),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=fields.count("intermediate_size", 1 << 20),
        vocab=config.get("vocab_size") if type(config.get("vocab_size")) is int else None,
        max_position_embeddings=context,
        rope=_stretched(read_rope(config, where), config, context),
        rms_eps=fields.real("rms_norm_eps", 0.0, 1.0),
        qkv_bias=family == "qwen2" or llama_bias,
        o_bias=llama_bias,
        mlp_bias=family == "llama" and bool(config.get("mlp_bias")),
        tied=bool(config.get("tie_word_embeddings") or outer.get("tie_word_embeddings")),
    )


def _stretched(rope: Rope, config: Mapping[str, Any], context: int) -> Rope:
    """VILA trains on more positions than its decoder was made for: plain RoPE is then scaled, which is not written."""
    wanted = config.get("model_max_length")
    if rope.kind != "default" or type(wanted) is not int or wanted <= context or config["model_type"] not in DEFAULTS:
        return rope
    return replace(rope, kind="linear", factor=float(math.ceil(wanted / context)))


@dataclass(frozen=True, slots=True)
class _Fields:
    where: str
    values: Mapping[str, Any]

    def count(self, key: str, limit: int, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= limit:
            raise ExportError(f"{self.where}: {key} is {value!r}, expected 1 to {limit}", hint=SUPPORTED_HINT)
        return value

    def real(self, key: str, low: float, high: float) -> float:
        value = self.values.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise ExportError(f"{self.where}: {key} is {value!r}, expected {low} to {high}", hint=SUPPORTED_HINT)
        return float(value)


def _check_heads(where: str, heads: int, kv_heads: int, head_dim: int) -> None:
    if heads % kv_heads:
        raise ExportError(f"{where}: {heads} heads do not divide among {kv_heads} key-value heads", hint=SUPPORTED_HINT)
    if head_dim % HEAD_DIM_STEP:
        raise ExportError(
            f"{where}: head_dim is {head_dim}, expected a multiple of {HEAD_DIM_STEP}",
            hint=SUPPORTED_HINT,
        )


def _check_activation(where: str, config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ExportError(f"{where}: hidden_act is {activation!r}, only 'silu' is known", hint=SUPPORTED_HINT)


def _check_window(where: str, config: Mapping[str, Any], context: int) -> None:
    """A sliding window that is switched on and shorter than the context would change the attention."""
    kinds = config.get("layer_types")
    sliding = bool(config.get("use_sliding_window")) or (isinstance(kinds, list) and "sliding_attention" in kinds)
    window = config.get("sliding_window")
    if sliding and isinstance(window, int) and window < context:
        raise ExportError(f"{where}: a sliding window of {window} positions is switched on", hint=SUPPORTED_HINT)
