"""Who gets which KV slot, and who has to give way."""

from __future__ import annotations

import gc

import numpy as np

from runtime.slots import KvCache, SlotPool
from tests.runtime.fakes import HIDDEN, FakeDecoder

ANSWER_SLOT = 0


def pool_of(slots: int) -> tuple[FakeDecoder, SlotPool]:
    decoder = FakeDecoder()
    decoder.open(slots)
    return decoder, SlotPool(decoder, slots)


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
    assert decoder.length(other.slot) == 0


def test_keep_shortens_ids_and_slot_together() -> None:
    decoder, pool = pool_of(2)
    cache = KvCache()
    pool.lend(cache)
    fill(decoder, cache, 5)
    pool.keep(cache, 2)
    assert cache.ids == [0, 1] and decoder.length(cache.slot) == 2
