"""Decoder shapes of the four models, and what a token costs of them: for the benchmarks of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

TILE_ROWS = 16
# Launches of a decode step: norm, qkv, split, combine, o, norm, gate-up, down per layer; embedding, last norm, head,
# sampling once.
LAUNCHES_PER_LAYER, LAUNCHES_PER_STEP = 8, 4


@dataclass(frozen=True)
class DecoderShape:
    """Sizes as in the checkpoints' config.json. Weights are int4 with one f16 scale and one 4-bit zero a group."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    group_size: int = 128
    head_copies: int = 1  # 2: an 8-bit head, as two 4-bit halves side by side

    def linears(self) -> dict[str, tuple[int, int]]:
        """(N, K) of each product of a layer, and of the head."""
        return {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
            "head": (-(-self.vocab // TILE_ROWS) * TILE_ROWS, self.hidden * self.head_copies),
        }

    @property
    def layer_weights(self) -> int:
        """Number of weights of all layers."""
        return self.layers * sum(n * k for name, (n, k) in self.linears().items() if name != "head")

    @property
    def head_weights(self) -> int:
        """Number of weights of the head."""
        n, k = self.linears()["head"]
        return n * k

    def weight_bytes(self, n: int, k: int) -> int:
        """Bytes of one product's packed weights."""
        return n * k // 2 + n * k // self.group_size * 5 // 2

    def bytes_per_token(self, context: int, kv_bytes: int = 2) -> int:
        """Bytes that a step of one token reads: all weights and the cache of ``context`` positions."""
        per_layer = sum(self.weight_bytes(n, k) for name, (n, k) in self.linears().items() if name != "head")
        cache = 2 * self.kv_heads * self.head_dim * kv_bytes * context
        return self.layers * (per_layer + cache) + self.weight_bytes(*self.linears()["head"])

    @property
    def launches(self) -> int:
        """Kernels of a decode step."""
        return self.layers * LAUNCHES_PER_LAYER + LAUNCHES_PER_STEP


MODELS = (
    DecoderShape("NVILA-Lite-2B", 1536, 28, 12, 2, 128, 8960, 151651),
    DecoderShape("VILA1.5-3B", 2560, 32, 20, 20, 128, 6912, 32000),
    DecoderShape("LLaVA-1.5-7B", 4096, 32, 32, 32, 128, 11008, 32000),
    DecoderShape("NVILA-8B", 3584, 28, 28, 4, 128, 18944, 151651),
)
# Not the shape of any model: small enough to run everything on the emulator in seconds.
TINY = DecoderShape("tiny", 128, 2, 4, 2, 64, 128, 96)
