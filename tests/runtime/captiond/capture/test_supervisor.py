"""A source is tried for ever, its death is noticed in time, and nothing old is ever shown as new."""

from __future__ import annotations

import asyncio
import gc
import signal
from pathlib import Path

import pytest

from runtime.captiond.capture.probe import UnreachableError
from runtime.errors import ConfigError, SourceError
from tests.runtime.captiond.capture.captures import Bench
from tests.runtime.captiond.clocks import settle


def test_the_first_frame_makes_it_live_and_wakes_who_waits() -> None:
    async def main() -> None:
        async with Bench() as bench:
            waiting = asyncio.create_task(bench.runner.wait_frame())
            await settle()
            assert bench.told == [("connecting", "")]
            assert bench.runner.newest() is None
            bench.child.frame()
            assert (await waiting).seq == 0
            assert bench.runner.status == "live"
            later = asyncio.create_task(bench.runner.wait_frame(after_seq=0))
            await bench.play(0.4)
            assert (await later).seq == 1
            assert bench.told == [("connecting", ""), ("live", "")]
            stats = bench.runner.stats
            assert (stats.frames, stats.attempts, stats.reconnects) == (11, 1, 0)
            assert stats.fps == pytest.approx(25, rel=0.2)

    asyncio.run(main())


def test_silence_at_30_fps_is_noticed_within_2_s_and_the_child_is_killed() -> None:
    async def main() -> None:
        async with Bench() as bench:
            await bench.play(3, fps=30)
            passed_s = await bench.until(lambda: bench.runner.status == "no_signal", 10, step_s=0.01)
            assert 1.5 < passed_s <= 2.0
            assert bench.told[-1] == ("no_signal", "stalled")
            assert bench.runner.newest() is None
            assert bench.runner.ring.newest() is None, "an old frame is no longer the newest of the ring"
            assert not bench.launcher.children[0].alive
            assert bench.runner.stats.stalls == 1

    asyncio.run(main())


@pytest.mark.parametrize("told", [True, False])
def test_frames_count_though_their_messages_are_lost(told: bool) -> None:
    async def main() -> None:
        async with Bench() as bench:
            for _ in range(100):
                await bench.clock.advance(0.1)
                bench.child.frame(told=told)
            await bench.advance(0.6)
            assert bench.runner.status == "live"
            assert bench.runner.stats.frames == 100

    asyncio.run(main())


def test_a_camera_of_one_frame_in_five_seconds_is_not_taken_for_dead() -> None:
    async def main() -> None:
        async with Bench() as bench:
            for _ in range(20):
                bench.child.frame()
                await bench.advance(5)
            assert bench.told == [("connecting", ""), ("live", "")]
            await bench.until(lambda: bench.runner.status == "no_signal", 21, step_s=0.5)

    asyncio.run(main())


def test_a_camera_that_becomes_slow_is_lost_once_and_then_kept() -> None:
    async def main() -> None:
        async with Bench() as bench:
            await bench.play(4)
            for _ in range(200):  # now a frame each five seconds, from whichever child is there
                if bench.child.alive:
                    bench.child.frame()
                await bench.advance(5)
            assert bench.runner.stats.stalls <= 3
            assert bench.runner.status == "live"

    asyncio.run(main())


def test_no_first_frame_in_time_kills_the_child() -> None:
    async def main() -> None:
        async with Bench(open_timeout_s=4.0) as bench:
            bench.child.say(type="opened", width=2, height=2, fps=25.0)
            passed_s = await bench.until(lambda: bench.runner.status == "no_signal", 10)
            assert 3.9 <= passed_s <= 4.2
            assert bench.told[-1] == ("no_signal", "timeout")
            assert not bench.launcher.children[0].alive

    asyncio.run(main())


def test_a_session_that_hangs_is_replaced_sooner_when_the_source_is_known_as_quick() -> None:
    async def main() -> None:
        async with Bench(open_timeout_s=20.0) as bench:
            await bench.play(6)
            bench.child.exit(1)
            limits = []
            for number in range(1, 6):  # each attempt hangs
                await bench.until(lambda: len(bench.launcher.children) > number, 4)  # noqa: B023 (called at once)
                limits.append(await bench.until(lambda: not bench.launcher.children[number].alive, 30))  # noqa: B023
            assert limits == pytest.approx([3, 6, 12, 20, 20], abs=0.3)

    asyncio.run(main())


def test_a_source_that_takes_long_for_its_first_frame_gets_the_time_once_it_is_known() -> None:
    async def main() -> None:
        async with Bench(open_timeout_s=20.0) as bench:
            await bench.advance(5)
            for number in range(2, 5):
                await bench.play(1)
                bench.child.exit(1)
                await bench.until(lambda: len(bench.launcher.children) == number, 4)  # noqa: B023 (called at once)
                await bench.advance(14)
                assert bench.child.alive
            assert bench.runner.stats.reconnects == 2

    asyncio.run(main())


