"""Control over HTTP: what is permitted is done, everything else is refused and changes nothing."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from runtime.captiond.events import Notice
from tests.runtime.captiond.http.parts import PROMPTS, Running, client, serving

JSON = {"Content-Type": "application/json"}
GOOD = {"id": "a", "text": "Hello?"}
DOG = {"id": "dog", "text": "A dog?", "kind": "yes_no"}


async def post(running: Running, action: str, body: bytes | str, headers: dict[str, str] = JSON) -> tuple[int, dict]:
    async with client() as session:
        async with session.post(f"{running.url}/api/sources/door/{action}", data=body, headers=headers) as answer:
            return answer.status, await answer.json()


def test_pause_resume_cadence_and_prompts_reach_the_captioner_and_the_bus() -> None:
    async def main() -> None:
        async with serving() as running:
            heard: list[object] = []
            running.services.bus.tap(heard.append)
            assert (await post(running, "pause", b""))[0] == 200
            assert running.captioner.paused
            assert (await post(running, "resume", "{}"))[1] == {
                "source": "door",
                "paused": False,
                "captions_per_s": 2.0,
            }
            assert (await post(running, "cadence", '{"captions_per_s": 0}'))[0] == 200
            assert running.captioner.captions_per_s == 0.0
            prompts = [GOOD | {"temperature": 1, "seed": None, "schema": None}, DOG]
            assert (await post(running, "prompts", json.dumps({"prompts": prompts})))[0] == 200
            assert [(prompt.id, prompt.kind, prompt.temperature) for prompt in running.captioner.prompts] == [
                ("a", "text", 1.0),
                ("dog", "yes_no", 0.0),
            ]
            notices = [event.message for event in heard if isinstance(event, Notice)]
            assert notices == ["pause by local", "resume by local", "cadence by local", "prompts by local"]

    asyncio.run(main())


def test_prompts_that_the_state_shows_can_be_sent_back() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            async with session.get(running.url + "/api/state") as answer:
                shown = (await answer.json())["sources"][0]["prompts"]
            assert (await post(running, "prompts", json.dumps({"prompts": shown})))[0] == 200
            assert tuple(running.captioner.prompts) == PROMPTS

    asyncio.run(main())


VALUES = ["null", "true", "-1", "1e999", "NaN", "Infinity", '""', '"x"', "[]", "{}", "[[]]", '["a"]', "9" * 50, "1.5"]
FIELDS = ("id", "text", "kind", "schema", "system", "every_s", "max_new_tokens", "temperature", "seed")
FITS = {
    "schema": {"null"},
    "system": {"null", '""', '"x"'},
    "every_s": {"null", "1.5"},
    "max_new_tokens": {"null"},
    "temperature": {"null", "1.5"},
    "seed": {"null"},
    "id": {'"x"'},
    "text": {'"x"'},
    "kind": {"null"},
}
WRONG = (
    [("cadence", f'{{"captions_per_s": {value}}}') for value in VALUES if value != "1.5"]
    + [("prompts", f'{{"prompts": {value}}}') for value in VALUES]
    + [("prompts", f'{{"prompts": [{value}, {json.dumps(DOG)}]}}') for value in VALUES]
    + [
        ("prompts", f'{{"prompts": [{json.dumps(GOOD)[:-1]}, "{field}": {value}}}, {json.dumps(DOG)}]}}')
        for field in FIELDS
        for value in VALUES
        if field not in ("id", "text")
        if value not in FITS[field]
    ]
    + [("prompts", f'{{"prompts": [{json.dumps(GOOD | {field: 5})}, {json.dumps(DOG)}]}}') for field in ("id", "text")]
    + [
        (action, body)
        for action in ("pause", "resume", "cadence", "prompts")
        for body in ("[]", "5", '"x"', "null", '{"x": 1}')
    ]
    + [
        ("prompts", json.dumps({"prompts": [GOOD]})),  # the rule's prompt would be gone
        ("prompts", json.dumps({"prompts": [GOOD, DOG | {"kind": "text"}]})),
        ("prompts", json.dumps({"prompts": [DOG, DOG]})),
        ("prompts", json.dumps({"prompts": [DOG | {"id": "Dog"}]})),
        ("prompts", json.dumps({"prompts": [DOG, GOOD | {"text": " "}]})),
        ("prompts", json.dumps({"prompts": [DOG, GOOD | {"text": "x" * 8001}]})),
        ("prompts", json.dumps({"prompts": [DOG, GOOD | {"text": "a\x1b[2Jb"}]})),
        ("prompts", json.dumps({"prompts": [DOG, GOOD | {"system": "a\x00b"}]})),
        ("prompts", json.dumps({"prompts": [DOG, GOOD | {"kind": "json"}]})),
        ("prompts", json.dumps({"prompts": [DOG, GOOD | {"schema": {"type": "object"}}]})),
        ("prompts", json.dumps({"prompts": [DOG, GOOD | {"schema_file": "/etc/passwd"}]})),
        ("prompts", json.dumps({"prompts": [DOG, GOOD | {"unknown": 1}]})),
        ("prompts", json.dumps({"prompts": [DOG] * 33})),
        ("prompts", '{"prompts": [{"id": "a", "text": "\\ud800"}]}'),
        ("prompts", "[" * 100_000 + "]" * 100_000),
        ("prompts", '{"a":' * 30_000 + "1" + "}" * 30_000),
        ("prompts", "{"),
        ("prompts", ""),
    ]
)


def test_whatever_is_of_the_wrong_type_or_range_is_refused_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with serving() as running:
            for action, body in WRONG:
                status, answer = await post(running, action, body)
                assert status == 400, (action, body[:200], status)
                assert len(answer["error"]["message"]) <= 1000
                assert "\x1b" not in answer["error"]["message"]
                assert tuple(running.captioner.prompts) == PROMPTS, body
                assert (running.captioner.paused, running.captioner.captions_per_s) == (False, 2.0), body

    assert len(WRONG) > 120
    asyncio.run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_of_another_page_is_no_json(content_type: str) -> None:
    async def main() -> None:
        async with serving() as running:
            assert (await post(running, "cadence", '{"captions_per_s": 1}', {"Content-Type": content_type}))[0] == 415
            assert running.captioner.captions_per_s == 2.0

    asyncio.run(main())


def test_a_source_that_is_not_there_is_named_so() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            for name in ("yard", "..", "%00", "a" * 500):
                async with session.post(f"{running.url}/api/sources/{name}/pause", json={}) as answer:
                    assert answer.status == 404

    asyncio.run(main())
