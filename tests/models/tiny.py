"""Tiny checkpoints with random weights in the real layouts, for tests of every part.

    llava = write_llava(tmp_path / "llava")
    nvila = write_nvila(tmp_path / "nvila", scales=(28, 56, 84), projector="mlp_downsample_3x3_fix")

Everything is seeded; transformers writes the decoders and towers.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.projector import MultimodalProjector, build_vision_projector

PARTS_MACRO = (
    "{%- macro text(content) -%}{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content if part['type'] == 'image' -%}{{ '<image>\n' }}{%- endfor -%}"
    "{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}\n"
)
VICUNA = PARTS_MACRO + (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ text(message['content']) + ' ' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ ' ' + text(message['content']) + eos_token }}"
    "{%- else -%}{{ 'USER: ' + text(message['content']) + ' ASSISTANT:' }}{%- endif -%}"
    "{%- endfor -%}"
)
_SYSTEM = "<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n"
CHATML = (
    "{%- if messages[0]['role'] != 'system' -%}{{ '" + _SYSTEM + "' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
VICUNA_SPECIALS = ("<pad>", "<s>", "</s>", "<image>")
CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<vila/sentinel>", "<image>", "<vila/video>")


def byte_tokenizer(template: str, specials: tuple[str, ...], *, max_length: int = 2048) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with the given special tokens; with "<s>" among them it puts that in front.

    ``template`` "": it brings none.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in specials])
    vicuna = "<s>" in specials
    if vicuna:
        start = [("<s>", inner.token_to_id("<s>"))]
        inner.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", start)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>" if vicuna else None,
        eos_token="</s>" if vicuna else "<|im_end|>",
        pad_token="<pad>" if vicuna else "<|endoftext|>",
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template or None
    return tokenizer


def write_llava(
    directory: Path,
    *,
    seed: int = 0,
    image_px: int = 28,
    patch_px: int = 7,
    siglip: bool = False,
    select_strategy: str = "default",
    select_layer: int | list[int] = -2,
    tied: bool = False,
    crop: bool = False,
    hidden: int = 64,
    kv_heads: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A LLaVA in transformers' layout, written by transformers: CLIP (or SigLIP), two linear layers, Llama."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(VICUNA, VICUNA_SPECIALS)
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape = vision | {"image_size": image_px, "patch_size": patch_px}
    text = LlamaConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision_config = SiglipVisionConfig(vision_use_head=False, **shape) if siglip else CLIPVisionConfig(**shape)
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=select_layer,
        vision_feature_select_strategy=select_strategy,
        image_seq_length=(image_px // patch_px) ** 2,
        tie_word_embeddings=tied,
    )
    model = LlavaForConditionalGeneration(config)
    _spread(model)
    model.to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _processor(image_px, siglip=siglip, crop=crop).save_pretrained(directory)
    return directory


def write_nvila(
    directory: Path,
    *,
    seed: int = 0,
    scales: tuple[int, ...] | None = (28, 56),
    resize_output_to_scale_idx: int = -1,
    aspect: str | None = None,
    projector: str = "mlp_downsample",
    tile_px: int = 28,
    patch_px: int = 7,
    clip: bool = False,
    tied: bool = False,
    hidden: int = 64,
    max_tiles: int = 12,
    model_max_length: int = 2048,
    tower_width: int = 18,
    template: str = CHATML,
    llama: bool = False,
    static: bool = False,
    extra: dict[str, Any] | None = None,
) -> Path:
    """An NVILA in three folders: SigLIP (or CLIP), a VILA projector, Qwen2. ``scales`` None: no S².

    ``aspect`` is ``image_aspect_ratio``; by default "dynamic_s2" with scales and "dynamic" without. ``tile_px /
    patch_px`` gives the patches of a side: 4 as it stands, an odd number for odd grids. ``static``: static S² of
    whole pictures instead of dynamic S². ``llama``: VILA-1.5's decoder and tokens; its tokenizer brings no template.
    """
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(template, CHATML_SPECIALS, max_length=model_max_length)
    if llama:
        tokenizer = byte_tokenizer("", VICUNA_SPECIALS[:3], max_length=model_max_length)
    tokenizer.save_pretrained(directory / "llm")
    decoder, shape = (LlamaForCausalLM, LlamaConfig) if llama else (Qwen2ForCausalLM, Qwen2Config)
    llm = decoder(
        shape(
            vocab_size=len(tokenizer) + 2,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=max(2048, model_max_length),
            tie_word_embeddings=tied,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )
    _spread(llm)
    llm.save_pretrained(directory / "llm")
    write_tower(directory / "vision_tower", tile_px, patch_px, tower_width, clip=clip)
    width = tower_width * (len(scales) if scales else 1)
    write_projector(directory / "mm_projector", projector, width, hidden)
    config = {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaModel"],
        "llm_cfg": {},
        "vision_tower_cfg": {},
        "mm_projector_cfg": {},
        "hidden_size": hidden,
        "mm_hidden_size": width,
        "image_aspect_ratio": aspect or ("dynamic_s2" if scales else "dynamic"),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "cls_patch" if not clip else "patch",
        "model_dtype": "torch.float32",
        "max_tiles": max_tiles,
        "num_video_frames": 4,
    }
    if scales and static:
        config |= {"image_aspect_ratio": aspect or "resize", "s2": True}
    if scales:
        config |= {"dynamic_s2": not static, "s2_scales": ",".join(map(str, scales)), "s2_max_split_size": tile_px}
        config["s2_resize_output_to_scale_idx"] = resize_output_to_scale_idx
    _write_json(directory / "config.json", config | (extra or {}))
    return directory


def write_original_llava(
    directory: Path,
    *,
    seed: int = 0,
    projector: str = "mlp2x_gelu",
    tower: str = "vision_tower",
    select_feature: str = "patch",
    select_layer: int | list[int] = -2,
    aspect: str | None = None,
    marked: bool = False,
    hidden: int = 64,
    extra: dict[str, Any] | None = None,
) -> Path:
    """A LLaVA as its authors publish it: CLIP in the folder ``tower``, projector and Llama in one file.

    The tokenizer has neither ``<image>`` nor a chat template; ``marked`` adds <im_start> and <im_end>. linearclip's
    range is among the weights and in emb_min_max.safetensors.
    """
    torch.manual_seed(seed)
    width = 32
    (directory / tower).parent.mkdir(parents=True, exist_ok=True)
    write_tower(directory / tower, 28, 7, width, clip=True)
    tokenizer = byte_tokenizer("", VICUNA_SPECIALS[:3] + (("<im_start>", "<im_end>") if marked else ()))
    width *= 1 if isinstance(select_layer, int) else len(select_layer)
    hidden = width if projector == "identity" else hidden
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _spread(llama)
    llama.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    limits = {"min": -torch.rand(hidden), "max": torch.rand(hidden)}
    save_file(limits, directory / "emb_min_max.safetensors")
    sizes = SimpleNamespace(mm_projector_type=projector, mm_hidden_size=width, hidden_size=hidden)
    sizes.min_max_range_path = str(directory / "emb_min_max.safetensors")
    layers = build_vision_projector(sizes)
    _spread(layers)
    state = {f"model.mm_projector.{name}": tensor for name, tensor in layers.state_dict().items()}
    save_file(load_file(directory / "model.safetensors") | state, directory / "model.safetensors", {"format": "pt"})
    fields = json.loads((directory / "config.json").read_text())
    fields |= {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "mm_vision_tower": str(directory / tower) if Path(tower).is_absolute() else tower,
        "mm_vision_select_layer": select_layer,
        "mm_vision_select_feature": select_feature,
        "mm_projector_type": projector,
        "mm_hidden_size": width,
        "mm_use_im_start_end": marked,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": aspect,
        "min_max_range_path": sizes.min_max_range_path,
    }
    _write_json(directory / "config.json", fields | (extra or {}))
    return directory


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of smooth random colours, so that resizing matters but does not alias."""
    generator = torch.Generator().manual_seed(seed)
    small = (torch.rand(6, 8, 3, generator=generator) * 255).byte().numpy()
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def write_tower(directory: Path, tile_px: int, patch_px: int, width: int, *, clip: bool) -> None:
    """A CLIP or SigLIP vision model of three layers, with its image processor."""
    shape = {"hidden_size": width, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape |= {"image_size": tile_px, "patch_size": patch_px}
    tower: Any
    if clip:
        tower = CLIPVisionModel(CLIPVisionConfig(**shape))
    else:
        tower = SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, **shape))
    _spread(tower)
    tower.save_pretrained(directory)
    _processor(tile_px, siglip=not clip).save_pretrained(directory)


def write_projector(directory: Path, kind: str, width: int, hidden: int) -> None:
    """VILA's projector of a type; "identity" has no weights and gives ``width`` channels."""

    class Sizes:
        mm_hidden_size = width
        hidden_size = hidden

    sizes = Sizes()
    sizes.hidden_size = width if kind == "identity" else hidden
    projector = MultimodalProjector(kind, sizes)
    _spread(projector)
    directory.mkdir(parents=True)
    save_file(projector.state_dict(), directory / "model.safetensors", metadata={"format": "pt"})
    _write_json(directory / "config.json", projector.config)


def _processor(side: int, *, siglip: bool, crop: bool = False) -> Any:
    size = {"height": side, "width": side}
    if siglip:
        return SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    if crop:
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size, do_center_crop=True)
    return CLIPImageProcessorPil(size=size, do_center_crop=False)


@torch.no_grad()
def _spread(module: torch.nn.Module) -> None:
    """Weights large enough that every part changes the result, norms away from one."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.35 if "embed" in name else 1.2 / parameter[0].numel() ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.uniform_(0.7, 1.3)
        else:
            parameter.normal_(0.0, 0.05)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2), encoding="utf-8")
