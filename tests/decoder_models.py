"""Small random decoders for tests: checkpoints on disk, their export, and the torch model of the same integers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from export.decoder import open_decoder_checkpoint, quantize_rtn, write_decoder
from kernels.packing import IntWeight, pack, quantization_config, quantize_nearest
from runtime.decoder import OnnxDecoder, OnnxDecoderFiles, SessionSettings

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Shape:
    """A decoder's shape; the default is a small Llama with grouped queries."""

    family: str = "llama"
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 256
    vocab: int = 96
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    context: int = 160
    rope: tuple[tuple[str, Any], ...] = (("rope_type", "default"), ("rope_theta", 10000.0))

    def config(self) -> dict[str, Any]:
        """The ``config.json`` of a causal LM of this shape."""
        return {
            "architectures": ["LlamaForCausalLM" if self.family == "llama" else "Qwen2ForCausalLM"],
            "model_type": self.family,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "rope_parameters": dict(self.rope),
            **({"attention_bias": self.attention_bias, "mlp_bias": self.mlp_bias} if self.family == "llama" else {}),
        }

    def weights(self, seed: int = 0) -> Arrays:
        """Random f32 tensors under the names of a causal LM, wide enough for logits of several units."""
        rng = np.random.default_rng(seed)
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        qkv_bias = self.family == "qwen2" or self.attention_bias
        spread = 2 / self.hidden**0.5 if self.tied else 1.0  # a tied table also makes the logits
        tensors: Arrays = {"model.embed_tokens.weight": rng.normal(0, spread, (self.vocab, self.hidden))}
        tensors["model.norm.weight"] = rng.uniform(0.5, 1.5, self.hidden)
        if not self.tied:
            tensors["lm_head.weight"] = rng.normal(0, 2 / self.hidden**0.5, (self.vocab, self.hidden))
        for index in range(self.layers):
            at = f"model.layers.{index}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{at}{norm}.weight"] = rng.uniform(0.5, 1.5, self.hidden)
            for name, n, k, bias in (
                ("self_attn.q_proj", wide, self.hidden, qkv_bias),
                ("self_attn.k_proj", narrow, self.hidden, qkv_bias),
                ("self_attn.v_proj", narrow, self.hidden, qkv_bias),
                ("self_attn.o_proj", self.hidden, wide, self.attention_bias),
                ("mlp.gate_proj", self.ffn, self.hidden, self.mlp_bias),
                ("mlp.up_proj", self.ffn, self.hidden, self.mlp_bias),
                ("mlp.down_proj", self.hidden, self.ffn, self.mlp_bias),
            ):
                tensors[f"{at}{name}.weight"] = rng.normal(0, 1 / k**0.5, (n, k))
                if bias:
                    tensors[f"{at}{name}.bias"] = rng.normal(0, 0.3, n)
        return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def save_checkpoint(folder: Path, shape: Shape, *, seed: int = 0, weights: Arrays | None = None) -> Path:
    """Writes a causal LM of this shape: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config()))
    save_file(shape.weights(seed) if weights is None else weights, folder / "model.safetensors")
    return folder


def packed_weights(weights: Arrays, layout: str, group_size: int = 32) -> tuple[Arrays, dict[str, IntWeight]]:
    """The linears of the layers as a checkpoint in this layout stores them, and their integers by canonical name."""
    stored, integers = {}, {}
    for name, tensor in weights.items():
        if ".layers." in name and tensor.ndim == 2:
            stem = name.removesuffix(".weight")
            integers[stem.removeprefix("model.")] = weight = quantize_nearest(tensor, group_size)
            if layout == "gptq":
                weight.zeros[weight.zeros == 0] = 1  # which it does not hold
            stored |= {f"{stem}.{part}": array for part, array in pack(weight, layout).items()}
        else:
            stored[name] = tensor
    return stored, integers


def save_packed(
    folder: Path,
    shape: Shape,
    layout: str,
    *,
    group_size: int = 32,
    record: dict[str, Any] | None = None,
    change: Callable[[Arrays], None] | None = None,
) -> dict[str, IntWeight]:
    """Writes a quantised causal LM of this shape, with ``record`` as its quantization.json; returns its integers.

    ``change`` may alter the tensors before they are written.
    """
    stored, integers = packed_weights(shape.weights(), layout, group_size)
    if change is not None:
        change(stored)
    save_checkpoint(folder, shape, weights=stored)
    described = {"quantization_config": quantization_config(layout, group_size, ["lm_head"])}
    (folder / "config.json").write_text(json.dumps(shape.config() | described))
    if record is not None:
        (folder / "quantization.json").write_text(json.dumps(record))
    return integers


def decoder_record(folder: Path, **settings: Any) -> dict[str, Any]:
    """What ``write_decoder`` says of the checkpoint in ``folder``, whose decoder goes to ``folder/bundle``."""
    out = folder / "bundle"
    out.mkdir(exist_ok=True)
    with open_decoder_checkpoint(folder) as checkpoint:
        return write_decoder(checkpoint, out, max_seq_len=16, **settings)


def export_decoder(
    checkpoint: Path, out: Path, *, group_size: int | None = 32, accuracy_level: int = 4, max_seq_len: int = 160
) -> OnnxDecoderFiles:
    """Exports a checkpoint's decoder into ``out`` and says what the runtime needs to open it."""
    out.mkdir(parents=True, exist_ok=True)
    with open_decoder_checkpoint(checkpoint) as opened:
        record = write_decoder(
            opened, out, max_seq_len=max_seq_len, group_size=group_size, accuracy_level=accuracy_level
        )
    return decoder_files(out, record)


def decoder_files(out: Path, record: dict[str, Any]) -> OnnxDecoderFiles:
    """The runtime's view of what ``write_decoder`` returned."""
    group = record["decoder"]
    return OnnxDecoderFiles(
        model=out / group["onnx"]["file"],
        token_embeds=out / group["token_embeds"]["file"],
        token_embeds_dtype=group["token_embeds"]["dtype"],
        embed_rows=group["token_embeds"]["shape"][0],
        **{key: group[key] for key in ("hidden", "layers", "kv_heads", "head_dim", "vocab", "max_seq_len")},
    )


def small_decoder(folder: Path, shape: Shape | None = None, *, slots: int = 1, **export: Any) -> OnnxDecoder:
    """A decoder of random weights, exported into ``folder`` and opened on one thread."""
    checkpoint = save_checkpoint(folder / "checkpoint", shape or Shape())
    files = export_decoder(checkpoint, folder / "bundle", **export)
    return OnnxDecoder(files, SessionSettings(threads=1, spin=False), slots=slots)


def torch_twin(checkpoint: Path, group_size: int) -> Any:
    """transformers' own model of a checkpoint with every linear replaced by its dequantised integers, f32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    dequantize_(model, group_size)
    return model


def dequantize_(model: Any, group_size: int) -> None:
    """Replaces the linears of a causal LM (head included) by their dequantised integers and its table by f16 values."""
    import torch

    table = model.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                quantized = quantize_rtn(module.weight.detach().numpy(), group_size, name).dequantize()
                module.weight = torch.nn.Parameter(torch.from_numpy(quantized))  # a tied table keeps its own values
        model.get_input_embeddings().weight = torch.nn.Parameter(table.half().float())


def with_shape(**changes: Any) -> Shape:
    """The default shape with some fields changed."""
    return replace(Shape(), **changes)
