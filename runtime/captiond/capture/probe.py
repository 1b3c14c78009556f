"""Asks a source whether it is there, before a process is launched for it. Cheap, bounded, never hanging.

A device file is looked at; http and rtsp are asked for the head of an answer, with the camera's user and password
(Digest or Basic); of https and rtsps only the TCP port is tried, because cameras' certificates are seldom signed and a
password does not go to strangers. Files, csi, rosbag and pipelines are not probed: their capture process says it all.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from runtime.captiond.capture.authorization import authorization
from runtime.captiond.capture.start import scheme_of
from runtime.captiond.config.settings import SourceSettings
from runtime.captiond.text import one_line, redacted
from runtime.errors import NetworkError, SourceError

Probe = Callable[[SourceSettings, "str | None", float], Awaitable[None]]
"""(settings, password, timeout_s): returns when the source answers; raises VlmError, with a ``cause``, when not."""

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_MAX_LINE_BYTES = 4096
_MAX_HEAD_BYTES = 16_384
_MAX_BODY_BYTES = 65_536
_SHOWN_CHARS = 80
_CODECS = frozenset(
    ("H264", "H265", "HEVC", "JPEG", "MP4V-ES", "VP8", "VP9", "AV1", "H261", "H263", "H263-1998", "H263-2000")
    + ("MPV", "MP1S", "MP2P", "MP2T", "JPEG2000", "THEORA", "DV")
)
_STATUS = re.compile(rb"(?:RTSP|HTTP)/1\.[01] (\d{3})(?: |\r|\n)")


class UnreachableError(NetworkError):
    """A camera that does not answer, or says no. ``cause``: one word, or the status code."""

    def __init__(self, cause: str, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


class MissingDeviceError(SourceError):
    """A device file that is not there or may not be used."""

    def __init__(self, cause: str, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


class SourceProbe:
    """The probe of one source. It keeps a slow name lookup going, so that at most one is under way."""

    def __init__(self) -> None:
        self._lookup: asyncio.Task[list[tuple[str, int]]] | None = None

    async def __call__(self, settings: SourceSettings, password: str | None, timeout_s: float) -> None:
        """Returns when the source answers; raises UnreachableError or MissingDeviceError within ``timeout_s``."""
        if scheme_of(settings.uri) == "v4l2":
            _look_at_device(settings.uri)
            return
        if scheme_of(settings.uri) not in _PORTS:
            return
        try:
            uri = urlsplit(settings.uri)
        except ValueError as problem:
            raise UnreachableError("garbage", f"{one_line(redacted(settings.uri), _SHOWN_CHARS)}: {problem}") from None
        try:
            await asyncio.wait_for(self._ask(uri, settings.user, password), timeout_s)
        except asyncio.TimeoutError:
            raise UnreachableError("timeout", f"{_name(uri)} does not answer within {timeout_s:g} s") from None
        except (OSError, EOFError, ValueError) as problem:
            raise _explained(uri, problem) from None

    async def _ask(self, uri: SplitResult, user: str | None, password: str | None) -> None:
        places = await self._places(uri.hostname or "", uri.port or _PORTS[uri.scheme.lower()])
        reader, writer = await _connected(places)
        try:
            if uri.scheme.lower() in ("rtsps", "https"):
                return
            name, word = user or unquote(uri.username or ""), password or unquote(uri.password or "")
            answer = await _exchange(reader, writer, uri, 1, None)
            token = None
            if answer.status == 401 and name:
                method, target = _request(uri)
                token = authorization(answer.challenges, method, target, name, word)
            if token is not None:
                if (
                    uri.scheme.lower() == "http"
                ):  # its server may hang up after an answer; RTSP's nonce may be of this connection
                    await _hang_up(writer)
                    reader, writer = await _connected(places)
                answer = await _exchange(reader, writer, uri, 2, token)
            _judge(uri, answer, bool(name))
        finally:
            await _hang_up(writer)

    async def _places(self, host: str, port: int) -> list[tuple[str, int]]:
        if _is_address(host):
            return [(host, port)]
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.ensure_future(_looked_up(host, port))
            self._lookup.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._lookup)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    challenges: tuple[str, ...]
    body: bytes


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _looked_up(host: str, port: int) -> list[tuple[str, int]]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(str(place[4][0]), int(place[4][1])) for place in found]


async def _connected(places: list[tuple[str, int]]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the first address that accepts."""
    problem: OSError = ConnectionRefusedError(errno.ECONNREFUSED, "no address")
    for host, port in places:
        try:
            return await asyncio.open_connection(host, port, limit=_MAX_LINE_BYTES)
        except OSError as refusal:
            problem = refusal
    raise problem


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _request(uri: SplitResult) -> tuple[str, str]:
    """Method and target of the request: RTSP wants the whole URL, HTTP its path."""
    query = f"?{uri.query}" if uri.query else ""
    if uri.scheme.lower() == "http":
        return "GET", (uri.path or "/") + query
    return "DESCRIBE", f"rtsp://{uri.netloc.rpartition('@')[2]}{uri.path}{query}"


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uri: SplitResult, number: int, token: str | None
) -> _Answer:
    """One request and the head of its answer; with RTSP also up to 64 KiB of its body."""
    method, target = _request(uri)
    rtsp = method == "DESCRIBE"
    lines = [f"{method} {target} {'RTSP/1.0' if rtsp else 'HTTP/1.0'}"]
    lines += [f"CSeq: {number}", "Accept: application/sdp"] if rtsp else [f"Host: {uri.netloc.rpartition('@')[2]}"]
    lines += ["User-Agent: vlm-captiond"] + ([f"Authorization: {token}"] if token is not None else [])
    if any(not line.isascii() or not line.isprintable() for line in lines):
        raise ValueError("characters in the URI that no request can hold")
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    await writer.drain()
    line = await reader.readline()
    match = _STATUS.match(line)
    if not line:
        raise EOFError
    if match is None:
        raise ValueError(f"that is no answer of {'RTSP' if rtsp else 'HTTP'}")
    headers = await _headers(reader)
    length = "".join(headers.get("content-length", [])[:1])
    body = b""
    if rtsp and length.isdigit():
        body = await reader.readexactly(min(int(length[:9]), _MAX_BODY_BYTES))
    return _Answer(int(match.group(1)), tuple(headers.get("www-authenticate", [])), body)


