"""Frames in shared memory: the newest wins, a pinned one stays whole, and lies in the memory hurt nobody."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from runtime.captiond.capture.ring import (
    READER_ENGINE,
    READER_MAIN,
    READER_PICTURES,
    FrameHeader,
    Pinned,
    Ring,
    RingError,
)

ROOT = Path(__file__).resolve().parents[4]
SIDE_PX = 16
SLOT_BYTES = 3 * SIDE_PX * SIDE_PX


def picture(value: int, side_px: int = 4) -> bytes:
    return bytes([value % 256]) * (3 * side_px * side_px)


def write(ring: Ring, seq: int, side_px: int = 4) -> bool:
    return ring.write(picture(seq, side_px), side_px, side_px, seq, 1000 + seq, "arrival")


@pytest.fixture
def ring() -> object:
    made = Ring.create(SLOT_BYTES)
    yield made
    made.close()


def test_a_reader_gets_the_newest_frame_and_its_facts(ring: Ring) -> None:
    assert ring.newest() is None and ring.take(READER_MAIN) is None
    for seq in range(12):
        assert write(ring, seq)
    header = FrameHeader(11, 1011, "arrival", 4, 4)
    assert ring.newest() == header
    with ring.take(READER_MAIN) as pinned:
        assert pinned.header == header and bytes(pinned.view) == picture(11)
    assert ring.take(READER_MAIN, after_seq=11) is None


def test_another_process_sees_the_same_frames(ring: Ring) -> None:
    other = Ring.attach(os.dup(ring.fd))
    assert other.write(picture(7), 4, 4, 7, 1, "exposure")
    assert ring.newest() == FrameHeader(7, 1, "exposure", 4, 4)
    other.close()


def test_a_pinned_frame_stays_while_others_come(ring: Ring) -> None:
    write(ring, 0)
    held = [ring.take(reader) for reader in (READER_MAIN, READER_ENGINE, READER_PICTURES)]
    for seq in range(1, 30):
        assert write(ring, seq)
    for pinned in held:
        assert bytes(pinned.view) == picture(0) and pinned.release()


def test_three_frames_pinned_leave_room_for_a_newest_and_a_next_one(ring: Ring) -> None:
    held = []
    for seq, reader in enumerate((READER_MAIN, READER_ENGINE, READER_PICTURES)):
        write(ring, seq)
        held.append(ring.take(reader))
    assert all(write(ring, seq) for seq in range(3, 20)) and ring.dropped == 0
    assert [bytes(pinned.view) for pinned in held] == [picture(seq) for seq in range(3)]


def test_a_writer_that_finds_no_slot_drops_the_frame_and_counts_it(ring: Ring) -> None:
    held = []
    for seq in range(5):
        assert write(ring, seq)
        held.append(ring.take(READER_MAIN))
    assert not write(ring, 5) and ring.dropped == 1
    assert ring.newest().seq == 4
    held[0].release()
    assert write(ring, 6) and ring.newest().seq == 6


def test_the_newest_frame_is_not_given_up_for_one_that_is_only_being_written(ring: Ring) -> None:
    held = []
    for seq in range(4):
        write(ring, seq)
        held.append(ring.take(READER_MAIN))
    write(ring, 4)
    assert ring.begin(48) is None and ring.newest().seq == 4
    assert all(pinned.release() for pinned in held)


def test_a_known_frame_can_be_pinned_until_it_is_overwritten(ring: Ring) -> None:
    write(ring, 0)
    with ring.take(READER_ENGINE) as first:
        place = (first.slot, first.generation)
        again = ring.pin(READER_PICTURES, *place)
        assert again is not None and again.header.seq == 0
    again.release()
    for seq in range(1, 20):
        write(ring, seq)
    assert ring.pin(READER_PICTURES, *place) is None


def test_release_tells_that_a_frame_was_torn(ring: Ring) -> None:
    write(ring, 0)
    pinned = ring.take(READER_ENGINE)
    ring.unpin_all(READER_ENGINE)  # as if the reader counted as dead
    for seq in range(1, 10):
        write(ring, seq)
    assert pinned.release() is False
    assert pinned.release() is True  # said once, and taken back once


def test_pins_of_a_dead_reader_are_taken_back_and_those_of_others_stay(ring: Ring) -> None:
    write(ring, 0)
    dead, living = ring.take(READER_ENGINE), ring.take(READER_MAIN)
    ring.unpin_all(READER_ENGINE)
    for seq in range(1, 20):
        write(ring, seq)
    assert bytes(living.view) == picture(0) and living.release()
    assert dead is not None


def test_after_invalidate_no_old_frame_is_the_newest(ring: Ring) -> None:
    write(ring, 3)
    pinned = ring.take(READER_MAIN)
    ring.invalidate()
    assert ring.newest() is None and ring.take(READER_ENGINE) is None
    assert bytes(pinned.view) == picture(3) and pinned.release()
    write(ring, 4)
    assert ring.newest().seq == 4


@pytest.mark.parametrize("change", [(0, 4), (4, -1), (200, 200)], ids=str)
def test_a_frame_that_does_not_fit_is_refused(ring: Ring, change: tuple[int, int]) -> None:
    with pytest.raises((RingError, ValueError)):
        ring.write(bytes(max(0, 3 * change[0] * change[1])), *change, 0, 0, "arrival")
    assert ring.newest() is None
    assert write(ring, 1)


def test_bytes_that_do_not_match_their_size_are_refused(ring: Ring) -> None:
    with pytest.raises(RingError, match="47 bytes are not a contiguous RGB frame of 4x4"):
        ring.write(bytes(47), 4, 4, 0, 0, "arrival")
    place = ring.begin(48)
    place.release()
    with pytest.raises(RingError, match="does not describe"):
        ring.commit(8, 4, 0, 0, "arrival")
    with pytest.raises(RingError, match="a slot has"):
        ring.begin(SLOT_BYTES + 1)


def test_memory_that_is_no_ring_is_refused() -> None:
    plain = os.memfd_create("plain")
    os.ftruncate(plain, 1 << 20)
    with pytest.raises(RingError, match="sealed"):
        Ring.attach(plain)
    os.close(plain)
    honest = Ring.create(SLOT_BYTES)
    honest._words[2] = SLOT_BYTES * 1000
    with pytest.raises(RingError, match="does not have"):
        Ring.attach(honest.fd)
    honest._words[0] = 0
    with pytest.raises(RingError, match="not a ring"):
        Ring.attach(honest.fd)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(honest.fd, 4096)  # sealed: readers cannot be made to fault
    honest.close()


@given(words=st.lists(st.tuples(st.integers(4, 63), st.integers(0, 2**64 - 1)), max_size=24), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_lies_in_the_memory_make_no_reader_go_astray(words: list[tuple[int, int]], seed: int) -> None:
    """A child may write anything: a reader gets a frame that lies in its slot, or none, and never an error."""
    ring = Ring.create(SLOT_BYTES)
    rng = random.Random(seed)
    for seq in range(rng.randrange(4)):
        write(ring, seq)
    for at, value in words:
        ring._words[at] = value
    header = ring.newest()
    assert header is None or 3 * header.width * header.height <= SLOT_BYTES
    with ring.take(READER_MAIN) or Nothing() as pinned:
        if isinstance(pinned, Pinned):
            assert pinned.view.nbytes == 3 * pinned.header.width * pinned.header.height <= SLOT_BYTES
            assert len(bytes(pinned.view)) == pinned.view.nbytes
    ring.invalidate()
    assert ring.newest() is None
    for reader in (READER_MAIN, READER_ENGINE, READER_PICTURES):
        ring.unpin_all(reader)
    for slot in range(5):
        ring._words[8 * (slot + 1) + 6] = 0
    assert write(ring, 5) and ring.newest().seq == 5
    ring.close()


class Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


class Pins(RuleBasedStateMachine):
    """Any order of writes, pins, releases and losses: a held frame never changes, the newest is the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring.create(SLOT_BYTES)
        self.seq = 0
        self.last: int | None = None
        self.held: list[tuple[Pinned, int]] = []

    def teardown(self) -> None:
        self.held.clear()
        self.ring.close()

    @rule(side_px=st.integers(1, SIDE_PX))
    def write(self, side_px: int) -> None:
        busy = len({pinned.slot for pinned, _ in self.held})
        done = write(self.ring, self.seq, side_px)
        assert done or busy >= 4
        self.last = self.seq if done else self.last
        self.seq += 1

    @rule(reader=st.integers(0, 2))
    def take(self, reader: int) -> None:
        pinned = self.ring.take(reader)
        assert (pinned is None) == (self.last is None)
        if pinned is not None:
            assert pinned.header.seq == self.last
            self.held.append((pinned, pinned.header.seq))

    @rule(which=st.integers(0, 20))
    def release(self, which: int) -> None:
        if self.held:
            pinned, _ = self.held.pop(which % len(self.held))
            assert pinned.release()

    @rule()
    def lose(self) -> None:
        self.ring.invalidate()
        self.last = None

    @invariant()
    def held_frames_are_whole(self) -> None:
        for pinned, seq in self.held:
            assert set(pinned.view) == {seq % 256}


