"""The road from those who make events to those who show them: bounded, and never blocked by anybody.

A subscriber that does not keep up loses events of its own, the least important first; it costs nobody else anything.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from types import TracebackType

from runtime.captiond.events import CaptionDelta, CaptionFinished, Event, RuleChanged

Tap = Callable[[Event], None]

# What goes first when a queue is full. A text can be shown without its pieces; that a rule fired happens once.
_DELTAS, _STATES, _RESULTS = range(3)


@dataclass(frozen=True, slots=True)
class SubscriberStats:
    """Subscribers of one name: how many there are, what waits for them, what they have lost since the bus exists."""

    subscribers: int
    waiting: int
    dropped: int


class Subscription:
    """Events for one consumer, in the order in which they were published; made by `Bus.subscribe`.

    It is an async iterator for one task. With more than ``capacity`` events waiting, the oldest `CaptionDelta` is
    dropped, without one the oldest of the others, and a `CaptionFinished` or `RuleChanged` only when nothing else is
    left; ``dropped`` counts them. After `close` nothing is added; what waits can still be read, then iteration ends.
    """

    def __init__(self, bus: Bus, name: str, capacity: int, types: Collection[type] | None) -> None:
        self.name = name
        self.capacity = capacity
        self.dropped = 0
        self._bus = bus
        self._types = None if types is None else frozenset(types)
        self._queues: tuple[deque[tuple[int, Event]], ...] = (deque(), deque(), deque())
        self._count = 0
        self._next = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def waiting(self) -> int:
        """Events that wait to be read."""
        return self._count

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def take(self) -> Event | None:
        """The oldest waiting event, or None: for consumers that write many at once."""
        filled = [queue for queue in self._queues if queue]
        if not filled:
            return None
        self._count -= 1
        return min(filled, key=lambda queue: queue[0][0]).popleft()[1]

    def close(self) -> None:
        """Take no more events. May be called again."""
        if not self._closed:
            self._closed = True
            self._bus._forget(self)
            self._wake()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while (event := self.take()) is None:
            if self._closed:
                raise StopAsyncIteration
            assert self._waiter is None, f"two tasks read the subscription {self.name}"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return event

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _offer(self, event: Event) -> None:
        if self._types is not None and type(event) not in self._types:
            return
        self._queues[_rank(event)].append((self._next, event))
        self._next += 1
        self._count += 1
        if self._count > self.capacity:
            next(queue for queue in self._queues if queue).popleft()
            self._count -= 1
            self.dropped += 1
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Bus:
    """Hands every event to every subscriber. Of the event loop's thread alone."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self._taps: list[Tap] = []
        self._lost: Counter[str] = Counter()

    def publish(self, event: Event) -> None:
        """Add an event to every queue that wants it, then call the taps. Never waits."""
        for subscription in self._subscriptions:
            subscription._offer(event)
        for tap in self._taps:
            tap(event)

    def subscribe(self, name: str, capacity: int = 256, types: Collection[type] | None = None) -> Subscription:
        """A queue of at most ``capacity`` >= 1 events of ``types`` (classes of `events`; None: all).

        ``name`` is the kind of consumer, one of few: drops are counted under it for ever.
        """
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, at least 1")
        subscription = Subscription(self, name, capacity, types)
        self._subscriptions = [*self._subscriptions, subscription]
        return subscription

    def tap(self, callback: Tap) -> None:
        """Call ``callback`` with every event inside `publish`: it must be quick and not raise (metrics, watchdog)."""
        self._taps = [*self._taps, callback]

    def stats(self) -> dict[str, SubscriberStats]:
        """What waits and what was lost, by the names of subscribers, those that are gone included."""
        names = dict.fromkeys([*self._lost, *(one.name for one in self._subscriptions)])
        return {name: self._stats(name) for name in names}

    def _stats(self, name: str) -> SubscriberStats:
        present = [one for one in self._subscriptions if one.name == name]
        lost = self._lost[name] + sum(one.dropped for one in present)
        return SubscriberStats(len(present), sum(one.waiting for one in present), lost)

    def _forget(self, subscription: Subscription) -> None:
        self._subscriptions = [one for one in self._subscriptions if one is not subscription]
        self._lost[subscription.name] += subscription.dropped


def _rank(event: Event) -> int:
    if isinstance(event, CaptionDelta):
        return _DELTAS
    return _RESULTS if isinstance(event, (CaptionFinished, RuleChanged)) else _STATES
