"""The shape of a CUDA decoder, and the names and shapes of the tensors in its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kernels.arrays import Activation, DType
from kernels.packing.t16 import HALF_ROWS, steps_of, tiles_of

STEP_TOKENS = 8  # rows that the GEMV kernels take, and a step's tokens
CHUNK_TOKENS = 512
FIRST_BUCKET = 512

HeadBits = Literal[4, 8]
TensorShape = tuple[DType, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CudaDecoderFiles:
    """What the manifest says of this decoder: two files and the shape of the model.

    ``digest``: that of the weights (``quantization.digest``), which the file must have too.
    """

    weights: Path
    token_embeds: Path
    token_embeds_dtype: str
    embed_rows: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_seq_len: int
    rope_frequencies: tuple[float, ...]
    rms_eps: float
    group_size: int
    head_bits: int
    activations: Activation
    digest: str

    @property
    def head_copies(self) -> int:
        """How often the head takes its input: an 8-bit head is two 4-bit halves side by side."""
        return self.head_bits // 4

    @property
    def chunk(self) -> int:
        """Rows that a prefill runs at once."""
        return min(CHUNK_TOKENS, self.max_seq_len)

    @property
    def qkv_rows(self) -> int:
        """Outputs of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def bucket(self, length: int) -> int:
        """The size of the context that a step of this length is launched for: 512, 1024, 2048 …, at most the cache."""
        size = FIRST_BUCKET
        while size < length:
            size *= 2
        return min(size, self.max_seq_len)

    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """(outputs, inputs) of a layer's matrices, in the order of a pass."""
        return {
            "qkv": (self.qkv_rows, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }

    def head(self) -> tuple[int, int]:
        """(outputs, inputs) of the LM head as it is stored."""
        return self.vocab, self.hidden * self.head_copies

    def tensors(self) -> dict[str, TensorShape]:
        """Every tensor that the file must have, biases aside."""
        found: dict[str, TensorShape] = {"norm": ("f32", (self.hidden,))}
        for index in range(self.layers):
            for norm in ("input_norm", "post_norm"):
                found[f"layers.{index}.{norm}"] = ("f32", (self.hidden,))
            for name, (n, k) in self.matrices().items():
                found |= packed_tensors(f"layers.{index}.{name}", n, k, self.group_size)
        return found | packed_tensors("head", *self.head(), self.group_size)

    def biases(self) -> dict[str, TensorShape]:
        """Tensors that the file may have besides."""
        rows = {"qkv": self.qkv_rows, "o": self.hidden}
        return {f"layers.{i}.{name}.bias": ("f32", (n,)) for i in range(self.layers) for name, n in rows.items()}


def packed_tensors(name: str, n: int, k: int, group_size: int) -> dict[str, TensorShape]:
    """The three tensors of an [n, k] matrix in layout t16."""
    tiles = tiles_of(n)
    return {
        f"{name}.qw": ("u32", (tiles, steps_of(k), 32, 4)),
        f"{name}.sc": ("f16", (tiles, k // group_size, HALF_ROWS, 2)),
        f"{name}.zp": ("u8", (tiles, k // group_size, HALF_ROWS)),
    }
