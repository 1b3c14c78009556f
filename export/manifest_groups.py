"""Manifest groups from what a checkpoint says and what the stages measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.checkpoint import Checkpoint
from export.decoder import DecoderConfig
from export.image_processor import MAX_CONFIG_BYTES
from export.prompt_export import PromptRequest, image_token_text
from export.vision.names import (
    FEATURES,
    PROJECTOR_FILE,
    PROJECTOR_OUTPUT,
    TOWER_FILE,
    TOWER_INPUT,
    scale_inputs,
)
from runtime.bundle.manifest import ProjectorGraph, TowerGraph, VisionPrecision, VisionSection
from runtime.errors import ExportError
from runtime.strict_json import read_json

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_MAX_SEQ_LEN = 4096
_ENDLESS = 10**9  # transformers writes 10**30 for a tokenizer without a limit


def vision_section(checkpoint: Checkpoint, precision: VisionPrecision) -> VisionSection:
    """The group ``vision``."""
    return VisionSection(
        tower=TowerGraph(
            file=TOWER_FILE,
            input=TOWER_INPUT,
            output=FEATURES,
            tile_px=checkpoint.tiling.tile_px,
            patches_per_tile=checkpoint.patches_per_tile,
            channels=checkpoint.channels,
            precision=precision,
        ),
        projector=ProjectorGraph(
            file=PROJECTOR_FILE,
            input=FEATURES,
            output=PROJECTOR_OUTPUT,
            scale_inputs=scale_inputs(len(checkpoint.tiling.scales_px)),
        ),
        preprocess=checkpoint.preprocess,
        tiling=checkpoint.tiling,
    )


def prompt_request(checkpoint: Checkpoint, context_tokens: int, template_file: Path | None) -> PromptRequest:
    """What `export.prompt_export.export_prompt` needs to know."""
    prompt = checkpoint.prompt
    token = None
    if prompt.image_token_id is not None:
        token = image_token_text(prompt.folders, prompt.image_token_id)
    return PromptRequest(
        folders=prompt.folders,
        image_token=token or DEFAULT_IMAGE_TOKEN,
        image_token_id=prompt.image_token_id,
        text_after=prompt.text_after,
        each_tile=prompt.each_tile,
        start_text=prompt.start_text,
        end_text=prompt.end_text,
        video_as_pictures=prompt.video_as_pictures,
        context_tokens=context_tokens,
        template_file=template_file,
        template=prompt.template,
        default_template=prompt.default_template,
    )


def context_tokens(checkpoint: Checkpoint, decoder: DecoderConfig) -> int:
    """The longest conversation that the checkpoint was made for: its positions, or less where its tokenizer says so."""
    limits = [decoder.max_context]
    for folder in checkpoint.prompt.folders:
        path = folder / "tokenizer_config.json"
        if path.is_file():
            value: Any = read_json(path, max_bytes=MAX_CONFIG_BYTES, error=ExportError)
            length = value.get("model_max_length") if isinstance(value, dict) else None
            if isinstance(length, (int, float)) and 0 < length < _ENDLESS:
                limits.append(int(length))
    return min(limits)


def default_max_seq_len(context: int) -> int:
    """Positions of the KV cache when nobody says: the context, but not more than fits an 8 GB board with ease."""
    return min(context, DEFAULT_MAX_SEQ_LEN)
