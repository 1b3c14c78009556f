"""Addresses that a URL may lead to: checked where the socket is made, in whatever way the URL spells them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from runtime.captiond.addresses import AddressRefused, connector, is_public

REFUSED = (
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "198.18.0.1", "192.0.2.1", "224.0.0.1", "239.255.255.250", "255.255.255.255",
    "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:1::1", "2001:db8::1", "::127.0.0.1", "nonsense", "",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")
# How loopback is spelt in URLs to get past a comparison of strings.
SPELLINGS = ("127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost", "[::1]", "[::ffff:127.0.0.1]")


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_is_known_as_such(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_known_as_such(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses())
def test_what_the_standard_library_calls_private_is_never_public(address: object) -> None:
    parsed = ipaddress.ip_address(str(address))
    special = parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_reserved
    if special or parsed.is_unspecified or (parsed.version == 4 and not parsed.is_global):
        carried = isinstance(parsed, ipaddress.IPv6Address) and int(parsed) >> 32 in (0xFFFF, 0x64FF9B << 64)
        assert carried or not is_public(str(parsed))


async def served(url_of: str, private_allowed: bool) -> int:
    """Ask a real server on loopback through the connector; the status of its answer."""

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="inside")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(connector=connector(private_allowed=private_allowed)) as session:
            async with session.get(f"http://{url_of}:{port}/") as answer:
                return answer.status
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_loopback_is_refused_however_it_is_spelt(spelling: str) -> None:
    with pytest.raises((aiohttp.ClientConnectorError, aiohttp.InvalidURL)) as caught:
        asyncio.run(served(spelling, private_allowed=False))
    if isinstance(caught.value, aiohttp.ClientConnectorError):
        refused = caught.value.os_error
        assert isinstance(refused, (AddressRefused, socket.gaierror)) or "not permitted" in str(refused)


@pytest.mark.parametrize("spelling", ["127.0.0.1", "localhost"])
def test_loopback_is_reached_where_private_addresses_are_allowed(spelling: str) -> None:
    assert asyncio.run(served(spelling, private_allowed=True)) == 200