@pytest.mark.parametrize("t_ns", [1, 2**62 - 1])
def test_a_camera_s_own_time_does_not_decide_whether_it_is_alive(t_ns: int) -> None:
    async def main() -> None:
        async with Bench() as bench:
            for _ in range(100):
                await bench.clock.advance(0.04)
                bench.child.frame(t_ns=t_ns)
            await settle(100)
            assert bench.told == [("connecting", ""), ("live", "")]
            assert await bench.until(lambda: bench.runner.status == "no_signal", 3) > 1.5
            bench.child.exit(1)

    asyncio.run(main())


def test_a_launch_that_is_done_just_when_it_is_given_up_leaves_no_child() -> None:
    async def main() -> None:
        bench = Bench()
        bench.launcher.hang = True
        async with bench:
            bench.launcher.late = True  # the cancelled launch brings a child all the same
        assert [child.alive for child in bench.launcher.children] == [False]

    asyncio.run(main())


def test_a_source_that_was_lost_often_begins_to_say_no_with_a_short_wait() -> None:
    async def main() -> None:
        async with Bench() as bench:
            await bench.play(1)
            for _ in range(2):
                bench.away = UnreachableError("404", "no such stream")
                bench.child.exit(1)
                await bench.until(lambda: bench.events[-1].cause == "404", 4)
                assert (bench.events[-1].retry_in_s or 9) < 0.9
                await bench.advance(20)
                bench.away = None
                launched = len(bench.launcher.children)
                await bench.until(lambda: len(bench.launcher.children) > launched, 30)  # noqa: B023 (called at once)
                await bench.play(1)

    asyncio.run(main())


def test_the_first_signal_is_no_reconnect() -> None:
    async def main() -> None:
        async with Bench() as bench:
            bench.child.exit(1)
            await bench.until(lambda: len(bench.launcher.children) == 2, 4)
            await bench.play(1)
            assert bench.runner.stats.reconnects == 0
            assert bench.runner.stats.attempts == 2

    asyncio.run(main())


def test_a_launch_that_hangs_is_given_up() -> None:
    async def main() -> None:
        async with Bench(open_timeout_s=4.0) as bench:
            bench.child.exit(1)
            bench.launcher.hang = True
            await bench.until(lambda: ("no_signal", "launch") in bench.told, 10)
            bench.launcher.hang = False
            await bench.until(lambda: len(bench.launcher.children) == 2, 30)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "cause"), [(-signal.SIGSEGV, "crashed"), (-signal.SIGKILL, "killed"), (3, "exited"), (0, "exited")]
)
def test_a_child_that_goes_without_a_word_is_named_by_its_exit(status: int, cause: str) -> None:
    async def main() -> None:
        async with Bench() as bench:
            await bench.play(1)
            bench.child.exit(status)
            await settle(100)
            assert bench.told[-1] == ("no_signal", cause)
            await bench.until(lambda: bench.child.alive, 3)

    asyncio.run(main())


def test_a_stopped_child_is_a_silent_one() -> None:
    async def main() -> None:
        async with Bench() as bench:
            await bench.play(1)
            await bench.until(lambda: not bench.launcher.children[0].alive, 2.1)
            await bench.until(lambda: len(bench.launcher.children) == 2, 3)

    asyncio.run(main())


@pytest.mark.parametrize(("uri", "password"), [("rtsp://camera/1", "hunter2"), ("rtsp://me:hunter%32@camera/1", None)])
def test_what_a_child_says_is_shown_without_secrets(uri: str, password: str | None) -> None:
    async def main() -> None:
        async with Bench(uri=uri, password=lambda: password) as bench:
            message = "cannot open rtsp://me:hunter2@camera/1\x1b[31m with hunter2 " + 1000 * "x"
            bench.child.say(type="failed", cause="401", message=message)
            await settle(100)
            event = bench.events[-1]
            assert (event.status, event.cause) == ("no_signal", "401")
            assert "hunter2" not in event.message
            assert "\x1b" not in event.message
            assert len(event.message) <= 300

    asyncio.run(main())


@pytest.mark.parametrize("cause", [None, 7, "Two Words", "x" * 100])
def test_a_cause_that_is_no_word_becomes_failed(cause: object) -> None:
    async def main() -> None:
        async with Bench() as bench:
            bench.child.say(type="failed", cause=cause, message="…")
            await settle(100)
            assert bench.told[-1] == ("no_signal", "failed")

    asyncio.run(main())


