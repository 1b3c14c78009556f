"""The official client against the whole daemon with the demo model: what it says is true, seeded and of its form."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from tests.imports import ROOT
from tests.peers.daemon import DEMO_VIDEO, RunningDaemon

MODEL = "demo-llava"
QUESTION = "Describe the image."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "what": {"type": "string"},
    },
    "required": ["colour", "count", "what"],
    "additionalProperties": False,
}


def first_frame() -> str:
    """The demo video's first frame as a data URL of a PNG."""
    cv2 = pytest.importorskip("cv2")
    video = cv2.VideoCapture(str(DEMO_VIDEO))
    took, picture = video.read()
    video.release()
    assert took
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", picture)[1].tobytes()).decode()


def truth() -> str:
    with (ROOT / "runtime/demo/demo_truth.jsonl").open(encoding="utf-8") as lines:
        caption: str = json.loads(next(lines))["caption"]
    return caption


def asked(url: str, text: str = QUESTION) -> list[Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder: Path = tmp_path_factory.mktemp("daemon")
    source = {"name": "film", "uri": str(DEMO_VIDEO), "loop": True, "captions_per_s": 0.2}
    with RunningDaemon(folder, [source]) as daemon:
        daemon.wait(lambda state: state["engine"]["status"] == "ready")
        with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
            yield client


def test_the_picture_that_is_sent_is_the_one_that_is_described(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=asked(first_frame()), temperature=0)
    assert answer.choices[0].message.content == truth()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 3


def test_a_stream_says_the_same_as_a_whole_answer(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=asked(first_frame()), temperature=0, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == truth()
    assert len(chunks) > 5


def test_logprobs_are_those_of_the_tokens_that_were_chosen(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=asked(first_frame()), temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content or []
    assert answer.usage is not None
    assert len(entries) == answer.usage.completion_tokens
    assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode().strip() == truth()
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "greedy takes the most probable"


def test_a_seed_makes_sampling_reproducible(client: openai.OpenAI) -> None:
    def sampled(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL, messages=asked(first_frame()), temperature=2.0, seed=seed, max_tokens=24
        )
        return answer.choices[0].message.content

    assert sampled(7) == sampled(7)
    assert len({sampled(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("max_tokens", [60, 90, 200])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_schema_is_kept_also_when_the_tokens_run_out(
    client: openai.OpenAI, max_tokens: int, temperature: float
) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "scene", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=asked(first_frame()),
        temperature=temperature,
        seed=1,
        max_tokens=max_tokens,
        response_format=form,
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= max_tokens


def test_a_schema_that_does_not_fit_or_is_not_supported_is_refused(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "scene", "schema": SCHEMA}}
    with pytest.raises(openai.BadRequestError, match=r"needs at least \d+ tokens") as caught:
        client.chat.completions.create(model=MODEL, messages=asked(first_frame()), max_tokens=3, response_format=form)
    assert caught.value.param == "response_format"
    form["json_schema"]["schema"] = {"type": "array", "uniqueItems": True}
    with pytest.raises(openai.BadRequestError, match="'uniqueItems' is not supported"):
        client.chat.completions.create(model=MODEL, messages=asked(first_frame()), response_format=form)


def test_a_camera_is_described_without_a_picture_being_sent(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=asked("source:film"), temperature=0)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 4


def test_a_prompt_too_long_and_roles_out_of_order_are_the_clients_fault(client: openai.OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "a red circle " * 2000}]
    with pytest.raises(openai.BadRequestError, match="context holds") as caught:
        client.chat.completions.create(model=MODEL, messages=long)
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="expected user and assistant in turn"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "assistant", "content": "I begin."}])


def test_damaged_images_are_refused_without_a_word_of_a_library(client: openai.OpenAI) -> None:
    for data in (b"\xff\xd8\xff\xe0damaged", b"\x89PNG\r\n\x1a\nnothing", b"RIFF0000WEBPVP8 ", b"GIF89a", b""):
        url = "data:image/jpeg;base64," + base64.b64encode(data).decode()
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=asked(url))
        assert caught.value.code == "invalid_image"
        assert not {"cv2", "opencv", "pillow", "libpng", "libjpeg"} & set(caught.value.message.lower().split())
