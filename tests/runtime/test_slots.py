"""Who gets which KV slot, and who has to give way."""

from __future__ import annotations

import gc

import numpy as np

from runtime.slots import KvCache, SlotPool
from tests.runtime.fakes import HIDDEN, FakeDecoder

ANSWER_SLOT = 0


def pool_of(slots: int, answers: int = 1) -> tuple[FakeDecoder, SlotPool]:
    decoder = FakeDecoder()
    decoder.open(slots)
    return decoder, SlotPool(decoder, slots, answers)


def fill(decoder: FakeDecoder, cache: KvCache, count: int) -> None:
    assert cache.slot is not None
    decoder.prefill(cache.slot, np.zeros((count, HIDDEN), np.float32))
    cache.ids += range(count)


def test_single_answers_have_a_slot_of_their_own_that_is_emptied_for_each() -> None:
    decoder, pool = pool_of(2)
    cache = pool.answer_cache()
    fill(decoder, cache, 3)
    again = pool.answer_cache()
    assert (again.slot, again.ids, decoder.length(ANSWER_SLOT)) == (ANSWER_SLOT, [], 0)


def test_the_conversation_used_longest_ago_gives_way() -> None:
    decoder, pool = pool_of(3)
    first, second, third = KvCache(), KvCache(), KvCache()
    for cache in (first, second):
        pool.lend(cache)
        fill(decoder, cache, 2)
    pool.lend(first)  # used again
    pool.lend(third)
    assert (second.slot, second.ids) == (None, [])
    assert first.slot is not None and first.ids == [0, 1]
    assert third.slot not in (None, ANSWER_SLOT, first.slot)
    assert decoder.length(third.slot) == 0


def test_a_slot_whose_conversation_is_forgotten_is_taken_first() -> None:
    _, pool = pool_of(3)
    kept, forgotten = KvCache(), KvCache()
    pool.lend(forgotten)
    pool.lend(kept)
    slot = forgotten.slot
    del forgotten
    gc.collect()
    newcomer = KvCache()
    pool.lend(newcomer)
    assert newcomer.slot == slot and kept.slot is not None


def test_released_slot_is_free_and_what_it_held_is_gone() -> None:
    decoder, pool = pool_of(2)
    cache = KvCache()
    pool.lend(cache)
    fill(decoder, cache, 4)
    pool.release(cache)
    assert (cache.slot, cache.ids) == (None, [])
    pool.release(cache)
    other = KvCache()
    pool.lend(other)
    assert other.slot == 1 and decoder.length(other.slot) == 0


def test_keep_shortens_ids_and_slot_together() -> None:
    decoder, pool = pool_of(2)
    cache = KvCache()
    pool.lend(cache)
    fill(decoder, cache, 5)
    pool.keep(cache, 2)
    assert cache.ids == [0, 1] and decoder.length(cache.slot) == 2


def test_answers_that_are_written_at_once_have_a_slot_each() -> None:
    decoder, pool = pool_of(4, answers=3)
    taken = []
    for _ in range(3):
        cache = pool.answer_cache()
        pool.hold(cache)
        fill(decoder, cache, 2)
        taken.append(cache)
    assert [cache.slot for cache in taken] == [0, 1, 2]
    pool.let_go(taken[1])
    again = pool.answer_cache()
    assert (again.slot, again.ids, decoder.length(1)) == (1, [], 0)
    assert taken[0].ids and taken[2].ids


def test_a_conversation_that_is_being_written_to_does_not_give_way() -> None:
    decoder, pool = pool_of(3)
    busy, idle, newcomer = KvCache(), KvCache(), KvCache()
    for cache in (busy, idle):
        pool.lend(cache)
        fill(decoder, cache, 2)
    pool.hold(busy)  # it was used longest ago
    pool.lend(newcomer)
    assert busy.ids == [0, 1] and (idle.slot, idle.ids) == (None, [])


def test_a_conversation_borrows_the_slot_of_an_answer_for_its_turn_when_the_others_are_written_to() -> None:
    decoder, pool = pool_of(3, answers=2)
    first, second = KvCache(), KvCache()
    pool.lend(first)
    pool.hold(first)
    pool.lend(second)
    pool.hold(second)
    assert first.slot == 2 and second.slot == 0
    fill(decoder, second, 4)
    assert pool.answer_cache().slot == 1
    pool.let_go(second)
    pool.let_go(second)
    assert (second.slot, second.ids) == (None, [])
    assert pool.answer_cache().slot == 0 and decoder.length(0) == 0
    pool.lend(second)
    pool.hold(second)
    pool.release(second)  # its turn failed
    assert second.slot is None and pool._free == []
    pool.let_go(first)
    pool.lend(second)
    assert second.slot == 2 and first.slot is None
