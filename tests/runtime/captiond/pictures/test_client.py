"""Pictures as the daemon asks for them, with real children: JPEGs, sharing, scenes, uploads, children in trouble."""

from __future__ import annotations

import asyncio
import io
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.captiond.capture.launcher import Launcher
from runtime.captiond.capture.ring import READER_ENGINE, READER_PICTURES, Ring
from runtime.captiond.clock import Clock
from runtime.captiond.pictures.client import Jpeg, Pictures
from runtime.errors import ImageError
from tests.runtime.captiond.clocks import ManualClock
from tests.runtime.captiond.outputs.running import eventually

ROOT = Path(__file__).resolve().parents[4]
WIDTH, HEIGHT = 64, 48


class Camera:
    """A ring that is written by the test."""

    def __init__(self) -> None:
        self.ring = Ring.create(3 * 640 * 480)
        self.seq = -1

    def show(self, level: int = 100, box: bool = False) -> int:
        pixels = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
        pixels[:, : WIDTH // 2] //= 2
        if box:
            pixels[:, 20:40] = 250
        self.seq += 1
        self.ring.write(pixels.tobytes(), WIDTH, HEIGHT, self.seq, time.monotonic_ns(), "arrival")
        return self.seq

    def place(self) -> tuple[int, int]:
        pinned = self.ring.take(READER_ENGINE)
        assert pinned is not None
        with pinned:
            return pinned.slot, pinned.generation

    def pins(self) -> list[int]:
        return [self.ring._bytes[self.ring._pin_place(READER_PICTURES, slot)] for slot in range(self.ring.slots)]


@asynccontextmanager
async def pictures(clock: Clock | None = None, **limits: float) -> AsyncIterator[tuple[Pictures, Camera]]:
    launcher, camera = Launcher(), Camera()
    one = Pictures(launcher, clock or Clock(), **{"deadline_s": 30.0, **limits})  # type: ignore[arg-type]
    one.attach("door", camera.ring)
    try:
        yield one, camera
    finally:
        await one.close()
        await launcher.close()
        camera.ring.close()


def run(test: Callable[[Pictures, Camera], Awaitable[None]], clock: Clock | None = None, **limits: float) -> None:
    async def main() -> None:
        async with pictures(clock, **limits) as (one, camera):
            await test(one, camera)

    asyncio.run(main())


def pixels(jpeg: Jpeg | None) -> np.ndarray:
    assert jpeg is not None
    shown = np.asarray(Image.open(io.BytesIO(jpeg.data)))
    assert shown.shape == (jpeg.height, jpeg.width, 3)
    return shown


def test_a_jpeg_shows_the_newest_frame_or_the_one_that_is_asked_for() -> None:
    async def test(one: Pictures, camera: Camera) -> None:
        assert await one.jpeg("door", max_side_px=64) is None
        camera.show(60)
        first = camera.place()
        camera.show(200)
        newest = await one.jpeg("door", max_side_px=64, quality=95)
        assert newest is not None and newest.seq == 1
        assert abs(int(pixels(newest)[10, 60, 0]) - 200) < 8
        older = await one.jpeg("door", slot=first, max_side_px=32, quality=95)
        assert older is not None and (older.seq, older.width, older.height) == (0, 32, 24)
        assert abs(int(pixels(older)[10, 28, 0]) - 60) < 8
        assert await one.jpeg("door", max_side_px=64, after_seq=1) is None
        assert await one.jpeg("yard", max_side_px=64) is None
        for _ in range(camera.ring.slots):
            camera.show()
        assert await one.jpeg("door", slot=first, max_side_px=48) is None
        camera.ring.invalidate()
        assert await one.jpeg("door", max_side_px=64) is None
        assert camera.pins() == [0] * camera.ring.slots
        one.detach("door")
        assert await one.jpeg("door", max_side_px=64) is None

    run(test)


def test_an_overlay_is_drawn_and_is_another_picture() -> None:
    async def test(one: Pictures, camera: Camera) -> None:
        camera.show(100)
        plain = pixels(await one.jpeg("door", max_side_px=64, quality=95))
        words = pixels(await one.jpeg("door", max_side_px=64, quality=95, overlay="a red \x1bball" * 9000))
        assert np.abs(plain.astype(int) - words).max() > 60

    run(test)


def test_viewers_of_one_frame_cost_one_encoding() -> None:
    async def test(one: Pictures, camera: Camera) -> None:
        camera.show()
        made = await asyncio.gather(*(one.jpeg("door", max_side_px=64) for _ in range(20)))
        again = await one.jpeg("door", max_side_px=64)
        assert {id(jpeg) for jpeg in made} == {id(again)}
        assert (one.stats.encoded, one.stats.shared) == (1, 20)
        assert await one.jpeg("door", max_side_px=32) is not again
        other = Camera()
        other.show(250)
        one.attach("door", other.ring)
        replaced = await one.jpeg("door", max_side_px=64)
        assert replaced is not again and int(pixels(replaced)[10, 60, 0]) > 240
        one.detach("door")
        other.ring.close()

    run(test)


def test_live_pictures_are_newer_each_time_and_shared_by_their_viewers() -> None:
    clock = ManualClock()

    async def test(one: Pictures, camera: Camera) -> None:
        seen: list[list[int]] = [[], [], []]

        async def view(number: int) -> None:
            async for jpeg in one.frames("door", 10.0, 64, lambda: "caption"):
                seen[number].append(jpeg.seq)

        viewers = [asyncio.ensure_future(view(number)) for number in range(3)]
        for step in range(5):
            camera.show(10 * step)
            await clock.advance(0.1)
            await eventually(lambda: all(len(one) == step + 1 for one in seen))  # noqa: B023
            await clock.advance(0.3)  # no newer frame: nothing
        assert seen == [[0, 1, 2, 3, 4]] * 3
        assert one.stats.encoded == 5
        for viewer in viewers:
            viewer.cancel()
        await asyncio.wait(viewers)

    run(test, clock)


def test_a_scene_is_compared_with_the_one_that_was_kept() -> None:
    async def test(one: Pictures, camera: Camera) -> None:
        camera.show(100)
        assert await one.changed("door", camera.place()) == 1.0
        assert await one.keep_scene("door", camera.place())
        camera.show(100)
        assert await one.changed("door", camera.place()) == 0.0
        camera.show(100, box=True)
        assert 0.15 < await one.changed("door", camera.place()) < 0.6
        assert await one.changed("door", (0, 999_998)) == 1.0
        assert not await one.keep_scene("door", (0, 999_998))
        assert await one.changed("yard", camera.place()) == 1.0

    run(test)


def encoded(size: tuple[int, int] = (40, 30), format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(file, format)
    return file.getvalue()


def test_an_upload_becomes_pixels_in_sealed_memory_and_bad_ones_are_told_apart() -> None:
    async def test(one: Pictures, camera: Camera) -> None:
        data = encoded()
        image = await one.decode(data)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        got = np.frombuffer(os.pread(image.fd, 10**6, 0), np.uint8).reshape(image.height, image.width, 3)
        assert np.array_equal(got, expected)
        with pytest.raises(PermissionError):
            os.ftruncate(image.fd, 0)
        os.close(image.fd)
        for bad in (b"GIF89a", data[:100], data[: len(data) // 2]):
            with pytest.raises(ImageError):
                await one.decode(bad)
        before = open_files()
        with pytest.raises(ImageError, match="limit is 2000 px"):
            await one.decode(encoded((100, 100)))
        assert open_files() == before
        assert (one.stats.decoded, one.stats.deaths) == (1, 0)
        [pid] = one.pids
        assert 0 < resource.prlimit(pid, resource.RLIMIT_DATA)[0] < 1 << 30
        assert 0 < resource.prlimit(pid, resource.RLIMIT_CPU)[0] < 60

    run(test, max_pixels=2000)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def bomb(side: int) -> bytes:
    """A PNG of ``side`` squared pixels of one colour: some kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(1)
    row = bytes(1 + 4 * side)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_decompression_bomb_costs_its_request_alone() -> None:
    async def test(one: Pictures, camera: Camera) -> None:
        camera.show()
        with pytest.raises(ImageError):
            await one.decode(bomb(12_000))  # 576 MB as RGBA, more than the child may have
        with pytest.raises(ImageError, match="limit"):
            small = bomb(16)
            await one.decode(small[:16] + (13_000).to_bytes(4, "big") * 2 + small[24:])
        assert await one.jpeg("door", max_side_px=64) is not None
        image = await one.decode(encoded())
        os.close(image.fd)

    run(test, max_pixels=150_000_000)


def test_a_child_that_hangs_is_killed_at_its_deadline_and_the_next_request_is_served() -> None:
    clock = ManualClock()

    async def test(one: Pictures, camera: Camera) -> None:
        camera.show()
        assert await one.jpeg("door", max_side_px=64) is not None
        pinned = camera.ring.take(READER_PICTURES)  # as if the child had died while it read
        assert pinned is not None
        [pid] = one.pids
        os.kill(pid, signal.SIGSTOP)
        waiting = asyncio.ensure_future(one.jpeg("door", max_side_px=32))
        behind = asyncio.ensure_future(one.jpeg("door", max_side_px=16))
        await clock.advance(4.9)
        assert not waiting.done()
        await clock.advance(0.2)
        assert await waiting is None
        assert (await behind) is not None
        assert one.pids != [pid]
        assert (one.stats.hangs, one.stats.deaths) == (1, 0)
        assert camera.pins() == [0] * camera.ring.slots

    run(test, clock, deadline_s=5.0)


def test_a_child_that_dies_is_replaced_and_has_forgotten_the_scene() -> None:
    async def test(one: Pictures, camera: Camera) -> None:
        camera.show()
        assert await one.keep_scene("door", camera.place())
        os.kill(one.pids[0], signal.SIGSEGV)
        await eventually(lambda: one.stats.deaths == 1)
        assert one.pids == []
        assert await one.changed("door", camera.place()) == 1.0
        assert await one.jpeg("door", max_side_px=64) is not None

    run(test)


def test_a_caller_who_gives_up_disturbs_nobody() -> None:
    async def test(one: Pictures, camera: Camera) -> None:
        camera.show()
        given_up = asyncio.ensure_future(one.jpeg("door", max_side_px=64))
        upload = asyncio.ensure_future(one.decode(encoded()))
        await asyncio.sleep(0)
        given_up.cancel()
        upload.cancel()
        await asyncio.wait({given_up, upload})
        assert await one.jpeg("door", max_side_px=32) is not None
        assert one.stats.deaths == one.stats.hangs == 0

    run(test)


def test_a_child_without_work_is_stopped() -> None:
    clock = ManualClock()

    async def test(one: Pictures, camera: Camera) -> None:
        camera.show()
        assert await one.jpeg("door", max_side_px=64) is not None
        await clock.advance(59)
        assert len(one.pids) == 1
        assert await one.jpeg("door", max_side_px=32) is not None
        await clock.advance(59)
        assert len(one.pids) == 1
        await clock.advance(2)
        await eventually(lambda: one.pids == [])
        assert (one.stats.deaths, one.stats.hangs) == (0, 0)
        assert await one.jpeg("door", max_side_px=16) is not None

    run(test, clock)


def test_after_close_there_is_nothing_left() -> None:
    async def main() -> None:
        async with pictures() as (one, camera):
            camera.show()
            await one.jpeg("door", max_side_px=64)
            [pid] = one.pids
            underway = asyncio.ensure_future(one.jpeg("door", max_side_px=32))
            await asyncio.sleep(0)
        assert not Path(f"/proc/{pid}").exists()
        assert one.pids == []
        await asyncio.wait({underway})
        assert await one.jpeg("yard", max_side_px=8) is None

    asyncio.run(main())


def test_the_main_process_needs_neither_numpy_nor_opencv() -> None:
    script = (
        "import sys, runtime.captiond.pictures.client;"
        "assert not {'numpy', 'cv2', 'PIL'} & set(sys.modules);"
        "import runtime.captiond.pictures.child; assert 'cv2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
