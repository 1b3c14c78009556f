"""The bus against a model of its promises: order, bounds, what is dropped first, and that nobody waits for anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.captiond.bus import Bus, SubscriberStats
from runtime.captiond.events import CaptionDelta, CaptionFinished, Event, RuleChanged
from tests.runtime.captiond.clocks import settle
from tests.runtime.captiond.sample_events import delta, engine_changed, finished, rule, source_changed, started

KINDS = ("delta", "started", "source", "finished", "rule")


def made(kind: str, number: int) -> Event:
    return {
        "delta": delta(number, number, "x"),
        "started": started(number),
        "source": source_changed(cause=str(number)),
        "finished": finished(number),
        "rule": rule(caption=number),
    }[kind]


def importance(event: Event) -> int:
    return 0 if isinstance(event, CaptionDelta) else 2 if isinstance(event, (CaptionFinished, RuleChanged)) else 1


def after(events: Sequence[Event], capacity: int) -> list[Event]:
    """What a queue holds after these, by the words of the promise."""
    held: list[Event] = []
    for event in events:
        held.append(event)
        if len(held) > capacity:
            least = min(importance(one) for one in held)
            held.remove(next(one for one in held if importance(one) == least))
    return held


def drained(subscription: object) -> list[Event]:
    found = []
    while (event := subscription.take()) is not None:  # type: ignore[attr-defined]
        found.append(event)
    return found


@given(st.lists(st.sampled_from(KINDS), max_size=60), st.integers(1, 9))
def test_the_least_important_and_oldest_goes_first_and_order_stays(kinds: list[str], capacity: int) -> None:
    bus = Bus()
    subscription = bus.subscribe("one", capacity)
    events = [made(kind, number) for number, kind in enumerate(kinds)]
    for event in events:
        bus.publish(event)
        assert subscription.waiting <= capacity
    expected = after(events, capacity)
    assert bus.stats() == {"one": SubscriberStats(1, len(expected), len(events) - len(expected))}
    assert drained(subscription) == expected
    assert subscription.dropped == len(events) - len(expected)


@given(st.lists(st.one_of(st.sampled_from(KINDS), st.just("take")), max_size=80), st.integers(1, 6))
def test_reading_in_between_neither_loses_nor_repeats_nor_reorders(steps: list[str], capacity: int) -> None:
    bus = Bus()
    subscription = bus.subscribe("one", capacity)
    read, published = [], 0
    for number, step in enumerate(steps):
        if step == "take":
            read += [event] if (event := subscription.take()) is not None else []
        else:
            bus.publish(made(step, number))
            published += 1
    read += drained(subscription)
    assert len(read) + subscription.dropped == published
    places = [number for number, step in enumerate(steps) if step != "take" and made(step, number) in read]
    assert read == [made(steps[number], number) for number in places]


def test_a_stuck_subscriber_costs_the_others_nothing() -> None:
    bus = Bus()
    stuck, quick = bus.subscribe("stuck", 3), bus.subscribe("quick", 3)
    seen = []
    for number in range(1000):
        bus.publish(finished(number))
        seen += drained(quick)
    assert [event.caption for event in seen] == list(range(1000))
    assert (quick.dropped, stuck.dropped, stuck.waiting) == (0, 997, 3)


def test_types_choose_what_is_delivered() -> None:
    bus = Bus()
    subscription = bus.subscribe("rules", types=(RuleChanged,))
    bus.publish(finished(1))
    bus.publish(rule())
    assert drained(subscription) == [rule()]
    assert subscription.dropped == 0


def test_iteration_waits_wakes_and_ends_after_close_with_what_waited() -> None:
    async def main() -> None:
        bus, seen = Bus(), []
        subscription = bus.subscribe("one")

        async def read() -> None:
            async for event in subscription:
                seen.append(event)

        task = asyncio.ensure_future(read())
        await settle()
        bus.publish(finished(1))
        await settle()
        assert seen == [finished(1)]
        bus.publish(finished(2))
        subscription.close()
        subscription.close()
        bus.publish(finished(3))
        await task
        assert seen == [finished(1), finished(2)]
        assert subscription.closed

    asyncio.run(main())


def test_a_cancelled_reader_loses_nothing_and_another_task_may_go_on() -> None:
    async def main() -> None:
        bus = Bus()
        subscription = bus.subscribe("one")
        task = asyncio.ensure_future(subscription.__anext__())
        await settle()
        bus.publish(finished(1))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await subscription.__anext__() == finished(1)

    asyncio.run(main())


def test_two_readers_of_one_subscription_are_a_bug_that_is_seen() -> None:
    async def main() -> None:
        subscription = Bus().subscribe("one")
        task = asyncio.ensure_future(subscription.__anext__())
        await settle()
        with pytest.raises(AssertionError, match="two tasks read the subscription one"):
            await subscription.__anext__()
        subscription.close()
        with pytest.raises(StopAsyncIteration):
            await task

    asyncio.run(main())


def test_drops_of_closed_subscribers_stay_counted_by_name() -> None:
    bus = Bus()
    for _ in range(3):
        with bus.subscribe("watcher", 1):
            bus.publish(finished(1))
            bus.publish(finished(2))
    assert bus.stats() == {"watcher": SubscriberStats(0, 0, 3)}
    with bus.subscribe("watcher"):
        assert bus.stats() == {"watcher": SubscriberStats(1, 0, 3)}


def test_a_tap_sees_every_event_at_once_and_after_the_queues() -> None:
    bus, seen = Bus(), []
    subscription = bus.subscribe("one")
    bus.tap(lambda event: seen.append((event, subscription.waiting)))
    bus.publish(engine_changed())
    bus.publish(finished(1))
    assert seen == [(engine_changed(), 1), (finished(1), 2)]


def test_subscribing_or_closing_inside_a_tap_does_not_disturb_the_round() -> None:
    bus = Bus()
    subscription = bus.subscribe("one")
    bus.tap(lambda event: subscription.close())
    bus.tap(lambda event: bus.subscribe("two").close())
    bus.publish(finished(1))
    assert drained(subscription) == [finished(1)]


def test_a_queue_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity is 0"):
        Bus().subscribe("one", 0)
