"""Conversations to token ids, through the tokenizer's own chat template.

What a user writes never becomes a special token: where a text holds the string of one, that text is tokenised with
special tokens switched off, and everything else as always.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from models.chat_templates import VICUNA_V1
from models.fusion import IMAGE_TOKEN_INDEX
from runtime.errors import PromptError

SENTINEL = "<vila/sentinel>"
MEDIA_TOKENS = {"image": "<image>", "video": "<vila/video>"}
# Stands for a text while the template is rendered; letters and digits alone, so that no template changes it.
_MARK = "qz{}textzq"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MediaPart:
    """A picture's or video's place in a message: the media token, or one token and line break for each of its
    ``tiles``.
    """

    token: str
    tiles: int | None = None


@dataclass(frozen=True)
class Turn:
    """One message: ``role`` is "system", "user" or "assistant", ``parts`` its texts and media places."""

    role: str
    parts: tuple[str | MediaPart, ...]


def render(turns: Sequence[Turn], tokenizer: Any, *, add_generation_prompt: bool = True) -> str:
    """The conversation as text; media stand in it as their tokens."""
    return "".join(text for text, _ in _pieces(turns, tokenizer, add_generation_prompt))


def tokenize_turns(turns: Sequence[Turn], tokenizer: Any, *, add_generation_prompt: bool = True) -> list[int]:
    """Token ids of a conversation. Media tokens become their ids where a ``MediaPart`` stands, and nowhere else."""
    pieces = _pieces(turns, tokenizer, add_generation_prompt)
    bos = tokenizer.bos_token
    return _tokenize(pieces, tokenizer, not (bos and "".join(piece for piece, _ in pieces).startswith(bos)))


def tokenize_continuation(turns: Sequence[Turn], tokenizer: Any) -> list[int]:
    """Token ids of what ``tokenize_turns`` puts behind the last answer: its end, the turns after it, the next prompt.

    ``turns`` hold at least one turn of the assistant. An answer's own ids need not be those of its text, so a
    conversation goes on behind the ids that were generated.
    """
    last = max(index for index, turn in enumerate(turns) if turn.role == "assistant")
    answered = len(_pieces(turns[: last + 1], tokenizer, False))
    return _tokenize(_pieces(turns, tokenizer, True)[answered - 1 :], tokenizer, False)


def _tokenize(pieces: Sequence[tuple[str, bool]], tokenizer: Any, add_special: bool) -> list[int]:
    text = "".join(piece for piece, _ in pieces)
    specials = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    written = [token for piece, literal in pieces if not literal for token in specials if token in piece]
    if not written:
        ids: list[int] = tokenizer(text, add_special_tokens=add_special)["input_ids"]
        return ids
    _logger.warning("the prompt's text holds %s; it is taken as text", ", ".join(sorted(set(written))))
    return _tokenize_apart(pieces, tokenizer, specials, add_special)


def _tokenize_apart(
    pieces: Sequence[tuple[str, bool]], tokenizer: Any, specials: Sequence[str], add_special: bool
) -> list[int]:
    """Special tokens of literal pieces by id; the runs between them, literal or not, as plain text."""
    pattern = re.compile("|".join(re.escape(token) for token in specials))
    added = tokenizer.get_added_vocab()
    ids: list[int] = tokenizer("")["input_ids"] if add_special else []
    run = ""
    for piece, literal in pieces:
        cursor = 0
        for match in pattern.finditer(piece) if literal else ():
            ids += _plain(run + piece[cursor : match.start()], tokenizer) + [added[match[0]]]
            run, cursor = "", match.end()
        run += piece[cursor:]
    return ids + _plain(run, tokenizer)


def _plain(text: str, tokenizer: Any) -> list[int]:
    if not text:
        return []
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def _pieces(turns: Sequence[Turn], tokenizer: Any, add_generation_prompt: bool) -> list[tuple[str, bool]]:
    """(text, whether it is the template's) in order; the user's texts are put in after rendering."""
    texts: list[str] = []

    def mark(text: str) -> str:
        texts.append(text)
        return _MARK.format(len(texts) - 1)

    structured = takes_parts(tokenizer)
    messages = [{"role": turn.role, "content": _content(_stripped(turn), structured, mark)} for turn in turns]
    rendered = _apply(tokenizer, messages, add_generation_prompt)
    pieces: list[tuple[str, bool]] = []
    cursor = 0
    for index, text in enumerate(texts):
        place = rendered.find(_MARK.format(index), cursor)
        if place < 0:
            raise PromptError(f"the chat template leaves out text {index} of the conversation", hint="check the roles")
        pieces += [(rendered[cursor:place], True), (text, False)]
        cursor = place + len(_MARK.format(index))
    return [*pieces, (rendered[cursor:], True)]


def _stripped(turn: Turn) -> Turn:
    """The published code strips a message as a whole: the first text on its left, the last on its right."""
    parts = list(turn.parts)
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return Turn(turn.role, tuple(parts))


def _content(turn: Turn, structured: bool, mark: Any) -> Any:
    if not structured:
        return "".join(mark(part) if isinstance(part, str) else _media_text(part) for part in turn.parts)
    if all(isinstance(part, str) for part in turn.parts):
        return [{"type": "text", "text": mark("".join(str(part) for part in turn.parts))}]
    items: list[dict[str, str]] = []
    for part in turn.parts:
        if isinstance(part, str):
            items.append({"type": "text", "text": mark(part)})
        else:
            items += [{"type": "image"}] * (part.tiles or 1) if part.token == MEDIA_TOKENS["image"] else _as_text(part)
    return items


def _media_text(part: MediaPart) -> str:
    return part.token if part.tiles is None else (part.token + "\n") * part.tiles


def _as_text(part: MediaPart) -> list[dict[str, str]]:
    return [{"type": "text", "text": part.token}]


def _apply(tokenizer: Any, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    template = None if tokenizer.chat_template else VICUNA_V1
    try:
        rendered: str = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError) as error:
        raise PromptError(f"the chat template refuses the conversation: {error}") from error
    return rendered


def takes_parts(tokenizer: Any) -> bool:
    """Whether the chat template reads a message's content as a list of typed parts and writes the image token
    itself.
    """
    if not tokenizer.chat_template:
        return False
    content = [{"type": "image"}, {"type": "text", "text": _MARK.format(0)}]
    try:
        rendered = _apply(tokenizer, [{"role": "user", "content": content}], False)
    except PromptError:
        return False
    return MEDIA_TOKENS["image"] in rendered and _MARK.format(0) in rendered and "'type'" not in rendered


def infer_stop_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer: the end-of-sequence token and whatever the template writes right after an answer,
    ascending.
    """
    stops = {int(tokenizer.eos_token_id)} if tokenizer.eos_token_id is not None else set()
    turns = [Turn(role, ("text",)) for _ in range(2) for role in ("user", "assistant")]
    pieces = _pieces(turns, tokenizer, False)
    for index in range(3, len(pieces), 4):  # texts stand at odd places, every second one is an answer
        after = pieces[index + 1][0]
        ids = tokenizer.encode(after, add_special_tokens=False) if after else []
        stops |= set(ids[:1])
    return tuple(sorted(stops))


def tokenizer_image_token(prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX) -> list[int]:
    """LLaVA's ids of a prompt: every "<image>" becomes ``image_token_index``, a leading BOS is kept once."""
    chunks = [tokenizer(chunk)["input_ids"] for chunk in prompt.split(MEDIA_TOKENS["image"])]
    bos = tokenizer.bos_token_id
    starts = bos is not None and bool(chunks[0]) and chunks[0][0] == bos
    ids: list[int] = [bos] if starts else []
    for index, chunk in enumerate(chunks):
        ids += ([image_token_index] if index else []) + chunk[1 if starts else 0 :]
    return ids
