"""Turn token ids into text as they come: whole characters only, nothing decoded twice.

`TokenText` undoes the tokenizer's encoding step by step, as its decoder pipeline says (byte-level BPE, SentencePiece
with byte fallback, Metaspace); `StopText` strips leading whitespace and cuts at stop strings; `Detokenizer` is both.
Called by the pipeline.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from runtime.errors import BundleError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


class TokenTable(Protocol):
    """What is needed of a `tokenizers.Tokenizer`."""

    @property
    def decoder(self) -> Any: ...
    def id_to_token(self, id: int, /) -> str | None: ...
    def get_added_tokens_decoder(self) -> Mapping[int, Any]: ...


class Step(Protocol):
    """One decoder step: pieces in, pieces out. ``feed`` may hold pieces back, ``end`` gives them up.

    ``middle`` is what a piece becomes that stands alone in the middle of a text.
    """

    def feed(self, piece: str) -> list[str]: ...
    def end(self) -> list[str]: ...
    def middle(self, piece: str) -> str: ...


class _Each:
    """A step that looks at one piece at a time; ``function(piece, is_first)``."""

    def __init__(self, function: Callable[[str, bool], str]) -> None:
        self._function = function
        self._first = True

    def feed(self, piece: str) -> list[str]:
        first, self._first = self._first, False
        return [self._function(piece, first)]

    def middle(self, piece: str) -> str:
        return self._function(piece, False)

    def end(self) -> list[str]:
        return []


class _ByteLevel:
    """GPT-2's printable alphabet back to bytes; an incomplete character waits for its next token."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: str) -> list[str]:
        return [self._decoder.decode(self.bytes_of(piece))]

    def bytes_of(self, piece: str) -> bytes:
        known = all(char in _BYTE_OF_CHAR for char in piece)
        return bytes(_BYTE_OF_CHAR[char] for char in piece) if known else piece.encode("utf-8", "replace")

    def middle(self, piece: str) -> str:
        return self.bytes_of(piece).decode("utf-8", "replace")

    def end(self) -> list[str]:
        return [self._decoder.decode(b"", True)]


class _ByteFallback:
    """Runs of ``<0xNN>`` pieces to characters.

    A run that is not UTF-8 becomes one replacement character per byte, its valid parts too, so a run waits for its end.
    """

    def __init__(self) -> None:
        self._run = bytearray()

    def feed(self, piece: str) -> list[str]:
        match = _BYTE_TOKEN.match(piece)
        if match is None:
            return [*self.end(), piece]
        self._run.append(int(match.group(1), 16))
        return []

    def middle(self, piece: str) -> str:
        return piece

    def end(self) -> list[str]:
        run, self._run = bytes(self._run), bytearray()
        if not run:
            return []
        try:
            return [run.decode("utf-8")]
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class _StripStart:
    """Up to ``count`` times ``content`` away from the front of each piece, or of the whole text after Fuse."""

    def __init__(self, content: str, count: int, *, fused: bool) -> None:
        self._content, self._count, self._left, self._fused = content, count, count, fused

    def feed(self, piece: str) -> list[str]:
        if not self._fused:
            self._left = self._count
        while self._left and piece.startswith(self._content):
            piece = piece[len(self._content) :]
            self._left -= 1
        if piece:
            self._left = 0
        return [piece]

    def middle(self, piece: str) -> str:
        if not self._fused:
            for _ in range(self._count):
                piece = piece.removeprefix(self._content)
        return piece

    def end(self) -> list[str]:
        return []


