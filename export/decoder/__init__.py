"""Decoder weights of a checkpoint, floats or integers, → int4 for ONNX Runtime and for the CUDA kernels (no torch).

Use, as the stage "weights" of the build does::

    with open_decoder_checkpoint(root) as checkpoint:     # reads configuration and safetensors headers only
        kinds, left_out = choose_kinds("auto", checkpoint)
        record = write_decoder(checkpoint, bundle_dir, max_seq_len=4096, kinds=kinds,
                               progress=lambda done, total: bar.update(done, total))
    manifest["decoder"], manifest["quantization"] = record["decoder"], record["quantization"]

``checkpoint.config`` is a :class:`DecoderConfig` (``max_context`` bounds max_seq_len), ``checkpoint.files`` are the
files that it reads, ``checkpoint.group_size`` is that of stored integers (None: floats). ``record["files"]`` are the
paths written, relative to ``bundle_dir``, flushed to disk, not hashed.
"""

from __future__ import annotations

from export.decoder.checkpoint import DecoderCheckpoint, open_decoder_checkpoint
from export.decoder.config import DecoderConfig
from export.decoder.kinds import choose_kinds
from export.decoder.quantize import GROUP_SIZES, choose_group_size, quantize_rtn
from export.decoder.write import write_decoder

__all__ = [
    "GROUP_SIZES",
    "DecoderCheckpoint",
    "DecoderConfig",
    "choose_group_size",
    "choose_kinds",
    "open_decoder_checkpoint",
    "quantize_rtn",
    "write_decoder",
]
