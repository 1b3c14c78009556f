"""The two demo models as torch modules: transformers' own towers and decoders around LLaVA's and VILA's glue.

`demo-llava`: CLIP tower -> MLP -> Llama, one 96 x 96 picture. `demo-nvila`: SigLIP tower over dynamic-S2 tiles of
64 x 64 -> 2x2 space-to-depth projector -> Qwen2. Both work on flat lists of patches and image tokens, so that a
batch can mix grids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from scripts.demo_model.pictures import TILE_PX, Family
from scripts.demo_model.vocabulary import VOCABULARY

PATCH_PX = 16
PICTURE_PX = 96  # demo-llava
MEAN = {"demo-llava": 0.5, "demo-nvila": 0.5}
STD = {"demo-llava": 0.27, "demo-nvila": 0.5}
LLM_LAYERS = {"demo-llava": 4, "demo-nvila": 4}


@dataclass(frozen=True)
class TileIndex:
    """Which patches make up each image token of a batch of demo-nvila pictures.

    `fine` and `coarse` int64 [N * 4] are rows of the tower's output [tiles * 16, 144]: image token t is made of the
    four patches 4t .. 4t + 3 (its 2 x 2 square, row-major), tokens row-major over each picture's whole mosaic.
    """

    fine: Tensor
    coarse: Tensor


class DemoModel(nn.Module):
    """One demo model; `vision`, `projector` and `llm` hold the weights under the names of the released layouts."""

    def __init__(self, family: Family, attention: str = "sdpa") -> None:
        super().__init__()
        self.family = family
        if family == "demo-llava":
            self.vision: Any = CLIPVisionModel(clip_config())
            self.projector: Any = LlavaProjector(128, 128)
            self.llm: Any = LlamaForCausalLM(llama_config())
        else:
            self.vision = SiglipVisionModel(siglip_config())
            self.projector = VilaProjector(2 * 144, 256)
            self.llm = Qwen2ForCausalLM(qwen2_config())
        self.vision.set_attn_implementation(attention)
        self.llm.set_attn_implementation(attention)

    @property
    def feature_width(self) -> int:
        return 128 if self.family == "demo-llava" else 288

    def tower(self, tiles: Tensor) -> Tensor:
        """Normalised tiles [T, 3, S, S] -> the last but one hidden state [T, tokens, C]."""
        hidden = self.vision.embeddings(tiles)
        if self.family == "demo-llava":
            hidden = self.vision.pre_layrnorm(hidden)
        for layer in self.vision.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        return hidden

    def features(self, tiles: Tensor, fine: Tensor | None = None, coarse: Tensor | None = None) -> Tensor:
        """Patch features [P, C], in the order of `TileIndex` (demo-llava: pictures in turn, 36 patches each)."""
        hidden = self.tower(tiles)
        if fine is None or coarse is None:
            return hidden[:, 1:].flatten(0, 1)
        flat = hidden.flatten(0, 1)
        return torch.cat([flat[coarse], flat[fine]], -1)  # replicated: exact, grids are whole multiples

    def image_tokens(self, features: Tensor) -> Tensor:
        """Patch features [P, C] -> image tokens [N, D] in reading order."""
        return self.projector(features if self.family == "demo-llava" else features.view(-1, 4 * features.shape[1]))

    def embed(self, ids: Tensor, is_image: Tensor, image_tokens: Tensor) -> Tensor:
        """Token ids [B, T] -> embeddings [B, T, D], the places in `is_image` taken by `image_tokens` in order."""
        embeds = self.llm.model.embed_tokens(ids)
        return embeds.masked_scatter(is_image[..., None], image_tokens.to(embeds.dtype))

    def decode(self, embeds: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """embeds [B, T, D], visible bool [B, 1, T, T] (key allowed), positions [B, T] -> normed states [B, T, D]."""
        decoder = self.llm.model
        hidden_keys = torch.zeros(visible.shape, dtype=embeds.dtype, device=embeds.device).masked_fill(~visible, -1e9)
        rope = decoder.rotary_emb(embeds, position_ids=positions)
        hidden = embeds
        for layer in decoder.layers:
            hidden = layer(hidden, attention_mask=hidden_keys, position_embeddings=rope, position_ids=positions)
        return decoder.norm(hidden)


class LlavaProjector(nn.Module):
    """transformers' LlavaMultiModalProjector."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(nn.functional.gelu(self.linear_1(features)))


class VilaProjector(nn.Module):
    """VILA's `mlp_downsample` after its 2 x 2 space-to-depth (layer 0, without weights): LayerNorm, MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Identity(), nn.LayerNorm(4 * width), nn.Linear(4 * width, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )

    def forward(self, squares: Tensor) -> Tensor:
        return self.layers(squares)


def tile_index(grids: list[tuple[int, int]], tiles_per_picture: list[int]) -> TileIndex:
    """The patches of each image token; tile 0 of each picture is the coarse one, the others are row-major."""
    fine, coarse, first = [], [], 0
    for (rows, columns), tiles in zip(grids, tiles_per_picture, strict=True):
        order = square_order(rows, columns)
        y, x = np.divmod(order, columns * 4)
        tile = first + 1 + (y // 4) * columns + x // 4
        fine.append(tile * 16 + (y % 4) * 4 + x % 4)
        coarse.append(first * 16 + (y // rows) * 4 + x // columns)
        first += tiles
    return TileIndex(torch.from_numpy(np.concatenate(fine)), torch.from_numpy(np.concatenate(coarse)))


def square_order(rows: int, columns: int) -> np.ndarray:
    """int64 [P]: the patches of a mosaic of 4 rows x 4 columns per tile, 2 x 2 square by square."""
    patches = np.arange(rows * 4 * columns * 4).reshape(rows * 2, 2, columns * 2, 2)
    return patches.transpose(0, 2, 1, 3).reshape(-1)


def clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=5, num_attention_heads=2, image_size=PICTURE_PX,
        patch_size=PATCH_PX, hidden_act="quick_gelu", projection_dim=128,
    )  # fmt: skip


def siglip_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=144, intermediate_size=544, num_hidden_layers=5, num_attention_heads=2, image_size=TILE_PX,
        patch_size=PATCH_PX, hidden_act="gelu_pytorch_tanh", vision_use_head=False,
    )  # fmt: skip


def llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=LLM_LAYERS["demo-llava"],
        num_attention_heads=2, num_key_value_heads=2, head_dim=64, max_position_embeddings=512, rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )  # fmt: skip


def qwen2_config() -> Qwen2Config:
    return Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=384, num_hidden_layers=LLM_LAYERS["demo-nvila"],
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )  # fmt: skip