class TokenText:
    """Text of a growing list of token ids.

    The concatenation of all ``push`` results and ``flush`` equals ``tokenizer.decode(ids, skip_special_tokens=True)``
    for any ids, at a cost per token that does not grow. Raises BundleError for a decoder whose steps are not known.
    """

    def __init__(self, tokenizer: TokenTable) -> None:
        self._tokenizer = tokenizer
        self._special = special_contents(tokenizer)
        self._steps = decoder_steps(decoder_description(tokenizer))

    def push(self, token_id: int) -> str:
        """The characters that this token completes, possibly none."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token in self._special:
            return ""
        return "".join(_through(self._steps, [token]))

    def flush(self) -> str:
        """What was held back; a character that never became whole is a replacement character."""
        text = []
        for index, step in enumerate(self._steps):
            text += _through(self._steps[index + 1 :], step.end())
        return "".join(text)


class StopText:
    """Answer text: leading whitespace is dropped, and the text ends before the first stop string.

    Text that may be the beginning of a stop string is held back until it is or is not one.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self._begun = False
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of the text so far that is certain. Nothing after a stop string was found (``stopped``)."""
        if self.stopped:
            return ""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)], ""
            return certain
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain

    def flush(self) -> str:
        """What was held back and turned out to be text."""
        certain, self._held = self._held, ""
        return certain


class Detokenizer:
    """Deltas of one answer: token ids in, text out. See `TokenText` and `StopText`."""

    def __init__(self, tokenizer: TokenTable, stop: Sequence[str] = ()) -> None:
        self._tokens = TokenText(tokenizer)
        self._text = StopText(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._text.stopped

    def push(self, token_id: int) -> str:
        """The text that this token makes certain: whole characters, possibly none."""
        return self._text.push(self._tokens.push(token_id))

    def flush(self) -> str:
        """The text that was still held back; call it once, at the end."""
        return self._text.push(self._tokens.flush()) + self._text.flush()


class TokenBytes:
    """Single tokens as the bytes that they stand for. Any thread."""

    def __init__(self, tokenizer: TokenTable) -> None:
        self._tokenizer = tokenizer
        self._special = special_contents(tokenizer)
        self._steps = decoder_steps(decoder_description(tokenizer))

    def of(self, token_id: int) -> bytes:
        """What a token adds in the middle of a text, possibly part of a character; a special token gives its name.

        Nothing for an id that the tokenizer does not have: models pad their heads.
        """
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if piece in self._special:
            return piece.encode("utf-8", "replace")
        for step in self._steps:
            match = _BYTE_TOKEN.match(piece) if isinstance(step, _ByteFallback) else None
            if match is not None:
                return bytes([int(match.group(1), 16)])
            if isinstance(step, _ByteLevel):
                return step.bytes_of(piece)
            piece = step.middle(piece)
        return piece.encode("utf-8", "replace")


def special_contents(tokenizer: TokenTable) -> frozenset[str]:
    """The token strings that a decode with ``skip_special_tokens`` leaves out."""
    return frozenset(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)


def decoder_description(tokenizer: TokenTable) -> dict[str, Any] | None:
    """The decoder pipeline as it stands in tokenizer.json; None when there is none."""
    decoder = tokenizer.decoder
    return None if decoder is None else dict(json.loads(decoder.__getstate__()))


def decoder_steps(description: Mapping[str, Any] | None) -> list[Step]:
    """The steps of a decoder pipeline. Raises BundleError that names a step or setting that is not known."""
    if description is None:
        return [_Each(lambda piece, first: piece if first else " " + piece)]
    parts = description["decoders"] if description["type"] == "Sequence" else [description]
    steps: list[Step] = []
    fused = False
    for part in parts:
        steps += _step(part, fused=fused)
        fused = fused or part["type"] in ("Fuse", "ByteLevel", "Metaspace")
    return steps


def _step(part: Mapping[str, Any], *, fused: bool) -> list[Step]:
    kind = part["type"]
    if kind == "Fuse":
        return []
    if kind == "ByteLevel":
        return [_ByteLevel()]
    if kind == "ByteFallback":
        return [_ByteFallback()]
    if kind == "Replace" and "String" in part["pattern"] and not fused:
        return [_replace(part["pattern"]["String"], part["content"])]
    if kind == "Metaspace":
        return [_metaspace(part["replacement"], part["prepend_scheme"] != "never")]
    if kind == "Strip" and part["stop"] == 0:
        return [_StripStart(part["content"], part["start"], fused=fused)]
    raise BundleError(
        f"tokenizer.json: decoder step {dict(part)} cannot be streamed",
        hint="known: ByteLevel, ByteFallback, Fuse, Metaspace, Replace with a string, Strip at the start",
    )


def _replace(pattern: str, content: str) -> Step:
    return _Each(lambda piece, first: piece.replace(pattern, content))


def _metaspace(replacement: str, drop_first: bool) -> Step:
    # The first token loses all of its marks, not only a leading one: so does the tokenizers library.
    return _Each(lambda piece, first: piece.replace(replacement, "" if first and drop_first else " "))


def _through(steps: Sequence[Step], pieces: list[str]) -> list[str]:
    for step in steps:
        pieces = [out for piece in pieces for out in step.feed(piece)]
    return pieces


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _byte_of_char() -> dict[str, int]:
    """GPT-2's bytes_to_unicode, inverted: printable Latin-1 stands for itself, the other bytes for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
