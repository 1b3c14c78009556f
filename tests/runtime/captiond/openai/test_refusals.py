"""Every refusal in OpenAI's shape, as the official client tells it: its status, and the parameter that it is about."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import aiohttp
import openai
import pytest

from runtime.errors import BusyError, ClosedError, DeadlineError, EngineError, InputError, PromptError, VlmError
from tests.runtime.captiond.http.parts import ALL_KEYS, KEYS
from tests.runtime.captiond.openai.scripted import (
    DATA_URL,
    HELLO,
    MODEL,
    ONE_IMAGE,
    WORDS,
    Script,
    api,
    body_of,
    create,
    form,
    image,
    unavailable,
)

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
            a.runner.header = None
            with pytest.raises(openai.InternalServerError, match="no picture now") as caught:
                await create(a, image("source:door"))
            assert caught.value.status_code == 503
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
