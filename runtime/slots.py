"""Who owns which KV slot of the decoder: one for single answers, the rest for chats. Owner thread only."""

from __future__ import annotations

import weakref

from runtime.decoder import Decoder

ANSWER_SLOT = 0


class KvCache:
    """What a conversation has in the decoder: the slot, and the token ids whose keys and values are in it, in order."""

    def __init__(self) -> None:
        self.slot: int | None = None
        self.ids: list[int] = []


class SlotPool:
    """Slots 1 .. n - 1 of a decoder, lent to conversations; the one that was used longest ago gives way."""

    def __init__(self, decoder: Decoder, slots: int) -> None:
        self._decoder = decoder
        self._owners: dict[int, weakref.ref[KvCache]] = {}  # in the order of use, the latest last
        self._free = list(range(ANSWER_SLOT + 1, slots))
        self._answer = KvCache()
        self._answer.slot = ANSWER_SLOT

    def answer_cache(self) -> KvCache:
        """The slot for single answers, emptied."""
        self.keep(self._answer, 0)
        return self._answer

    def lend(self, cache: KvCache) -> None:
        """Give ``cache`` a slot if it has none; it begins empty then, and so will the one that had to give way."""
        if cache.slot is None:
            cache.slot = self._vacate()
            self.keep(cache, 0)
        self._owners.pop(cache.slot, None)
        self._owners[cache.slot] = weakref.ref(cache)

    def keep(self, cache: KvCache, length: int) -> None:
        """Shorten a conversation to its first ``length`` tokens."""
        del cache.ids[length:]
        if cache.slot is not None:
            self._decoder.truncate(cache.slot, length)

    def release(self, cache: KvCache) -> None:
        """Take the slot back: the conversation is over, or its contents are not known after an error."""
        cache.ids.clear()
        if cache.slot is not None and cache is not self._answer:
            self._owners.pop(cache.slot, None)
            self._free.append(cache.slot)
            cache.slot = None

    def _vacate(self) -> int:
        if self._free:
            return self._free.pop()
        gone = (slot for slot, owner in self._owners.items() if owner() is None)
        slot = next(gone, None)
        if slot is None:
            slot = next(iter(self._owners))
        owner = self._owners.pop(slot)()
        if owner is not None:
            owner.slot, owner.ids = None, []
        return slot
