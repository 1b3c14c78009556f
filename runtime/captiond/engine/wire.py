"""Messages between the daemon and its engine: JSON objects with files, over a stream socket on an event loop.

A message is its length (u32, big-endian), then one JSON object. Open files travel beside the first byte of their
message (SCM_RIGHTS); the object says how many under ``"files"``. Neither end trusts the other to be whole: what is
too long, not JSON, or short of files ends the connection with a `WireError`, and nothing else.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import EngineError

MAX_MESSAGE_BYTES = 32 << 20
MAX_UNSENT_BYTES = 64 << 20
MAX_FILES = 64
_READ_BYTES = 1 << 16
_HEAD = struct.Struct(">I")
_FILES = "files"

Message = Mapping[str, Any]
OnMessage = Callable[[dict[str, Any], list[int]], None]
OnClosed = Callable[["WireError | None"], None]


class WireError(EngineError):
    """A peer that does not keep to the protocol, or does not read."""


@dataclass(slots=True)
class _Outgoing:
    """Bytes of a message that are not sent yet, and the files that go with its first byte."""

    data: memoryview
    files: list[int] = field(default_factory=list)


class Connection:
    """One end. It owns its socket; everything happens on the running event loop.

    ``on_message`` gets each message and its open files, which are the receiver's to close; a WireError that it raises
    ends the connection. ``on_closed`` is called once: with None at the peer's end of file, else with what was wrong.
    """

    def __init__(self, end: socket.socket, on_message: OnMessage, on_closed: OnClosed) -> None:
        end.setblocking(False)
        self._socket = end
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._files: deque[int] = deque()
        self._unsent: deque[_Outgoing] = deque()
        self._unsent_bytes = 0
        self._closed = False
        self._loop.add_reader(end, self._readable)

    @property
    def closed(self) -> bool:
        """Whether nothing is sent or received any more."""
        return self._closed

    @property
    def unsent_bytes(self) -> int:
        """What waits because the peer does not read."""
        return self._unsent_bytes

    def send(self, message: Message, files: Sequence[int] = ()) -> None:
        """Queue a message; never blocks. ``files`` are duplicated, the caller keeps its own.

        A closed connection takes it and drops it: ``on_closed`` has said so. Raises WireError for a message above the
        limits.
        """
        if self._closed:
            return
        text = json.dumps({**message, _FILES: len(files)} if files else message, separators=(",", ":")).encode()
        if len(text) > MAX_MESSAGE_BYTES:
            raise WireError(f"a message of {len(text)} bytes, the most is {MAX_MESSAGE_BYTES}")
        if len(files) > MAX_FILES:
            raise WireError(f"{len(files)} files in one message, the most is {MAX_FILES}")
        if self._unsent_bytes + len(text) > MAX_UNSENT_BYTES:
            self._end(WireError(f"the peer leaves {self._unsent_bytes} bytes unread, the most is {MAX_UNSENT_BYTES}"))
            return
        data = _HEAD.pack(len(text)) + text
        self._unsent.append(_Outgoing(memoryview(data), [os.dup(file) for file in files]))
        self._unsent_bytes += len(data)
        if len(self._unsent) == 1:
            self._writable()

    def close(self) -> None:
        """Close the socket and whatever files were on their way. Idempotent; ``on_closed`` is not called."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for file in [*self._files, *(file for out in self._unsent for file in out.files)]:
            os.close(file)
        self._files.clear()
        self._unsent.clear()
        self._unsent_bytes = 0

    def _end(self, problem: WireError | None) -> None:
        if not self._closed:
            self.close()
            self._on_closed(problem)

    def _writable(self) -> None:
        try:
            while self._unsent:
                self._send_some(self._unsent[0])
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._writable)
            return
        except OSError:  # the peer is gone: what it sent before is still to be read, then comes its end of file
            self._drop_unsent()
        self._loop.remove_writer(self._socket)

    def _send_some(self, out: _Outgoing) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", out.files))] if out.files else []
        sent = self._socket.sendmsg([out.data], rights, socket.MSG_NOSIGNAL)
        for file in out.files:
            os.close(file)
        out.files = []
        out.data = out.data[sent:]
        self._unsent_bytes -= sent
        if not out.data:
            self._unsent.popleft()

    def _drop_unsent(self) -> None:
        for out in self._unsent:
            for file in out.files:
                os.close(file)
        self._unsent.clear()
        self._unsent_bytes = 0

    def _readable(self) -> None:
        try:
            data, rights, _, _ = self._socket.recvmsg(
                _READ_BYTES, socket.CMSG_SPACE(4 * MAX_FILES), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(None)
            return
        for level, kind, content in rights:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                files = array.array("i")
                files.frombytes(content[: len(content) - len(content) % files.itemsize])
                self._files.extend(files)
        if not data:
            self._end(WireError("the peer ended within a message") if self._received else None)
            return
        self._received += data
        try:
            self._take_messages()
        except WireError as problem:
            self._end(problem)

    def _take_messages(self) -> None:
        while not self._closed and len(self._received) >= _HEAD.size:
            (size,) = _HEAD.unpack_from(self._received)
            if size > MAX_MESSAGE_BYTES:
                raise WireError(f"the peer announces a message of {size} bytes, the most is {MAX_MESSAGE_BYTES}")
            if len(self._received) < _HEAD.size + size:
                return
            text = bytes(memoryview(self._received)[_HEAD.size : _HEAD.size + size])
            del self._received[: _HEAD.size + size]
            message = parsed(text)
            self._on_message(message, self._take_files(message.pop(_FILES, 0)))

    def _take_files(self, count: object) -> list[int]:
        if not isinstance(count, int) or not 0 <= count <= len(self._files):
            raise WireError(f"a message with {count!r} files, {len(self._files)} came along")
        return [self._files.popleft() for _ in range(count)]


def parsed(text: bytes) -> dict[str, Any]:
    """The object of a message. Raises WireError."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise WireError(f"the peer sent {text[:80]!r}, which is no JSON") from problem
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise WireError(f"the peer sent {text[:80]!r}: an object with a type was expected")
    return message
