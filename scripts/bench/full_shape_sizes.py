"""The sizes of real models, as their published configurations give them; for ``full_shape.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FullShape:
    """One model's sizes. ``layers`` of the decoder are written, ``real_layers`` are what the model has."""

    family: str
    tower: dict[str, int]
    decoder: dict[str, Any]
    layers: int
    real_layers: int
    scales: tuple[int, ...] = ()
    projector: str = "mlp_downsample"


_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}
_CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_QWEN_2B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_651,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
_QWEN_8B = _QWEN_2B | {
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 151_648,
    "tie_word_embeddings": False,
}
_LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32_064,
    "max_position_embeddings": 4096,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
_S2 = (448, 896, 1344)
SHAPES = {
    "nvila-2b": FullShape("nvila", _SO400M, _QWEN_2B, 28, 28, _S2),
    "nvila-8b": FullShape("nvila", _SO400M, _QWEN_8B, 2, 28, _S2),
    "llava-7b": FullShape("llava", _CLIP_L, _LLAMA_7B, 2, 32),
    # The same code on sizes that take a second, for the tests.
    "tiny-nvila": FullShape(
        "nvila",
        _SO400M
        | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
        | {"image_size": 28, "patch_size": 7},
        _QWEN_2B
        | {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
        | {"vocab_size": 600, "max_position_embeddings": 2048},
        2,
        4,
        (28, 56, 84),
    ),
}
