"""Decoder weights of a checkpoint → int4 ONNX decoder for the CPU (numpy and onnx; no torch).

Use, as the stage "weights" of the build does::

    checkpoint = open_decoder_checkpoint(root)            # reads configs and safetensors headers only
    record = write_decoder(checkpoint, bundle_dir, group_size=128, max_seq_len=4096, accuracy_level=4,
                           progress=lambda done, total: bar.update(done, total))
    manifest["decoder"], manifest["quantization"] = record["decoder"], record["quantization"]
    manifest["files"]: the paths in record["files"], relative to bundle_dir, still to be hashed by the caller

``open_decoder_checkpoint(root: Path) -> DecoderCheckpoint`` accepts a transformers LLaVA folder (``text_config``), a VILA
folder (its ``llm/``) or a plain causal LM folder, of Llama or Qwen2. ``checkpoint.config`` is a ``DecoderConfig``
(hidden, layers, heads, kv_heads, head_dim, ffn, rope_theta, rms_eps, max_position_embeddings, …) and
``checkpoint.files`` the files that it reads (for the digest of the source).

``write_decoder(checkpoint, out_dir: Path, *, group_size: int = 128, max_seq_len: int, accuracy_level: int = 4,
progress: Callable[[int, int], None] | None = None) -> dict`` makes ``out_dir/decoder/{decoder.onnx,decoder.onnx.data,
token_embeds.bin}`` (fsynced; out_dir is the caller's temporary folder, nothing else is touched) and returns
``{"decoder": {...}, "quantization": {...}, "files": [...]}``, the two manifest groups. Progress counts bytes of weights.
Everything wrong with the checkpoint is an ``ExportError`` with a hint; a full disk is an ``OutputError``.
"""

from __future__ import annotations
