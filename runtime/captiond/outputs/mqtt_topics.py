"""What is said on which MQTT topic, and how Home Assistant learns of it. Pure: no connection, no clock.

Topics, under ``<topic>/<host>``: docs/captiond.md lists them. No topic is listened to for commands: whoever may
publish on the broker must not be able to steer a camera.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from runtime.captiond.config.settings import SourceSettings
from runtime.captiond.events import CaptionFinished, EngineChanged, Event, RuleChanged, SourceChanged
from runtime.captiond.outputs.payload import json_text
from runtime.captiond.text import one_line
from runtime.version import __version__

ONLINE, OFFLINE = "online", "offline"
# Home Assistant refuses a state of more characters.
MAX_STATE_CHARS = 255
MAX_PAYLOAD_BYTES = 65_536
_STRANGE = re.compile(r"[^a-z0-9_-]+")

Discovery = dict[str, object]


@dataclass(frozen=True, slots=True)
class Message:
    """One publication. ``kept``: retained, the newest of its topic is sent again after a reconnect."""

    topic: str
    payload: bytes
    kept: bool


def topic_name(name: str) -> str:
    """``name`` as a level of a topic and part of an id: a-z, 0-9, _ and -."""
    return _STRANGE.sub("-", name.lower()).strip("-_")[:64] or "host"


class Topics:
    """The topics of one daemon. ``root``: first levels; ``host``: name of this machine."""

    def __init__(self, root: str, host: str, discovery: str | None) -> None:
        self.host = topic_name(host)
        self.base = f"{root}/{self.host}"
        self.status = f"{self.base}/status"
        self._prefix = discovery
        self._node = f"vlm_{self.host}"

    def messages(self, event: Event) -> list[Message]:
        """What an event is on the broker."""
        if isinstance(event, CaptionFinished):
            at = f"{self.base}/{event.frame.source}/caption"
            text = one_line(event.text, MAX_STATE_CHARS)
            return [self._kept(at, text), Message(f"{at}/json", _whole(event), kept=False)]
        if isinstance(event, SourceChanged):
            at = f"{self.base}/{event.source}/state"
            return [self._kept(at, event.status), self._kept(f"{at}/json", json_text(event))]
        if isinstance(event, RuleChanged):
            return [self.rule(event.source, event.rule, event.active)]
        if isinstance(event, EngineChanged):
            return [self._kept(f"{self.base}/engine", event.status)]
        return []

    def rule(self, source: str, rule: str, active: bool) -> Message:
        """The state of a rule."""
        return self._kept(f"{self.base}/{source}/rule/{rule}", "ON" if active else "OFF")

    def availability(self, status: str) -> Message:
        """Whether the daemon is there; its offline form is the last will."""
        return self._kept(self.status, status)

    def kept_topics(self, sources: Sequence[SourceSettings]) -> set[str]:
        """Every retained topic of a daemon that watches these."""
        found = {self.status, f"{self.base}/engine", *self.discovery(sources)}
        for source in sources:
            found |= self._with_source(f"{self.base}/{source.name}/state")
            found |= {self.rule(source.name, rule.name, False).topic for rule in source.rules}
        return found

    def former_filters(self) -> list[str]:
        """Topic filters under which the broker remembers what former configurations have left behind."""
        discovery = [f"{self._prefix}/+/{self._node}/+/config"] if self._prefix else []
        return [f"{self.base}/+/state", f"{self.base}/+/rule/+", *discovery]

    def go_with(self, topic: str) -> set[str]:
        """The topics that are empty when this one is."""
        return self._with_source(topic) if topic.startswith(self.base) and topic.endswith("/state") else {topic}

    def _with_source(self, state: str) -> set[str]:
        return {state, f"{state}/json", f"{state[: -len('/state')]}/caption"}

    def discovery(self, sources: Sequence[SourceSettings]) -> dict[str, bytes]:
        """Home Assistant's configuration of every entity, by topic."""
        return (
            {topic: _payload(json.dumps(entity)) for topic, entity in self._entities(sources)} if self._prefix else {}
        )

    def _entities(self, sources: Sequence[SourceSettings]) -> Iterator[tuple[str, Discovery]]:
        host = {"identifiers": [self._node], "name": f"vlm {self.host}", **_MAKER}
        yield self._entity(
            "sensor", "engine", host, name="Engine", state_topic=f"{self.base}/engine",
            entity_category="diagnostic", icon="mdi:chip",
        )  # fmt: skip
        for source in sources:
            device = {
                "identifiers": [f"{self._node}_{source.name}"], "name": f"{source.name} ({self.host})",
                "via_device": self._node, **_MAKER,
            }  # fmt: skip
            yield from self._of_source(source, device)

    def _of_source(self, source: SourceSettings, device: Discovery) -> Iterator[tuple[str, Discovery]]:
        base = f"{self.base}/{source.name}"
        yield self._entity(
            "sensor", f"{source.name}_caption", device, source.name, name="Caption", icon="mdi:text",
            state_topic=f"{base}/caption", json_attributes_topic=f"{base}/caption/json",
        )  # fmt: skip
        yield self._entity(
            "binary_sensor", f"{source.name}_live", device, name="Live", device_class="connectivity",
            state_topic=f"{base}/state", value_template="{{ 'ON' if value == 'live' else 'OFF' }}",
            json_attributes_topic=f"{base}/state/json", entity_category="diagnostic",
        )  # fmt: skip
        for rule in source.rules:
            yield self._entity(
                "binary_sensor", f"{source.name}_rule_{rule.name}", device, source.name, name=rule.name,
                state_topic=f"{base}/rule/{rule.name}", payload_on="ON", payload_off="OFF",
            )  # fmt: skip

    def _entity(
        self, kind: str, part: str, device: Discovery, source: str | None = None, **facts: object
    ) -> tuple[str, Discovery]:
        """One entity; it is unavailable while the daemon is gone, and that of a ``source`` while that is not live."""
        available: list[Discovery] = [{"topic": self.status}]
        if source is not None:
            template = f"{{{{ '{ONLINE}' if value == 'live' else '{OFFLINE}' }}}}"
            available.append({"topic": f"{self.base}/{source}/state", "value_template": template})
        unique = f"{self._node}_{part}"
        return f"{self._prefix}/{kind}/{self._node}/{part}/config", {
            **facts, "unique_id": unique, "object_id": unique, "device": device, "origin": _ORIGIN,
            "availability": available, "availability_mode": "all",
        }  # fmt: skip

    def _kept(self, topic: str, payload: str) -> Message:
        return Message(topic, _payload(payload), kept=True)


_MAKER: Discovery = {"manufacturer": "jetson-vlm", "model": "captiond", "sw_version": __version__}
_ORIGIN: Discovery = {"name": "jetson-vlm", "sw_version": __version__}


def _whole(event: CaptionFinished) -> bytes:
    """All that is known of a caption; without its fields where they are too long."""
    data = json_text(event).encode()
    return data if len(data) <= MAX_PAYLOAD_BYTES else json_text(replace(event, fields=None), cut=True).encode()


def _payload(text: str) -> bytes:
    return text.encode("utf-8", "replace")
