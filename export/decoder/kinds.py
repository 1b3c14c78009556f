"""Which forms of a decoder a bundle gets: what was asked for, as far as the kernels take the decoder's shape."""

from __future__ import annotations

from typing import Literal

from export.decoder.checkpoint import DecoderCheckpoint
from runtime.bundle.manifest import DecoderKind
from runtime.errors import ExportError

DecoderChoice = Literal["onnx", "cuda", "both", "auto"]
HEAD_DIMS = (64, 128)
MAX_QUERIES_PER_KEY = 8  # query heads that share a key-value head
HEAD_BITS = (4, 8)


def choose_kinds(choice: DecoderChoice, checkpoint: DecoderCheckpoint) -> tuple[tuple[DecoderKind, ...], str | None]:
    """The forms to be written, and what "auto" leaves out and why (None: nothing).

    Raises ExportError when "cuda" or "both" ask for kernels that do not take the decoder.
    """
    if choice == "onnx":
        return ("onnx",), None
    reason = refused_by_kernels(checkpoint)
    if reason is None:
        return (("cuda",) if choice == "cuda" else ("onnx", "cuda")), None
    if choice == "auto":
        return ("onnx",), f"without the CUDA decoder: {reason}"
    raise ExportError(f"{checkpoint.folder}: --decoder {choice}: {reason}", hint="use --decoder onnx")


def refused_by_kernels(checkpoint: DecoderCheckpoint) -> str | None:
    """Why the CUDA kernels do not take a decoder of this shape; None when they do."""
    c = checkpoint.config
    if c.head_dim not in HEAD_DIMS:
        return f"head_dim is {c.head_dim}, its kernels take {' and '.join(map(str, HEAD_DIMS))}"
    if c.heads // c.kv_heads > MAX_QUERIES_PER_KEY:
        shared = c.heads // c.kv_heads
        return f"{shared} query heads share a key-value head, its kernels take up to {MAX_QUERIES_PER_KEY}"
    if c.mlp_bias:
        return "the linears gate, up and down have biases, which its kernels do not add"
    if checkpoint.head_bits not in HEAD_BITS:
        bits = " and ".join(map(str, HEAD_BITS))
        return f"the LM head has {checkpoint.head_bits} bits, its kernels take {bits}"
    return None
