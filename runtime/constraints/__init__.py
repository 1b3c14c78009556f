"""Answers of a given form: JSON by a schema, any JSON object, one of several texts.

A `runtime.constraint.Constraint` is made here, checked and refused by name when it asks for what cannot be promised;
the pipeline takes a matcher of it for each answer. Whatever tokens are sampled among those allowed, the answer is
valid and whole when its token budget ends. The library behind the masks is llguidance, loaded in this package alone,
when the first constraint is made. JSON comes compact, its strings hold no control characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from runtime.constraint import Constraint
from runtime.constraints.choices import ChoiceForm, check_choices
from runtime.constraints.form import JsonForm
from runtime.constraints.schema import check_schema, normal_schema
from runtime.errors import InputError

if TYPE_CHECKING:
    from runtime.captiond.asks import ConstraintSpec

__all__ = ["check_schema", "choice", "from_spec", "json_object", "json_schema"]


def json_schema(schema: Mapping[str, object]) -> Constraint:
    """JSON valid under ``schema`` (draft 2020-12, the subset of docs/session.md).

    Properties come in the order of the schema. Raises InputError that names the place, the keyword and the limit.
    """
    return JsonForm(normal_schema(schema))


def json_object() -> Constraint:
    """Any JSON object. Keys are not kept from coming twice."""
    return JsonForm(normal_schema({"type": "object"}))


def choice(choices: Sequence[str]) -> Constraint:
    """One of ``choices``, nothing before or after it but a space that answers do not show. Raises InputError."""
    return ChoiceForm(check_choices(choices))


def from_spec(spec: ConstraintSpec) -> Constraint:
    """The constraint that a request describes. Raises InputError."""
    if spec.kind == "choice":
        return choice(spec.choices)
    if spec.kind == "json":
        return json_object()
    if not isinstance(spec.schema, Mapping):
        raise InputError(f"the schema of an answer is {spec.schema!r}: an object is needed")
    return json_schema(spec.schema)
