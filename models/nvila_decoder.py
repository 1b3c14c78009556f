"""The ``llm`` folder of a VILA or NVILA checkpoint: a Llama or Qwen2 decoder on full or on packed weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlamaForCausalLM, PreTrainedConfig, Qwen2ForCausalLM
from transformers.initialization import no_init_weights

from models.lazy_parameters import WithoutMemory
from models.nvila_tokenizer import rope_scaling_for
from models.packed import Quantization, load_packed, read_quantization
from models.weights import default_dtype, read_config, read_generation_config, read_json
from runtime.errors import ExportError

DECODERS: dict[str, type[Any]] = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}


def decoder_kind(directory: Path) -> str:
    """ "llama" or "qwen2", from a decoder folder's config.json. Raises ExportError for another."""
    kind = str(read_json(directory / "config.json").get("model_type"))
    if kind not in DECODERS:
        raise ExportError(f"{directory}: a decoder of type {kind!r}", hint="Llama and Qwen2 decoders are supported")
    return kind


def load_decoder(directory: Path, dtype: torch.dtype) -> tuple[Any, Quantization]:
    """The causal language model in ``directory`` and what it says about its weights, in evaluation mode.

    Full weights are converted to ``dtype``; packed ones become ``Int4Linear`` with the stored integers. Raises
    ExportError for missing, unknown or damaged weights.
    """
    quantization = read_quantization(directory, directory.parent)
    kind, config = decoder_kind(directory), read_config(directory, AutoConfig)
    _extend_context(config)
    with no_init_weights(), default_dtype(dtype), WithoutMemory():
        llm = DECODERS[kind](config)
    tied = frozenset({"lm_head.weight"}) if config.tie_word_embeddings else frozenset()
    packed = load_packed(llm, directory, quantization.form, named="decoder", rename=decoder_name, may_lack=tied)
    llm.tie_weights()
    if packed and quantization.form is None:  # llm-awq's files, which say nothing of themselves
        quantization = replace(quantization, method="awq")
    if generation := read_generation_config(directory):
        llm.generation_config = generation
    return llm.eval(), quantization


def _extend_context(config: PreTrainedConfig) -> None:
    """VILA trains on more positions than the decoder was made for by scaling RoPE, and writes down their number."""
    wanted = getattr(config, "model_max_length", None)
    kind = config.rope_parameters.get("rope_type", "default")
    if wanted is None or kind != "default":
        return
    if scaling := rope_scaling_for(int(wanted), int(config.max_position_embeddings)):
        config.rope_parameters = {**config.rope_parameters, **scaling}


def decoder_name(name: str) -> str | None:
    """The name in the decoder of a tensor on disk; None for one that is computed."""
    return None if name.endswith("rotary_emb.inv_freq") else name
