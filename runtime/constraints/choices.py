"""One of several texts, as a `runtime.constraint.Constraint`."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.constraint import Matcher
from runtime.constraints.follow import BudgetMatcher
from runtime.constraints.grammar import byte_matcher, choice_grammar, token_matcher
from runtime.constraints.plan import ChoicePlanner
from runtime.constraints.vocabulary import vocabulary_of
from runtime.errors import InputError

MAX_CHOICES = 1024
MAX_CHOICE_CHARS = 1024
MAX_CHARS = 65_536


def check_choices(choices: Sequence[str]) -> tuple[str, ...]:
    """``choices`` without those that come twice. Raises InputError."""
    if isinstance(choices, str) or not choices or len(choices) > MAX_CHOICES:
        raise InputError(f"choices are {choices!r:.60}: 1 to {MAX_CHOICES} texts are needed")
    for text in choices:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_CHOICE_CHARS:
            raise InputError(f"choice {text!r:.60}: a text of 1 to {MAX_CHOICE_CHARS} characters is needed")
        if not text.isprintable():
            raise InputError(f"choice {text!r:.60}: it has a character that cannot be shown")
    if sum(map(len, choices)) > MAX_CHARS:
        raise InputError(f"the choices have more than {MAX_CHARS} characters together")
    return tuple(dict.fromkeys(choices))


class ChoiceForm:
    """``choices`` are checked."""

    def __init__(self, choices: tuple[str, ...]) -> None:
        # Models begin an answer with a token such as " yes", and answers are shown without the space. A model that may
        # only write "yes" writes a token that it has never begun with, and what it then says is left to chance.
        self._choices = tuple(text.encode() for choice in choices for text in (choice, f" {choice}"))
        self._grammar = choice_grammar(choices)
        byte_matcher(self._grammar)

    def matcher(self, tokenizer_json: str, vocab: int, stop_ids: Sequence[int], budget: int) -> Matcher:
        vocabulary = vocabulary_of(tokenizer_json, vocab, tuple(stop_ids))
        follower = token_matcher(vocabulary.tokenizer, self._grammar)
        return BudgetMatcher(vocabulary, follower, ChoicePlanner(self._choices), stop_ids, budget)
