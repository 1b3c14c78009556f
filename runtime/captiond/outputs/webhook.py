"""Events as HTTP POST to somebody else's server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import uuid
from typing import Literal

import aiohttp

from runtime.captiond.addresses import connector
from runtime.captiond.bus import Bus
from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.config import read_secret
from runtime.captiond.config.settings import WebhookSettings
from runtime.captiond.events import EVENT_TYPES, Event
from runtime.captiond.outputs.output import Output
from runtime.captiond.outputs.payload import json_text
from runtime.errors import ConfigError, NetworkError
from runtime.version import __version__

_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0
_AGAIN = (408, 425, 429)
_MAX_ANSWER_BYTES = 4096

Outcome = Literal["taken", "again", "refused"]


class Webhook(Output):
    """One request after the other: {"id", …the event}, with the headers of `signed`.

    200 to 299 is success. No answer in ``timeout_s``, 408, 425, 429 and 500 to 599 are tried again ``retries`` times,
    after 0.5 s doubling to 30 s (Retry-After is heeded up to that); everything else, redirects among it, is an error
    and the event is dropped. The id of an event stays the same in every attempt. What is answered is not read.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        bus: Bus,
        clock: Clock,
        *,
        allow_private: bool,
        rng: random.Random | None = None,
    ) -> None:
        types = [kind for kind in EVENT_TYPES if kind.type in settings.events]
        super().__init__(f"webhook-{settings.name}", bus, clock, types)
        self._settings = settings
        self._allow_private = allow_private
        self._rng = rng or random.Random()
        self._ids = f"{uuid.uuid4().hex[:16]}-"
        self._number = 0

    async def _work(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
        async with aiohttp.ClientSession(
            connector=connector(private_allowed=self._allow_private),
            timeout=timeout,
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            async for event in self.subscription:
                taken = False
                try:
                    taken = await self._deliver(session, event)
                finally:
                    self.delivered += taken
                    self.lost += not taken

    async def _deliver(self, session: aiohttp.ClientSession, event: Event) -> bool:
        self._number += 1
        name = f"{self._ids}{self._number}"
        body = json_text(event, id=name).encode("ascii")
        retry_s = _FIRST_RETRY_S
        for attempt in range(self._settings.retries + 1):
            outcome, reason, wait_s = await self._post(session, event.type, name, body)
            if outcome == "taken":
                self._well("events are taken again")
                return True
            self._trouble(reason)
            if outcome == "refused":
                return False
            if attempt < self._settings.retries:
                await self._clock.sleep(max(wait_s, retry_s * self._rng.uniform(0.75, 1.25)))
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
        return False

    async def _post(
        self, session: aiohttp.ClientSession, kind: str, name: str, body: bytes
    ) -> tuple[Outcome, str, float]:
        """One attempt: what became of it, in words without the URL (it may hold a secret), and how long to wait."""
        try:
            path = self._settings.secret_file
            secret = None if path is None else read_secret(path).encode()
            headers = signed(kind, name, body, secret, self._clock.wall_ns() // NS_PER_S)
            async with session.post(self._settings.url, data=body, headers=headers, allow_redirects=False) as answer:
                status, after = answer.status, answer.headers.get("Retry-After", "")
                # A short answer is read so that the connection can be used again; a long one ends it.
                await answer.content.read(_MAX_ANSWER_BYTES)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            return "again", f"no answer: {_reason(error)}", 0.0
        except (NetworkError, ConfigError) as error:
            return "refused", str(error), 0.0
        if 200 <= status < 300:
            return "taken", "", 0.0
        wait_s = min(_LAST_RETRY_S, float(after)) if after.isascii() and after.isdigit() else 0.0
        return ("again" if status >= 500 or status in _AGAIN else "refused"), f"the answer is HTTP {status}", wait_s


def signed(kind: str, name: str, body: bytes, secret: bytes | None, unix_s: int) -> dict[str, str]:
    """The headers of a request: X-VLM-Event, X-VLM-Id, X-VLM-Timestamp, and with a secret X-VLM-Signature, which is
    "sha256=" and the hexadecimal HMAC-SHA256 of timestamp, ".", id, ".", body."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"jetson-vlm/{__version__}",
        "X-VLM-Event": kind,
        "X-VLM-Id": name,
        "X-VLM-Timestamp": str(unix_s),
    }
    if secret is not None:
        digest = hmac.new(secret, b"%d.%s.%s" % (unix_s, name.encode(), body), hashlib.sha256)
        headers["X-VLM-Signature"] = f"sha256={digest.hexdigest()}"
    return headers


def _reason(error: Exception) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.os_error.strerror or type(error.os_error).__name__}"
    return type(error).__name__
