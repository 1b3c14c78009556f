"""Which names this server answers to, and which web pages may ask it: against DNS rebinding and cross-site requests."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9](?:[a-z0-9._-]{0,252}))(?::(?P<port>[0-9]{1,5}))?")
_USUAL_PORTS = {"http": 80, "https": 443}
# Where a link from another site may lead: the page itself, which shows nothing to whoever is not logged in.
_PAGE = "/"


@dataclass(frozen=True, slots=True)
class Names:
    """What `Host` and `Origin` may be. ``hosts``: names with or without a port; ``origins``: scheme://host[:port]."""

    scheme: str
    port: int
    loopback: bool
    hosts: frozenset[str]
    origins: frozenset[str]


def host_problem(host: str, local_address: str, names: Names) -> str | None:
    """Why a `Host` header is not answered, None if it is.

    Answered are: loopback names when ``names.loopback``, the address at which the connection arrived, and configured
    hosts. A page of a stranger whose name was turned to this machine (DNS rebinding) sends its own name.
    """
    parts = _HOST.fullmatch(host.lower())
    if parts is None:
        return "the Host header is no host"
    name, port = parts["name"], int(parts["port"]) if parts["port"] else _USUAL_PORTS[names.scheme]
    if name in names.hosts or host.lower() in names.hosts:
        return None
    if port != names.port:
        return "the Host header names another port"
    if names.loopback and name in LOOPBACK_NAMES:
        return None
    if _same_address(name, local_address):
        return None
    return "the Host header names another host; further names are set in server.hosts"


def browser_problem(method: str, path: str, host: str, headers: Mapping[str, str], names: Names) -> str | None:
    """Why a browser's request is not answered, None if it is. ``headers``: Origin and Sec-Fetch-*; programs that are
    no browsers send none of them."""
    origin = headers.get("Origin")
    if origin is not None:
        if origin.lower() in names.origins:
            return None
        if origin.lower() != f"{names.scheme}://{host.lower()}":
            return "the Origin is another site; further ones are set in server.origins"
    site = headers.get("Sec-Fetch-Site", "none")
    if site in ("same-origin", "none"):
        return None
    navigation = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    if method == "GET" and path == _PAGE and origin is None and navigation:
        return None
    return "the request comes from a page of another site"


def _same_address(name: str, local_address: str) -> bool:
    try:
        asked = ipaddress.ip_address(name.strip("[]"))
        local = ipaddress.ip_address(local_address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(local, "ipv4_mapped", None)
    return asked in (local, mapped)
