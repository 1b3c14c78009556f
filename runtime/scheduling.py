"""Whose turn it is among answers that are written at once: priority first, then shares by weight.

Stride scheduling (Waldspurger and Weihl 1995): each answer has a pass that grows by 1 / weight with every unit it gets,
and the smallest pass goes next. A newcomer starts at the time of its rank: it neither waits for the others to finish
nor makes up for units that it never asked for. Pure; `runtime.engine` uses it.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from runtime.errors import InputError

_T = TypeVar("_T")

MAX_PRIORITY = 2**31
MAX_WEIGHT = 1e6


@dataclass(frozen=True, slots=True)
class Share:
    """What an answer asks for. ``priority``: higher goes first. ``weight``: its part among those of one priority.

    Raises InputError for what cannot be.
    """

    priority: int = 0
    weight: float = 1.0

    def __post_init__(self) -> None:
        whole = isinstance(self.priority, numbers.Integral) and not isinstance(self.priority, bool)
        if not whole or abs(self.priority) > MAX_PRIORITY:
            raise InputError(f"priority is {self.priority!r}: a whole number from -2^31 to 2^31 is needed")
        number = isinstance(self.weight, numbers.Real) and not isinstance(self.weight, bool)
        if not number or not 0 < self.weight <= MAX_WEIGHT:
            raise InputError(f"weight is {self.weight!r}: a number above 0 to {MAX_WEIGHT:g} is needed")


@dataclass(slots=True, eq=False)
class _Member(Generic[_T]):
    item: _T
    share: Share
    at: float


class Rota(Generic[_T]):
    """Those that take turns. A rank is all members of one priority; its time goes on by one unit over their weights."""

    def __init__(self) -> None:
        self._members: list[_Member[_T]] = []
        self._times: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[_T]:
        return iter([member.item for member in self._members])

    def join(self, item: _T, share: Share) -> None:
        """From now on ``item`` takes part, beginning at the time of its rank."""
        self._members.append(_Member(item, share, self._times.setdefault(share.priority, 0.0)))

    def leave(self, item: _T) -> None:
        """``item`` takes part no more; harmless when it did not."""
        self._members = [member for member in self._members if member.item is not item]
        ranks = {member.share.priority for member in self._members}
        self._times = {rank: time for rank, time in self._times.items() if rank in ranks}

    def turn(self) -> tuple[_T, bool]:
        """Who gets the next unit, and whether it is the only one of its rank. There is one at least."""
        if len(self._members) == 1:
            return self._members[0].item, True  # its pass and the time of its rank would grow alike
        top = max(member.share.priority for member in self._members)
        rank = [member for member in self._members if member.share.priority == top]
        chosen = min(rank, key=lambda member: member.at)  # of equal ones the one that came first
        chosen.at += 1 / chosen.share.weight
        self._times[top] += 1 / math.fsum(member.share.weight for member in rank)
        return chosen.item, len(rank) == 1
