"""Token ids of a text that the template and the user wrote together; the user's part never becomes a special token.

Called by `runtime.prompt`. The library is `tokenizers`, which reads the checkpoint's tokenizer.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from runtime.errors import BundleError, PromptError

MAX_TEXT_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text; ``literal`` when the template wrote it, so that special tokens in it are meant."""

    text: str
    literal: bool


class PieceTokenizer:
    """Tokenises pieces as one text.

    Ordinary text gives exactly the ids that ``tokenizer.encode(joined, add_special_tokens=False)`` gives (and with it
    transformers). Where the user's text holds a special token's string, or makes one together with its neighbours, that
    string is tokenised as plain characters; the special tokens of literal pieces stay what they are.
    """

    def __init__(self, tokenizer_json: str, special_tokens: Mapping[str, int]) -> None:
        description = _parse(tokenizer_json)
        description["truncation"] = description["padding"] = None
        self.tokenizer = _load(description)
        added = {item["content"]: item for item in description.get("added_tokens") or []}
        for content, token_id in special_tokens.items():
            if content not in added or self.tokenizer.token_to_id(content) != token_id:
                raise BundleError(
                    f"prompt.special_tokens[{content!r}] = {token_id}: not an added token of the tokenizer",
                    hint="build the bundle again with --force",
                )
        self._special = dict(special_tokens)
        # The model itself gives its unknown token for characters that it lacks; that is no control token.
        self._special_ids = frozenset(special_tokens.values()) - {_unknown_id(description, self.tokenizer)}
        self._strips = {content: (added[content]["lstrip"], added[content]["rstrip"]) for content in special_tokens}
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        # The same tokenizer without these tokens: at the start of a text, and further on, where Metaspace adds no mark.
        description["added_tokens"] = [item for item in added.values() if item["content"] not in special_tokens]
        self._plain_start = _load(description)
        description["pre_tokenizer"] = _without_first_mark(description.get("pre_tokenizer"))
        self._plain_rest = _load(description)

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of the joined pieces; nothing is added at either end. Raises PromptError."""
        text = "".join(piece.text for piece in pieces)
        _check_text(text)
        literal = self._literal_specials(pieces)
        if literal == [(match.start(), match.end(), match.group()) for match in self._find(text)]:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
            expected = [self._special[c] for _, _, c in literal if self._special[c] in self._special_ids]
            if [token for token in ids if token in self._special_ids] == expected:
                return ids
        return self._encode_apart(text, literal)

    def _find(self, text: str) -> Iterator[re.Match[str]]:
        return self._pattern.finditer(text) if self._pattern else iter(())

    def _literal_specials(self, pieces: Sequence[Piece]) -> list[tuple[int, int, str]]:
        """(start, stop, string) in the joined text of each special token that a literal piece holds."""
        found, start = [], 0
        for piece in pieces:
            if piece.literal:
                found += [(start + m.start(), start + m.end(), m.group()) for m in self._find(piece.text)]
            start += len(piece.text)
        return found

    def _encode_apart(self, text: str, literal: Sequence[tuple[int, int, str]]) -> list[int]:
        """Literal special tokens by their ids, everything between them as text that knows no special tokens."""
        ids: list[int] = []
        position, strip_next = 0, False
        for start, stop, content in [*literal, (len(text), len(text), "")]:
            strip_left, strip_right = self._strips.get(content, (False, False))
            run = text[position:start]
            run = run.lstrip() if strip_next else run
            ids += self._encode_plain(run.rstrip() if strip_left else run, at_start=position == 0)
            ids += [self._special[content]] if content else []
            position, strip_next = stop, strip_right
        return ids

    def _encode_plain(self, text: str, *, at_start: bool) -> list[int]:
        """Ids of text in which nothing is special, even when the model's vocabulary holds a special string itself."""
        if not text:
            return []
        tokenizer = self._plain_start if at_start else self._plain_rest
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        if self._special_ids.isdisjoint(ids):
            return ids
        if len(text) == 1:
            raise PromptError(f"the character {text!r} has no tokens but a special one", hint="leave it out")
        match = next(self._find(text), None)
        inside = match is not None and match.end() - match.start() > 1
        cut = match.start() + 1 if match is not None and inside else len(text) // 2
        head = self._encode_plain(text[:cut], at_start=at_start)
        return head + self._encode_plain(text[cut:], at_start=False)


def load_tokenizer_file(path: Path, special_tokens: Mapping[str, int]) -> PieceTokenizer:
    """Reads a tokenizer.json. Raises BundleError when the library does not take it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise BundleError(f"{path}: cannot be read: {problem}", hint="build the bundle again with --force") from problem
    return PieceTokenizer(text, special_tokens)


def _parse(tokenizer_json: str) -> dict[str, Any]:
    try:
        description = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as problem:
        raise BundleError(f"tokenizer.json: not valid JSON: {problem}") from problem
    if not isinstance(description, dict):
        raise BundleError("tokenizer.json: expected an object")
    return description


def _load(description: Mapping[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(description))
    except Exception as problem:  # the library raises bare Exception for whatever it cannot read
        raise BundleError(f"tokenizer.json: the tokenizers library refuses it: {problem}") from problem


def _unknown_id(description: Mapping[str, Any], tokenizer: Tokenizer) -> int | None:
    model = description.get("model") or {}
    unknown = model.get("unk_token")
    token_id: int | None = tokenizer.token_to_id(unknown) if isinstance(unknown, str) else model.get("unk_id")
    return token_id


def _without_first_mark(pre_tokenizer: Any) -> Any:
    if not isinstance(pre_tokenizer, dict):
        return pre_tokenizer
    if pre_tokenizer.get("type") == "Sequence":
        inner = [_without_first_mark(item) for item in pre_tokenizer.get("pretokenizers", [])]
        return {**pre_tokenizer, "pretokenizers": inner}
    if pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme") == "first":
        return {**pre_tokenizer, "prepend_scheme": "never"}
    return pre_tokenizer


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT_CHARS:
        raise PromptError(f"a prompt of {len(text)} characters: the limit is {MAX_TEXT_CHARS}", hint="shorten it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        message = f"character {problem.start} of the prompt is half of a surrogate pair and cannot be encoded"
        raise PromptError(message, hint="decode the text as UTF-8 before passing it") from problem
