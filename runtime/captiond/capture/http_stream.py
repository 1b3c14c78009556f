"""A response of an HTTP camera, read with limits: one request, one answer, no threads.

Redirects are followed on the same host alone, three at most: a camera must not choose whom the daemon talks to, nor
whom its password is for. A password is only sent when the server asks for it.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from runtime.captiond.capture.authorization import authorization
from runtime.captiond.capture.failures import CaptureFailed
from runtime.captiond.capture.plan import Plan

READ_TIMEOUT_S = 5.0
MAX_LINE_BYTES = 8192
MAX_HEADERS = 64
_REDIRECTS = 3
_CHUNK_BYTES = 65_536
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_CLEAN = re.compile(r"[\x21-\x7e]+")


class Response(NamedTuple):
    """What the server answered, and where its body is read."""

    status: int
    headers: Mapping[str, list[str]]
    body: Body


@dataclass(frozen=True, slots=True)
class _Target:
    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> _Target:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not _CLEAN.fullmatch(url):
            raise CaptureFailed("unsupported", f"{url!r}: not an http(s) address")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), path)

    @property
    def name(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Body:
    """Bytes of a connection with limits on lines, and a deadline that the caller moves on."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock = sock
        self._name = name
        self._buffer = bytearray()
        self._chunked = False
        self._chunk_left = 0
        self._plain = bytearray()
        self.deadline = time.monotonic() + READ_TIMEOUT_S

    def line(self) -> bytes:
        """A line without its end. Raises CaptureFailed above 8,192 bytes and where the stream ends."""
        while (end := self._data().find(b"\n")) < 0:
            if len(self._data()) > MAX_LINE_BYTES:
                raise CaptureFailed("damaged", f"{self._name}: a line of more than {MAX_LINE_BYTES} bytes")
            self._more()
        if end > MAX_LINE_BYTES:
            raise CaptureFailed("damaged", f"{self._name}: a line of more than {MAX_LINE_BYTES} bytes")
        return self._take(end + 1).rstrip(b"\r\n")

    def exactly(self, count: int) -> bytes:
        """``count`` bytes."""
        while len(self._data()) < count:
            self._more()
        return self._take(count)

    def until(self, mark: bytes, limit: int) -> bytes:
        """The bytes before ``mark``, which is read too. Raises CaptureFailed above ``limit`` bytes."""
        searched = 0
        while (at := self._data().find(mark, max(0, searched - len(mark)))) < 0:
            searched = len(self._data())
            if searched > limit:
                raise CaptureFailed("too_large", f"{self._name}: a part of more than {limit} bytes")
            self._more()
        return self._take(at + len(mark))[:at]

    def headers(self) -> dict[str, list[str]]:
        """Header lines up to the empty one, names in lower case. Raises CaptureFailed above 64."""
        found: dict[str, list[str]] = {}
        for _ in range(MAX_HEADERS):
            line = self.line()
            if not line:
                return found
            name, colon, value = line.decode("latin-1").partition(":")
            if colon:
                found.setdefault(name.strip().lower(), []).append(value.strip())
        raise CaptureFailed("damaged", f"{self._name}: more than {MAX_HEADERS} header lines")

    def unchunk(self) -> None:
        """From here on the body comes in chunks."""
        self._chunked = True

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def _data(self) -> bytearray:
        return self._plain if self._chunked else self._buffer

    def _take(self, count: int) -> bytes:
        data = self._data()
        taken = bytes(memoryview(data)[:count])
        del data[:count]
        return taken

    def _more(self) -> None:
        if not self._chunked:
            self._buffer += self._received()
            return
        if self._chunk_left == 0:
            self._chunk_left = self._next_chunk()
        if not self._buffer:
            self._buffer += self._received()
        part = self._buffer[: self._chunk_left]
        del self._buffer[: len(part)]
        self._plain += part
        self._chunk_left -= len(part)
        if self._chunk_left == 0:
            self._end_chunk(2)

    def _next_chunk(self) -> int:
        line = self._raw_line().split(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line):
            raise CaptureFailed("damaged", f"{self._name}: a chunk without a length")
        length = int(line, 16)
        if length == 0:
            raise CaptureFailed("closed", f"{self._name}: the stream ended")
        return length

    def _raw_line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise CaptureFailed("damaged", f"{self._name}: a line of more than {MAX_LINE_BYTES} bytes")
            self._buffer += self._received()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _end_chunk(self, count: int) -> None:
        while len(self._buffer) < count:
            self._buffer += self._received()
        del self._buffer[:count]

    def _received(self) -> bytes:
        left_s = self.deadline - time.monotonic()
        try:
            self._sock.settimeout(max(0.01, min(READ_TIMEOUT_S, left_s)))
            data = self._sock.recv(_CHUNK_BYTES) if left_s > 0 else b""
        except TimeoutError:
            raise CaptureFailed("timeout", f"{self._name}: nothing came for {READ_TIMEOUT_S:g} s") from None
        except OSError as problem:
            raise CaptureFailed("closed", f"{self._name}: {problem.strerror or 'the connection broke'}") from None
        if left_s <= 0:
            raise CaptureFailed("timeout", f"{self._name}: too slow")
        if not data:
            raise CaptureFailed("closed", f"{self._name}: the stream ended")
        return data


