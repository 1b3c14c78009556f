"""From messages to token ids: the chat template as literal segments of the manifest, images as placeholders.

Stage "prompt" of the pipeline. There is no template engine here: export rendered the template, derived the segments and
proved on random conversations that `render` reproduces it. What a user writes never becomes a special token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from runtime.bundle import Bundle
from runtime.bundle.manifest import PromptSection, RoleSegments
from runtime.errors import PromptError
from runtime.tiling import TileLayout
from runtime.tokenization import Piece, load_tokenizer_file

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ImagePart:
    """The place of an image in a message; ``index`` counts the images that are passed along, from 0.

    ``frame``: it is a frame of a video, which is never tiled and stands as the family writes videos.
    """

    index: int
    frame: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """What one role says: texts and images in their order. Texts that follow each other are one text."""

    role: Role
    parts: tuple[str | ImagePart, ...]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompt:
    """Token ids i64 [S] with placeholders, and where each block of image embeddings goes.

    ``image_slices[k]`` are the consecutive positions of block k; it belongs to image ``image_indices[k]``. An image is
    one block, or one block per tile for a family that puts each tile on its own line.
    """

    token_ids: npt.NDArray[np.int64]
    image_slices: tuple[slice, ...]
    image_indices: tuple[int, ...]

    @property
    def num_image_tokens(self) -> int:
        """Positions that are filled with image embeddings."""
        return sum(block.stop - block.start for block in self.image_slices)

    def split_embeds(self, image_embeds: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
        """Views of ``image_embeds`` (per image f32 [N_i, D]), one per slice. Raises PromptError when counts differ."""
        used = [0] * len(image_embeds)
        blocks = []
        for block, image in zip(self.image_slices, self.image_indices, strict=True):
            if image >= len(image_embeds):
                raise PromptError(f"the prompt names image {image}, there are {len(image_embeds)} image embeddings")
            rows = block.stop - block.start
            blocks.append(image_embeds[image][used[image] : used[image] + rows])
            used[image] += rows
        for image, rows in enumerate(image_embeds):
            if len(rows) != used[image]:
                raise PromptError(f"image {image} has {len(rows)} embeddings, the prompt has places for {used[image]}")
        return blocks


class PromptEncoder:
    """Token ids of conversations for one bundle. Safe to use from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        self._prompt = bundle.manifest.prompt
        self._tile_all = bundle.manifest.vision.tiling.tile_all
        self._pieces = load_tokenizer_file(bundle.file(self._prompt.tokenizer), self._prompt.special_tokens)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself, for turning ids back into text."""
        return self._pieces.tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(self._prompt.stop_ids)

    @property
    def placeholder_id(self) -> int:
        """The id that stands at the positions of image embeddings; it has no row in the token table."""
        return self._prompt.image.token_id

    def encode(self, messages: Sequence[Message], images: Sequence[TileLayout | int] = ()) -> EncodedPrompt:
        """A conversation up to the place where the next answer begins.

        ``images`` holds the layout (or the number of embeddings) of each image; each must be placed exactly once.
        Raises PromptError for roles out of order, images that do not match, or text that cannot be encoded.
        """
        _check_images(messages, images)
        ids = self._pieces.encode(render(self._prompt, messages, self._repeats(messages, images)))
        return self._expand([*self._prompt.bos_ids, *ids], messages, images)

    def _repeats(self, messages: Sequence[Message], images: Sequence[TileLayout | int]) -> dict[int, int]:
        """How many placeholders each image has in the text: one, or one per tile. 0: one, of a picture not tiled."""
        repeats: dict[int, int] = {}
        if not self._prompt.image.each_tile:
            return repeats
        for message in messages:
            shown = [part.index for part in message.parts if isinstance(part, ImagePart) and not part.frame]
            for index in shown:  # of several pictures in one message none is tiled, and none is rewritten
                image = images[index]
                tiles = 1 if isinstance(image, int) else image.num_tiles
                repeats[index] = 0 if len(shown) > 1 and not self._tile_all else tiles
        return repeats

    def _expand(
        self, ids: Sequence[int], messages: Sequence[Message], images: Sequence[TileLayout | int]
    ) -> EncodedPrompt:
        """Each placeholder token becomes begin ids, as many placeholders as the block has embeddings, end ids."""
        image = self._prompt.image
        blocks: list[tuple[int, int]] = []  # (image, embeddings)
        repeats = self._repeats(messages, images)
        for index in _image_order(messages):
            layout = images[index]
            count = layout if isinstance(layout, int) else layout.num_image_tokens
            parts = max(1, repeats.get(index, 1))
            if count < 1 or count % parts:
                raise PromptError(f"image {index}: {count} embeddings for {parts} places in the prompt")
            blocks += [(index, count // parts)] * parts
        if ids.count(image.token_id) != len(blocks):
            raise PromptError(f"{len(blocks)} image blocks for {ids.count(image.token_id)} placeholders in the prompt")
        expanded: list[int] = []
        slices: list[slice] = []
        for token in ids:
            if token != image.token_id:
                expanded.append(token)
                continue
            expanded += image.begin_ids
            start = len(expanded)
            expanded += [token] * blocks[len(slices)][1]
            slices.append(slice(start, len(expanded)))
            expanded += image.end_ids
        return EncodedPrompt(np.array(expanded, np.int64), tuple(slices), tuple(index for index, _ in blocks))


def render(prompt: PromptSection, messages: Sequence[Message], repeats: dict[int, int]) -> list[Piece]:
    """The text of a conversation up to the generation prompt, piece by piece.

    ``repeats`` maps an image to its number of placeholders (1 when absent; 0: one, of a picture that is not tiled).
    """
    _check_roles(messages)
    pieces = [Piece(prompt.prefix, True)]
    if messages[0].role != "system" and prompt.default_system is not None:
        pieces += _wrapped(_segments(prompt, "system"), [Piece(prompt.default_system, True)])
    for message in messages:
        pieces += _wrapped(_segments(prompt, message.role), _content(prompt, message, repeats))
    return [piece for piece in [*pieces, Piece(prompt.generation_prompt, True)] if piece.text]


def _wrapped(segments: RoleSegments, content: list[Piece]) -> list[Piece]:
    if segments.trim:
        content = _trimmed(content)
    return [Piece(segments.open, True), *content, Piece(segments.close, True)]


def _trimmed(content: list[Piece]) -> list[Piece]:
    """The pieces without white space at both ends of their joined text."""
    pieces = list(content)
    while pieces and not pieces[0].text.strip():
        del pieces[0]
    while pieces and not pieces[-1].text.strip():
        del pieces[-1]
    if pieces:
        pieces[0] = Piece(pieces[0].text.lstrip(), pieces[0].literal)
        pieces[-1] = Piece(pieces[-1].text.rstrip(), pieces[-1].literal)
    return pieces


def _segments(prompt: PromptSection, role: Role) -> RoleSegments:
    segments = {"system": prompt.roles.system, "user": prompt.roles.user, "assistant": prompt.roles.assistant}[role]
    if segments is None:
        raise PromptError("this model's chat template has no system message", hint="put it into the first question")
    return segments


def _content(prompt: PromptSection, message: Message, repeats: dict[int, int]) -> list[Piece]:
    if prompt.image.placement == "inline":
        pieces: list[Piece] = []
        for part in message.parts:
            pieces += [Piece(part, False)] if isinstance(part, str) else _placeholders(prompt, part, repeats)
        return pieces
    images = [part for part in message.parts if isinstance(part, ImagePart)]
    pieces = [piece for part in images for piece in _placeholders(prompt, part, repeats)]
    runs = itertools.groupby(message.parts, key=lambda part: isinstance(part, str))
    texts = ["".join(str(part) for part in run) for is_text, run in runs if is_text]
    for number, text in enumerate(texts):
        pieces += [Piece(prompt.image.text_joint, True)] if number else []
        pieces.append(Piece(text, False))
    return pieces


def _placeholders(prompt: PromptSection, part: ImagePart, repeats: dict[int, int]) -> list[Piece]:
    if part.frame:
        return [Piece(prompt.image.token + prompt.image.video_text_after, True)]
    count = repeats.get(part.index, 1)
    if count == 0:
        return [Piece(prompt.image.token + prompt.image.text_after_untiled, True)]
    return [Piece(prompt.image.token + prompt.image.text_after, True)] * count


def _check_roles(messages: Sequence[Message]) -> None:
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    alternate = all(role == ("user", "assistant")[number % 2] for number, role in enumerate(turns))
    if not turns or not alternate or turns[-1] != "user":
        raise PromptError(
            f"roles {', '.join(roles) or 'none'}: expected user and assistant in turn, ending with user",
            hint="a system message, if any, comes first",
        )
    for message in messages:
        if message.role != "user" and any(isinstance(part, ImagePart) for part in message.parts):
            raise PromptError(f"an image in a message of the {message.role}: only the user shows images")


def _image_order(messages: Sequence[Message]) -> list[int]:
    return [part.index for message in messages for part in message.parts if isinstance(part, ImagePart)]


def _check_images(messages: Sequence[Message], images: Sequence[TileLayout | int]) -> None:
    placed = _image_order(messages)
    if sorted(placed) != list(range(len(images))):
        raise PromptError(
            f"{len(placed)} image places (of images {placed}) for {len(images)} images",
            hint="place each image exactly once",
        )
