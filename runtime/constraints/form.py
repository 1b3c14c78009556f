"""JSON by a schema, as a `runtime.constraint.Constraint`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.constraint import Matcher
from runtime.constraints.follow import BudgetMatcher
from runtime.constraints.grammar import byte_matcher, schema_grammar, token_matcher
from runtime.constraints.plan import JsonText, SchemaPlanner, completion
from runtime.constraints.shortest import Parts, shortest_parts
from runtime.constraints.vocabulary import vocabulary_of
from runtime.errors import InputError

_NOTHING = Parts(None, (), ())


class JsonForm:
    """``schema`` is in its plain form. Raises InputError for one that llguidance refuses or that nothing satisfies."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._grammar = schema_grammar(schema)
        self._start = byte_matcher(self._grammar)
        self._parts = shortest_parts(schema, lambda leaf: _leaf_text({**leaf, "$defs": schema["$defs"]}))
        plan = self._parts.root
        if plan is None:
            raise InputError("no finite answer satisfies the schema", hint="a recursive part needs a way out")
        trial = self._start.deep_copy()
        if trial.try_consume_tokens(list(plan)) < len(plan) or not trial.is_accepting():
            plan = completion(self._start.deep_copy(), JsonText(), self._parts)
        if plan is None:
            raise InputError("no answer that satisfies the schema was found", hint="make the schema simpler")
        self._plan = plan

    def matcher(self, tokenizer_json: str, vocab: int, stop_ids: Sequence[int], budget: int) -> Matcher:
        vocabulary = vocabulary_of(tokenizer_json, vocab, tuple(stop_ids))
        planner = SchemaPlanner(self._start.deep_copy(), self._parts, self._plan)
        follower = token_matcher(vocabulary.tokenizer, self._grammar)
        return BudgetMatcher(vocabulary, follower, planner, stop_ids, budget)


def _leaf_text(leaf: Mapping[str, Any]) -> bytes | None:
    return completion(byte_matcher(schema_grammar(leaf)), JsonText(), _NOTHING)