def get(plan: Plan) -> Response:
    """Request the URI and return the answer with status 200. Raises CaptureFailed with the status for another one."""
    target = first = _Target.of(plan.uri)
    header: str | None = None
    for _ in range(_REDIRECTS + 2):
        response = _request(target, header, plan.open_timeout_s)
        if response.status == 200:
            return response
        response.body.close()
        if response.status == 401 and header is None and plan.user is not None:
            challenges = response.headers.get("www-authenticate", [])
            header = authorization(challenges, "GET", target.path, plan.user, plan.password or "")
            if header is not None:
                continue
        if response.status in (301, 302, 303, 307, 308):
            target, header = _redirected(target, first, response), None
            continue
        raise CaptureFailed(str(response.status), f"{target.name}: the server answers {response.status}")
    raise CaptureFailed("redirect", f"{first.name}: more than {_REDIRECTS} redirects")


def _redirected(target: _Target, first: _Target, response: Response) -> _Target:
    place = (response.headers.get("location") or [""])[0]
    there = _Target.of(urljoin(f"{target.scheme}://{target.name}{target.path}", place))
    if there.host != first.host or (first.scheme == "https" and there.scheme != "https"):
        raise CaptureFailed(
            "redirect", f"{first.name}: redirects to {there.name}, another host", hint="set its address as uri"
        )
    return there


def _request(target: _Target, header: str | None, timeout_s: float) -> Response:
    sock = _connected(target, timeout_s)
    try:
        lines = [
            f"GET {target.path} HTTP/1.1",
            f"Host: {target.name}",
            "User-Agent: vlm-captiond",
            "Accept: multipart/x-mixed-replace, */*;q=0.1",
            "Connection: close",
            *([] if header is None else [f"Authorization: {header}"]),
        ]
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        body = Body(sock, target.name)
        body.deadline = time.monotonic() + timeout_s
        status = _STATUS.match(body.line())
        if status is None:
            raise CaptureFailed("unsupported", f"{target.name}: not an HTTP server")
        headers = body.headers()
        coding = ",".join(headers.get("transfer-encoding", [])).strip().lower()
        if coding == "chunked":
            body.unchunk()
        elif coding not in ("", "identity"):
            raise CaptureFailed("unsupported", f"{target.name}: transfer coding {coding[:40]!r}")
        return Response(int(status[1]), headers, body)
    except OSError as problem:
        sock.close()
        raise CaptureFailed("closed", f"{target.name}: {problem.strerror or 'the connection broke'}") from None
    except BaseException:
        sock.close()
        raise


def _connected(target: _Target, timeout_s: float) -> socket.socket:
    try:
        sock = socket.create_connection((target.host, target.port), timeout_s)
    except TimeoutError:
        raise CaptureFailed("timeout", f"{target.name}: no connection within {timeout_s:g} s") from None
    except OSError as problem:
        raise CaptureFailed("refused", f"{target.name}: {problem.strerror or 'no connection'}") from None
    if target.scheme == "http":
        return sock
    import ssl  # for those who need it alone: it costs every capture its memory

    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=target.host)
    except (OSError, ValueError) as problem:
        sock.close()
        reason = getattr(problem, "verify_message", None) or "the TLS handshake failed"
        raise CaptureFailed(
            "refused", f"{target.name}: {reason}", hint="SSL_CERT_FILE names trusted certificates"
        ) from None