def test_a_source_that_never_delivered_is_tried_ever_more_seldom_and_spoken_of_once() -> None:
    async def main() -> None:
        async with Bench() as bench:
            bench.away = UnreachableError("refused", "camera refuses the connection")
            bench.child.exit(1)
            await bench.advance(24 * 3600)
            assert bench.told == [("connecting", ""), ("no_signal", "exited"), ("no_signal", "refused")]
            waits = [later - sooner for sooner, later in zip(bench.probes, bench.probes[1:], strict=False)]
            assert 0.5 <= waits[0] <= 0.9
            assert all(18 <= wait <= 30 for wait in waits[12:])
            state = bench.runner.state
            assert state.attempt == bench.runner.stats.attempts == len(bench.probes)
            bench.away = None
            await bench.until(lambda: len(bench.launcher.children) == 2, 31)

    asyncio.run(main())


def test_a_source_that_was_there_is_asked_each_second_and_tried_when_it_answers() -> None:
    async def main() -> None:
        async with Bench() as bench:
            await bench.play(6)
            bench.away = UnreachableError("refused", "camera refuses the connection")
            bench.child.exit(1)
            await bench.advance(120)
            waits = [later - sooner for sooner, later in zip(bench.probes, bench.probes[1:], strict=False)]
            assert max(waits[1:]) <= 1.01
            launched = len(bench.launcher.children)
            assert launched == 1
            bench.away = None
            asked = len(bench.probes)
            await bench.until(lambda: len(bench.launcher.children) == launched + 1, 1.1)
            assert len(bench.probes) == asked + 1, "one answer is enough"
            assert bench.told.count(("no_signal", "refused")) == 1

    asyncio.run(main())


@pytest.mark.parametrize("cause", ["401", "403", "404"])
def test_a_camera_that_says_no_is_not_pestered(cause: str) -> None:
    async def main() -> None:
        async with Bench() as bench:
            await bench.play(6)
            bench.away = UnreachableError(cause, "no")
            bench.child.exit(1)
            await bench.advance(600)
            assert len(bench.probes) < 45

    asyncio.run(main())


def test_waits_are_short_again_after_two_good_seconds_and_not_before() -> None:
    async def main() -> None:
        async with Bench() as bench:
            waits = []
            for _ in range(12):
                await bench.play(1)
                bench.child.exit(1)
                await settle(100)
                waits.append(bench.runner.state.retry_in_s or 0.0)
                await bench.until(lambda: bench.child.alive, 4)
            assert waits[0] < 0.9 < 1.7 < waits[-1] <= 3.0
            await bench.play(2.1)
            bench.child.exit(1)
            await settle(100)
            assert (bench.runner.state.retry_in_s or 9) < 0.9

    asyncio.run(main())


def test_numbers_go_on_over_attempts_and_the_last_frame_before_a_death_counts() -> None:
    async def main() -> None:
        async with Bench() as bench:
            await bench.play(1)
            bench.child.frame(told=False)
            bench.child.exit(1)
            await settle(100)
            await bench.until(lambda: len(bench.launcher.children) == 2, 3)
            assert bench.child.first_seq == 26
            bench.child.frame()
            await settle(100)
            header = bench.runner.newest()
            assert header is not None
            assert header.seq == 26
            assert bench.runner.stats.reconnects == 1

    asyncio.run(main())


def test_a_number_that_no_sane_process_reached_is_not_believed() -> None:
    async def main() -> None:
        async with Bench() as bench:
            await bench.play(1)
            bench.child.frame(skip=2**61)
            await bench.until(lambda: bench.runner.status == "no_signal", 2.1)
            await bench.until(lambda: len(bench.launcher.children) == 2, 3)
            assert bench.child.first_seq == 25

    asyncio.run(main())


def test_a_file_ends_and_keeps_its_last_frame() -> None:
    async def main() -> None:
        async with Bench(uri="film.mp4") as bench:
            await bench.play(1)
            bench.child.say(type="ended")
            await settle(100)
            assert bench.ended
            assert bench.told == [("connecting", ""), ("live", ""), ("ended", "")]
            header = bench.runner.newest()
            assert header is not None
            assert header.seq == 24

    asyncio.run(main())


def test_a_loop_of_one_picture_takes_its_time() -> None:
    async def main() -> None:
        async with Bench(uri="picture.jpg", loop=True) as bench:
            for number in range(2, 5):
                bench.child.frame()
                bench.child.say(type="ended")
                assert await bench.until(lambda: len(bench.launcher.children) == number, 6) > 4.9  # noqa: B023
            assert bench.told == [("connecting", ""), ("live", "")]

    asyncio.run(main())


