"""Who is next: priority strictly, then shares by weight, whoever comes and goes meanwhile."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.scheduling import Rota, Share

WEIGHTS = [0.5, 1.0, 2.0, 4.0]


@settings(deadline=None, max_examples=200)
@given(weights=st.lists(st.floats(0.05, 20), min_size=1, max_size=6), turns=st.integers(1, 300))
def test_equals_are_never_further_apart_than_one_unit_of_their_weight(weights: list[float], turns: int) -> None:
    rota: Rota[int] = Rota()
    for index, weight in enumerate(weights):
        rota.join(index, Share(weight=weight))
    counts = [0] * len(weights)
    for _ in range(turns):
        item, alone = rota.turn()
        counts[item] += 1
        assert alone is (len(weights) == 1)
        for i, (count, weight) in enumerate(zip(counts, weights, strict=True)):
            for other_count, other in list(zip(counts, weights, strict=True))[:i]:
                assert abs(count / weight - other_count / other) <= max(1 / weight, 1 / other) + 1e-6


def test_equal_weights_take_turns_in_the_order_of_their_coming() -> None:
    rota: Rota[str] = Rota()
    for name in "abc":
        rota.join(name, Share())
    assert "".join(rota.turn()[0] for _ in range(7)) == "abcabca"


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_lower_priority_has_its_turn_only_when_no_higher_one_is_there(data: st.DataObject) -> None:
    rota: Rota[int] = Rota()
    there: dict[int, int] = {}
    for number in range(60):
        action = data.draw(st.sampled_from(["join", "turn", "turn", "leave"]))
        if action == "join":
            there[number] = data.draw(st.integers(-2, 2))
            rota.join(number, Share(there[number], data.draw(st.sampled_from(WEIGHTS))))
        elif action == "leave" and there:
            gone = data.draw(st.sampled_from(sorted(there)))
            rota.leave(gone)
            del there[gone]
        elif there:
            top = max(there.values())
            item, alone = rota.turn()
            assert there[item] == top
            assert alone is (list(there.values()).count(top) == 1)
        assert set(rota) == set(there) and len(rota) == len(there)


def test_a_newcomer_gets_its_share_from_now_on_and_makes_up_for_nothing() -> None:
    rota: Rota[str] = Rota()
    rota.join("old", Share())
    for _ in range(1000):
        rota.turn()
    rota.join("new", Share(weight=3.0))
    turns = [rota.turn()[0] for _ in range(40)]
    assert turns.count("new") == pytest.approx(30, abs=1)
    assert "old" in turns[:4] and "new" in turns[:2]


@pytest.mark.parametrize("seed", range(20))
def test_whoever_stays_gets_its_share_while_others_come_and_go(seed: int) -> None:
    """Also against short ones that come again and again, which begin at the present time each time."""
    rng = random.Random(seed)
    rota: Rota[int] = Rota()
    present, units = {0: rng.choice(WEIGHTS)}, {0: 10**9}
    rota.join(0, Share(weight=present[0]))
    life, places, busy = rng.choice([1, 2, 5, 20]), rng.choice([1, 2, 4, 8]), rng.random()
    got, due = 0, 0.0
    for number in range(1, 2000):
        if len(present) <= places and rng.random() < busy:
            present[number], units[number] = rng.choice(WEIGHTS), rng.randint(1, life)
            rota.join(number, Share(weight=present[number]))
        due += present[0] / sum(present.values())
        item, _ = rota.turn()
        got += item == 0
        units[item] -= 1
        if units[item] == 0:
            rota.leave(item)
            del present[item]
        assert abs(got - due) <= 10, (number, got, due)


def test_a_rank_that_emptied_begins_anew_and_leaving_twice_is_harmless() -> None:
    rota: Rota[str] = Rota()
    rota.join("a", Share(5))
    for _ in range(50):
        rota.turn()
    rota.leave("a")
    rota.leave("a")
    assert len(rota) == 0 and rota._times == {}
    rota.join("b", Share(5))
    assert rota.turn() == ("b", True)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ({"priority": 1.5}, "priority is 1.5"),
        ({"priority": True}, "priority is True"),
        ({"priority": 2**40}, "whole number"),
        ({"weight": 0.0}, "weight is 0.0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"weight": float("inf")}, "above 0"),
        ({"weight": "2"}, "weight is '2'"),
    ],
)
def test_shares_that_cannot_be_are_refused(share: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Share(**share)
