"""The official client against a real server: answers whole and streamed, and clients that leave."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import aiohttp
import openai
import pytest

from runtime.captiond.asks import AskMessage, ConstraintSpec, NewestFrame, SharedImage
from runtime.errors import BusyError
from tests.runtime.captiond.http.parts import raw
from tests.runtime.captiond.openai.scripted import (
    DATA_URL,
    HELLO,
    JPEG,
    MODEL,
    ONE_IMAGE,
    TEXT,
    WORDS,
    Script,
    api,
    create,
    image,
    is_open,
    said,
    streamed,
    until,
)


def test_a_whole_answer_has_all_that_the_client_expects() -> None:
    async def main() -> None:
        async with api() as a:
            answer = await create(a)
            choice = answer.choices[0]
            assert answer.object == "chat.completion"
            assert answer.id.startswith("chatcmpl-")
            assert answer.model == MODEL
            assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
            assert (choice.message.role, choice.message.content) == ("assistant", TEXT)
            usage = answer.usage
            assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (17, 8, 25)
            assert usage.prompt_tokens_details.cached_tokens == 3
            assert [event.tokens for event in a.finished] == [8]
            assert a.finished[0].tokens_per_s == 7.0

    asyncio.run(main())


def test_a_streamed_answer_begins_with_the_role_and_ends_with_the_reason() -> None:
    async def main() -> None:
        async with api() as a:
            chunks = await streamed(a)
            assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
            assert len({chunk.id for chunk in chunks}) == 1
            deltas = [chunk.choices[0].delta for chunk in chunks]
            assert (deltas[0].role, deltas[0].content) == ("assistant", "")
            assert [delta.content for delta in deltas[1:-1]] == list(WORDS)
            assert all(delta.role is None for delta in deltas[1:])
            assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(WORDS) + 1) + ["stop"]
            assert all(chunk.usage is None for chunk in chunks)

    asyncio.run(main())


def test_stream_options_add_one_chunk_with_the_usage_at_the_end() -> None:
    async def main() -> None:
        async with api() as a:
            chunks = await streamed(a, stream_options={"include_usage": True})
            assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
            assert chunks[-1].choices == []
            assert chunks[-1].usage.total_tokens == 25
            assert chunks[-2].choices[0].finish_reason == "stop"

    asyncio.run(main())


def test_the_bytes_of_a_stream_are_server_sent_events_that_end_with_done() -> None:
    async def main() -> None:
        async with api() as a, aiohttp.ClientSession() as session:
            body = {"model": MODEL, "messages": HELLO, "stream": True}
            async with session.post(f"{a.url}/v1/chat/completions", json=body) as response:
                assert response.status == 200
                assert response.content_type == "text/event-stream"
                lines = (await response.text()).split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        assert all("usage" not in chunk for chunk in chunks)
        await asyncio.sleep(0)

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_come_with_bytes_and_the_best_others(stream: bool) -> None:
    async def main() -> None:
        async with api(Script(trailing="!")) as a:
            if stream:
                chunks = await streamed(a, logprobs=True, top_logprobs=2)
                entries = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
                assert "".join(c.choices[0].delta.content or "" for c in chunks) == TEXT + "!"
            else:
                answer = await create(a, logprobs=True, top_logprobs=2)
                entries = answer.choices[0].logprobs.content
                assert answer.choices[0].message.content == TEXT + "!"
            assert [entry.token for entry in entries] == list(WORDS), "one entry a token, none for text held back"
            assert [bytes(entry.bytes) for entry in entries] == [word.encode() for word in WORDS]
            assert {entry.logprob for entry in entries} == {-0.25}
            assert [len(entry.top_logprobs) for entry in entries] == [2] * len(WORDS)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"max_new_tokens": 512}),
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_completion_tokens": 7, "max_tokens": 5}, {"max_new_tokens": 7}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"top_p": 0}, {"top_k": 1}),
        ({"seed": 42}, {"seed": 42}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"stop": "END"}, {"stop": ("END",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"logprobs": True}, {"top_logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"top_logprobs": 20}),
        ({"n": 1, "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}, {}),
        ({"frequency_penalty": 0, "presence_penalty": 0.0, "tools": [], "logit_bias": {}, "tool_choice": "none"}, {}),
        ({"extra_body": {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}}, {"top_k": 5, "min_p": 0.1}),
        ({"extra_body": {"temperature": None, "stop": None, "response_format": None}}, {}),
        ({"parallel_tool_calls": True, "reasoning_effort": "low", "modalities": ["text"]}, {}),
    ],
)
def test_parameters_reach_the_engine(options: dict[str, Any], expected: dict[str, Any]) -> None:
    async def main() -> None:
        async with api() as a:
            await create(a, **options)
            assert {key: a.ask.params.get(key) for key in expected} == expected
            assert a.ask.constraint is None
            assert (a.ask.kind, a.ask.priority) == ("chat", 0)
            if not expected:
                assert set(a.ask.params) == {"max_new_tokens"}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, ConstraintSpec("json")),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}},
            ConstraintSpec("json_schema", schema={"type": "object"}),
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}},
            ConstraintSpec("json_schema", schema={"type": "null"}),
        ),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, ConstraintSpec("json")),
    ],
)
def test_response_formats_reach_the_engine(asked: Any, expected: ConstraintSpec | None) -> None:
    async def main() -> None:
        async with api() as a:
            await create(a, response_format=asked)
            assert a.ask.constraint == expected

    asyncio.run(main())


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (HELLO, [("user", ("What do you see?",))]),
        (
            [{"role": "system", "content": "Be short."}, *HELLO],
            [("system", ("Be short.",)), ("user", ("What do you see?",))],
        ),
        ([{"role": "developer", "content": "x"}, *HELLO], [("system", ("x",)), ("user", ("What do you see?",))]),
        (
            [*HELLO, {"role": "assistant", "content": "A dog."}, *said("?")],
            [("user", ("What do you see?",)), ("assistant", ("A dog.",)), ("user", ("?",))],
        ),
        ([*HELLO, {"role": "user", "content": "And?", "name": "Eve"}], [("user", ("What do you see?", "\n", "And?"))]),
        (ONE_IMAGE, [("user", ("What is it?", 0))]),
        (
            [*said("a"), {"role": "assistant", "content": None}, *said("b")],
            [("user", ("a",)), ("assistant", ("",)), ("user", ("b",))],
        ),
    ],
)  # fmt: skip
def test_messages_reach_the_engine(messages: list[Any], expected: list[Any]) -> None:
    async def main() -> None:
        async with api() as a:
            await create(a, messages)
            assert a.ask.messages == tuple(AskMessage(role, parts) for role, parts in expected)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "data"),
    [("image/jpeg", JPEG), ("image/jpg", JPEG), ("image/png", b"\x89PNG.."), ("IMAGE/WEBP", b"RIFF....")],
)
def test_data_urls_are_decoded_and_their_memory_is_given_back(kind: str, data: bytes) -> None:
    async def main() -> None:
        async with api() as a:
            url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
            await create(a, image(url, detail="low"))
            assert a.decoder.decoded == [data]
            assert a.ask.pictures == (SharedImage(a.decoder.fds[0], 1, 1),)
            await until(lambda: not is_open(a.decoder.fds[0]))

    asyncio.run(main())


def test_a_camera_is_asked_about_by_its_name() -> None:
    async def main() -> None:
        async with api() as a:
            await create(a, image("source:door"))
            assert a.ask.pictures == (NewestFrame("door", -1),)

    asyncio.run(main())


def test_the_payload_of_live_vlm_webui_is_answered() -> None:
    """What its 0.4.0 sends: one user turn of text and data URL, max_tokens, temperature 0.7, not streamed."""

    async def main() -> None:
        async with api() as a:
            answer = await create(a, ONE_IMAGE, max_tokens=512, temperature=0.7)
            assert answer.choices[0].message.content.strip() == TEXT
            assert a.ask.params == {"max_new_tokens": 512, "temperature": 0.7}

    asyncio.run(main())


def test_an_answer_that_ran_out_of_tokens_says_length() -> None:
    async def main() -> None:
        async with api() as a:
            assert (await create(a, max_tokens=3)).choices[0].finish_reason == "length"
            assert (await streamed(a, max_tokens=3))[-1].choices[0].finish_reason == "length"
            a.engine.script = Script(finish_reason="deadline")
            assert (await create(a)).choices[0].finish_reason == "length"

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_answer(stream: bool) -> None:
    async def main() -> None:
        async with api(Script(pause_at=2)) as a:
            body = json.dumps({"model": MODEL, "messages": ONE_IMAGE, "stream": stream}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{a.url.rpartition(':')[2]}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            _, writer = await asyncio.open_connection("127.0.0.1", int(a.url.rpartition(":")[2]))
            writer.write(head.encode() + body)
            await until(lambda: bool(a.engine.answers))
            writer.close()
            await until(a.engine.answers[0].cancelled.is_set)
            await until(lambda: not is_open(a.decoder.fds[0]))
            assert a.finished == []

    asyncio.run(main())


def test_a_client_that_stops_a_stream_cancels_its_answer() -> None:
    async def main() -> None:
        async with api(Script(pause_at=3)) as a, a.client() as client:
            stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            async for chunk in stream:
                if chunk.choices[0].delta.content == WORDS[1]:
                    break
            await stream.close()
            await until(a.engine.answers[0].cancelled.is_set)

    asyncio.run(main())


def test_pictures_of_a_request_that_is_refused_late_are_given_back() -> None:
    async def main() -> None:
        async with api(Script(refuse=BusyError("8 requests wait"))) as a:
            with pytest.raises(openai.RateLimitError):
                await create(a, ONE_IMAGE)
            assert not is_open(a.decoder.fds[0])
            two = [
                {
                    "role": "user",
                    "content": [*image(DATA_URL)[0]["content"], *image("data:image/png;base64,AAAA")[0]["content"]],
                }
            ]
            with pytest.raises(openai.BadRequestError):
                await create(a, two)
            assert not is_open(a.decoder.fds[1])

    asyncio.run(main())  # fmt: skip


def test_a_get_of_completions_is_405() -> None:
    async def main() -> None:
        async with api() as a:
            port = int(a.url.rpartition(":")[2])
            head = f"GET /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
            assert b" 405 " in (await raw(port, head.encode())).split(b"\r\n")[0]

    asyncio.run(main())


def test_the_synchronous_client_is_served_too() -> None:
    async def main() -> None:
        async with api() as a:

            def ask() -> str | None:
                with openai.OpenAI(base_url=f"{a.url}/v1", api_key="x", max_retries=0) as client:
                    return client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content

            assert await asyncio.to_thread(ask) == TEXT

    asyncio.run(main())
