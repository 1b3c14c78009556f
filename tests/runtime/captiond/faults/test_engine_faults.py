"""Engines that die, hang and misbehave: each kind once, with a real process that does it to itself.

The daemon's clock is moved by hand, so that no wait depends on how fast this machine is.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from runtime.captiond.config.settings import EngineSettings
from runtime.errors import BundleError, EngineError, PromptError, VlmError
from tests.runtime.captiond.clocks import ManualClock
from tests.runtime.captiond.engine.engines import (
    Engine,
    caption,
    chat,
    engine,
    eventually,
    ring_with,
    write,
)
from tests.runtime.captiond.stand_in_engine import stand_in_command

DEMO = Path(__file__).resolve().parents[4] / "runtime" / "demo" / "demo-llava"
FINE = "a stand-in saw nothing"


async def is_well(made: Engine) -> None:
    """It answers, and says that it is ready."""
    assert (await made.client.ask(chat()).result()).text == FINE
    assert made.client.state.status == "ready"


@pytest.mark.parametrize(
    ("fault", "cause"), [("kill", "SIGKILL"), ("segv", "SIGSEGV"), ("exit", "exit 7"), ("sticky", "sticky")]
)
def test_death_amid_answers_fails_those_that_had_begun_and_asks_the_others_again(fault: str, cause: str) -> None:
    async def main() -> None:
        async with engine(stand_in_command(), settings=EngineSettings(chats=2)) as made:
            told = made.client.ask(chat('{"token_s": 0.001, "do": "endless"}'))
            first = await told.__anext__()
            deadly = made.client.ask(chat(f'{{"token_s": 0.01, "do": "{fault}", "at": 2}}'))
            waiting = [made.client.ask(chat()) for _ in range(2)]
            for asked in (told, deadly):
                with pytest.raises(EngineError) as caught:
                    await asked.result()
                assert "engine" in caught.value.message and caught.value.hint is not None
            assert first.text == "a"
            assert [(await asked.result()).text for asked in waiting] == [FINE, FINE]
            assert made.states == ["ready", "restarting", "ready"]
            assert made.causes == ["loaded", cause, "restarted"]
            assert made.client.stats.restarts == 1 and made.client.stats.deaths == {cause: 1}
            assert made.client.stats.asks == 4
            assert made.client.state.load_s is not None

    asyncio.run(main())


def test_question_without_a_token_is_asked_once_more_and_not_twice() -> None:
    async def main() -> None:
        async with engine(stand_in_command()) as made:
            asked = made.client.ask(chat('{"do": "segv", "at": 0}'))
            with pytest.raises(EngineError, match="SIGSEGV"):
                await asked.result()
            assert made.client.stats.deaths == {"SIGSEGV": 2}
            assert made.client.stats.retries == 1
            await is_well(made)

    asyncio.run(main())


def test_question_that_was_innocent_is_answered_by_the_next_life(tmp_path: Path) -> None:
    async def main() -> None:
        lives = [{"faults": [{"at": 0, "do": "kill"}]}, {}]
        async with engine(stand_in_command(lives, count_file=tmp_path / "lives")) as made:
            assert (await made.client.ask(chat()).result()).text == FINE
            assert made.states == ["ready", "restarting", "ready"]

    asyncio.run(main())


def test_caption_whose_frame_was_named_is_not_asked_again_and_its_frame_is_let_go(tmp_path: Path) -> None:
    async def main() -> None:
        lives = [{"faults": [{"at": 0, "do": "kill"}], "token_s": 0.01}, {}]
        async with engine(stand_in_command(lives, count_file=tmp_path / "lives")) as made:
            ring = ring_with((8, 6))
            made.client.attach_source("door", ring)
            asked = made.client.ask(caption())
            with pytest.raises(EngineError):
                await asked.result()
            place = asked.place
            assert (await made.client.ask(caption()).result()).text == "a stand-in saw 8x6"
            for seq in range(1, 8):
                write(ring, seq)
            assert place is not None and not ring.holds(*place)
            made.client.detach_source("door")
            ring.close()

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["stop", "hang", "hang_loop"])
def test_silence_amid_an_answer_is_a_hang_after_its_time_and_not_before(fault: str) -> None:
    async def main() -> None:
        async with engine(stand_in_command(), settings=EngineSettings(hang_s=20, deadline_s=600)) as made:
            asked = made.client.ask(chat(f'{{"do": "{fault}", "at": 2}}'))
            assert [(await asked.__anext__()).index for _ in range(2)] == [0, 1]
            await made.pass_time(19.5)
            assert not asked.done and made.states == ["ready"]
            await made.pass_time(1.0)
            with pytest.raises(EngineError, match="no token for 20 s"):
                await asked.result()
            await eventually(lambda: made.client.answering)
            assert made.causes == ["loaded", "hang", "restarted"]
            await is_well(made)

    asyncio.run(main())


def test_idle_engine_is_not_a_hang_and_a_stopped_one_is() -> None:
    async def main() -> None:
        async with engine(stand_in_command(), settings=EngineSettings(hang_s=20)) as made:
            for _ in range(3):
                await made.pass_time(15)
                await eventually(lambda: made.client.heard_ns == made.clock.now_ns())
            assert made.states == ["ready"]
            pid = made.client.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            await eventually(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "T")
            await made.pass_time(21)
            await eventually(lambda: made.causes == ["loaded", "hang", "restarted"])
            await is_well(made)

    asyncio.run(main())


def test_time_of_an_idle_engine_does_not_count_against_its_next_answer() -> None:
    async def main() -> None:
        async with engine(stand_in_command(), settings=EngineSettings(hang_s=20, deadline_s=600)) as made:
            await made.pass_time(15)
            os.kill(made.client.pid or 0, signal.SIGSTOP)  # it will not even say that it begins
            made.client.ask(chat())
            await made.pass_time(15)
            assert made.client.answering

    asyncio.run(main())


def test_daemon_that_was_stopped_itself_does_not_blame_the_engine() -> None:
    class Jumping(ManualClock):
        def jump(self, seconds: float) -> None:
            self._now_ns += round(seconds * 1e9)

    async def main() -> None:
        clock = Jumping()
        async with engine(stand_in_command(), clock=clock, settings=EngineSettings(deadline_s=600)) as made:
            asked = made.client.ask(chat('{"do": "endless", "token_s": 0.01}'))
            await asked.__anext__()
            clock.jump(60)
            await clock.advance(1)
            asked.cancel()
            assert (await asked.result()).finish_reason == "cancelled"
            assert made.states == ["ready"]

    asyncio.run(main())


@pytest.mark.parametrize(("load", "cause"), [("exit", "exit 3"), ("kill", "SIGKILL"), ("raise", "EngineError")])
def test_exit_during_load_is_another_try(load: str, cause: str, tmp_path: Path) -> None:
    async def main() -> None:
        command = stand_in_command([{"load": load}, {}], count_file=tmp_path / "lives")
        async with engine(command, load=False) as made:
            asked = made.client.ask(chat())
            await eventually(lambda: bool(made.states))
            assert made.causes == [cause]
            await made.pass_time(1)
            assert (await asked.result()).text == FINE
            assert made.client.stats.retries == 0

    asyncio.run(main())


def test_load_without_end_is_cut_off(tmp_path: Path) -> None:
    async def main() -> None:
        command = stand_in_command([{"load": "hang"}, {}], count_file=tmp_path / "lives")
        async with engine(command, load=False, settings=EngineSettings(load_s=30)) as made:
            await eventually(lambda: (tmp_path / "lives").exists())
            await made.pass_time(29)
            assert made.states == []
            await made.pass_time(2)
            await eventually(lambda: made.client.answering)
            assert made.causes == ["load", "restarted"]

    asyncio.run(main())


def test_refusal_to_load_is_told_with_its_reason_and_tried_again_with_patience() -> None:
    async def main() -> None:
        async with engine(stand_in_command(load="refuse"), load=False) as made:
            with pytest.raises(BundleError) as caught:
                await made.client.first_load()
            assert caught.value.hint == "python -m export.build_engines"
            assert made.client.state.status == "degraded" and made.client.state.cause == "BundleError"
            assert "no such directory" in made.client.state.message
            assert made.client.stats.restarts == 1
            for restarts, pause_s in ((2, 0.5), (3, 1.0), (4, 2.0)):
                await made.pass_time(pause_s + 0.1)
                await eventually(lambda restarts=restarts: made.client.stats.restarts == restarts)

    asyncio.run(main())


def test_five_deaths_in_a_minute_are_degraded_until_it_stays_up(tmp_path: Path) -> None:
    async def main() -> None:
        command = stand_in_command([{"load": "kill"}] * 6 + [{}], count_file=tmp_path / "lives")
        async with engine(command, load=False) as made:
            await eventually(lambda: made.client.stats.restarts == 5)
            assert made.states == ["restarting"] * 4 + ["degraded"]
            assert "in 0.5 s" in made.client.state.message
            asked = made.client.ask(chat())
            await made.pass_time(0.6)
            await eventually(lambda: made.client.stats.restarts == 6)
            assert made.states[5:] == ["degraded"] and "in 1 s" in made.client.state.message
            await made.pass_time(1.1)
            assert (await asked.result()).text == FINE  # it answers, but is not trusted yet
            assert made.client.state.status == "degraded" and made.client.answering
            await made.pass_time(10.5)
            assert made.client.state.status == "ready" and made.client.state.cause == "recovered"
            assert made.client.stats.deaths == {"SIGKILL": 6}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("raise", EngineError, "ZeroDivisionError: a bug of the engine"),
        ("nan", EngineError, "not finite"),
        ("prompt", PromptError, "5000 tokens"),
    ],
)
@pytest.mark.parametrize("at", [-1, 2], ids=["at once", "amid the answer"])
def test_error_of_one_question_is_its_own(fault: str, error: type[VlmError], says: str, at: int) -> None:
    async def main() -> None:
        async with engine(stand_in_command()) as made:
            other = made.client.ask(chat('{"words": 200, "token_s": 0.001}'))
            asked = made.client.ask(chat(f'{{"do": "{fault}", "at": {at}}}'))
            with pytest.raises(error, match=says) as caught:
                await asked.result()
            assert type(caught.value) is error
            assert (await other.result()).completion_tokens == 128
            assert made.states == ["ready"]

    asyncio.run(main())


def test_answer_without_end_is_ended_by_its_deadline() -> None:
    async def main() -> None:
        async with engine(stand_in_command(), settings=EngineSettings(deadline_s=5, chats=1)) as made:
            asked = made.client.ask(chat('{"do": "endless", "token_s": 0.001}'))
            await asked.__anext__()
            await made.pass_time(5.5)
            assert (await asked.result()).finish_reason == "deadline"
            await is_well(made)

    asyncio.run(main())


def test_child_that_speaks_nonsense_is_replaced(tmp_path: Path) -> None:
    first_life = tmp_path / "spoken"
    nonsense = (
        "import os, sys, time\n"
        f"if not os.path.exists({str(first_life)!r}):\n"
        f"    open({str(first_life)!r}, 'w').close()\n"
        "    os.write(int(sys.argv[-1]), bytes([0, 0, 0, 2]) + b'{}')\n"
        "    time.sleep(3600)\n"
    )

    async def main() -> None:
        python, option, start, *arguments = stand_in_command()
        async with engine((python, option, nonsense + start, *arguments), load=False) as made:
            await eventually(lambda: made.client.answering)
            assert made.causes == ["protocol", "restarted"]
            await is_well(made)

    asyncio.run(main())


def test_real_engine_that_crashes_is_loaded_again_and_answers_what_it_was_asked() -> None:
    async def main() -> None:
        async with engine(None, settings=EngineSettings(bundle=str(DEMO), chats=1)) as made:
            text = (await made.client.ask(chat("Describe the image.", max_new_tokens=20)).result()).text
            pid = made.client.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)  # the question arrives, and nothing more
            asked = made.client.ask(chat("Describe the image.", max_new_tokens=20))
            waiting = made.client.ask(chat("Describe the image.", max_new_tokens=20))
            os.kill(pid, signal.SIGSEGV)
            os.kill(pid, signal.SIGCONT)
            assert (await asked.result()).text == (await waiting.result()).text == text
            assert made.causes == ["loaded", "SIGSEGV", "restarted"]
            assert made.client.stats.retries == 1
            with pytest.raises(PromptError, match="context"):
                await made.client.ask(chat("word " * 5000)).result()
            assert made.states[-1] == "ready"

    asyncio.run(main())
