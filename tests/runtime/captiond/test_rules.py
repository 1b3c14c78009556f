"""Rules against a slow model that looks at the whole past each time, and each promise by an example."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.captiond.config.settings import RuleSettings
from runtime.captiond.rules import RuleState

S = 1_000_000_000


def rule(**options: Any) -> RuleSettings:
    return RuleSettings(**({"name": "r", "prompt": "p", "field": "n", "value": 5} | options))


def changes(state: RuleState, *values: object, step_s: float = 1.0) -> list[bool | None]:
    """What happens for answers {"n": value}, a second apart; ... is an answer without fields."""
    fields = [None if value is ... else {"n": value} for value in values]
    return [state.step(each, int(index * step_s * S)) for index, each in enumerate(fields)]


# --- the model --------------------------------------------------------------------------------------------------------

NUMBERS = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def json_type(value: object) -> str:
    """By the text that JSON writes: the first character says the type."""
    first = json.dumps(value)[0]
    return {"{": "object", "[": "array", '"': "string", "t": "bool", "f": "bool", "n": "null"}.get(first, "number")


def verdicts(settings_: RuleSettings, value: object) -> tuple[bool, bool] | None:
    """(speaks for active, speaks for inactive); None: not known."""
    if settings_.op == "in":
        same_type = [item for item in settings_.value if json_type(item) == json_type(value)]
        if not same_type:
            return None
        met = any(json.dumps(item) == json.dumps(value) or item == value for item in same_type)
        return met, not met
    if json_type(value) != json_type(settings_.value):
        return None
    if settings_.op in ("==", "!="):
        met = (value == settings_.value) == (settings_.op == "==")
        return met, not met
    if json_type(value) != "number":
        return None
    met = NUMBERS[settings_.op](value, settings_.value)
    if settings_.release is None:
        return met, not met
    beyond = value < settings_.release if settings_.op[0] == ">" else value > settings_.release
    return met, beyond and not met


def model(settings_: RuleSettings, trace: list[tuple[int, object]]) -> list[bool | None]:
    """Says for each answer what changed, each time from the list of all known answers since the change before."""
    out: list[bool | None] = []
    active, began, since_change = False, None, []
    seconds = {name: Fraction(getattr(settings_, name)) * S for name in ("on_after_s", "off_after_s", "cooldown_s")}
    for t, value in trace:
        known = None if value is ... else verdicts(settings_, value)
        if known is None:
            out.append(None)
            continue
        since_change.append((t, known))
        against = [index for index, (_, pair) in enumerate(since_change) if not pair[1 if active else 0]]
        run = since_change[against[-1] + 1 if against else 0 :]
        long_enough = bool(run) and t - run[0][0] >= seconds["off_after_s" if active else "on_after_s"]
        cool = active or began is None or t - began >= seconds["cooldown_s"]
        if long_enough and cool:
            active, since_change = not active, []
            began = t if active else began
            out.append(active)
        else:
            out.append(None)
    return out


durations = st.sampled_from([0.0, 0.5, 1.0, 2.5, 4.0])
numbers = st.one_of(st.integers(0, 10), st.sampled_from([4.5, 5.0, 5.5, 7.25]))
others = st.sampled_from([None, True, False, "yes", "no", "5", [5], {"n": 5}, ...])
rules = st.one_of(
    st.builds(
        rule,
        op=st.sampled_from(list(NUMBERS)),
        value=numbers,
        release=st.one_of(st.none(), numbers),
        on_after_s=durations,
        off_after_s=durations,
        cooldown_s=durations,
    ),
    st.builds(
        rule,
        op=st.sampled_from(["==", "!="]),
        value=st.sampled_from(["yes", "no", 5, True]),
        on_after_s=durations,
        off_after_s=durations,
        cooldown_s=durations,
    ),
    st.builds(
        rule,
        op=st.just("in"),
        value=st.lists(st.sampled_from(["yes", "no", 5, 6.0, True]), max_size=3),
        on_after_s=durations,
        off_after_s=durations,
        cooldown_s=durations,
    ),
)
gaps = st.sampled_from([0, S // 2, S, 3 * S, 1])


@settings(deadline=None, max_examples=1000)
@given(settings_=rules, trace=st.lists(st.tuples(gaps, st.one_of(numbers, numbers, others)), max_size=40))
@example(settings_=rule(op=">", release=3, cooldown_s=4.0), trace=[(S, 6), (S, 4), (S, 2), (S, 6), (S, 6)])
def test_any_trace_gives_what_the_whole_past_says(settings_: RuleSettings, trace: list[tuple[int, object]]) -> None:
    now, timed = 0, []
    for gap, value in trace:
        now += gap
        timed.append((now, value))
    state = RuleState(settings_)
    got = [state.step(None if value is ... else {"n": value}, t) for t, value in timed]
    assert got == model(settings_, timed)


# --- by example -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "wanted", "met", "not_met"),
    [
        ("==", "yes", ["yes"], ["no", ""]),
        ("==", True, [True], [False]),
        ("==", 3, [3, 3.0], [4]),
        ("==", [1, [2]], [[1, [2.0]]], [[1], [1, [True]], [2, [1]]]),
        ("==", {"a": 1}, [{"a": 1}], [{"a": 2}, {"a": True}, {"a": 1, "b": 2}, {}]),
        ("!=", "yes", ["no"], ["yes"]),
        (">", 5, [6, 5.1], [5, 4]),
        (">=", 5, [5], [4.9]),
        ("<", 5, [4.9], [5]),
        ("<=", 5, [5], [6]),
        ("in", ["car", "bus", 7], ["bus", 7], ["dog", 8]),
    ],
)
def test_each_comparison(op: str, wanted: object, met: list[object], not_met: list[object]) -> None:
    for value in met:
        assert changes(RuleState(rule(op=op, value=wanted)), value) == [True]
    for value in not_met:
        assert changes(RuleState(rule(op=op, value=wanted)), met[0], value) == [True, False]


@pytest.mark.parametrize(
    ("op", "wanted", "unknown"),
    [
        ("==", "yes", [None, True, 1, ["yes"], {}, ...]),
        ("==", 1, [True, "1", None, float("nan")]),
        ("!=", "yes", [None, False, 3]),
        (">", 5, ["7", True, None, [9], float("nan")]),
        ("<=", True, [0, False]),
        (">", "a", ["b"]),
        ("in", ["a", "b"], [1, None, True, ["a"]]),
        ("in", "abc", ["a"]),
        ("in", [], ["a"]),
    ],
)
def test_other_types_are_not_known_and_change_nothing(op: str, wanted: object, unknown: list[object]) -> None:
    state = RuleState(rule(op=op, value=wanted))
    assert changes(state, *unknown) == [None] * len(unknown)
    state.active = True
    assert changes(state, *unknown) == [None] * len(unknown) and state.active


def test_hysteresis_holds_between_value_and_release() -> None:
    state = RuleState(rule(op=">", value=5, release=3))
    assert changes(state, 4, 6, 5, 4, 3, 2, 4, 5, 6) == [None, True, None, None, None, False, None, None, True]
    below = RuleState(rule(op="<=", value=5, release=7))
    assert changes(below, 6, 5, 6, 7, 8) == [None, True, None, None, False]


def test_debounce_wants_every_known_answer_and_looks_through_those_not_known() -> None:
    state = RuleState(rule(op=">", on_after_s=2.0, off_after_s=2.0))
    assert changes(state, 6, 6, 1, 6, ..., 6, 6) == [None, None, None, None, None, True, None]
    assert [state.step({"n": v}, t * S) for v, t in [(1, 10), (9, 11), (1, 12), (None, 13), (1, 14)]] == [
        None,
        None,
        None,
        None,
        False,
    ]


def test_cooldown_counts_from_the_last_activation_and_the_condition_must_still_hold() -> None:
    state = RuleState(rule(op=">", cooldown_s=5.0))
    assert changes(state, 6, 1, 6, 6, 6, 6, 1, 1) == [True, False, None, None, None, True, False, None]
    quiet = RuleState(rule(op=">", cooldown_s=5.0))
    assert changes(quiet, 6, 1, 6, 1, 1, 1, 1, 6) == [True, False, None, None, None, None, None, True]


def test_fields_are_reached_by_dotted_paths() -> None:
    state = RuleState(rule(field="people.count", op=">=", value=1))
    for fields in (None, {}, {"people": None}, {"people": []}, {"people": {}}, {"people.count": 3}):
        assert state.step(fields, 0) is None
    assert state.step({"people": {"count": 3}}, 0) is True
    assert state.active
