"""Captions, states and rules on an MQTT broker, with Home Assistant's discovery."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from runtime.captiond.bus import Bus
from runtime.captiond.capture.backoff import Backoff
from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.config import read_secret
from runtime.captiond.config.settings import MqttSettings, SourceSettings
from runtime.captiond.events import CaptionFinished, EngineChanged, Event, RuleChanged, SourceChanged
from runtime.captiond.outputs.mqtt_session import Account, Refused, Session
from runtime.captiond.outputs.mqtt_topics import OFFLINE, ONLINE, Message, Topics
from runtime.captiond.outputs.output import Output, ended
from runtime.captiond.outputs.worker import Worker
from runtime.errors import ConfigError, NetworkError

_TYPES = (CaptionFinished, SourceChanged, RuleChanged, EngineChanged)
_GOOD_S = 30.0


class Mqtt(Output):
    """Publishes through one `Session` after the other, for ever. A broker that went away is tried every 0.5 to 3 s, one
    that was never reached or refuses us every 0.5 to 30 s.

    Retained topics are states: their newest values are kept here and sent after each connect, so that a broker that was
    away is right again at once. A caption or rule that was replaced by a newer one meanwhile counts as dropped.
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
        self._backoff = Backoff(rng or random.Random())
        self._topics = Topics(settings.topic, host, settings.discovery or None)
        self._worker = Worker("mqtt-connect")
        self._latest: dict[str, Message] = {}
        self._discovery: dict[str, bytes] = {}
        self._known: set[str] = set()
        self._removed: set[str] = set()
        self._unsent: set[str] = set()  # topics whose newest value is a caption or a rule that nobody was told
        self._changed = asyncio.Event()
        self._order = asyncio.Lock()
        self._session: Session | None = None
        self._was_met = False
        self.watch(sources)

    def watch(self, sources: Sequence[SourceSettings]) -> None:
        """Announce these, and take back what was announced of others."""
        before = self._known
        self._known = self._topics.kept_topics(sources)
        self._discovery = self._topics.discovery(sources)
        self._latest = {topic: message for topic, message in self._latest.items() if topic in self._known}
        self._unsent &= set(self._latest)
        for source in sources:
            for rule in source.rules:
                message = self._topics.rule(source.name, rule.name, False)
                self._latest.setdefault(message.topic, message)
        self._removed = (self._removed | before) - self._known
        self._changed.set()

    async def _work(self) -> None:
        connecting = asyncio.ensure_future(self._stay_connected())
        try:
            async for event in self.subscription:
                await self._deliver(event)
        finally:
            await ended(connecting)
            await self._say_goodbye()
            self.lost += len(self._unsent)
            self._unsent.clear()
            self._worker.close()

    async def _deliver(self, event: Event) -> None:
        counted = isinstance(event, (CaptionFinished, RuleChanged))
        async with self._order:
            for message in self._topics.messages(event):
                if message.kept and message.topic not in self._known:
                    continue  # the last words of a source that is watched no more
                if message.kept:
                    self._latest[message.topic] = message
                # One message of an event stands for it.
                stands = counted and message.kept
                sent = self._session is not None and await self._session.send(message, counted=stands)
                if stands and not sent:
                    self.lost += message.topic in self._unsent
                    self._unsent.add(message.topic)

    async def _stay_connected(self) -> None:
        while True:
            begun_ns = self._clock.now_ns()
            met = False
            try:
                session = await self._connect()
                met = True
                reason: str | None = None
                while reason is None:
                    self._changed.clear()
                    await self._announce(session)
                    reason = await session.lasts(self._changed)
                self._drop_session()
                self._trouble(f"broker {self._settings.host}:{self._settings.port}: {reason}")
            except Refused as error:
                self._was_met = False
                self._trouble(str(error))
            except (NetworkError, ConfigError) as error:
                self._trouble(str(error))
            if met and self._clock.now_ns() - begun_ns > _GOOD_S * NS_PER_S:
                self._backoff.reset()
            self._was_met |= met
            await self._clock.sleep(self._backoff.next_s(unseen=not self._was_met))

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
            for former in self._topics.former_filters():
                session.listen(former)
            removed = sorted(self._removed)
            for topic in removed:
                await session.send(Message(topic, b"", kept=True))
            for topic, payload in self._discovery.items():
                await session.send(Message(topic, payload, kept=True))
            for message in self._latest.values():
                if await session.send(message, counted=message.topic in self._unsent):
                    self._unsent.discard(message.topic)
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
        """The broker remembers this: of a former configuration, if it is none of ours."""
        if topic not in self._known and topic not in self._removed:
            self._removed |= self._topics.go_with(topic) - self._known
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
