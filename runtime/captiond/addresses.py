"""Which addresses the daemon may be sent to by a URL that somebody else wrote: those of the public internet.

The address is checked where a socket is made for it, after names were resolved and before anything is sent. So it does
not matter how a URL spells it (decimal, hexadecimal, IPv6-mapped), nor what a name resolves to next time.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

# The special-purpose registries of IANA: everything that is not reachable from everywhere. A list of our own, since
# `ipaddress` has changed its mind about some of them from one Python to the next.
_NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
# Teredo and 6to4 among them: they carry an IPv4 address inside.
_NOT_PUBLIC_V6 = tuple(
    ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
# IPv4 inside IPv6: mapped, and as translators write it (RFC 6052).
_CARRIERS = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))


class AddressRefused(PermissionError):
    """A connection to an address that is not public."""


def is_public(address: str) -> bool:
    """Whether a numeric address, with or without a zone, belongs to the public internet."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if any(parsed in network for network in _CARRIERS):
            return _public_v4(ipaddress.IPv4Address(int(parsed) & 0xFFFF_FFFF))
        return parsed in _PUBLIC_V6 and not any(parsed in network for network in _NOT_PUBLIC_V6)
    return _public_v4(parsed)


def connector(*, private_allowed: bool) -> aiohttp.TCPConnector:
    """What an `aiohttp.ClientSession` connects through. Private addresses are refused as `AddressRefused`, an OSError,
    unless ``private_allowed``. The session must not follow proxies of the environment (``trust_env=False``)."""
    import aiohttp

    if private_allowed:
        return aiohttp.TCPConnector()
    return aiohttp.TCPConnector(socket_factory=_checked_socket)


def _public_v4(address: ipaddress.IPv4Address) -> bool:
    return not any(address in network for network in _NOT_PUBLIC_V4)


def _checked_socket(info: tuple[Any, ...]) -> socket.socket:
    """Make the socket for one resolved address: (family, type, protocol, canonical name, (address, port, …))."""
    family, kind, protocol, _, place = info
    if family not in (socket.AF_INET, socket.AF_INET6) or not is_public(str(place[0])):
        raise AddressRefused(errno.EACCES, "private and loopback addresses are not permitted (server.private_targets)")
    return socket.socket(family, kind, protocol)
