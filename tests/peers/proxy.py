"""A TCP proxy that does to a connection what networks do. Works in front of any peer: RTSP over TCP, MQTT, HTTP.

with FaultProxy(server.port) as proxy:
    client.connect("127.0.0.1", proxy.port)
    proxy.fault = Fault(silent=True)      # for all connections, those that are open too
    proxy.reset_all(); proxy.refuse(); proxy.accept()
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass

from tests.peers.looping import LoopingPeer, reset

_PIECE_BYTES = 65_536
_POLL_S = 0.02


@dataclass(frozen=True)
class Fault:
    """What happens to bytes. ``silent``: connections stay open and carry nothing (half-open); what comes meanwhile is
    lost. ``reset_on_accept``: RST instead of a connection. ``reset_after_bytes``: RST when the server has sent so many.
    ``delay_s``: before each piece. ``bytes_per_s``: at most, from the server. ``flip_share``: share of the server's
    bytes that get one bit flipped, after the first ``flip_after_bytes`` of a connection."""

    silent: bool = False
    reset_on_accept: bool = False
    reset_after_bytes: int | None = None
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    flip_share: float = 0.0
    flip_after_bytes: int = 4096


class FaultProxy(LoopingPeer):
    """Passes bytes between whoever connects and 127.0.0.1:``target_port``, or does not."""

    def __init__(self, target_port: int, seed: int = 1) -> None:
        super().__init__()
        self.target_port = target_port
        self.fault = Fault()
        self._rng = random.Random(seed)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass both directions until one of them ends."""
        if self.fault.reset_on_accept:
            reset(writer)
            return
        while self.fault.silent:
            await asyncio.sleep(_POLL_S)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        there = asyncio.ensure_future(self._pass(reader, server_writer, None))
        back = asyncio.ensure_future(self._pass(server_reader, writer, writer))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            server_writer.transport.abort()
            with contextlib.suppress(OSError):
                await server_writer.wait_closed()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: asyncio.StreamWriter | None
    ) -> None:
        """``client``: given for the direction from the server, which is the one that faults change."""
        passed = 0
        while data := await reader.read(_PIECE_BYTES):
            fault = self.fault
            if fault.silent:
                continue
            if fault.delay_s:
                await asyncio.sleep(fault.delay_s)
            if client is None:
                writer.write(data)
            elif fault.reset_after_bytes is not None and passed + len(data) > fault.reset_after_bytes:
                reset(client)
                return
            elif fault.bytes_per_s is not None:
                await self._trickle(data, writer)
            else:
                writer.write(self._flipped(data, fault, passed))
            passed += len(data)
            await writer.drain()

    async def _trickle(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        """Byte by byte while the fault lasts; what is left then goes at once."""
        for at in range(len(data)):
            rate = self.fault.bytes_per_s
            if rate is None:
                writer.write(data[at:])
                return
            writer.write(data[at : at + 1])
            await asyncio.sleep(1 / rate)

    def _flipped(self, data: bytes, fault: Fault, passed: int) -> bytes:
        if not fault.flip_share:
            return data
        changed = bytearray(data)
        for at in range(max(0, fault.flip_after_bytes - passed), len(changed)):
            if self._rng.random() < fault.flip_share:
                changed[at] ^= 1 << self._rng.randrange(8)
        return bytes(changed)
