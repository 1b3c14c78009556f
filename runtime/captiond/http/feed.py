"""Events for many watchers at little cost: each is written as JSON once, framed once, and sent in small batches.

A watcher that is not read from is held back: pieces of captions are left out, whole events wait up to a limit. When it
reads again it learns how many it missed; when it does not, its connection is cut off (`http.connection`).
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from runtime.captiond.events import CaptionDelta, Event, as_json
from runtime.captiond.http.json_text import dump_json
from runtime.captiond.http.services import Services
from runtime.captiond.http.watchers import Watcher

Framing = Literal["chunked", "plain", "websocket"]
BATCH_S = 0.04
QUEUE_EVENTS = 1024
HELD_EVENTS = 64
REPLAY_EVENTS = 256
HEARTBEAT_S = 15.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Which events: of these types, of these sources (events of no source always pass). None: all."""

    types: frozenset[str] | None = None
    sources: frozenset[str] | None = None

    def takes(self, event: Event) -> bool:
        """Whether the event is among them."""
        if self.types is not None and event.type not in self.types:
            return False
        source = source_of(event)
        return self.sources is None or source is None or source in self.sources


@dataclass(eq=False, slots=True)
class Listener:
    """A watcher of events: what it wants, how its bytes are framed, what waits for it."""

    watcher: Watcher
    choice: Choice
    framing: Framing
    held: deque[Numbered] = field(default_factory=deque)
    missed: int = 0


@dataclass(eq=False, slots=True)
class Numbered:
    """An event with its number, and its JSON once somebody wanted it."""

    number: int
    event: Event
    text: str | None = None

    def json(self) -> str:
        """Its fields without braces, to put behind an id."""
        if self.text is None:
            self.text = dump_json(as_json(self.event))[1:]
        return self.text


