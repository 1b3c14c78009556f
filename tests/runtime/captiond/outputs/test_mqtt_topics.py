"""Topics and Home Assistant's discovery, without a broker."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from runtime.captiond.config.settings import PromptSettings, RuleSettings, SourceSettings
from runtime.captiond.outputs.mqtt_topics import MAX_PAYLOAD_BYTES, MAX_STATE_CHARS, Topics, topic_name
from tests.runtime.captiond.sample_events import delta, engine_changed, finished, rule, source_changed

DOOR = SourceSettings(
    name="door",
    uri="rtsp://10.0.0.1/1",
    prompts=(PromptSettings(id="dog", text="Is there a dog?", kind="yes_no"),),
    rules=(RuleSettings(name="dog", prompt="dog", value="yes"),),
)


def topics(discovery: str | None = "homeassistant") -> Topics:
    return Topics("vlm", "Orin Nano.local", discovery)


def test_events_go_to_the_topics_of_their_source_and_states_are_kept() -> None:
    by_topic = {
        message.topic: (message.payload, message.kept)
        for event in (finished(1), source_changed("no_signal", "401"), rule(), engine_changed())
        for message in topics().messages(event)
    }
    base = "vlm/orin-nano-local"
    assert by_topic[f"{base}/door/caption"] == (b"a red ball", True)
    assert by_topic[f"{base}/door/state"] == (b"no_signal", True)
    assert by_topic[f"{base}/door/rule/dog"] == (b"ON", True)
    assert by_topic[f"{base}/engine"] == (b"ready", True)
    whole, kept = by_topic[f"{base}/door/caption/json"]
    assert (json.loads(whole)["frame"]["seq"], kept) == (1, False)
    assert json.loads(by_topic[f"{base}/door/state/json"][0])["cause"] == "401"
    assert topics().messages(delta(1, 0, "a")) == []


def test_a_long_caption_is_cut_as_a_state_and_whole_in_its_attributes() -> None:
    state, attributes = topics().messages(finished(1, "ü" * 3000))
    assert len(state.payload.decode()) == MAX_STATE_CHARS
    assert json.loads(attributes.payload)["text"] == "ü" * 3000


def test_controls_and_endless_fields_do_not_reach_the_broker() -> None:
    fields = {str(number): "x" * 4000 for number in range(100)}
    state, attributes = topics().messages(finished(1, "a\x1b[31m\nb\x00\u202e", fields=fields))
    assert state.payload == b"a[31m b"
    assert len(attributes.payload) <= MAX_PAYLOAD_BYTES
    assert (json.loads(attributes.payload)["fields"], json.loads(attributes.payload)["cut"]) == (None, True)


@given(st.text(max_size=100))
def test_a_host_name_is_always_one_level_of_a_topic_and_an_id(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", topic_name(name))


def test_every_entity_names_topics_that_are_published_and_is_unique() -> None:
    own = topics()
    published = {own.status}
    for event in (finished(1), source_changed(), rule(), engine_changed()):
        published |= {message.topic for message in own.messages(event)}
    found = own.discovery([DOOR])
    entities = [json.loads(payload) for payload in found.values()]
    assert len({entity["unique_id"] for entity in entities}) == len(entities) == 4
    for topic, entity in zip(found, entities, strict=True):
        assert re.fullmatch(r"homeassistant/(sensor|binary_sensor)/vlm_orin-nano-local/[a-z0-9_-]+/config", topic)
        assert entity["state_topic"] in published
        assert {one["topic"] for one in entity["availability"]} <= published
        assert entity.get("json_attributes_topic", own.status) in published
        assert entity["device"]["identifiers"]
        assert "command_topic" not in entity


def test_without_a_prefix_nothing_is_announced() -> None:
    assert topics(None).discovery([DOOR]) == {}
    assert not any(
        "homeassistant" in one for one in (*topics(None).former_filters(), *topics(None).kept_topics([DOOR]))
    )


def test_every_retained_message_has_a_known_topic() -> None:
    own = topics()
    kept = {own.status, *own.discovery([DOOR])}
    for event in (finished(1), source_changed(), rule(), engine_changed()):
        kept |= {message.topic for message in own.messages(event) if message.kept}
    assert own.kept_topics([DOOR]) == kept


def test_with_its_state_goes_what_else_is_kept_of_a_source() -> None:
    base = "vlm/orin-nano-local"
    assert topics().go_with(f"{base}/yard/state") == {
        f"{base}/yard/{end}" for end in ("state", "state/json", "caption")
    }
    assert topics().go_with(f"{base}/yard/rule/cat") == {f"{base}/yard/rule/cat"}