async def _headers(reader: asyncio.StreamReader) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    read_bytes = 0
    while line := (await reader.readline()).decode("latin-1"):
        read_bytes += len(line)
        if read_bytes > _MAX_HEAD_BYTES:
            raise ValueError(f"a head of more than {_MAX_HEAD_BYTES} bytes")
        name, _, value = line.partition(":")
        if not line.strip():
            return found
        found.setdefault(name.strip().lower(), []).append(value.strip())
    raise EOFError


def _judge(uri: SplitResult, answer: _Answer, known: bool) -> None:
    """Raise UnreachableError for a refusal, or a description that promises nothing. A redirection is the child's."""
    status, name = answer.status, _name(uri)
    if status == 401:
        wrong = "refuses the user and password" if known else "wants a user and a password"
        hint = "set user and password_file of the source"
        raise UnreachableError("401", f"{name} {wrong} (401)", hint=hint)
    if status == 404:
        raise UnreachableError("404", f"{name} has no such stream (404)", hint="check the path of the URI")
    if status >= 400:
        raise UnreachableError(str(status), f"{name} answers {status}")
    if uri.scheme.lower() == "rtsp" and status == 200:
        _look_at_description(name, answer.body)


def _look_at_description(name: str, body: bytes) -> None:
    """Raise UnreachableError for SDP without video, or with video that no capture process decodes."""
    lines = [line.strip() for line in body.decode("latin-1").splitlines()]
    if not lines or not lines[0].startswith("v="):
        raise UnreachableError("damaged", f"{name} describes itself in no known way")
    video = next((number for number, line in enumerate(lines) if line.startswith("m=video")), None)
    if video is None:
        raise UnreachableError("no_video", f"{name} describes no video")
    payload = (lines[video].split()[3:] or [""])[0]
    for line in lines[video + 1 :]:
        if line.startswith("m="):
            break
        mapped, _, codec = line.partition("/")[0].partition(" ")
        if mapped == f"a=rtpmap:{payload}" and codec.upper() not in _CODECS:
            raise UnreachableError("unsupported", f"{name} sends video of the unknown codec {one_line(codec, 40)}")


def _name(uri: SplitResult) -> str:
    """Scheme, host and port: enough for a message, and never a password."""
    return one_line(f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}", _SHOWN_CHARS)


def _explained(uri: SplitResult, problem: OSError | EOFError | ValueError) -> UnreachableError:
    name = _name(uri)
    if isinstance(problem, ConnectionRefusedError):
        return UnreachableError("refused", f"{name} refuses the connection")
    if isinstance(problem, (ConnectionError, EOFError)):
        return UnreachableError("reset", f"{name} hangs up")
    if isinstance(problem, socket.gaierror):
        return UnreachableError("name", f"{name}: the name of the host is not found")
    if isinstance(problem, OSError):
        word = os.strerror(problem.errno) if problem.errno else "network error"
        return UnreachableError("unreachable", f"{name}: {word}")
    return UnreachableError("garbage", f"{name}: {one_line(str(problem), _SHOWN_CHARS)}")


def _look_at_device(uri: str) -> None:
    """Raise MissingDeviceError when the device of ``v4l2:///dev/video0`` or ``/dev/video0`` is not there."""
    path = uri if uri.startswith("/") else unquote(urlsplit(uri).path)
    if not os.path.exists(path):  # noqa: PTH110 (a device file; pathlib is no clearer)
        raise MissingDeviceError("missing", f"{one_line(path, _SHOWN_CHARS)} is not there")
    if not os.access(path, os.R_OK | os.W_OK):
        hint = "add the user of the service to the group video"
        raise MissingDeviceError("denied", f"{one_line(path, _SHOWN_CHARS)} may not be opened", hint=hint)
