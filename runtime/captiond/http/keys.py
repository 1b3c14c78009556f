"""Who asks: API keys known by their hashes, sessions of browsers, and a limit on guessing."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from runtime.captiond.clock import NS_PER_S
from runtime.captiond.config import KeySettings
from runtime.captiond.http.route import Permission

MAX_SESSIONS = 256
SESSION_S = 7 * 24 * 3600
# Wrong keys of one address: so many at once, then one more in so many seconds.
MAX_FAILURES = 10
FAILURE_S = 6.0
MAX_ADDRESSES = 1024
MAX_KEY_CHARS = 512


@dataclass(frozen=True, slots=True)
class Who:
    """A client: the name of its key, for logs, and what it may. ``sha256``: of its key, None without keys."""

    name: str
    may: frozenset[Permission]
    sha256: str | None = None
    session: bytes | None = None


EVERYBODY = Who("local", frozenset(get_args(Permission)))
NOBODY = Who("-", frozenset())


class KeyRing:
    """The keys that are valid now."""

    def __init__(self, keys: Sequence[KeySettings]) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, key: str) -> Who | None:
        """Whose key it is. Every hash is compared, each in constant time."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self._find(digest) if len(key) <= MAX_KEY_CHARS else None

    def still(self, who: Who) -> Who | None:
        """The client as it stands now: its key may be gone or may less since it logged in."""
        if not self._keys:
            return EVERYBODY
        return None if who.sha256 is None else self._find(who.sha256)

    def _find(self, digest: str) -> Who | None:
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            return None
        return Who(found.name, frozenset(part for part in get_args(Permission) if part in found.may), found.sha256)


class Sessions:
    """Browsers that have logged in: random tokens, kept as hashes; at most `MAX_SESSIONS`, the oldest goes first."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[bytes, tuple[Who, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, who: Who, now_ns: int) -> str:
        """A new session's token, for the cookie."""
        token = secrets.token_urlsafe(32)
        while len(self._sessions) >= MAX_SESSIONS:
            self._sessions.popitem(last=False)
        self._sessions[_digest(token)] = (who, now_ns + SESSION_S * NS_PER_S)
        return token

    def find(self, token: str, now_ns: int) -> Who | None:
        """Who logged in with this token, None when it is unknown or has expired."""
        name = _digest(token)
        who, until_ns = self._sessions.get(name, (None, 0))
        if who is None or now_ns < until_ns:
            return None if who is None else Who(who.name, who.may, who.sha256, name)
        del self._sessions[name]
        return None

    def close(self, name: bytes) -> None:
        """End a session (`Who.session`)."""
        self._sessions.pop(name, None)


class Throttle:
    """Wrong keys by address. A key that was right from an address before is not refused there: guessing by one program
    does not lock out another behind the same address. Bounded: the address not seen for longest is forgotten."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def wait_s(self, address: str, key: str, now_ns: int) -> float:
        """Seconds until a key from this address is looked at again; 0: now."""
        if (_network(address), _digest(key)) in self._right:
            return 0.0
        count, _ = self._decayed(_network(address), now_ns)
        return 0.0 if count <= MAX_FAILURES - 1 else (count - (MAX_FAILURES - 1)) * FAILURE_S

    def wrong(self, address: str, now_ns: int) -> None:
        """Note a wrong key."""
        network = _network(address)
        count, _ = self._decayed(network, now_ns)
        self._failures[network] = (count + 1, now_ns)
        self._failures.move_to_end(network)
        _shorten(self._failures)

    def right(self, address: str, key: str) -> None:
        """Note a right key."""
        known = (_network(address), _digest(key))
        self._right[known] = None
        self._right.move_to_end(known)
        _shorten(self._right)

    def _decayed(self, network: str, now_ns: int) -> tuple[float, int]:
        count, then_ns = self._failures.get(network, (0.0, now_ns))
        return max(0.0, count - (now_ns - then_ns) / NS_PER_S / FAILURE_S), now_ns


def _shorten(
    table: OrderedDict[object, object] | OrderedDict[str, tuple[float, int]] | OrderedDict[tuple[str, bytes], None],
) -> None:
    while len(table) > MAX_ADDRESSES:
        table.popitem(last=False)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _network(address: str) -> str:
    """An address as it is counted: IPv6 by its /64, of which one machine has all."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((parsed.packed[:8] + bytes(8), 64)))
    return str(parsed)
