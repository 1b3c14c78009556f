"""Messages between the daemon and its children: one JSON object per packet of a local socket, and open files with it.

Standard library alone: the GStreamer child uses it too.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence

MAX_MESSAGE_BYTES = 65_536
MAX_FDS = 16
_FD_BYTES = array.array("i").itemsize

Message = dict[str, object]


class MessageError(ValueError):
    """A packet that is no message, or a message that is too large."""


def encoded(message: Mapping[str, object]) -> bytes:
    """The packet of a message. Raises MessageError above 65,536 bytes."""
    data = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(f"a message of {len(data)} bytes, the limit is {MAX_MESSAGE_BYTES}")
    return data


def send(sock: socket.socket, message: Mapping[str, object], fds: Sequence[int] = (), flags: int = 0) -> None:
    """Send one message. Raises BlockingIOError when the socket is full and must not wait, OSError when it is closed."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
    sock.sendmsg([encoded(message)], rights, flags | socket.MSG_NOSIGNAL)


def patient(sock: socket.socket, seconds: int) -> None:
    """Let `send` wait at most so long for room; then it raises BlockingIOError.

    By the kernel, not by ``settimeout``: with that, Python would wait in spite of MSG_DONTWAIT.
    """
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))


def receive(sock: socket.socket, max_fds: int = 0, flags: int = 0) -> tuple[Message, list[int]] | None:
    """Receive one message and up to ``max_fds`` open files, which the caller closes; None at the end.

    Files that nobody asked for never arrive. Raises MessageError for a packet that is not a JSON object with a "type",
    BlockingIOError when there is none and the socket must not wait.
    """
    space = socket.CMSG_SPACE(max_fds * _FD_BYTES) if max_fds else 0
    try:
        data, rights, got, _ = sock.recvmsg(MAX_MESSAGE_BYTES, space, flags | socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # the other end closed with packets of ours unread
        return None
    fds = _fds(rights)
    if not data:
        _close(fds)
        return None
    try:
        if got & socket.MSG_TRUNC:
            raise MessageError(f"a packet of more than {MAX_MESSAGE_BYTES} bytes")
        return _decoded(data), fds
    except MessageError:
        _close(fds)
        raise


def _decoded(data: bytes) -> Message:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise MessageError(f"a packet of {len(data)} bytes that is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise MessageError('a packet that is not an object with a "type"')
    return message


def _fds(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return found.tolist()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
