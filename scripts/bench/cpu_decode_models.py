"""The models of ``cpu_decode.py``: a random checkpoint of a given shape, our export of it, and the same as GGUF."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Shape:
    """A Qwen2 decoder; the default is the 0.5B one (tied)."""

    hidden: int = 896
    layers: int = 24
    heads: int = 14
    kv_heads: int = 2
    ffn: int = 4864
    vocab: int = 151936
    context: int = 32768

    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        return {
            "model_type": "qwen2",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
            "hidden_act": "silu",
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of all tensors."""
        narrow = self.kv_heads * self.hidden // self.heads
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for index in range(self.layers):
            at = f"model.layers.{index}."
            yield f"{at}input_layernorm.weight", (self.hidden,)
            yield f"{at}post_attention_layernorm.weight", (self.hidden,)
            for name, n in (("q", self.hidden), ("k", narrow), ("v", narrow)):
                yield f"{at}self_attn.{name}_proj.weight", (n, self.hidden)
                yield f"{at}self_attn.{name}_proj.bias", (n,)
            yield f"{at}self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{at}mlp.gate_proj.weight", (self.ffn, self.hidden)
            yield f"{at}mlp.up_proj.weight", (self.ffn, self.hidden)
            yield f"{at}mlp.down_proj.weight", (self.hidden, self.ffn)
        yield "model.norm.weight", (self.hidden,)


def write_checkpoint(folder: Path, shape: Shape) -> int:
    """Random bf16 weights as config.json and model.safetensors; gives the size of the latter in bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config()), encoding="ascii")
    header: dict[str, Any] = {}
    at = 0
    for name, dims in shape.tensors():
        end = at + 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dims in shape.tensors():
            left = math.prod(dims)
            while left:
                count = min(left, 1 << 22)
                values = rng.standard_normal(count, np.float32)
                values = 1 + values / 10 if len(dims) == 1 and "norm" in name else values * np.float32(0.02)
                file.write((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())
                left -= count
    return 8 + len(text) + at


def export_checkpoint(checkpoint: Path, out: Path, max_seq_len: int) -> dict[str, Any]:
    """Our export (stage "weights" alone); what the runtime needs goes to ``out/record.json``. Sizes and peak memory."""
    from export.decoder import open_decoder_checkpoint, write_decoder

    out.mkdir(parents=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open_decoder_checkpoint(checkpoint) as opened:
        record = write_decoder(opened, out, max_seq_len=max_seq_len, group_size=128, accuracy_level=4)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (out / "record.json").write_text(json.dumps(record), encoding="ascii")
    return {
        "checkpoint_bytes": sum(path.stat().st_size for path in opened.files),
        "written_bytes": {name: (out / name).stat().st_size for name in record["files"]},
        "peak_rss_bytes": peak,
        "rss_after_imports_bytes": before,
    }


def write_gguf(checkpoint: Path, path: Path, shape: Shape) -> int:
    """The same weights as Q4_0 (norms and biases f32) for llama.cpp, without a vocabulary; size in bytes."""
    import gguf

    from export.decoder.weight_files import WeightFiles

    writer = gguf.GGUFWriter(str(path), "qwen2", use_temp_file=True)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, shape.layers)
    with WeightFiles(checkpoint) as files:
        for name, dims in shape.tensors():
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if len(dims) == 1:
                writer.add_tensor(target, files.read(name))
                continue
            blocks = [gguf.quantize(rows, gguf.GGMLQuantizationType.Q4_0) for rows in files.iter_rows(name, 64 << 20)]
            writer.add_tensor(target, np.concatenate(blocks), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def shape_fields(shape: Shape) -> dict[str, int]:
    """The shape for a JSON line."""
    return asdict(shape)
