"""Questions to an engine, with a stand-in's real process at the other end and a clock that stands still."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.captiond.asks import Ask, AskDelta, AskMessage, ConstraintSpec, SharedImage
from runtime.captiond.capture.ring import READER_ENGINE
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine.asked import Asked
from runtime.captiond.engine.client import EngineClient
from runtime.captiond.events import EngineChanged, FrameFacts
from runtime.errors import BusyError, DeadlineError, EngineError, ImageError, SourceError, UsageError
from tests.runtime.captiond.clocks import ManualClock
from tests.runtime.captiond.engine.engines import caption, chat, engine, eventually, ring_with, write
from tests.runtime.captiond.stand_in_engine import MODEL, stand_in_command

ENDLESS = '{"do": "endless", "token_s": 0.005}'


async def first_delta(asked: Asked) -> AskDelta:
    return await asked.__anext__()


def test_answer_comes_token_by_token_and_then_whole() -> None:
    async def main() -> None:
        async with engine(stand_in_command(words=6)) as made:
            asked = made.client.ask(chat(max_new_tokens=5, top_logprobs=2))
            deltas = [delta async for delta in asked]
            result = await asked.result()
            assert await asked.started() is None
            assert [delta.index for delta in deltas] == [0, 1, 2, 3, 4]
            assert "".join(delta.text for delta in deltas) == result.text == "a stand-in saw nothing 4"
            assert (result.finish_reason, result.completion_tokens, result.frame) == ("length", 5, None)
            assert result.first_t_ns == deltas[0].t_ns and result.last_t_ns == deltas[-1].t_ns
            token = deltas[1].token
            assert token is not None and token.bytes == b" stand-in" and len(deltas[1].top) == 2
            assert made.client.stats.asks == 1 and made.client.stats.tokens == 5
            assert made.client.model == MODEL
            assert made.client.facts is not None and made.client.facts.max_seq_len == 4096
        assert made.states == ["ready", "stopped"]
        assert made.client.pid is None and not made.client.answering

    asyncio.run(main())


def test_caption_names_the_newest_frame_and_keeps_it_in_place_until_its_end() -> None:
    async def main() -> None:
        clock = ManualClock(now_ns=10 * 10**9)
        async with engine(stand_in_command(token_s=0.005), clock=clock) as made:
            ring = ring_with((8, 6), (10, 4))
            made.client.attach_source("door", ring)
            asked = made.client.ask(caption(text=ENDLESS))
            frame = await asked.started()
            wall = 1_700_000_000.0
            assert frame == FrameFacts("door", 1, 2 * 10**9, wall + 2, "exposure", 10, 4)
            assert asked.place is not None
            for seq in range(2, 12):  # twice around the ring: the slot is left alone
                write(ring, seq)
            pinned = ring.pin(READER_ENGINE, *asked.place)
            assert pinned is not None and pinned.header.seq == 1
            pinned.release()
            asked.cancel()
            result = await asked.result()
            assert result.finish_reason == "cancelled" and result.frame == frame
            assert result.text.startswith("a stand-in saw 10x4") or len(result.text) < 20
            for seq in range(12, 22):
                write(ring, seq)
            assert ring.pin(READER_ENGINE, *asked.place) is None
            made.client.detach_source("door")
            ring.close()

    asyncio.run(main())


def test_caption_without_a_newer_frame_or_without_its_source_is_a_source_error() -> None:
    async def main() -> None:
        async with engine(stand_in_command()) as made:
            ring = ring_with((8, 6))
            with pytest.raises(SourceError, match="no source 'door'"):
                await made.client.ask(caption()).started()
            made.client.attach_source("door", ring)
            assert (await made.client.ask(caption(after_seq=-1)).result()).text == "a stand-in saw 8x6"
            with pytest.raises(SourceError, match="newer than 0"):
                await made.client.ask(caption(after_seq=0)).result()
            made.client.detach_source("door")
            with pytest.raises(SourceError, match="no source"):
                await made.client.ask(caption()).result()
            ring.close()

    asyncio.run(main())


def test_shared_images_reach_the_engine_and_their_files_stay_the_callers() -> None:
    async def main() -> None:
        async with engine(stand_in_command()) as made:
            file = os.memfd_create("image")
            os.write(file, bytes(3 * 5 * 7))
            for size, text in (((5, 7), "a stand-in saw 5x7"), ((6, 7), None), ((0, 7), None)):
                ask = Ask("chat", (AskMessage("user", (0, "?")),), (SharedImage(file, *size),))
                if text is None:
                    with pytest.raises(ImageError, match="no .* bytes"):
                        await made.client.ask(ask).result()
                else:
                    assert (await made.client.ask(ask).result()).text == text
            files = Path(f"/proc/{made.client.pid}/fd")
            open_before = len(list(files.iterdir()))
            ask = Ask("chat", (AskMessage("user", (0, "?")),), (SharedImage(file, 5, 7),))
            for _ in range(3):
                await made.client.ask(ask).result()
            assert len(list(files.iterdir())) == open_before
            os.close(file)
            with pytest.raises(EngineError, match="cannot be handed"):
                await made.client.ask(ask).result()
            assert (await made.client.ask(chat()).result()).text == "a stand-in saw nothing"

    asyncio.run(main())


def test_chats_beyond_their_slots_wait_and_beyond_the_queue_are_refused() -> None:
    async def main() -> None:
        settings = EngineSettings(chats=2, queue=3)
        async with engine(stand_in_command(), settings=settings) as made:
            asked = [made.client.ask(chat(ENDLESS)) for _ in range(5)]
            with pytest.raises(BusyError, match="3 chat requests wait already, the limit is 3"):
                made.client.ask(chat())
            assert (made.client.stats.running, made.client.stats.waiting) == (2, 3)
            await first_delta(asked[1])
            asked[4].cancel()
            assert (await asked[4].result()).finish_reason == "cancelled"
            made.client.ask(chat("late")).cancel()
            asked[0].cancel()
            await first_delta(asked[2])
            assert not asked[3].begun
            for one in asked:
                one.cancel()
            assert {(await one.result()).finish_reason for one in asked} == {"cancelled"}
            assert (made.client.stats.running, made.client.stats.waiting) == (0, 0)
            assert made.client.stats.refused == 1

    asyncio.run(main())


def test_captions_never_wait_for_chats_nor_chats_for_captions() -> None:
    async def main() -> None:
        async with engine(stand_in_command(), captions=1, settings=EngineSettings(chats=1)) as made:
            ring = ring_with((8, 6))
            made.client.attach_source("door", ring)
            chats = [made.client.ask(chat(ENDLESS)) for _ in range(3)]
            await first_delta(chats[0])
            assert (await made.client.ask(caption()).result()).finish_reason == "stop"
            for one in chats:
                one.cancel()
            captions = [made.client.ask(caption(text=ENDLESS)) for _ in range(3)]
            await first_delta(captions[0])
            assert (await made.client.ask(chat()).result()).finish_reason == "stop"
            assert (made.client.stats.captions_running, made.client.stats.captions_waiting) == (1, 2)
            for one in captions:
                one.cancel()
            made.client.detach_source("door")
            ring.close()

    asyncio.run(main())


def test_new_limits_hold_from_now_on() -> None:
    async def main() -> None:
        async with engine(stand_in_command(), settings=EngineSettings(chats=1, queue=0, deadline_s=60)) as made:
            first = made.client.ask(chat(ENDLESS))
            with pytest.raises(BusyError, match="limit is 0"):
                made.client.ask(chat())
            made.client.reload(EngineSettings(chats=1, queue=1, deadline_s=1, hang_s=2))
            short = made.client.ask(chat())
            await made.pass_time(1.5)
            with pytest.raises(DeadlineError):
                await short.result()
            first.cancel()
            await first.result()
            made.client.ask(chat('{"do": "hang", "at": 0}', max_new_tokens=1))
            await eventually(lambda: made.client.stats.running == 1)
            await made.pass_time(3)
            await eventually(lambda: made.client.stats.deaths == {"hang": 1})

    asyncio.run(main())


def test_engine_without_chat_slots_refuses_chats() -> None:
    async def main() -> None:
        async with engine(stand_in_command(), settings=EngineSettings(chats=0)) as made:
            with pytest.raises(UsageError, match="answers no chats"):
                made.client.ask(chat())

    asyncio.run(main())


def test_deadline_ends_an_answer_with_what_there_is_and_a_waiting_question_with_an_error() -> None:
    async def main() -> None:
        async with engine(stand_in_command(), settings=EngineSettings(chats=1, deadline_s=5)) as made:
            running, waiting = made.client.ask(chat(ENDLESS)), made.client.ask(chat())
            text = (await first_delta(running)).text
            await made.pass_time(4.7)
            assert not running.done and not waiting.done
            await made.pass_time(0.6)
            with pytest.raises(DeadlineError):
                await waiting.result()
            result = await running.result()
            assert result.finish_reason == "deadline" and result.text.startswith(text)
            assert (await made.client.ask(chat()).result()).finish_reason == "stop"
        assert made.states == ["ready", "stopped"]

    asyncio.run(main())


def test_questions_asked_while_it_loads_are_answered_when_it_is_loaded() -> None:
    async def main() -> None:
        async with engine(stand_in_command(load_s=0.2), load=False) as made:
            assert made.client.state.status == "loading" and made.client.model is None
            asked = made.client.ask(chat())
            assert made.client.stats.waiting == 1
            await made.client.first_load()
            assert (await asked.result()).finish_reason == "stop"

    asyncio.run(main())


def test_constraint_crosses_to_the_engine() -> None:
    async def main() -> None:
        async with engine(stand_in_command()) as made:
            ask = Ask("chat", (AskMessage("user", ("?",)),), constraint=ConstraintSpec("choice", choices=("yes", "no")))
            assert (await made.client.ask(ask).result()).text == "yes"

    asyncio.run(main())


def test_stopping_fails_what_waits_and_runs_and_leaves_no_process() -> None:
    async def main() -> None:
        made = EngineClient(EngineSettings(chats=1), 1, (events := []).append, ManualClock(), stand_in_command())
        task = asyncio.create_task(made.run())
        await made.wait_answering()
        pid = made.pid
        assert pid is not None
        asked = [made.ask(chat(ENDLESS)) for _ in range(2)]
        await first_delta(asked[0])
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        for one in asked:
            with pytest.raises(EngineError, match="was stopped"):
                await one.result()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert [event.status for event in events if isinstance(event, EngineChanged)] == ["ready", "stopped"]

    asyncio.run(main())


def test_engine_that_hangs_while_it_is_stopped_is_killed() -> None:
    async def main() -> None:
        async with engine(stand_in_command()) as made:
            made.client.ask(chat('{"do": "hang_loop", "at": 0}'))
            pid = made.client.pid
            assert pid is not None
            await eventually(lambda: made.client.stats.running == 1)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(main())


def test_engine_that_cannot_be_started_is_said_and_tried_again() -> None:
    async def main() -> None:
        async with engine(("/no/such/program",), load=False) as made:
            await eventually(lambda: made.client.stats.deaths["start"] >= 5)
            assert made.states[:5] == ["restarting"] * 4 + ["degraded"]
            assert "cannot be started" in made.client.state.message

    asyncio.run(main())
