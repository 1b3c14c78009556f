"""The manifest's prompt group of a checkpoint: tokenizer, special tokens, segments, placeholders, end tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from export.chat_template import MAX_CONFIG_BYTES, Refusal, find_template, read_template, render_template
from export.prompt_segments import (
    Segments,
    Style,
    StyleRefusedError,
    TemplateProbe,
    derive_image,
    derive_segments,
    prove,
)
from runtime.bundle.manifest import ImagePlaceholder, PromptSection
from runtime.errors import ExportError
from runtime.strict_json import read_json

STYLES: tuple[Style, ...] = ("parts", "string")  # a template that writes the image itself is believed first
MAX_TOKENIZER_BYTES = 64 << 20
TOKENIZER_NAME = "tokenizer.json"
_CONTROL = re.compile(r"<.+>|\[.+\]|<\|.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """What the family says about prompts.

    ``folders`` are searched in order for tokenizer, template and generation_config.json. ``text_after`` follows an
    image where the template takes content as one text; a template that takes parts says so itself. ``start_text`` and
    ``end_text`` are embedded around each image block. ``video_as_pictures``: the frames of a video are written like
    pictures; otherwise they follow each other, as in a family whose videos have one place in the text.
    ``template_file`` goes before ``template``, which the configuration names, before the checkpoint's own, before
    ``default_template``.
    """

    folders: tuple[Path, ...]
    image_token: str
    image_token_id: int | None
    text_after: str
    each_tile: bool
    start_text: str
    end_text: str
    context_tokens: int
    template_file: Path | None = None
    video_as_pictures: bool = False
    template: str | None = None
    default_template: str | None = None


@dataclass(frozen=True, slots=True)
class PromptExport:
    """The prompt group, the tokenizer file that belongs to it, and on how many conversations it was proved."""

    section: PromptSection
    tokenizer_json: bytes
    conversations: int


def export_prompt(request: PromptRequest) -> PromptExport:
    """Derives and proves the prompt group of a checkpoint. Raises ExportError that names what cannot be done."""
    tokenizer, tokenizer_json, image_id = _tokenizer(request)
    names = _special_names(request.folders)
    template = _template(request)
    reasons = []
    for style in STYLES:
        try:
            section, conversations = _in_style(request, tokenizer, template, names, style, image_id)
        except ExportError as problem:
            reasons.append(problem)
            continue
        return PromptExport(section, tokenizer_json, conversations)
    telling = [problem for problem in reasons if not isinstance(problem, StyleRefusedError)]
    raise (telling or reasons)[0]


def _template(request: PromptRequest) -> str:
    if request.template_file:
        return read_template(request.template_file)
    return request.template or find_template(request.folders, request.default_template)


def _in_style(
    request: PromptRequest, tokenizer: Tokenizer, template: str, names: dict[str, str], style: Style, image_id: int
) -> tuple[PromptSection, int]:
    def render_all(conversations: Sequence[dict[str, Any]]) -> list[str | Refusal]:
        return render_template(template, names, conversations)

    image = ImagePlaceholder(
        token=request.image_token,
        token_id=image_id,
        begin_ids=tuple(_ids(tokenizer, request.start_text)),
        end_ids=tuple(_ids(tokenizer, request.end_text)),
        text_after=request.text_after,
        text_after_untiled="",
        video_text_after="",
        each_tile=request.each_tile,
        placement="inline",
        text_joint="",
    )
    repeats = {0: 1, 1: 3, 2: 2} if request.each_tile else {}
    probe = TemplateProbe(render_all, style, lambda index: (image.token + image.text_after) * repeats.get(index, 1))
    segments = derive_segments(probe)
    if style == "parts":
        image = derive_image(probe, segments, image)
    if request.video_as_pictures:
        image = replace(image, video_text_after=image.text_after)
    section = _section(request, tokenizer, segments, image, names)
    return section, prove(section, probe, repeats)


def _section(
    request: PromptRequest, tokenizer: Tokenizer, segments: Segments, image: ImagePlaceholder, names: dict[str, str]
) -> PromptSection:
    literal = [segments.prefix, segments.generation_prompt, segments.default_system or ""]
    for role in (segments.roles.system, segments.roles.user, segments.roles.assistant):
        literal += [role.open, role.close] if role else []
    if any(image.token in text for text in literal):
        raise ExportError(f"the chat template writes {image.token!r} without an image", hint="correct the template")
    special = _control_tokens(tokenizer, "".join(literal), image)
    return PromptSection(
        tokenizer=TOKENIZER_NAME,
        bos_ids=_bos_ids(tokenizer, segments, names),
        prefix=segments.prefix,
        default_system=segments.default_system,
        roles=segments.roles,
        generation_prompt=segments.generation_prompt,
        stop_ids=_stop_ids(request.folders, tokenizer, segments, names, special),
        special_tokens=special,
        image=image,
        context_tokens=request.context_tokens,
    )


def _tokenizer(request: PromptRequest) -> tuple[Tokenizer, bytes, int]:
    """The tokenizer, its file and the placeholder's id; the placeholder is added where the file lacks it."""
    path = next((folder / TOKENIZER_NAME for folder in request.folders if (folder / TOKENIZER_NAME).is_file()), None)
    if path is None:
        raise ExportError(
            f"{request.folders[0]}: {TOKENIZER_NAME} is missing",
            hint="write it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    read_json(path, max_bytes=MAX_TOKENIZER_BYTES, error=ExportError, hint="copy the checkpoint again")
    raw = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
    except Exception as problem:  # the library raises bare Exception for whatever it cannot read
        raise ExportError(f"{path}: the tokenizers library refuses it: {problem}") from problem
    added = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    if request.image_token not in added:
        tokenizer.add_special_tokens([AddedToken(request.image_token, special=True, normalized=False)])
        raw = tokenizer.to_str(pretty=True).encode("utf-8")
    image_id: int = tokenizer.token_to_id(request.image_token) or 0  # never None: added above
    if request.image_token_id not in (None, image_id):
        raise ExportError(
            f"{path}: {request.image_token!r} has the id {image_id}, config.json says {request.image_token_id}",
            hint="use the tokenizer that belongs to the checkpoint",
        )
    return tokenizer, raw, image_id


def image_token_text(folders: Iterable[Path], token_id: int) -> str | None:
    """The text of the placeholder whose id config.json names, from the tokenizer's added tokens."""
    for folder in folders:
        path = folder / TOKENIZER_NAME
        if path.is_file():
            value = read_json(path, max_bytes=MAX_TOKENIZER_BYTES, error=ExportError, hint="copy the checkpoint again")
            added = value.get("added_tokens") if isinstance(value, dict) else None
            for item in added or []:
                if isinstance(item, dict) and item.get("id") == token_id:
                    return str(item.get("content"))
            return None
    return None


def _special_names(folders: Iterable[Path]) -> dict[str, str]:
    """bos_token, eos_token … as templates see them, from tokenizer_config.json or special_tokens_map.json."""
    names: dict[str, str] = {}
    for folder in folders:
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            if not (folder / file).is_file():
                continue
            value = read_json(folder / file, max_bytes=MAX_CONFIG_BYTES, error=ExportError)
            for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
                token = value.get(key) if isinstance(value, dict) else None
                token = token.get("content") if isinstance(token, dict) else token
                if isinstance(token, str):
                    names[key] = token
        if names:
            break
    return names


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids) if text else []


