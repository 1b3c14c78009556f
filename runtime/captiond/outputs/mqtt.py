"""Captions, states and rules on an MQTT broker, with Home Assistant's discovery."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from runtime.captiond.bus import Bus
from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.config import read_secret
from runtime.captiond.config.settings import MqttSettings, SourceSettings
from runtime.captiond.events import CaptionFinished, EngineChanged, Event, RuleChanged, SourceChanged
from runtime.captiond.outputs.mqtt_session import Account, Session
from runtime.captiond.outputs.mqtt_topics import OFFLINE, ONLINE, Message, Topics
from runtime.captiond.outputs.output import Output, ended
from runtime.captiond.outputs.worker import Worker
from runtime.errors import ConfigError, NetworkError

_TYPES = (CaptionFinished, SourceChanged, RuleChanged, EngineChanged)
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0
_GOOD_S = 30.0


class Mqtt(Output):
    """Publishes through one `Session` after the other, for ever; a broker that is away is tried every 0.5 to 30 s.

    Retained topics are states: their newest values are kept here and sent after each connect, so that a broker that was
    away is right again at once. Captions and rules that came meanwhile count as dropped.
    """

    def __init__(
        self,
        settings: MqttSettings,
        host: str,
        bus: Bus,
        clock: Clock,
        sources: Sequence[SourceSettings] = (),
        *,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__("mqtt", bus, clock, _TYPES)
        self._settings = settings
        self._rng = rng or random.Random()
        self._topics = Topics(settings.topic, host, settings.discovery or None)
        self._worker = Worker("mqtt-connect")
        self._latest: dict[str, Message] = {}
        self._discovery: dict[str, bytes] = {}
        self._removed: set[str] = set()
        self._changed = asyncio.Event()
        self._order = asyncio.Lock()
        self._session: Session | None = None
        self.watch(sources)

    def watch(self, sources: Sequence[SourceSettings]) -> None:
        """Announce these, and take back what was announced of others."""
        before = set(self._discovery)
        self._discovery = self._topics.discovery(sources)
        known = [rule for source in sources for rule in self._rules_of(source)]
        rules = {message.topic for message in known}
        for topic in list(self._latest):
            alive = any(self._topics.belongs(topic, source.name) for source in sources)
            if topic != f"{self._topics.base}/engine" and (not alive or ("/rule/" in topic and topic not in rules)):
                del self._latest[topic]
                before.add(topic)
        for message in known:
            self._latest.setdefault(message.topic, message)
        self._removed = (self._removed | before) - set(self._discovery) - set(self._latest)
        self._changed.set()

    async def _work(self) -> None:
        connecting = asyncio.ensure_future(self._stay_connected())
        try:
            async for event in self.subscription:
                await self._deliver(event)
        finally:
            await ended(connecting)
            await self._say_goodbye()
            self._worker.close()

    async def _deliver(self, event: Event) -> None:
        counted = isinstance(event, (CaptionFinished, RuleChanged))
        async with self._order:
            for message in self._topics.messages(event):
                if message.kept:
                    self._latest[message.topic] = message
                # One message of an event stands for it.
                one = counted and message.kept
                if (self._session is None or not await self._session.send(message, counted=one)) and one:
                    self.lost += 1

    async def _stay_connected(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            begun_ns = self._clock.now_ns()
            try:
                session = await self._connect()
                reason: str | None = None
                while reason is None:
                    self._changed.clear()
                    await self._announce(session)
                    reason = await session.lasts(self._changed)
                self._drop_session()
                self._trouble(f"broker {self._settings.host}:{self._settings.port}: {reason}")
            except (NetworkError, ConfigError) as error:
                self._trouble(str(error))
            if self._clock.now_ns() - begun_ns > _GOOD_S * NS_PER_S:
                retry_s = _FIRST_RETRY_S
            await self._clock.sleep(retry_s * self._rng.uniform(0.75, 1.25))
            retry_s = min(2 * retry_s, _LAST_RETRY_S)

    async def _connect(self) -> Session:
        will = self._topics.availability(OFFLINE)
        session = Session(self._account(), will, self._clock, self._worker, self._taken, self._heard)
        await session.open()
        self._well(f"connected to {self._settings.host}:{self._settings.port}")
        return session

    async def _announce(self, session: Session) -> None:
        """Say that we are here, what there is, what there is no more, and how everything stands."""
        async with self._order:
            self._session = session
            await session.send(self._topics.availability(ONLINE))
            former = self._topics.discovery_filter()
            if former is not None:
                session.listen(former)
            removed = sorted(self._removed)
            for topic in removed:
                await session.send(Message(topic, b"", kept=True))
            for topic, payload in self._discovery.items():
                await session.send(Message(topic, payload, kept=True))
            for message in self._latest.values():
                await session.send(message)
            self._removed.difference_update(removed)

    def _account(self) -> Account:
        settings = self._settings
        assert settings.host is not None
        return Account(
            host=settings.host,
            port=settings.port,
            client_id=settings.client_id or f"jetson-vlm-{self._topics.host}",
            keepalive_s=settings.keepalive_s,
            qos=settings.qos,
            user=settings.user,
            password=None if settings.password_file is None else read_secret(settings.password_file),
            tls=settings.tls or settings.ca_file is not None,
            ca_file=settings.ca_file,
            certificate_file=settings.certificate_file,
            private_key_file=settings.private_key_file,
        )

    def _taken(self, count: int) -> None:
        self.delivered += count

    def _heard(self, topic: str) -> None:
        """The broker remembers an entity: of a former configuration, if it is none of ours."""
        if topic not in self._discovery and topic not in self._removed:
            self._removed.add(topic)
            self._changed.set()

    def _drop_session(self) -> None:
        if self._session is not None:
            self.lost += self._session.lost
            self._session = None

    async def _say_goodbye(self) -> None:
        session = self._session
        if session is not None:
            await session.send(self._topics.availability(OFFLINE))
            await session.close()
            self._drop_session()

    def _rules_of(self, source: SourceSettings) -> list[Message]:
        return [self._topics.rule(source.name, rule.name, False) for rule in source.rules]
