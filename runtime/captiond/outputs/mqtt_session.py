"""One connection to an MQTT broker, from its beginning to its end; paho does the protocol in a thread of its own.

Each connection gets a client of its own: nothing that an old one has left behind is sent later, out of order.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from runtime.captiond.clock import Clock
from runtime.captiond.outputs.mqtt_topics import Message
from runtime.captiond.outputs.worker import Worker
from runtime.errors import NetworkError

MAX_UNDERWAY = 32
_CONNECT_S = 10.0
_GOODBYE_S = 0.5


@dataclass(frozen=True, slots=True)
class Account:
    """Where the broker is, and who we are."""

    host: str
    port: int
    client_id: str
    keepalive_s: int
    qos: int
    user: str | None
    password: str | None
    tls: bool
    ca_file: str | None
    certificate_file: str | None
    private_key_file: str | None


class Refused(NetworkError):
    """The broker is there and does not want us."""


class Session:
    """A connection. ``will`` is what the broker says when it is lost; ``taken(n)`` is told of ``n`` counted messages
    that the broker has confirmed, ``heard`` of retained messages of `listen`."""

    def __init__(
        self,
        account: Account,
        will: Message,
        clock: Clock,
        worker: Worker,
        taken: Callable[[int], None],
        heard: Callable[[str], None],
    ) -> None:
        self._account = account
        self._clock = clock
        self._worker = worker
        self._taken = taken
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._underway: dict[int, bool] = {}
        self._connected = False
        self._gone: str | None = None
        self._refusal: str | None = None
        self._tls: _Context | None = None
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, account.client_id, clean_session=True, reconnect_on_failure=False
        )
        self._client.will_set(will.topic, will.payload, account.qos, retain=True)
        self._client.max_queued_messages_set(2 * MAX_UNDERWAY)
        self._client.max_inflight_messages_set(MAX_UNDERWAY)
        self._client.connect_timeout = _CONNECT_S
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message

    @property
    def lost(self) -> int:
        """Counted messages that the broker has not confirmed."""
        return sum(self._underway.values())

    async def open(self) -> None:
        """Connect. Raises NetworkError that says why it does not work, `Refused` among them."""
        try:
            await self._worker.run(self._connect)
        except (OSError, ValueError) as error:
            if self._tls is not None:
                self._tls.drop()
            raise NetworkError(f"{self._where()}: {_reason(error)}") from error
        self._client.loop_start()
        try:
            await self._until(lambda: self._connected or self._gone is not None, _CONNECT_S)
            if self._refusal is not None:
                raise Refused(f"{self._where()} refuses: {self._refusal}")
            if not self._connected:
                raise NetworkError(f"{self._where()}: {self._gone or f'no answer to CONNECT in {_CONNECT_S:g} s'}")
        except BaseException:
            self._client.disconnect()
            raise

    def listen(self, topic: str) -> None:
        """Ask for the retained messages of a topic filter."""
        self._client.subscribe(topic, self._account.qos)

    async def send(self, message: Message, *, counted: bool = False) -> bool:
        """Hand a message over, as soon as fewer than 32 are underway; False when the connection is lost."""
        await self._until(lambda: self._gone is not None or len(self._underway) < MAX_UNDERWAY)
        if self._gone is not None:
            return False
        info = self._client.publish(message.topic, message.payload, self._account.qos, retain=message.kept)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            return False
        # Confirmations come through the loop, so they cannot be handled before this line.
        self._underway[info.mid] = counted
        return True

    async def lasts(self, changed: asyncio.Event) -> str | None:
        """Wait until the connection ends: why; or until ``changed`` is set: None."""
        waiting = asyncio.ensure_future(changed.wait())
        ending = asyncio.ensure_future(self._until(lambda: self._gone is not None))
        try:
            await asyncio.wait({waiting, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            ending.cancel()
        return self._gone

    async def close(self) -> None:
        """Say goodbye, so that the will is not sent; waits half a second at most for what is underway."""
        await self._until(lambda: self._gone is not None or not self._underway, _GOODBYE_S)
        self._client.disconnect()
        await self._until(lambda: self._gone is not None, _GOODBYE_S)

    def _connect(self) -> None:
        account = self._account
        if account.user is not None:
            self._client.username_pw_set(account.user, account.password)
        if account.tls:
            self._tls = _Context(ssl.PROTOCOL_TLS_CLIENT)
            if account.ca_file is None:
                self._tls.load_default_certs()
            else:
                self._tls.load_verify_locations(account.ca_file)
            if account.certificate_file is not None:
                self._tls.load_cert_chain(account.certificate_file, account.private_key_file)
            self._client.tls_set_context(self._tls)
        self._client.connect(account.host, account.port, account.keepalive_s)

    def _where(self) -> str:
        return f"broker {self._account.host}:{self._account.port}"

    async def _until(self, true: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait for a change that makes ``true`` so, for ``seconds`` at most."""
        timer = None if seconds is None else asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            while not true() and (timer is None or not timer.done()):
                self._changed.clear()
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({changed, timer} if timer else {changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            if timer is not None:
                timer.cancel()

    # ---- paho's thread

    def _on_connect(
        self, client: paho.Client, data: object, flags: paho.ConnectFlags, reason: ReasonCode, more: Properties | None
    ) -> None:
        self._tell(self._set_refused, str(reason)) if reason.is_failure else self._tell(self._set_connected)

    def _on_disconnect(
        self,
        client: paho.Client,
        data: object,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        more: Properties | None,
    ) -> None:
        self._tell(self._set_gone, f"the connection ended ({reason})")

    def _on_publish(
        self, client: paho.Client, data: object, mid: int, reason: ReasonCode, more: Properties | None
    ) -> None:
        self._tell(self._set_taken, mid)

    def _on_message(self, client: paho.Client, data: object, message: paho.MQTTMessage) -> None:
        if message.retain and message.payload:
            self._tell(self._heard, message.topic)

    def _tell(self, call: Callable[..., None], *values: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(call, *values)

    # ---- the loop

    def _set_connected(self) -> None:
        self._connected = True
        self._changed.set()

    def _set_refused(self, reason: str) -> None:
        self._gone = self._refusal = reason
        self._changed.set()

    def _set_gone(self, reason: str) -> None:
        self._gone = self._gone or reason
        self._changed.set()

    def _set_taken(self, mid: int) -> None:
        if self._underway.pop(mid, False):
            self._taken(1)
        self._changed.set()


class _Context(ssl.SSLContext):
    """Remembers the socket that it has wrapped: paho leaves it open when the handshake fails."""

    _made: ssl.SSLSocket | None = None

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        self._made = super().wrap_socket(
            sock, server_side, do_handshake_on_connect, suppress_ragged_eofs, server_hostname, session
        )
        return self._made

    def drop(self) -> None:
        """Close that socket."""
        if self._made is not None:
            self._made.close()
            self._made = None


def _reason(error: Exception) -> str:
    """Why a connection failed, in words that name no secret."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return "the name is not known"
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "no answer"
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{error.strerror or error}"
    return str(error)
