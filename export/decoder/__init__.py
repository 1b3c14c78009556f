"""Decoder weights of a checkpoint, floats or integers, → int4 ONNX decoder for the CPU (numpy and onnx; no torch).

Use, as the stage "weights" of the build does::

    with open_decoder_checkpoint(root) as checkpoint:     # reads configuration and safetensors headers only
        record = write_decoder(checkpoint, bundle_dir, max_seq_len=4096, accuracy_level=4,
                               progress=lambda done, total: bar.update(done, total))
    manifest["decoder"], manifest["quantization"] = record["decoder"], record["quantization"]

``checkpoint.config`` is a :class:`DecoderConfig` (``max_context`` bounds max_seq_len), ``checkpoint.files`` are the
files that it reads, ``checkpoint.group_size`` is that of stored integers (None: floats). ``record["files"]`` are the
paths written, relative to ``bundle_dir``, flushed to disk, not hashed.
"""

from __future__ import annotations

from export.decoder.checkpoint import DecoderCheckpoint, open_decoder_checkpoint
from export.decoder.config import DecoderConfig
from export.decoder.quantize import GROUP_SIZES, choose_group_size, quantize_rtn
from export.decoder.write import write_decoder

__all__ = [
    "GROUP_SIZES",
    "DecoderCheckpoint",
    "DecoderConfig",
    "choose_group_size",
    "open_decoder_checkpoint",
    "quantize_rtn",
    "write_decoder",
]
