"""NVILA's media encoders: tiles and frames to the blocks of embeddings that replace media tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.mosaic import pool_grid
from runtime.errors import ExportError, InputError


class BasicImageEncoder:
    """A block per image (or per tile where dynamic S² is off): its features between optional start and end tokens.

    ``parent`` has ``encode_images``, ``tokenizer`` and ``embed_tokens``. Token strings are tokenised without special
    tokens.
    """

    def __init__(self, parent: Any, start_tokens: str | None = None, end_tokens: str | None = "\n") -> None:
        self.parent, self.start_tokens, self.end_tokens = parent, start_tokens, end_tokens

    def __call__(self, images: Sequence[Tensor], config: dict[str, Any]) -> list[Tensor]:
        """``images``: tiles [3, S, S], or stacks [T, 3, S, S]; ``config["block_sizes"]`` as ``encode_images`` takes
        them.
        """
        tiles = stack_tiles(images)
        features = self.parent.encode_images(tiles, block_sizes=config.get("block_sizes"))
        start, end = token_embeds(self.parent, self.start_tokens), token_embeds(self.parent, self.end_tokens)
        return [enclose(block, start, end) for block in features]

    def token_ids(self) -> tuple[list[int], list[int]]:
        """Ids embedded before and after each block."""
        return token_ids(self.parent, self.start_tokens), token_ids(self.parent, self.end_tokens)


class BasicVideoEncoder(BasicImageEncoder):
    """A block per video: the frames one after the other, each between start and end tokens."""

    def __call__(self, videos: Sequence[Tensor], config: dict[str, Any]) -> list[Tensor]:
        """``videos``: [T, 3, S, S] each."""
        start, end = token_embeds(self.parent, self.start_tokens), token_embeds(self.parent, self.end_tokens)
        return [torch.cat([enclose(frame, start, end) for frame in frames]) for frames in self._features(videos)]

    def _features(self, videos: Sequence[Tensor]) -> list[Tensor]:
        features = self.parent.encode_images(torch.cat(list(videos)))
        return list(torch.split(torch.stack(list(features)), [len(video) for video in videos]))


class TSPVideoEncoder(BasicVideoEncoder):
    """A block per video of frames pooled over time and space, once for each (t, h, w) of ``pool_sizes``.

    ``sep_tokens`` stand after each pooling. Raises InputError when a size does not divide frames or grid.
    """

    def __init__(
        self,
        parent: Any,
        pool_sizes: Sequence[Sequence[int]],
        start_tokens: str | None = None,
        end_tokens: str | None = "\n",
        sep_tokens: str | None = None,
    ) -> None:
        super().__init__(parent, start_tokens, end_tokens)
        self.pool_sizes, self.sep_tokens = [tuple(size) for size in pool_sizes], sep_tokens

    def __call__(self, videos: Sequence[Tensor], config: dict[str, Any]) -> list[Tensor]:
        start, end = token_embeds(self.parent, self.start_tokens), token_embeds(self.parent, self.end_tokens)
        sep = token_embeds(self.parent, self.sep_tokens)
        blocks = []
        for frames in self._features(videos):
            parts: list[Tensor] = []
            for size in self.pool_sizes:
                parts += [enclose(frame, start, end) for frame in pool_grid(frames, size)]
                parts += [] if sep is None else [sep]
            blocks.append(torch.cat(parts))
        return blocks


ENCODERS: dict[str, type[BasicImageEncoder]] = {
    "BasicImageEncoder": BasicImageEncoder,
    "BasicVideoEncoder": BasicVideoEncoder,
    "TSPVideoEncoder": TSPVideoEncoder,
}
_PACKAGE = "llava.model.encoders."


def build_encoder(description: str | dict[str, Any], parent: Any) -> BasicImageEncoder:
    """The encoder of a configuration: {"_target_": "llava.model.encoders.BasicImageEncoder", ...}, or that as JSON.

    ``_target_`` is looked up in a table; nothing is imported by name. Raises ExportError for an unknown one.
    """
    try:
        fields = dict(json.loads(description) if isinstance(description, str) else description)
    except (ValueError, TypeError) as error:
        raise ExportError(f"encoder configuration {description!r} is not a JSON object: {error}") from error
    target = str(fields.pop("_target_", ""))
    encoder = ENCODERS.get(target.removeprefix(_PACKAGE))
    if encoder is None:
        raise ExportError(
            f"unknown encoder {target!r}", hint="one of " + ", ".join(_PACKAGE + name for name in ENCODERS)
        )
    try:
        return encoder(parent, **fields)
    except TypeError as error:
        raise ExportError(f"{target}: {error}") from error


def stack_tiles(images: Sequence[Tensor]) -> Tensor:
    """[n, 3, S, S] from tiles [3, S, S] and stacks [T, 3, S, S]. Raises InputError when there are none."""
    if len(images) == 0:
        raise InputError("no images to encode: leave the entry out of media")
    return torch.cat([image if image.ndim == 4 else image.unsqueeze(0) for image in images])


def token_ids(parent: Any, text: str | None) -> list[int]:
    """Ids of a token string; no beginning-of-sequence token is added."""
    if not text:
        return []
    ids: list[int] = parent.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def token_embeds(parent: Any, text: str | None) -> Tensor | None:
    """Embeddings [k, D] of a token string, None without one."""
    ids = token_ids(parent, text)
    return parent.embed_tokens(torch.tensor(ids, device=parent.device)) if ids else None


def enclose(features: Tensor, start: Tensor | None, end: Tensor | None) -> Tensor:
    """[start, features, end] along the tokens."""
    return torch.cat([part.to(features) for part in (start, features, end) if part is not None])
