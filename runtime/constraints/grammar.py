"""llguidance's grammars and matchers: the only file that loads the library.

A grammar is followed twice: over the tokens of a vocabulary, for the masks, and byte by byte, for plans of how an
answer could end. Bytes are a vocabulary of 256 tokens, so that a mask of all that may come next costs a microsecond.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from runtime.errors import EngineError, InputError

BYTES = 256
_COMPACT = {
    "whitespace_flexible": False,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
    "json_allowed_escapes": '"\\',
    "json_allow_general_unicode_escapes": False,
}
# The bytes that eight bits of a mask stand for, by their place in the mask.
_SET_BITS = tuple(
    tuple(bytes(8 * place + bit for bit in range(8) if bits >> bit & 1) for bits in range(256)) for place in range(32)
)
# A tenth of the library's own: what a schema within our limits needs, and a hostile one meets in some 20 ms.
_MAX_GRAMMAR = 60_000


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of compact JSON valid under ``schema``, whose strings hold no control characters."""
    grammar: str = _library().LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_COMPACT)
    return grammar


def choice_grammar(choices: Sequence[str]) -> str:
    """The grammar of one of ``choices``, after a space or none."""
    grammar: str = _library().LLMatcher.grammar_from_regex(f" ?({'|'.join(map(_escaped, choices))})")
    return grammar


def token_matcher(tokenizer: Any, grammar: str) -> Any:
    """Follows ``grammar`` over a tokenizer of this library. Raises InputError for a grammar that it refuses."""
    library = _library()
    limits = library.LLParserLimits(max_grammar_size=_MAX_GRAMMAR, verbose_errors=False)
    matcher = library.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        problem = matcher.get_error().splitlines()[0].strip()[:200]
        raise InputError(f"answers cannot be held to this form: {problem}", hint="make the schema simpler")
    if matcher.get_grammar_warnings():
        raise InputError(f"answers cannot be held to this form: {matcher.get_grammar_warnings()[0][:200]}")
    return matcher


def byte_matcher(grammar: str) -> Any:
    """Follows ``grammar`` byte by byte: token n is the byte n."""
    return token_matcher(_byte_tokenizer(), grammar)


def next_bytes(matcher: Any) -> bytes:
    """The bytes that may come next."""
    mask: bytes = matcher.compute_bitmask()
    return b"".join(values[bits] for values, bits in zip(_SET_BITS, mask, strict=False) if bits)


def tokenizer_of(tokenizer_json: str, vocab: int, end_ids: Sequence[int]) -> Any:
    """llguidance's own reading of a tokenizer.json. Raises EngineError for one that it does not take."""
    library = _library()
    slices = library.LLTokenizer.json_slices()
    try:
        return library.LLTokenizer(tokenizer_json, n_vocab=vocab, eos_token=list(end_ids), slices=slices)
    except Exception as problem:
        raise EngineError(f"tokenizer.json: answers cannot be constrained with it: {problem}") from problem


class _Bytes:
    """The vocabulary of single bytes, in the words that llguidance asks for."""

    eos_token_id = BYTES
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(BYTES)), b"<end>")
    special_token_ids = (BYTES,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@lru_cache(maxsize=1)
def _byte_tokenizer() -> Any:
    library = _library()
    wrapped = _Bytes()
    wrapped.tokens = list(wrapped.tokens)  # type: ignore[assignment]
    wrapped.special_token_ids = list(wrapped.special_token_ids)  # type: ignore[assignment]
    return library.LLTokenizer(library.TokenizerWrapper(wrapped), slices=[])


def _escaped(text: str) -> str:
    return "".join(f"\\x{{{ord(char):x}}}" if not char.isalnum() else char for char in text)


@lru_cache(maxsize=1)
def _library() -> Any:
    try:
        import llguidance
    except ImportError as problem:
        raise EngineError(
            "constrained answers need the package llguidance", hint="python -m pip install 'llguidance>=1.9,<2'"
        ) from problem
    return llguidance
