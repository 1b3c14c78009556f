"""A prompt as users write it (texts, pictures, videos) taken apart for the models."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image as PilImage
from transformers import GenerationConfig

from models.conversation import MEDIA_TOKENS, MediaPart, Turn
from models.media import Video, is_picture, load_image, load_video
from runtime.errors import ConfigError, InputError

Prompt = Any  # str, or a sequence of str, Image, Video, Pillow image and u8 [H, W, 3]
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_LIBRARY_MAX_LENGTH = 20  # what transformers uses when nobody says
_logger = logging.getLogger(__name__)


@dataclass
class Media:
    """What the prompt's places stand for: pictures in order, and the frames of each video."""

    images: list[PilImage.Image] = field(default_factory=list)
    videos: list[list[PilImage.Image]] = field(default_factory=list)


def as_conversation(prompt: Prompt) -> list[dict[str, Any]]:
    """One human turn for a prompt; raises InputError for an empty one."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        prompt = [prompt]
    if not prompt:
        raise InputError("the prompt is empty")
    return [{"from": "human", "value": list(prompt)}]


def take_apart(
    conversation: Sequence[dict[str, Any]], num_frames: int, *, frames_as_pictures: bool = False
) -> tuple[list[Turn], Media]:
    """Turns with places for media, and the media. Raises InputError for an unknown sender or part.

    A media token inside a text stays text; ``models.conversation`` warns about it. With ``frames_as_pictures`` a
    video is ``num_frames`` pictures, for models that have no video token.
    """
    media, turns = Media(), []
    for message in conversation:
        sender = message["from"]
        if sender not in _ROLES:
            raise InputError(f"unknown sender {sender!r}", hint="one of " + ", ".join(_ROLES))
        value = message["value"]
        parts = value if isinstance(value, (list, tuple)) else [value]
        places = [place for part in parts for place in _places(part, media, num_frames, frames_as_pictures)]
        turns.append(Turn(_ROLES[sender], tuple(places)))
    return turns, media


def _places(part: Any, media: Media, num_frames: int, frames_as_pictures: bool) -> list[str | MediaPart]:
    if isinstance(part, (str, MediaPart)):
        return [part]
    if is_picture(part):
        media.images.append(load_image(part))
        return [MediaPart(MEDIA_TOKENS["image"])]
    if not isinstance(part, Video):
        raise InputError(f"a prompt cannot hold a {type(part).__name__}", hint="str, Image, Video or a Pillow image")
    frames = load_video(part, num_frames)
    if frames_as_pictures:
        media.images += frames
        return [MediaPart(MEDIA_TOKENS["image"]) for _ in frames]
    media.videos.append(frames)
    return [MediaPart(MEDIA_TOKENS["video"])]


def complete_generation_config(
    base: GenerationConfig | None, tokenizer: Any, stop_ids: Sequence[int], *, chosen: bool = False
) -> GenerationConfig:
    """A copy of ``base`` with what the tokenizer knows filled in: ends, padding, and the length that fits.

    ``chosen``: the caller chose ``base``, so the ends and the padding that it names stay; a checkpoint's own ones give
    way to those of its chat template. Raises ConfigError for a tokenizer without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no end-of-sequence token", hint="set eos_token in tokenizer_config.json")
    config = copy.deepcopy(base) if base is not None else GenerationConfig()
    if config.max_length in (None, _LIBRARY_MAX_LENGTH) and config.max_new_tokens is None:
        config.max_length = int(min(tokenizer.model_max_length, 2**31 - 1))
    known = {
        "pad_token_id": _first(tokenizer.pad_token_id, tokenizer.eos_token_id),
        "bos_token_id": _first(tokenizer.bos_token_id, tokenizer.eos_token_id),
        "eos_token_id": list(stop_ids),
    }
    for name, value in known.items():
        if not chosen or getattr(config, name) is None:
            setattr(config, name, value)
    return config


def _first(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else int(value)
