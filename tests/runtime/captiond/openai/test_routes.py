"""The official client against a real server: answers whole and streamed, and every error in OpenAI's shape."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from typing import Any

import aiohttp
import openai
import pytest

from runtime.captiond.asks import AskMessage, ConstraintSpec, NewestFrame, SharedImage
from runtime.errors import BusyError, ClosedError, DeadlineError, EngineError, InputError, PromptError, VlmError
from tests.runtime.captiond.http.parts import ALL_KEYS, KEYS, raw
from tests.runtime.captiond.openai.scripted import MODEL, WORDS, Api, Script, api, unavailable, until

HELLO: list[Any] = [{"role": "user", "content": "What do you see?"}]
TEXT = "".join(WORDS)
JPEG = b"\xff\xd8 a picture"
DATA_URL = "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()
ONE_IMAGE: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": DATA_URL}}],
    }
]


def image(url: Any, **more: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, **more}}]}]


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def form(**inner: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


async def create(a: Api, messages: list[Any] = HELLO, **options: Any) -> Any:
    async with a.client() as client:
        return await client.chat.completions.create(model=MODEL, messages=messages, **options)


async def streamed(a: Api, messages: list[Any] = HELLO, **options: Any) -> list[Any]:
    async with a.client() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True, **options)
        return [chunk async for chunk in stream]


def body_of(error: openai.APIStatusError) -> dict[str, Any]:
    body = error.response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    inner: dict[str, Any] = body["error"]
    return inner


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
            await until(lambda: not _is_open(a.decoder.fds[0]))

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


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"model": None}, "model", "missing"),
    ({"model": 5}, "model", "text is needed"),
    ({"messages": []}, "messages", "at least one"),
    ({"messages": "hello"}, "messages", "list is needed"),
    ({"messages": [5]}, "messages[0]", "object is needed"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "'king'"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role", "no tools"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "list of parts"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "list of parts"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "list of parts"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0].tool_calls", "not support"),
    ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour", "no such parameter"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "missing"),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "messages[0].content[0].type",
        "'input_audio'",
    ),
    ({"messages": [{**ONE_IMAGE[0], "role": "system"}]}, "messages[0].content[1].type", "only the user"),
    ({"messages": image("ftp://x/y.jpg")}, "messages[0].content[0].image_url.url", "data:"),
    ({"messages": image("file:///etc/passwd")}, "messages[0].content[0].image_url.url", "data:"),
    ({"messages": image(5)}, "messages[0].content[0].image_url.url", "text is needed"),
    ({"messages": image(DATA_URL, detail="huge")}, "messages[0].content[0].image_url.detail", "auto, low"),
    ({"messages": image("data:image/jpeg;base64,!!!")}, "messages[0].content[0].image_url.url", "no base64"),
    ({"messages": image("data:image/jpeg,abc")}, "messages[0].content[0].image_url.url", "base64"),
    ({"messages": image("data:image/gif;base64,AAAA")}, "messages[0].content[0].image_url.url", "image/gif"),
    ({"messages": image("data:image/jpeg;base64,AAAA")}, "messages[0].content[0].image_url.url", "no JPEG"),
    ({"messages": image(DATA_URL) * 9}, "messages", "9 images"),
    ({"max_tokens": 0}, "max_tokens", "from 1"),
    ({"max_tokens": 1.5}, "max_tokens", "whole number"),
    ({"max_completion_tokens": True}, "max_completion_tokens", "whole number"),
    ({"temperature": -0.1}, "temperature", "from 0 to 2"),
    ({"temperature": "hot"}, "temperature", "from 0 to 2"),
    ({"top_p": 1.1}, "top_p", "from 0 to 1"),
    ({"seed": 2**64}, "seed", "whole number"),
    ({"seed": 10**39}, "seed", "whole number"),
    ({"n": 2}, "n", "gives one"),
    ({"stop": ""}, "stop", "1 to 256"),
    ({"stop": ["x"] * 17}, "stop", "most is 16"),
    ({"stop": [5]}, "stop", "1 to 256"),
    ({"stop": {"a": 1}}, "stop", "list is needed"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "no such parameter"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    ({"logprobs": 5}, "logprobs", "true or false"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "not support"),
    ({"presence_penalty": -1}, "presence_penalty", "not support"),
    ({"logit_bias": {"50": 1}}, "logit_bias", "not support"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not support"),
    ({"tool_choice": "auto"}, "tool_choice", "not support"),
    ({"functions": [{"name": "f"}]}, "functions", "not support"),
    ({"modalities": ["audio"]}, "modalities", "not support"),
    ({"web_search_options": {}}, "web_search_options", "not support"),
    ({"max_toknes": 5}, "max_toknes", "no such parameter"),
    ({"response_format": "json"}, "response_format", "object is needed"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    (form(schema={}), "response_format.json_schema.name", "missing"),
    (form(name="a", schema=5), "response_format.json_schema.schema", "object"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "words"), BAD, ids=[f"{n}-{case[1]}" for n, case in enumerate(BAD)])
def test_what_cannot_be_is_refused_by_its_name(change: dict[str, Any], param: str | None, words: str) -> None:
    async def main() -> None:
        async with api() as a, a.client() as client:
            body = {"model": MODEL, "messages": HELLO, **change}
            with pytest.raises(openai.BadRequestError) as caught:
                await client.post("/chat/completions", body=body, cast_to=object)
            error = body_of(caught.value)
            assert error["param"] == param
            assert words in error["message"]
            assert error["type"] == "invalid_request_error"
            assert a.engine.asks == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "kind", "status", "param"),
    [
        (BusyError("8 requests wait"), openai.RateLimitError, 429, None),
        (PromptError("the prompt has 900 tokens"), openai.BadRequestError, 400, "messages"),
        (InputError("temperature"), openai.BadRequestError, 400, None),
        (EngineError("the engine died"), openai.InternalServerError, 503, None),
        (ClosedError("closing"), openai.InternalServerError, 503, None),
        (DeadlineError("too late"), openai.InternalServerError, 504, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", ["asked", "first token"])
def test_errors_before_the_first_token_have_their_own_status(
    error: VlmError, kind: type[openai.APIStatusError], status: int, param: str | None, stream: bool, when: str
) -> None:
    async def main() -> None:
        script = Script(refuse=error) if when == "asked" else Script(error=error, error_at=0)
        async with api(script) as a, a.client() as client:
            with pytest.raises(kind) as caught:
                await client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
            assert caught.value.status_code == status
            assert body_of(caught.value)["param"] == param
            assert ("Retry-After" in caught.value.response.headers) == (status in (429, 503))
            assert a.finished == []

    asyncio.run(main())


def test_a_schema_that_the_engine_refuses_is_the_fault_of_response_format() -> None:
    async def main() -> None:
        async with api(Script(refuse=InputError("schema at #: the keyword 'not' is not supported"))) as a:
            with pytest.raises(openai.BadRequestError) as caught:
                await create(a, response_format={"type": "json_object"})
            assert body_of(caught.value)["param"] == "response_format"
            assert "'not'" in body_of(caught.value)["message"]

    asyncio.run(main())


def test_an_error_inside_a_stream_is_an_event_and_ends_it() -> None:
    async def main() -> None:
        async with api(Script(error=EngineError("the engine died"), error_at=3)) as a, a.client() as client:
            stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            got = []
            with pytest.raises(openai.APIError, match="the engine died"):
                async for chunk in stream:
                    got.append(chunk.choices[0].delta.content)
            assert got == ["", *WORDS[:3]]

    asyncio.run(main())


def test_an_error_in_the_midst_of_a_whole_answer_has_a_status() -> None:
    async def main() -> None:
        async with api(Script(error=EngineError("the engine died"), error_at=3)) as a:
            with pytest.raises(openai.InternalServerError):
                await create(a)

    asyncio.run(main())


def test_another_model_does_not_exist() -> None:
    async def main() -> None:
        async with api() as a, a.client() as client:
            with pytest.raises(openai.NotFoundError) as caught:
                await client.chat.completions.create(model="gpt-4o", messages=HELLO)
            assert (body_of(caught.value)["code"], body_of(caught.value)["param"]) == ("model_not_found", "model")
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("gpt-4o")

    asyncio.run(main())


def test_models_lists_the_one_that_is_loaded() -> None:
    async def main() -> None:
        async with api() as a, a.client() as client:
            assert [model.id for model in (await client.models.list()).data] == [MODEL]
            assert (await client.models.retrieve(MODEL)).owned_by == "jetson-vlm"
            a.engine.model = None
            assert (await client.models.list()).data == []

    asyncio.run(main())


@pytest.mark.parametrize("status", ["loading", "restarting", "degraded", "stopped"])
def test_an_engine_that_is_not_ready_is_503_and_says_when_to_come_back(status: str) -> None:
    async def main() -> None:
        async with api() as a:
            unavailable(a.engine, status, "out of memory")
            with pytest.raises(openai.InternalServerError, match=f"{status}.*out of memory") as caught:
                await create(a)
            assert caught.value.status_code == 503
            assert int(caught.value.response.headers["Retry-After"]) >= 1
            assert a.engine.asks == []

    asyncio.run(main())


def test_a_camera_that_is_unknown_or_dark_is_said_to_be() -> None:
    async def main() -> None:
        async with api() as a:
            with pytest.raises(openai.NotFoundError, match="garage"):
                await create(a, image("source:garage"))
            assert a.engine.asks == []

    asyncio.run(main())


def test_bodies_and_images_that_are_too_large_are_413() -> None:
    async def main() -> None:
        async with api(max_image_bytes=1024, max_body_bytes=8192) as a, a.client() as client:
            big = base64.b64encode(b"\xff\xd8" + bytes(3000)).decode()
            with pytest.raises(openai.APIStatusError) as caught:
                await create(a, image(f"data:image/jpeg;base64,{big}"))
            assert caught.value.status_code == 413
            assert body_of(caught.value)["param"] == "messages[0].content[0].image_url.url"
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 10_000}])
            assert caught.value.status_code == 413
            assert a.decoder.decoded == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"x"', "application/json", 400),
        (b'{"a":1,"a":2}', "application/json", 400),
        (b'{"temperature":NaN}', "application/json", 400),
        (b'{"temperature":1e999}', "application/json", 400),
        (b'{"model":"\\ud800"}', "application/json", 400),
        (b'{"model":"\xff"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"a":' * 100_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "multipart/form-data", 415),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bodies_that_are_no_request_are_refused_in_the_same_shape(body: bytes, kind: str, status: int) -> None:
    async def main() -> None:
        async with api() as a, aiohttp.ClientSession() as session:
            headers = {"Content-Type": kind}
            async with session.post(f"{a.url}/v1/chat/completions", data=body, headers=headers) as response:
                assert response.status == status
                assert set((await response.json())["error"]) == {"message", "type", "param", "code"}
        await asyncio.sleep(0)

    asyncio.run(main())


def test_keys_decide_who_may_chat() -> None:
    async def main() -> None:
        async with api(keys=ALL_KEYS) as a:
            for name, right in (("chat", True), ("all", True), ("read", False)):
                client = openai.AsyncOpenAI(base_url=f"{a.url}/v1", api_key=KEYS[name], max_retries=0)
                async with client:
                    if right:
                        assert (await client.chat.completions.create(model=MODEL, messages=HELLO)).choices
                    else:
                        with pytest.raises(openai.PermissionDeniedError):
                            await client.chat.completions.create(model=MODEL, messages=HELLO)
            async with openai.AsyncOpenAI(base_url=f"{a.url}/v1", api_key="wrong", max_retries=0) as client:
                with pytest.raises(openai.AuthenticationError):
                    await client.chat.completions.create(model=MODEL, messages=HELLO)

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
            await until(lambda: not _is_open(a.decoder.fds[0]))
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
            assert not _is_open(a.decoder.fds[0])
            two = [
                {
                    "role": "user",
                    "content": [*image(DATA_URL)[0]["content"], *image("data:image/png;base64,AAAA")[0]["content"]],
                }
            ]
            with pytest.raises(openai.BadRequestError):
                await create(a, two)
            assert not _is_open(a.decoder.fds[1])

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


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
