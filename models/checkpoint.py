"""Loads a checkpoint directory, whatever layout it has, without unpickling and without code from the checkpoint.

    model, family = load_checkpoint("models/demo/demo-llava")

Layouts: LLaVA as transformers writes it (``LlavaForConditionalGeneration``), LLaVA as its authors publish it, and the
three folders ``llm/ vision_tower/ mm_projector/`` of VILA and NVILA. Weights are safetensors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlamaConfig
from transformers.initialization import no_init_weights

from models.conversation import MEDIA_TOKENS
from models.image_tokens import IM_END, IM_PATCH, IM_START
from models.lazy_parameters import WithoutMemory
from models.llava import LlavaLlamaConfig, LlavaLlamaForCausalLM
from models.nvila import load_vila
from models.packed import load_packed, read_quantization
from models.projector import build_vision_projector
from models.tokenizer import read_tokenizer
from models.vision_tower import CLIPVisionTower, tower_class, tower_class_named, vision_weight_name
from models.weights import (
    Rename,
    default_dtype,
    model_directory,
    read_config,
    read_generation_config,
    read_json,
    tensors_of,
    weight_files,
)
from runtime.errors import ExportError

HF_LLAVA, ORIGINAL_LLAVA, NVILA = "hf-llava", "original-llava", "nvila"
_FAMILIES = {HF_LLAVA: "llava", ORIGINAL_LLAVA: "llava", NVILA: "nvila"}
_SUPPORTED = "LlavaForConditionalGeneration, LlavaLlamaForCausalLM and VILA's LlavaLlamaModel are supported"
_TOWER_INSIDE = "model.vision_tower.vision_tower."
_RENAMED = (
    # transformers 5 and 4.52+ in memory; the older names that transformers still writes to disk come second
    (re.compile(r"^(?:model\.)?vision_tower\.(.+)$"), "tower"),
    (re.compile(r"^(?:model\.)?multi_modal_projector\.linear_1\.(.+)$"), r"model.mm_projector.0.\1"),
    (re.compile(r"^(?:model\.)?multi_modal_projector\.linear_2\.(.+)$"), r"model.mm_projector.2.\1"),
    (re.compile(r"^model\.language_model\.(?!model\.|lm_head\.)(.+)$"), r"model.\1"),
    (re.compile(r"^(?:model\.)?language_model\.model\.(.+)$"), r"model.\1"),
    (re.compile(r"^(?:model\.)?language_model\.lm_head\.(.+)$"), r"lm_head.\1"),
)


def load_checkpoint(path: str | Path, dtype: torch.dtype | None = torch.float32) -> tuple[Any, str]:
    """(model, "llava" or "nvila") from a checkpoint directory, in evaluation mode, its ``tokenizer`` set.

    ``dtype``: what the weights are converted to; None keeps the stored one. Raises ExportError for a directory that
    is not a supported checkpoint, for missing, truncated, unknown or misshapen weights, and for pickle files.
    """
    directory = Path(path)
    layout = checkpoint_layout(directory)
    if layout == NVILA:
        model: Any = load_vila(directory, dtype)
    else:
        model = _load_hf(directory, dtype) if layout == HF_LLAVA else _load_original(directory, dtype)
    return model.eval(), _FAMILIES[layout]


def checkpoint_layout(directory: Path) -> str:
    """Which of the three layouts ``directory`` has, from its config.json. Raises ExportError for none of them."""
    if not directory.is_dir():
        raise ExportError(f"{directory} is not a directory", hint="give the directory that holds config.json")
    config = read_json(directory / "config.json")
    architecture = str((config.get("architectures") or [""])[0])
    if architecture == "LlavaForConditionalGeneration" or (
        config.get("model_type") == "llava" and "text_config" in config
    ):
        return HF_LLAVA
    if "llm_cfg" in config or all((directory / part).is_dir() for part in ("llm", "vision_tower", "mm_projector")):
        return NVILA
    if architecture in ("LlavaLlamaForCausalLM", "LlavaForCausalLM") or "mm_vision_tower" in config:
        return ORIGINAL_LLAVA
    described = architecture or config.get("model_type") or "none named"
    raise ExportError(f"{directory}/config.json: unknown architecture {described!r}", hint=_SUPPORTED)


def rename_hf_llava(name: str) -> str | None:
    """The name in ``LlavaLlamaForCausalLM`` of a tensor in transformers' LLaVA layout; None for one that is not
    needed.
    """
    for pattern, replacement in _RENAMED:
        if match := pattern.match(name):
            if replacement != "tower":
                return match.expand(replacement)
            inside = vision_weight_name(match[1])
            return None if inside is None else _TOWER_INSIDE + inside
    return None if name.endswith("rotary_emb.inv_freq") else name


def rename_original_llava(name: str) -> str | None:
    """The same for LLaVA's own layout, which may hold the tower's weights too."""
    if name.startswith(_TOWER_INSIDE):
        inside = vision_weight_name(name.removeprefix(_TOWER_INSIDE))
        return None if inside is None else _TOWER_INSIDE + inside
    return None if name.endswith("rotary_emb.inv_freq") else name


def _load_hf(directory: Path, dtype: torch.dtype | None) -> LlavaLlamaForCausalLM:
    source = read_config(directory, AutoConfig)
    tower = tower_class_named(source.vision_config.model_type, directory)
    config = _hf_config(source, directory)
    with no_init_weights(), default_dtype(dtype or _dtype_of(source)), WithoutMemory():
        model = LlavaLlamaForCausalLM(config)
        processor = tower.processor_class.from_pretrained(_processor_directory(directory))
        model.model.vision_tower = tower.from_config(source.vision_config, config, processor)
        model.model.mm_projector = build_vision_projector(config)
    _load_weights(model, directory, rename_hf_llava, _tied(config))
    model.tokenizer = read_tokenizer(directory)
    _set_image_token(model, directory, source)
    return model


def _load_weights(model: LlavaLlamaForCausalLM, directory: Path, rename: Rename, may_lack: frozenset[str]) -> None:
    found = read_quantization(directory)
    packed = load_packed(model, directory, found.form, named="model", rename=rename, may_lack=may_lack)
    model.quantization = "awq" if packed and found.form is None else found.method
    model.head_bits = found.head_bits
    model.tie_weights()
    if generation := read_generation_config(directory):
        model.generation_config = generation


def _hf_config(source: Any, directory: Path) -> LlavaLlamaConfig:
    text = source.text_config
    if not isinstance(text, LlamaConfig):
        raise ExportError(f"{directory}: a LLaVA on {text.model_type!r}", hint="Llama decoders are supported")
    if source.projector_hidden_act != "gelu" or not getattr(source, "multimodal_projector_bias", True):
        raise ExportError(
            f"{directory}: projector with {source.projector_hidden_act!r}, bias {source.multimodal_projector_bias}",
            hint="two linear layers with bias and GELU between them are supported",
        )
    strategies = {"default": "patch", "full": "cls_patch"}
    strategy = source.vision_feature_select_strategy
    if strategy not in strategies:
        raise ExportError(f"{directory}: vision_feature_select_strategy is {strategy!r}", hint="default or full")
    layer = source.vision_feature_layer
    width = source.vision_config.hidden_size * (1 if isinstance(layer, int) else len(layer))
    fields = {
        key: value for key, value in text.to_dict().items() if key not in ("model_type", "architectures", "dtype")
    }
    return LlavaLlamaConfig(
        **fields,
        mm_projector_type="mlp2x_gelu",
        mm_hidden_size=width,
        mm_vision_select_layer=layer,
        mm_vision_select_feature=strategies[strategy],
    )


def _set_image_token(model: LlavaLlamaForCausalLM, directory: Path, source: Any) -> None:
    index = getattr(source, "image_token_id", None)
    token = model.tokenizer.convert_ids_to_tokens(index if index is not None else source.image_token_index)
    if token is None:
        raise ExportError(f"{directory}: the tokenizer has no token {source.image_token_index}, the image token")
    model.image_token = str(token)


def _load_original(directory: Path, dtype: torch.dtype | None) -> LlavaLlamaForCausalLM:
    raw = read_json(directory / "config.json")
    fields = {key: value for key, value in raw.items() if key not in ("model_type", "architectures")}
    config = LlavaLlamaConfig(**fields)
    tower = _local_tower(directory, getattr(config, "mm_vision_tower", None))
    config.mm_vision_tower = str(tower)
    with no_init_weights(), default_dtype(dtype or _dtype_of(config)), WithoutMemory():
        model = LlavaLlamaForCausalLM(config)
        if any(name.startswith(_TOWER_INSIDE) for name in tensors_of(weight_files(directory))):
            processor = CLIPVisionTower.processor_class.from_pretrained(_processor_directory(tower))
            vision = read_config(tower, CLIPVisionTower.config_class)
            model.model.vision_tower = CLIPVisionTower.from_config(vision, config, processor)
    loaded: Any = model.get_vision_tower()
    beside = frozenset[str]()
    if not loaded.is_loaded:
        loaded.load_model()
        beside = frozenset(name for name in model.state_dict() if name.startswith(_TOWER_INSIDE))
    _load_weights(model, directory, rename_original_llava, _tied(config) | beside)
    model.tokenizer = original_tokenizer(directory, config)
    return model.to(dtype) if dtype else model


def original_tokenizer(directory: Path, config: Any) -> Any:
    """The tokenizer of a LLaVA in its authors' layout, with ``<image>``, which they never store: it stands for a place.

    Raises ExportError when one of the tokens that the configuration wraps images in is missing.
    """
    tokenizer = read_tokenizer(directory)
    wanted = [IM_PATCH] if getattr(config, "mm_use_im_patch_token", False) else []
    wanted += [IM_START, IM_END] if getattr(config, "mm_use_im_start_end", False) else []
    known = tokenizer.get_vocab()
    if missing := [token for token in wanted if token not in known]:
        raise ExportError(
            f"{directory}: config.json asks for {missing[0]}, which the tokenizer does not have",
            hint="copy the tokenizer's files again, added_tokens.json included",
        )
    tokenizer.add_tokens([MEDIA_TOKENS["image"]], special_tokens=True)
    return tokenizer


def _local_tower(directory: Path, name: str | None) -> Path:
    """The tower's directory: inside the checkpoint when it lies there, else the name (a path or in the local cache)."""
    if name is None:
        raise ExportError(f"{directory}/config.json names no mm_vision_tower")
    inside = [directory / part for part in (name, "vision_tower", Path(name).name) if part]
    tower = next((place for place in inside if (place / "config.json").is_file()), None) or model_directory(name)
    if not issubclass(tower_class(tower), CLIPVisionTower):
        raise ExportError(f"{directory}: mm_vision_tower {name} is no CLIP", hint="CLIP towers are supported here")
    return tower


def _processor_directory(directory: Path) -> Path:
    if not (directory / "preprocessor_config.json").is_file() and not (directory / "processor_config.json").is_file():
        raise ExportError(
            f"{directory}/preprocessor_config.json is missing", hint="copy it from the checkpoint's source"
        )
    return directory


def _tied(config: Any) -> frozenset[str]:
    return frozenset({"lm_head.weight"}) if config.tie_word_embeddings else frozenset()


def _dtype_of(config: Any) -> torch.dtype:
    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