TestPins = Pins.TestCase
TestPins.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

WRITER = """
import os, random, struct, sys, time, zlib
from runtime.captiond.capture.ring import Ring
ring = Ring.attach(int(sys.argv[1])); seq = int(sys.argv[2]); rng = random.Random(seq)
print("ready", flush=True)
while True:
    side = rng.choice((8, 64, 256))
    body = os.urandom(64) * (3 * side * side // 64)
    body = body[:-4] + struct.pack("<I", zlib.crc32(body[:-4]))
    if ring.write(body, side, side, seq, time.monotonic_ns(), "arrival"):
        seq += 1
"""


def start_writer(ring: Ring, first_seq: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(ring.fd), str(first_seq)],
        cwd=ROOT,
        pass_fds=[ring.fd],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def is_whole(data: bytes) -> bool:
    return zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")


def test_frames_of_a_writer_at_full_speed_are_whole_and_in_order_over_its_sudden_deaths() -> None:
    """Readers in this process against writers in others, each killed with SIGKILL wherever it happens to be."""
    ring = Ring.create(3 * 256 * 256)
    rng = random.Random(1)
    seen, held = -1, []
    for _ in range(6):
        process = start_writer(ring, seen + 1_000)
        assert process.stdout is not None
        fresh, until = 0, time.monotonic() + 30
        while fresh < 300 and time.monotonic() < until:
            pinned = ring.take(rng.randrange(3), after_seq=seen)
            if pinned is None:
                continue
            fresh += 1
            assert pinned.header.seq > seen
            seen = pinned.header.seq
            data = bytes(pinned.view)
            assert len(data) == 3 * pinned.header.width * pinned.header.height and is_whole(data)
            held.append((pinned, data))
            if len(held) == 3:
                oldest, copy = held.pop(rng.randrange(3))
                assert bytes(oldest.view) == copy and oldest.release()
        assert fresh == 300
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        last = ring.take(READER_MAIN)  # whatever the dead writer left, the newest frame is whole
        assert last is not None and is_whole(bytes(last.view)) and last.release()
        ring.invalidate()
        assert ring.newest() is None
    for pinned, copy in held:
        assert bytes(pinned.view) == copy and pinned.release()
    held.clear()
    ring.close()


def test_a_slot_takes_memory_when_it_is_used_and_gives_it_back_when_frames_become_smaller() -> None:
    ring = Ring.create(3 * 2048 * 2048)

    def used() -> int:
        return os.fstat(ring.fd).st_blocks * 512

    assert used() <= 8192
    large = bytes(3 * 1024 * 1024)
    for seq in range(20):
        ring.write(large, 1024, 1024, seq, 0, "arrival")
    assert 3 * len(large) <= used() <= 3 * len(large) + 65_536  # three of five while nothing is pinned
    for seq in range(20, 40):
        write(ring, seq)
    assert used() <= 65_536
    ring.close()


def test_a_ring_leaves_no_file_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        ring = Ring.create(SLOT_BYTES)
        write(ring, 0)
        pinned = ring.take(READER_MAIN)
        ring.close()
        ring.close()
        assert bytes(pinned.view) == picture(0)  # the view outlives the ring
        pinned.release()
        del pinned, ring
    assert len(list(Path("/proc/self/fd").iterdir())) == before
