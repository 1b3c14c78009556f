"""Vision towers: tiles to features of one hidden layer; layers after the selected one are not computed.

LLaVA takes ``CLIPVisionTower`` through ``build_vision_tower``; VILA's towers come from ``build_vila_vision_tower``.
All components are transformers' own CLIP and SigLIP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PretrainedConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.initialization import no_init_weights
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.weights import load_strict, model_directory, read_config, read_json
from runtime.errors import ExportError, UsageError

# A full CLIP or SigLIP checkpoint holds these beside the vision weights; position_ids were saved by old versions.
_NOT_VISION = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")


class LayerStates:
    """The hidden states that were computed, under the indices of the full tuple (negative ones too)."""

    def __init__(self, states: dict[int, Tensor], count: int) -> None:
        self._states, self._count = states, count

    def __getitem__(self, index: int) -> Tensor:
        return self._states[index % self._count]

    def __len__(self) -> int:
        return self._count


class SelectedStates:
    """What ``feature_select`` reads; transformers' own outputs have the same attribute."""

    def __init__(self, hidden_states: LayerStates) -> None:
        self.hidden_states = hidden_states


class VisionTower(nn.Module):
    """What CLIP and SigLIP towers share: delayed loading, frozen weights, layer and feature selection.

    ``args.mm_vision_select_layer`` (required) is an index, or a list of indices whose features are concatenated, into
    the hidden states: 0 is the embeddings' output, negative ones count from the end.
    ``args.mm_vision_select_feature`` is "patch" (default; drops the class token where the tower has one) or
    "cls_patch".
    """

    config_class: type[PretrainedConfig]
    model_class: type[nn.Module]
    processor_class: type[Any]
    class_tokens = 0

    def __init__(self, vision_tower: str | Path, args: Any, delay_load: bool = False) -> None:
        super().__init__()
        self.is_loaded = False
        self.vision_tower_name = vision_tower
        self.select_layer = args.mm_vision_select_layer
        self.select_feature = getattr(args, "mm_vision_select_feature", "patch")
        if delay_load:
            self.cfg_only = read_config(model_directory(vision_tower), self.config_class)
        else:
            self.load_model()

    @classmethod
    def from_config(cls, config: PretrainedConfig, args: Any, image_processor: Any = None) -> VisionTower:
        """A tower with uninitialised weights, for checkpoints whose one file holds tower, projector and decoder."""
        tower = cls.__new__(cls)
        nn.Module.__init__(tower)
        tower.vision_tower_name = ""
        tower.select_layer = args.mm_vision_select_layer
        tower.select_feature = getattr(args, "mm_vision_select_feature", "patch")
        tower._adopt(cls.model_class(config), image_processor)
        return tower

    def load_model(self) -> None:
        """Read config, image processor and weights, and freeze every parameter; a second call does nothing."""
        if self.is_loaded:
            return
        directory = model_directory(self.vision_tower_name)
        config = read_config(directory, self.config_class)
        with no_init_weights():
            model = self.model_class(config)
        if dtype := _stored_dtype(config):
            model.to(dtype)
        load_strict(model, directory, named="vision tower", rename=vision_weight_name)
        self._adopt(model, self.processor_class.from_pretrained(directory))

    def _adopt(self, model: nn.Module, image_processor: Any) -> None:
        self.vision_tower = model.requires_grad_(False)
        self.vision_tower.eval()
        self.image_processor = image_processor
        self.is_loaded = True

    def train(self, mode: bool = True) -> VisionTower:
        """Training mode never reaches the frozen tower."""
        super().train(mode)
        if self.is_loaded:
            self.vision_tower.eval()
        return self

    def feature_select(self, image_forward_outs: Any) -> Tensor:
        """Features [B, N, D] of the selected layer (or layers) from an output that has ``hidden_states``."""
        states = image_forward_outs.hidden_states
        layers = [self.select_layer] if isinstance(self.select_layer, int) else list(self.select_layer)
        chosen = [states[layer] for layer in layers]
        features = chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
        if self.select_feature == "patch":
            return features[:, self.class_tokens :]
        if self.select_feature == "cls_patch":
            return features
        raise ValueError(f"Unexpected select feature: {self.select_feature}")

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Images [B, C, H, W] -> features [B, N, D]; a list of [C, H, W] -> a list of [1, N, D]. No gradients.

        Computed in the tower's dtype on its device, returned in the dtype of the images.
        """
        if isinstance(images, (list, tuple)):
            return [self.features(image.unsqueeze(0)) for image in images]
        return self.features(images)

    @torch.no_grad()
    def features(self, tiles: Tensor) -> Tensor:
        """Tiles [T, 3, S, S] -> [T, P, C]; what the first graph of a bundle is traced from."""
        states = self._hidden_states(tiles.to(device=self.device, dtype=self.dtype))
        return self.feature_select(SelectedStates(states)).to(tiles.dtype)

    def _hidden_states(self, tiles: Tensor) -> LayerStates:
        encoder_layers = self._loaded().encoder.layers
        count = len(encoder_layers) + 1
        layers = [self.select_layer] if isinstance(self.select_layer, int) else list(self.select_layer)
        for layer in layers:
            if not -count <= layer < count:
                raise IndexError(f"mm_vision_select_layer {layer} does not exist: the tower has {count} hidden states")
        wanted = {layer % count for layer in layers}
        hidden = self._embed(tiles)
        states = {0: hidden}
        for index in range(1, max(wanted) + 1):
            hidden = encoder_layers[index - 1](hidden, attention_mask=None)
            states[index] = hidden
        return LayerStates({index: states[index] for index in wanted}, count)

    def _embed(self, tiles: Tensor) -> Tensor:
        embedded: Tensor = self._loaded().embeddings(tiles)
        return embedded

    def _loaded(self) -> Any:
        if not self.is_loaded:
            raise UsageError(
                f"the vision tower {self.vision_tower_name!s} is not loaded", hint="call load_model() first"
            )
        return self.vision_tower

    @property
    def dummy_feature(self) -> Tensor:
        """Zeros [1, hidden_size] in the tower's dtype, on its device."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return next(self._loaded().parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self._loaded().parameters()).device

    @property
    def config(self) -> Any:
        """The tower's configuration; before ``load_model`` the one read without weights."""
        return self.vision_tower.config if self.is_loaded else self.cfg_only

    @property
    def hidden_size(self) -> int:
        """Width of one layer's features."""
        return int(self.config.hidden_size)

    @property
    def feature_size(self) -> int:
        """Width of what ``forward`` returns: ``hidden_size`` for each selected layer."""
        return self.hidden_size * (1 if isinstance(self.select_layer, int) else len(self.select_layer))

    @property
    def processed_side(self) -> int:
        """Side in px of the squares that ``forward`` takes."""
        return int(self.config.image_size)

    @property
    def num_patches_per_side(self) -> int:
        return int(self.config.image_size // self.config.patch_size)

    @property
    def num_patches(self) -> int:
        """Patches of one tile, without a class token."""
        return self.num_patches_per_side**2


class CLIPVisionTower(VisionTower):
    """CLIP as LLaVA uses it; see ``VisionTower``."""

    config_class = CLIPVisionConfig
    model_class = CLIPVisionModel
    processor_class = CLIPImageProcessorPil
    class_tokens = 1

    def _embed(self, tiles: Tensor) -> Tensor:
        normed: Tensor = self._loaded().pre_layrnorm(super()._embed(tiles))
        return normed


class SiglipVisionTower(VisionTower):
    """SigLIP, which has no class token: "patch" and "cls_patch" are the same."""

    config_class = SiglipVisionConfig
    model_class = SiglipVisionModel
    processor_class = SiglipImageProcessorPil


def vision_weight_name(name: str) -> str | None:
    """The name inside the tower of a tensor on disk; None for tensors that are not the vision model's."""
    if name.startswith(_NOT_VISION) or name.endswith("embeddings.position_ids"):
        return None
    return name.removeprefix("vision_model.")


def build_vision_tower(cfg: Any, delay_load: bool = False) -> CLIPVisionTower:
    """LLaVA's tower for ``cfg.mm_vision_tower`` (else ``cfg.vision_tower``): a local directory, openai/... or laion/...

    A name on the hub is looked up in the local cache alone. Raises ValueError for any other name.
    """
    name = getattr(cfg, "mm_vision_tower", None) or getattr(cfg, "vision_tower", None)
    if name is not None and (Path(name).exists() or str(name).startswith(("openai", "laion"))):
        return CLIPVisionTower(name, args=cfg, delay_load=delay_load)
    raise ValueError(f"Unknown vision tower: {name}")


def tower_class(directory: Path) -> type[VisionTower]:
    """The tower for a directory's config.json: decided by its architecture, else its model type."""
    config = read_json(directory / "config.json")
    described = str((config.get("architectures") or [config.get("model_type", "")])[0])
    return tower_class_named(described, directory)


def tower_class_named(described: str, where: Path | str) -> type[VisionTower]:
    """CLIP or SigLIP by an architecture's or model type's name. Raises ExportError for another."""
    lowered = described.lower()
    if "siglip" in lowered:
        return SiglipVisionTower
    if "clip" in lowered:
        return CLIPVisionTower
    raise ExportError(f"unknown vision tower {described!r} in {where}", hint="CLIP and SigLIP towers are supported")


def _stored_dtype(config: PretrainedConfig) -> torch.dtype | None:
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) else None