def _control_tokens(tokenizer: Tokenizer, literal: str, image: ImagePlaceholder) -> dict[str, int]:
    """Added tokens that mean something: marked special, used by the template, or written like <control> or [CONTROL].

    Added tokens that are ordinary text (runs of spaces, words of a domain) stay ordinary.
    """
    control = {}
    for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        meant = token.special or token.content == image.token or bool(_CONTROL.fullmatch(token.content))
        if meant or (token.content.strip() and token.content in literal):
            control[token.content] = token_id
    return control


def _bos_ids(tokenizer: Tokenizer, segments: Segments, names: dict[str, str]) -> tuple[int, ...]:
    """What the tokenizer itself puts before a text, unless the template wrote it already."""
    plain = _ids(tokenizer, "a")
    whole = list(tokenizer.encode("a", add_special_tokens=True).ids)
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), None)
    if at is None or len(whole) != at + len(plain):
        raise ExportError(
            f"the tokenizer writes {whole} for 'a': only tokens before the text can be kept",
            hint="switch add_eos_token off in tokenizer_config.json and save the tokenizer again",
        )
    start = segments.prefix or (segments.roles.system.open if segments.roles.system else "") or segments.roles.user.open
    if names.get("bos_token") and start.startswith(names["bos_token"]):
        return ()
    return tuple(whole[:at])


def _stop_ids(
    folders: Sequence[Path], tokenizer: Tokenizer, segments: Segments, names: dict[str, str], special: dict[str, int]
) -> tuple[int, ...]:
    """End tokens: the tokenizer's, those of the configurations, the one that the template writes after an answer."""
    ids: set[int] = set()
    if names.get("eos_token"):
        ids |= {token for token in [tokenizer.token_to_id(names["eos_token"])] if token is not None}
    for folder in folders:
        for file in ("generation_config.json", "config.json"):
            if (folder / file).is_file():
                ids |= _eos_of(read_json(folder / file, max_bytes=MAX_CONFIG_BYTES, error=ExportError))
    after = _ids(tokenizer, segments.roles.assistant.close)
    if after and after[0] in special.values():
        ids.add(after[0])
    if not ids:
        raise ExportError(
            f"{folders[0]}: no end token: neither eos_token, nor eos_token_id, nor one after an answer",
            hint="set eos_token in tokenizer_config.json",
        )
    return tuple(sorted(ids))


def _eos_of(value: Any) -> set[int]:
    if not isinstance(value, dict):
        return set()
    found = value.get("eos_token_id")
    listed = found if isinstance(found, list) else [found]
    ids = {token for token in listed if isinstance(token, int) and not isinstance(token, bool)}
    inner = value.get("text_config")
    return ids | (_eos_of(inner) if isinstance(inner, dict) else set())
