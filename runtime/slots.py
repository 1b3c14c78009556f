"""Who owns which KV slot of the decoder: some for single answers, the rest for chats. Owner thread only."""

from __future__ import annotations

import weakref

from runtime.decoder import Decoder


class KvCache:
    """What a conversation has in the decoder: the slot, and the token ids whose keys and values are in it, in order."""

    def __init__(self) -> None:
        self.slot: int | None = None
        self.ids: list[int] = []


class SlotPool:
    """Slots 0 .. ``answers`` - 1 of a decoder are those of single answers, the others are lent to conversations.

    A cache that is held is being written to: nobody else gets its slot. Of the other conversations the one that was
    used longest ago gives way. When all of them are held, a conversation is lent the slot of a single answer, and only
    for its turn; as long as no more than ``answers`` caches are held, there is one.
    """

    def __init__(self, decoder: Decoder, slots: int, answers: int = 1) -> None:
        self._decoder = decoder
        self._owners: dict[int, weakref.ref[KvCache]] = {}  # in the order of use, the latest last
        self._free = list(range(answers, slots))
        self._held: set[int] = set()
        self._answers = [KvCache() for _ in range(answers)]
        for slot, cache in enumerate(self._answers):
            cache.slot = slot

    def answer_cache(self) -> KvCache:
        """A slot for a single answer, emptied."""
        cache = next(cache for cache in self._answers if cache.slot not in self._held)
        self.keep(cache, 0)
        return cache

    def lend(self, cache: KvCache) -> None:
        """Give ``cache`` a slot if it has none; it begins empty then, and so will the one that had to give way."""
        if cache.slot is None:
            cache.slot = self._vacate()
            self.keep(cache, 0)
        if cache.slot >= len(self._answers):
            self._owners.pop(cache.slot, None)
            self._owners[cache.slot] = weakref.ref(cache)

    def hold(self, cache: KvCache) -> None:
        """An answer begins to be written there."""
        self._held.add(slot_of(cache))

    def let_go(self, cache: KvCache) -> None:
        """The answer is over; a conversation in the slot of a single answer leaves it. Harmless when repeated."""
        if cache.slot is None:
            return
        self._held.discard(cache.slot)
        if cache.slot < len(self._answers) and cache is not self._answers[cache.slot]:
            cache.slot = None
            cache.ids.clear()

    def keep(self, cache: KvCache, length: int) -> None:
        """Shorten a conversation to its first ``length`` tokens."""
        del cache.ids[length:]
        if cache.slot is not None:
            self._decoder.truncate(cache.slot, length)

    def release(self, cache: KvCache) -> None:
        """Take the slot back: the conversation is over, or its contents are not known after an error."""
        self.let_go(cache)
        cache.ids.clear()
        if cache.slot is not None and cache.slot >= len(self._answers):
            self._owners.pop(cache.slot, None)
            self._free.append(cache.slot)
            cache.slot = None

    def _vacate(self) -> int:
        if self._free:
            return self._free.pop()
        idle = [slot for slot in self._owners if slot not in self._held]
        if not idle:
            return slot_of(self.answer_cache())
        slot = next((slot for slot in idle if self._owners[slot]() is None), idle[0])
        owner = self._owners.pop(slot)()
        if owner is not None:
            owner.slot, owner.ids = None, []
        return slot


def slot_of(cache: KvCache) -> int:
    """The slot of a cache that has one."""
    slot = cache.slot
    assert slot is not None, "a cache without a slot reached the decoder"
    return slot
