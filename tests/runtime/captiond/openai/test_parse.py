"""Any JSON is either understood or refused with a 4xx that names what is wrong: never another error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.captiond.http.errors import HttpError
from runtime.captiond.http.json_text import parse_json
from runtime.captiond.openai.images import decoded_url
from runtime.captiond.openai.parse import HONOURED, IGNORED, OFF, parse_request
from runtime.captiond.openai.request import ChatRequest
from runtime.errors import InputError
from runtime.sampling import check_params
from runtime.types import GenerationParams

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12,
)
# Values that are nearly right: a fuzzer of plain JSON never gets past the first field.
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["user", "assistant", "system", "text", "image_url", "auto"]))
URLS = st.one_of(
    TEXTS, st.sampled_from(["data:image/jpeg;base64,AAAA", "data:,", "http://x/", "source:door", "data:;"])
)
PART = st.fixed_dictionaries(
    {}, optional={"type": TEXTS, "text": st.one_of(TEXTS, JSON), "image_url": st.one_of(
        URLS, JSON, st.fixed_dictionaries({}, optional={"url": st.one_of(URLS, JSON), "detail": st.one_of(TEXTS, JSON)})
    )}
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(st.sampled_from(["user", "assistant", "system", "tool"]), JSON),
        "content": st.one_of(TEXTS, st.lists(st.one_of(PART, JSON), max_size=3), JSON),
        "name": JSON,
        "tool_calls": JSON,
    },
)
NUMBERS = st.one_of(st.integers(-3, 30), st.floats(-1, 3), JSON)
FORM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.one_of(st.sampled_from(["text", "json_object", "json_schema"]), JSON),
        "json_schema": st.one_of(
            JSON, st.fixed_dictionaries({"name": st.just("a")}, optional={"schema": JSON, "strict": JSON})
        ),
    },
)
REQUEST = st.fixed_dictionaries(
    {"model": st.one_of(st.just("m"), JSON), "messages": st.one_of(st.lists(MESSAGE, min_size=1, max_size=3), JSON)},
    optional={
        **dict.fromkeys(sorted(IGNORED | OFF.keys()), JSON),
        **dict.fromkeys(("temperature", "top_p", "seed", "n", "max_tokens", "top_logprobs", "top_k"), NUMBERS),
        **dict.fromkeys(("min_p", "repetition_penalty", "max_completion_tokens"), NUMBERS),
        **{name: st.one_of(st.booleans(), JSON) for name in ("stream", "logprobs")},
        "stop": st.one_of(TEXTS, st.lists(TEXTS, max_size=3), JSON),
        "stream_options": st.one_of(JSON, st.fixed_dictionaries({"include_usage": st.booleans()})),
        "response_format": st.one_of(JSON, FORM),
    },
)


def understood(body: Any) -> ChatRequest | None:
    try:
        request = parse_request(body, max_images=4)
    except HttpError as error:
        assert error.status in (400, 413)
        assert error.message.isprintable() or error.message
        assert error.kind == "invalid_request_error"
        return None
    assert isinstance(request, ChatRequest)
    return request


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(body=JSON)
def test_any_json_is_a_request_or_a_refusal(body: Any) -> None:
    understood(body)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(body=REQUEST)
def test_nearly_right_requests_are_understood_or_refused_and_what_passes_the_engine_can_use(body: Any) -> None:
    request = understood(body)
    if request is not None:
        check_params(GenerationParams(**request.params))  # type: ignore[arg-type]
        assert request.turns
        assert len(request.images) <= 4


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    body=st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())), cut=st.integers(0, 50)
)
def test_any_bytes_are_json_or_an_input_error(body: bytes, cut: int) -> None:
    for text in (body, body[:cut], body[cut:], body + body):
        try:
            understood(parse_json(text))
        except InputError as error:
            assert error.message


@settings(max_examples=400, deadline=None, derandomize=True)
@given(rest=st.one_of(st.text(max_size=60), st.text(max_size=40).map("image/jpeg;base64,{}".format)))
def test_any_data_url_is_bytes_or_a_refusal(rest: str) -> None:
    try:
        assert isinstance(decoded_url(rest, 100, "p"), bytes)
    except HttpError as error:
        assert error.status in (400, 413)
        assert error.param == "p"


def test_no_parameter_is_on_two_lists() -> None:
    assert not HONOURED & IGNORED
    assert not (HONOURED | IGNORED) & OFF.keys()


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_ignored_parameters_change_nothing(name: str) -> None:
    plain = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    assert parse_request({**plain, name: {"any": ["thing"]}}, max_images=1) == parse_request(plain, max_images=1)


@pytest.mark.parametrize("name", sorted(OFF))
def test_parameters_that_are_off_are_refused_by_name_unless_they_ask_for_nothing(name: str) -> None:
    plain = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    for harmless in (*OFF[name], None):
        assert parse_request({**plain, name: harmless}, max_images=1) == parse_request(plain, max_images=1)
    with pytest.raises(HttpError, match=name) as caught:
        parse_request({**plain, name: True}, max_images=1)
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