class Feed:
    """One consumer of the bus, for all event streams and WebSockets. ``run`` sends, ``heartbeat`` keeps alive."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._subscription = services.bus.subscribe("http", QUEUE_EVENTS)
        self._listeners: dict[Listener, None] = {}
        self._recent: deque[Numbered] = deque(maxlen=REPLAY_EVENTS)
        self._next = 1
        # Numbers of another run of the daemon are another count: the boot's name tells them apart.
        self._boot = secrets.token_hex(3)

    async def run(self) -> None:
        """Send what comes, until the bus or the feed is closed."""
        async for event in self._subscription:
            await self._services.clock.sleep(BATCH_S)
            batch = [self._number(event)]
            while (further := self._subscription.take()) is not None:
                batch.append(self._number(further))
            self._send(batch)

    async def heartbeat(self) -> None:
        """Write a comment to every event stream from time to time, so that nothing between takes it for dead."""
        while True:
            await self._services.clock.sleep(HEARTBEAT_S)
            for listener in self._listeners:
                if listener.framing != "websocket" and not listener.watcher.full:
                    listener.watcher.write(framed(b": \n\n", listener.framing))

    def close(self) -> None:
        """Take no more events."""
        self._subscription.close()

    def replay(self, last_id: str | None, choice: Choice) -> tuple[list[Numbered], dict[str, object]]:
        """What a client that comes back has not seen, and the greeting that tells so: whole events, no pieces.

        ``missed`` is True when more was lost than is kept: the client asks /api/state again.
        """
        newest = self._next - 1
        greeting: dict[str, object] = {"type": "hello", "replayed": 0, "missed": False}
        if not last_id:
            return [], greeting
        boot, _, number = last_id.partition("-")
        if boot != self._boot or not number.isascii() or not number.isdigit() or int(number[:18]) > newest:
            return [], greeting | {"missed": True}
        last = int(number[:18])
        oldest = self._recent[0].number if self._recent else self._next
        found = [item for item in self._recent if item.number > last and choice.takes(item.event)]
        lost = len(self._recent) == REPLAY_EVENTS and oldest > last + 1
        return found, greeting | {"replayed": len(found), "missed": lost}

    def greeting(self, values: Mapping[str, object], framing: Framing) -> bytes:
        """The first event of a stream. Its id is that of the newest event, so that a reconnection starts from here."""
        return self._message("hello", f"{self._boot}-{self._next - 1}", dump_json(values)[1:], framing)

    def join(self, listener: Listener, replayed: Sequence[Numbered]) -> None:
        """Send from now on, after what is replayed."""
        self._listeners[listener] = None
        if replayed:
            listener.watcher.write(framed(self._bytes(replayed, listener), listener.framing))

    def leave(self, listener: Listener) -> None:
        """Send no more."""
        self._listeners.pop(listener, None)

    def _number(self, event: Event) -> Numbered:
        item = Numbered(self._next, event)
        self._next += 1
        if not isinstance(event, CaptionDelta):
            self._recent.append(item)
        return item

    def _send(self, batch: Sequence[Numbered]) -> None:
        ready: dict[tuple[Choice, Framing], tuple[bytes, int]] = {}
        for listener in self._listeners:
            if listener.watcher.full:
                self._hold(listener, batch)
                continue
            if listener.held or listener.missed:
                self._catch_up(listener)
            key = (listener.choice, listener.framing)
            if key not in ready:
                wanted = [item for item in batch if listener.choice.takes(item.event)]
                ready[key] = (framed(self._bytes(wanted, listener), listener.framing), len(wanted))
            data, count = ready[key]
            if data:
                listener.watcher.write(data)
                self._services.metrics.events_sent.add((listener.watcher.kind,), count)

    def _hold(self, listener: Listener, batch: Iterable[Numbered]) -> None:
        for item in batch:
            if not listener.choice.takes(item.event):
                continue
            if isinstance(item.event, CaptionDelta) or len(listener.held) >= HELD_EVENTS:
                listener.missed += 1
                self._services.metrics.events_missed.add((listener.watcher.kind,))
            else:
                listener.held.append(item)

    def _catch_up(self, listener: Listener) -> None:
        data = b""
        if listener.missed:
            text = dump_json({"type": "missed", "events": listener.missed})[1:]
            data = self._message("missed", None, text, listener.framing)
        data += self._bytes(listener.held, listener)
        listener.held.clear()
        listener.missed = 0
        listener.watcher.write(framed(data, listener.framing))

    def _bytes(self, items: Iterable[Numbered], listener: Listener) -> bytes:
        return b"".join(
            self._message(item.event.type, f"{self._boot}-{item.number}", item.json(), listener.framing)
            for item in items
        )

    def _message(self, kind: str, name: str | None, text: str, framing: Framing) -> bytes:
        """One message; ``text`` is a JSON object without its first brace."""
        if framing == "websocket":
            payload = ("{" + (f'"id":"{name}",' if name else "") + text).encode("utf-8", "replace")
            return _frame_head(len(payload)) + payload
        return (f"event: {kind}\n" + (f"id: {name}\n" if name else "") + "data: {" + text + "\n\n").encode(
            "utf-8", "replace"
        )


def source_of(event: Event) -> str | None:
    """The source that an event is about, if it is about one."""
    frame = getattr(event, "frame", None)
    source = getattr(event, "source", None) if frame is None else frame.source
    return source if isinstance(source, str) else None


def framed(data: bytes, framing: Framing) -> bytes:
    """Bytes as the connection takes them: an HTTP chunk where the response is chunked."""
    return b"%x\r\n%b\r\n" % (len(data), data) if framing == "chunked" and data else data


def _frame_head(size: int) -> bytes:
    """The head of an unmasked WebSocket text frame (RFC 6455, 5.2)."""
    if size < 126:
        return bytes((0x81, size))
    if size < 65536:
        return bytes((0x81, 126)) + size.to_bytes(2, "big")
    return bytes((0x81, 127)) + size.to_bytes(8, "big")
