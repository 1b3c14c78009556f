"""Frames in shared memory between one writer and several readers: the newest wins, a pinned one stays.

    ring = Ring.create(slot_bytes=1920 * 1080 * 3)          # main; ring.fd goes to the other processes
    Ring.attach(fd).write(rgb, 640, 480, seq, t_ns, "arrival")   # the capture child
    with ring.take(READER_ENGINE) as pinned:                 # a reader: the writer keeps off this slot meanwhile
        use(pinned.view, pinned.header)

Standard library alone: the GStreamer child loads this file by its path under the system's Python.

One page of 64-bit words stands before the slots. Word 0..3: magic, slots, bytes of a slot, floor (generations up to it
are no longer the newest). Slot n has the words 8 (n + 1) ..: generation, seq, time of capture, width, height, kind,
pins (one byte per reader). A generation is even, grows with each frame of the ring, and is odd while the slot is
being written; 0 is an empty slot.

Writer and reader meet as in Dekker's algorithm: the writer makes the generation odd and then looks for pins, the
reader pins and then looks at the generation, so that one of them sees the other and backs off. That needs a full
barrier between the store and the load on both sides, see `Ring._fence`. Words are stored whole: ``memoryview`` of
format "Q" copies 8 aligned bytes at once.

Whoever has the memory may write anything into it, and a capture child reads what strangers send. So a reader takes
numbers out once, checks them against the size of a slot, and then uses those it has checked; the file is sealed
against being shortened.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Literal, NamedTuple

READER_MAIN, READER_ENGINE, READER_PICTURES = 0, 1, 2
READERS = 3
MAX_SIDE_PX = 16_384

Kind = Literal["exposure", "arrival"]

_KINDS: tuple[Kind, ...] = ("arrival", "exposure")
_MAGIC = 0x3130_474E_4952_4C56  # "VLRING01"
_PAGE = 4096
_WORDS = _PAGE // 8
_SLOTS, _SLOT_BYTES, _FLOOR = 1, 2, 3
_GENERATION, _SEQ, _TIME, _WIDTH, _HEIGHT, _KIND, _PINS = range(7)
_MAX_SLOTS = 32
_MAX_SLOT_BYTES = 3 * MAX_SIDE_PX * MAX_SIDE_PX
_MAX_PINS = 255
_MAX_NUMBER = 2**62
_TRIES = 32
_USUAL_SLOTS = 3
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class RingError(ValueError):
    """A frame that does not fit, or memory that is not a ring."""


class FrameHeader(NamedTuple):
    """What is known of a frame. ``kind``: whether the camera or the arrival of the data gave the time."""

    seq: int
    t_capture_ns: int
    kind: Kind
    width: int
    height: int


class Pinned:
    """A frame that the writer leaves alone until `release`. ``view``: RGB u8, height rows of 3 width bytes."""

    __slots__ = ("_held", "_reader", "_ring", "generation", "header", "slot", "view")

    def __init__(
        self, ring: Ring, reader: int, slot: int, generation: int, header: FrameHeader, view: memoryview
    ) -> None:
        self._ring = ring
        self._reader = reader
        self._held = True
        self.slot = slot
        self.generation = generation
        self.header = header
        self.view = view

    def release(self) -> bool:
        """Give the slot back; idempotent. False when it was written to meanwhile: what was read must not be used."""
        if not self._held:
            return True
        self._held = False
        whole = self._ring.holds(self.slot, self.generation)
        self._ring.unpin(self._reader, self.slot)
        return whole

    def __enter__(self) -> Pinned:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Ring:
    """A memory file of ``slots`` frames. One writer at a time; each reader number belongs to one process.

    A slot takes memory once a frame was written into it. ``dropped``: frames that this writer could not place because
    every slot was pinned.
    """

    def __init__(self, fd: int, slots: int, slot_bytes: int) -> None:
        """Maps ``fd``, which then belongs to the ring; `create` and `attach` are the ways to make one."""
        self.fd = fd
        self.slots = slots
        self.slot_bytes = slot_bytes
        self.dropped = 0
        self._stride = _stride(slot_bytes)
        self._map = mmap.mmap(fd, _PAGE + slots * self._stride)
        self._bytes = memoryview(self._map)
        self._words = self._bytes[:_PAGE].cast("Q")
        self._lock = threading.Lock()
        self._writing: tuple[int, int] | None = None
        self._filled = [0] * slots

    @classmethod
    def create(cls, slot_bytes: int, slots: int = 5) -> Ring:
        """Make the memory. ``slot_bytes``: of the largest frame, up to 805 MB; ``slots``: 3 to 32."""
        if not 1 <= slot_bytes <= _MAX_SLOT_BYTES or not 3 <= slots <= _MAX_SLOTS:
            raise RingError(
                f"{slots} slots of {slot_bytes} bytes, possible are 3..{_MAX_SLOTS} of 1..{_MAX_SLOT_BYTES}"
            )
        fd = os.memfd_create("vlm-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _PAGE + slots * _stride(slot_bytes))
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            ring = cls(fd, slots, slot_bytes)
        except BaseException:
            os.close(fd)
            raise
        ring._put_facts()
        return ring

    @classmethod
    def attach(cls, fd: int) -> Ring:
        """Map a ring of another process; ``fd`` then belongs to it. Raises RingError for anything else."""
        size = os.fstat(fd).st_size
        if size < _PAGE or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise RingError("not a ring: a sealed memory file of a page or more is expected")
        with mmap.mmap(fd, _PAGE, prot=mmap.PROT_READ) as head, memoryview(head) as view, view.cast("Q") as words:
            magic, slots, slot_bytes = words[0], words[_SLOTS], words[_SLOT_BYTES]
        if magic != _MAGIC or not 3 <= slots <= _MAX_SLOTS or not 1 <= slot_bytes <= _MAX_SLOT_BYTES:
            raise RingError(f"not a ring: {slots} slots of {slot_bytes} bytes")
        if size != _PAGE + slots * _stride(slot_bytes):
            raise RingError(f"a ring of {slots} slots of {slot_bytes} bytes does not have {size} bytes")
        return cls(fd, slots, slot_bytes)

    def close(self) -> None:
        """Give the memory back; views that are still held keep it until they are gone. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._words.release()
            self._bytes.release()
            try:
                self._map.close()
            except BufferError:  # a view is held: the memory goes with it
                return

    # ---- writer

    def write(
        self, rgb: bytes | bytearray | memoryview, width: int, height: int, seq: int, t_capture_ns: int, kind: Kind
    ) -> bool:
        """Publish a frame, copied from ``rgb`` (contiguous, 3 width height bytes). False when no slot was free.

        Raises RingError for a frame that is larger than a slot or whose bytes do not match its size.
        """
        with memoryview(rgb) as given:
            if not given.contiguous or given.nbytes != 3 * width * height:
                raise RingError(f"{given.nbytes} bytes are not a contiguous RGB frame of {width}x{height}")
            place = self.begin(given.nbytes)
            if place is None:
                return False
            with place, given.cast("B") if given.format != "B" or given.ndim != 1 else given as flat:
                place[:] = flat
        self.commit(width, height, seq, t_capture_ns, kind)
        return True

    def begin(self, nbytes: int) -> memoryview | None:
        """Take a slot and return ``nbytes`` of it to be filled before `commit`; None (and counted) when none is free.

        A begin without a commit leaves the slot empty. Raises RingError for more bytes than a slot has.
        """
        if not 0 < nbytes <= self.slot_bytes:
            raise RingError(f"a frame of {nbytes} bytes, a slot has {self.slot_bytes}")
        slot = self._claim()
        if slot is None:
            self.dropped += 1
            return None
        self._writing = (slot, nbytes)
        self._trim(slot, nbytes)
        return self._slot(slot, nbytes)

    def commit(self, width: int, height: int, seq: int, t_capture_ns: int, kind: Kind) -> None:
        """Publish what was written since `begin` as the newest frame."""
        if self._writing is None:
            raise RingError("commit without begin")
        slot, nbytes = self._writing
        header = FrameHeader(seq, t_capture_ns, kind, width, height)
        if _checked(header, self.slot_bytes) is None or 3 * width * height != nbytes:
            raise RingError(f"{header} does not describe the {nbytes} bytes that were written")
        self._writing = None
        at = _base(slot)
        words = self._words
        words[at + _SEQ], words[at + _TIME] = seq, t_capture_ns
        words[at + _WIDTH], words[at + _HEIGHT], words[at + _KIND] = width, height, _KINDS.index(kind)
        self._fence()
        words[at + _GENERATION] = self._last_generation() + 2

    # ---- readers

    def newest(self) -> FrameHeader | None:
        """The header of the newest frame, without taking it."""
        for _ in range(_TRIES):
            found = self._newest()
            if found is None:
                return None
            header = self._header(found[0])
            self._fence()
            if self.holds(*found):
                return header
        return None

    def take(self, reader: int, after_seq: int = -1) -> Pinned | None:
        """Pin the newest frame if its seq is above ``after_seq``."""
        for _ in range(_TRIES):
            found = self._newest()
            if found is None:
                return None
            pinned = self.pin(reader, *found)
            if pinned is not None and pinned.header.seq > after_seq:
                return pinned
            if pinned is not None:
                pinned.release()
                return None
            if self.holds(*found):  # its header is nonsense
                return None
        return None

    def pin(self, reader: int, slot: int, generation: int) -> Pinned | None:
        """Pin a known frame; None when its slot holds another one by now. At most 255 pins per reader and slot."""
        if not 0 <= slot < self.slots or not 0 <= reader < READERS:
            raise RingError(f"reader {reader}, slot {slot}: there are {READERS} readers and {self.slots} slots")
        at = self._pin_place(reader, slot)
        with self._lock:
            if self._bytes[at] == _MAX_PINS:
                return None
            self._bytes[at] += 1
        self._fence()
        if generation and not generation & 1 and self._words[_base(slot) + _GENERATION] == generation:
            header = self._header(slot)
            if header is not None:
                view = self._slot(slot, 3 * header.width * header.height).toreadonly()
                return Pinned(self, reader, slot, generation, header, view)
        self.unpin(reader, slot)
        return None

    def unpin(self, reader: int, slot: int) -> None:
        """Take one pin back; `Pinned.release` does it."""
        at = self._pin_place(reader, slot)
        with self._lock:
            if self.fd >= 0 and self._bytes[at]:
                self._bytes[at] -= 1

    def unpin_all(self, reader: int) -> None:
        """Take all pins of a reader back: its process is gone."""
        for slot in range(self.slots):
            self._bytes[self._pin_place(reader, slot)] = 0

    def holds(self, slot: int, generation: int) -> bool:
        """Whether the slot still holds this frame, not even begun to be overwritten."""
        self._fence()
        return self.fd >= 0 and self._words[_base(slot) + _GENERATION] == generation

    # ---- owner

    def invalidate(self) -> None:
        """From now on no frame is the newest until another one is written: the source is lost.

        Also puts right the facts and the generations that a writer gone mad may have left behind.
        """
        self._put_facts()
        if self._last_generation() < _MAX_NUMBER:
            self._words[_FLOOR] = self._last_generation()
            return
        for slot in range(self.slots):
            self._words[_base(slot) + _GENERATION] = 0
        self._words[_FLOOR] = 0

    # ---- inside

    def _put_facts(self) -> None:
        self._words[0], self._words[_SLOTS], self._words[_SLOT_BYTES] = _MAGIC, self.slots, self.slot_bytes

    def _generations(self) -> Iterator[tuple[int, int]]:
        for slot in range(self.slots):
            yield slot, self._words[_base(slot) + _GENERATION]

    def _last_generation(self) -> int:
        """The highest even generation there is or was begun."""
        return max(generation for _, generation in self._generations()) & ~1

    def _newest(self) -> tuple[int, int] | None:
        floor = self._words[_FLOOR]
        found = max(((g, slot) for slot, g in self._generations() if not g & 1), default=(0, 0))
        return (found[1], found[0]) if found[0] > floor else None

    def _claim(self) -> int | None:
        """A slot that nobody reads and that is not the newest, marked as being written."""
        newest = self._newest()
        by_age = sorted((generation, slot) for slot, generation in self._generations())
        fresh = [place for place in by_age if not place[0]]
        if self.slots - len(fresh) >= _USUAL_SLOTS:  # memory is taken for more only when these are pinned
            by_age = by_age[len(fresh) :] + fresh
        for generation, slot in by_age:
            at = _base(slot)
            if (newest is not None and slot == newest[0]) or self._words[at + _PINS]:
                continue
            self._words[at + _GENERATION] = generation | 1
            self._fence()
            if not self._words[at + _PINS]:
                return slot
            self._words[at + _GENERATION] = generation
        return None

    def _trim(self, slot: int, nbytes: int) -> None:
        """Give back the memory of a larger frame that was in the slot before."""
        keep = _stride(nbytes)
        if self._filled[slot] > keep:
            self._map.madvise(mmap.MADV_REMOVE, _PAGE + slot * self._stride + keep, self._filled[slot] - keep)
        self._filled[slot] = keep

    def _slot(self, slot: int, nbytes: int) -> memoryview:
        start = _PAGE + slot * self._stride
        return self._bytes[start : start + nbytes]

    def _header(self, slot: int) -> FrameHeader | None:
        at = _base(slot)
        _, seq, t_ns, width, height, kind = self._words[at : at + _PINS].tolist()
        return _checked(FrameHeader(seq, t_ns, _KINDS[kind & 1], width, height), self.slot_bytes)

    def _pin_place(self, reader: int, slot: int) -> int:
        return 8 * (_base(slot) + _PINS) + reader

    def _fence(self) -> None:
        """A full barrier. Python has none, but its locks are made of atomics.

        x86: the locked instruction of one acquire is a full barrier. aarch64: the release of the first pair orders all
        earlier stores, the acquire of the second orders all later loads, and a store-release followed by a
        load-acquire stay in this order (they are RCsc); one pair would let an earlier store pass a later load.
        """
        with self._lock:
            pass
        with self._lock:
            pass


def _checked(header: FrameHeader, slot_bytes: int) -> FrameHeader | None:
    """The header, if such a frame can be in a slot."""
    seq, t_ns, _, width, height = header
    whole = 0 <= seq < _MAX_NUMBER and 0 <= t_ns < _MAX_NUMBER
    sized = 1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX and 3 * width * height <= slot_bytes
    return header if whole and sized else None


def _base(slot: int) -> int:
    return 8 * (slot + 1)


def _stride(slot_bytes: int) -> int:
    return -(-slot_bytes // _PAGE) * _PAGE
