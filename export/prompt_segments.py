"""Literal prompt segments from a chat template: derived from probe conversations, proved on random ones.

The template is rendered at export only. What cannot be written as segments is refused, with the first difference named.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from export.chat_template import Refusal
from runtime.bundle.manifest import ImagePlaceholder, ImagePlacement, PromptSection, Roles, RoleSegments
from runtime.errors import ExportError
from runtime.prompt import ImagePart, Message, render

Style = Literal["parts", "string"]
Render = Callable[[Sequence[dict[str, Any]]], Sequence["str | Refusal"]]
Conversation = tuple[Sequence[Message], bool]  # and whether the generation prompt follows

PROOF_CONVERSATIONS = 50
_A, _B, _C, _S = "qxAlpha0qx", "qxBeta1qx", "qxGamma2qx", "qxSystem3qx"  # no template writes these
_HINT = "a bundle holds literal segments: make the template write fixed text around each message (--chat-template)"


class StyleRefusedError(ExportError):
    """The template does not take content of this style at all."""


@dataclass(frozen=True, slots=True)
class Segments:
    """What a template consists of: the text fields of the manifest's prompt group."""

    prefix: str
    default_system: str | None
    roles: Roles
    generation_prompt: str


def as_template_messages(
    messages: Sequence[Message], style: Style, placeholder: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Messages as chat templates take them: content as a list of parts, or as one text with placeholders in it."""
    result = []
    for message in messages:
        content: Any = []
        for is_text, run in itertools.groupby(message.parts, key=lambda part: isinstance(part, str)):
            if is_text:  # texts that follow each other are one text
                content.append({"type": "text", "text": "".join(str(part) for part in run)})
            else:
                content += [{"type": "image", "index": part.index} for part in run if isinstance(part, ImagePart)]
        if style == "string":
            content = "".join(item["text"] if "text" in item else placeholder(item["index"]) for item in content)
        result.append({"role": message.role, "content": content})
    return result


class TemplateProbe:
    """What a template makes of conversations whose content is written in one style.

    Starting the template's process takes longer than rendering, so what will be asked is rendered in one go.
    """

    def __init__(self, render_all: Render, style: Style, placeholder: Callable[[int], str]) -> None:
        self._render_all, self._style, self._placeholder = render_all, style, placeholder
        self._known: dict[str, str | Refusal] = {}
        proofs = [(messages, True) for system in (False, True) for messages in proof_conversations(system)]
        self.texts([*_PROBES, *_IMAGE_PROBES, *proofs])

    def texts(self, conversations: Sequence[Conversation]) -> list[str | Refusal]:
        """The text of each conversation, or the reason why the template refuses it."""
        asked = {
            repr(conversation): {
                "messages": as_template_messages(conversation[0], self._style, self._placeholder),
                "add_generation_prompt": conversation[1],
            }
            for conversation in conversations
        }
        new = [key for key in asked if key not in self._known]
        if new:
            rendered = self._render_all([asked[key] for key in new])
            self._known.update(zip(new, rendered, strict=True))
        return [self._known[repr(conversation)] for conversation in conversations]


_USER, _ANSWER = Message("user", (_A,)), Message("assistant", (_B,))
_PADDED = (Message("user", (f"  {_A}\n ",)), Message("assistant", (f" \n{_B} ",)), Message("user", (_C,)))
_PROBES: tuple[Conversation, ...] = (
    ((_USER,), True),
    ((_USER,), False),
    ((_USER, _ANSWER, Message("user", (_C,))), True),
    ((_USER, _ANSWER), False),
    ((Message("system", (_S,)), _USER), True),
    (_PADDED, True),
    ((Message("system", (f" {_S}\n",)), _USER), True),
)
_IMAGE_PROBES: tuple[Conversation, ...] = (
    ((Message("user", (ImagePart(0), _A)),), True),
    ((Message("user", (_A, ImagePart(0), _B)),), True),
)


def derive_segments(probe: TemplateProbe) -> Segments:
    """Segments of a template from conversations of known words. Raises ExportError when they are no fixed texts."""
    one, one_plain, two, answered, with_system, spaced, system_spaced = probe.texts(_PROBES)
    head, tail = _split(one, _A)
    user_close = _split(one_plain, _A)[1]
    generation = _without_start(tail, user_close, "the text after a question")
    answer_close = _split(answered, _B)[1]
    between_ab = _split(_split(two, _A)[1], _B)[0]
    between_bc = _split(_split(two, _B)[1], _C)[0]
    user_open = _without_start(between_bc, answer_close, "the text between an answer and the next question")
    answer_open = _without_start(between_ab, user_close, "the text between a question and its answer")
    trims = _trims(spaced, (f"  {_A}\n ", _A), (f" \n{_B} ", _B))
    prefix = _without_end(head, user_open, "the text before the first question")
    segments = Segments(
        prefix=prefix,
        default_system=None,
        roles=Roles(
            None, RoleSegments(user_open, user_close, trims[0]), RoleSegments(answer_open, answer_close, trims[1])
        ),
        generation_prompt=generation,
    )
    return _with_system(segments, with_system, system_spaced)


def _with_system(segments: Segments, text: str | Refusal, spaced: str | Refusal) -> Segments:
    """Adds the system message when the template has one that can be written as segments."""
    if isinstance(text, Refusal) or text.count(_S) != 1 or text.count(_A) != 1:
        return segments
    before, rest = text.split(_S)
    middle = rest.split(_A)[0]
    user = segments.roles.user
    if not middle.endswith(user.open) or rest.split(_A)[1] != user.close + segments.generation_prompt:
        return segments
    close = middle[: len(middle) - len(user.open)]
    trim = isinstance(spaced, str) and f" {_S}\n" not in spaced
    default = segments.prefix[len(before) :]
    if default and segments.prefix.startswith(before) and default.endswith(close):
        # the default text stands where a given one would
        roles = replace(segments.roles, system=RoleSegments(before, close, trim))
        return replace(segments, prefix="", default_system=default[: len(default) - len(close)], roles=roles)
    if not before.startswith(segments.prefix):
        return segments
    roles = replace(segments.roles, system=RoleSegments(before[len(segments.prefix) :], close, trim))
    return replace(segments, roles=roles)


def _split(text: str | Refusal, word: str) -> tuple[str, str]:
    if isinstance(text, Refusal):
        raise StyleRefusedError(f"the chat template refuses a plain conversation: {text.reason}", hint=_HINT)
    if text.count(word) != 1:
        raise ExportError(
            f"the chat template writes a message's text {text.count(word)} times, or changes it: {text[:200]!r}",
            hint=_HINT,
        )
    before, after = text.split(word)
    return before, after


def _without_start(text: str, start: str, what: str) -> str:
    if not text.startswith(start):
        raise _depends(what, text, f"to begin with {start!r}")
    return text[len(start) :]


def _without_end(text: str, end: str, what: str) -> str:
    if not text.endswith(end):
        raise _depends(what, text, f"to end with {end!r}")
    return text[: len(text) - len(end)]


def _depends(what: str, text: str, expected: str) -> ExportError:
    return ExportError(
        f"the chat template's text depends on its place: {what} is {text!r}, expected {expected}", hint=_HINT
    )


def _trims(text: str | Refusal, *cases: tuple[str, str]) -> list[bool]:
    if isinstance(text, Refusal):
        raise StyleRefusedError(f"the chat template refuses a plain conversation: {text.reason}", hint=_HINT)
    return [padded not in text for padded, _ in cases]


def derive_image(probe: TemplateProbe, segments: Segments, image: ImagePlaceholder) -> ImagePlaceholder:
    """Where the template of a parts style puts images, and the text after them. Raises ExportError."""
    first, mixed = probe.texts(_IMAGE_PROBES)
    before = segments.prefix + segments.roles.user.open
    if segments.default_system is not None and segments.roles.system is not None:
        system = segments.roles.system
        before = segments.prefix + system.open + segments.default_system + system.close + segments.roles.user.open
    head = _without_start(_split(first, _A)[0], before, "the text before an image")
    if not head.startswith(image.token):
        raise ExportError(
            f"the chat template writes {head!r} for an image, expected {image.token!r} and text after it", hint=_HINT
        )
    text_after = head[len(image.token) :]
    head, rest = _split(mixed, _A)
    middle = _split(rest, _B)[0]
    if head == before:
        middle = ""
    placement: ImagePlacement = "inline" if head == before else "first"
    # A template of this style writes the same after every picture, tiled or not.
    return replace(image, text_after=text_after, text_after_untiled=text_after, placement=placement, text_joint=middle)


def prove(section: PromptSection, probe: TemplateProbe, repeats: dict[int, int]) -> int:
    """Renders random conversations with template and segments; ExportError names the first difference.

    Conversations of one to four turns, with and without a system message (where the segments have one) and images,
    with words that look like template code, special tokens, several scripts and white space. Returns their number.
    """
    conversations = proof_conversations(section.roles.system is not None)
    texts = probe.texts([(messages, True) for messages in conversations])
    for messages, expected in zip(conversations, texts, strict=True):
        if isinstance(expected, Refusal):
            raise ExportError(f"the chat template refuses a conversation: {expected.reason}", hint=_HINT)
        found = "".join(piece.text for piece in render(section, messages, repeats))
        if found != expected:
            at = next(
                (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
                min(len(found), len(expected)),
            )
            raise ExportError(
                f"segments do not reproduce the chat template: at character {at} it writes "
                f"{expected[max(0, at - 20) : at + 40]!r}, the segments {found[max(0, at - 20) : at + 40]!r}",
                hint=_HINT,
            )
    return len(conversations)


_WORDS = (
    *("what", "is", "left of", "the", "red", "star?", "Describe", "count", "1", "2.5", "don't", "über", "図形", "🟥🔺"),
    *("{{ x }}", "{% if a %}", "{#", "}}", "{", "}", "<s>", "</s>", "<|im_end|>", "USER:", "\\n", '"', "'", "<b>"),
    *("\n", "\n\n", " ", "  ", "\t"),
)  # fmt: skip


def proof_conversations(system: bool) -> list[list[Message]]:
    """The conversations of `prove`: the same ones each time."""
    return random_conversations(PROOF_CONVERSATIONS, random.Random(20), system=system)


def random_conversations(count: int, source: random.Random, *, system: bool) -> list[list[Message]]:
    """Conversations that end with a question; at most three images each, numbered in their order.

    ``system``: half of them begin with a system message.
    """
    return [_random_conversation(source, system) for _ in range(count)]


def _random_conversation(source: random.Random, system: bool) -> list[Message]:
    messages: list[Message] = []
    images = 0
    if system and source.random() < 0.5:
        messages.append(Message("system", (_random_text(source),)))
    for turn in range(source.choice((1, 1, 2, 3, 4))):
        if turn:
            messages.append(Message("assistant", (_random_text(source),)))
        shown: list[str | ImagePart] = []
        while images < 3 and source.random() < 0.4:
            shown.append(ImagePart(images))
            images += 1
        shown.append(_random_text(source))
        if source.random() < 0.3:
            shown.append(_random_text(source))
            source.shuffle(shown)
        messages.append(Message("user", tuple(shown)))
    return messages


def _random_text(source: random.Random) -> str:
    text = " ".join(source.choices(_WORDS, k=source.randint(1, 8)))
    return source.choice(("", "", " ", "\n")) + text + source.choice(("", "", " ", "\n"))