def test_a_looped_file_begins_again_without_a_gap() -> None:
    async def main() -> None:
        async with Bench(uri="film.mp4", loop=True) as bench:
            for number in range(1, 4):
                await bench.play(1)
                bench.child.say(type="ended")
                await settle(200)
                assert len(bench.launcher.children) == number + 1
            await bench.play(1)
            assert bench.told == [("connecting", ""), ("live", "")]
            assert bench.runner.stats.frames == 100

    asyncio.run(main())


@pytest.mark.parametrize("uri", ["rtsp://camera/1", "/dev/video0", "HTTP://camera/mjpeg", "gst:videotestsrc"])
def test_a_camera_never_ends(uri: str) -> None:
    async def main() -> None:
        async with Bench(uri=uri) as bench:
            await bench.play(1)
            bench.child.say(type="ended")
            await settle(100)
            assert bench.told[-1] == ("no_signal", "closed")
            await bench.until(lambda: len(bench.launcher.children) == 2, 3)

    asyncio.run(main())


def test_every_frame_goes_at_the_reader_s_pace_and_waiting_for_the_reader_is_no_silence() -> None:
    async def main() -> None:
        async with Bench(uri="film.mp4", every_frame=True, open_timeout_s=5.0) as bench:
            bench.child.frame()
            await bench.advance(600)
            assert bench.runner.status == "live"
            assert bench.child.heard == []
            waiting = [asyncio.create_task(bench.runner.wait_frame(0)) for _ in range(2)]
            await settle()
            assert bench.child.heard == [{"type": "next"}]
            bench.child.frame()
            assert [(await task).seq for task in waiting] == [1, 1]
            last = asyncio.create_task(bench.runner.wait_frame(1))
            await bench.until(lambda: bench.runner.status == "no_signal", 5.2)
            assert bench.told[-1] == ("no_signal", "stalled")
            last.cancel()

    asyncio.run(main())


def test_a_password_file_that_cannot_be_read_is_a_cause_and_is_read_again() -> None:
    async def main() -> None:
        words: list[str] = []

        def password() -> str:
            if not words:
                raise ConfigError("password_file: no such file")
            return words[-1]

        async with Bench(password=password) as bench:
            assert bench.told[-1] == ("no_signal", "failed")
            assert bench.events[-1].message == "password_file: no such file"
            words.append("one")
            await bench.until(lambda: bool(bench.launcher.children), 3)
            words.append("two")
            bench.child.exit(1)
            await bench.until(lambda: len(bench.launcher.children) == 2, 3)
            assert bench.launcher.passwords == ["one", "two"]

    asyncio.run(main())


def test_a_launcher_that_refuses_is_asked_again() -> None:
    async def main() -> None:
        async with Bench() as bench:
            bench.launcher.refusal = SourceError("no process")
            bench.child.exit(1)
            await bench.until(lambda: ("no_signal", "failed") in bench.told, 3)
            bench.launcher.refusal = None
            await bench.until(lambda: len(bench.launcher.children) == 2, 30)

    asyncio.run(main())


@pytest.mark.parametrize("stage", ["launching", "opening", "live", "resting"])
def test_cancelling_ends_the_child_at_any_stage(stage: str) -> None:
    async def main() -> None:
        bench = Bench()
        bench.launcher.hang = stage == "launching"
        async with bench:
            if stage == "live":
                await bench.play(1)
            if stage == "resting":
                bench.child.exit(1)
                await settle(100)
        assert not any(child.alive for child in bench.launcher.children)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def _held() -> tuple[int, int, int]:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks()), len(gc.get_objects())


def test_a_thousand_reconnects_leave_nothing_behind() -> None:
    async def main() -> None:
        async with Bench() as bench:

            async def reconnect(times: int) -> None:
                for number in range(times):
                    await bench.play(0.2, fps=10)
                    child = bench.child
                    if number % 3:
                        child.exit(-signal.SIGSEGV)
                    await bench.until(lambda: not child.alive, 11, step_s=1)  # noqa: B023 (called at once)
                    await bench.until(lambda: bench.child is not child, 4, step_s=1)  # noqa: B023
                    del bench.launcher.children[:-1], bench.launcher.passwords[:], bench.events[:], bench.probes[:]

            await reconnect(20)
            before = _held()
            await reconnect(1000)
            fds, tasks, objects = (after - sooner for after, sooner in zip(_held(), before, strict=True))
            assert (fds, tasks) == (0, 0)
            assert objects < 500, "less than one object in two reconnects"
            assert bench.runner.stats.reconnects >= 1000

    asyncio.run(main())


def test_the_main_process_needs_neither_numpy_nor_opencv_for_it() -> None:
    import subprocess
    import sys

    code = "import sys, runtime.captiond.capture.supervisor as s; print(sorted({'numpy', 'cv2'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[4]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
