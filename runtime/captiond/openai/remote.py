"""Fetches an image that a chat request names by URL, where the configuration permits it at all.

The URL is a stranger's: only http and https, only their own ports, no credentials, no more than three redirects of
which each is checked again, and no address that is not public (`runtime.captiond.addresses`, where the socket is made).
What went wrong is not told: the answer would say what can be reached from here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from runtime.captiond.addresses import connector
from runtime.captiond.config import ServerSettings
from runtime.captiond.openai.fields import refused

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

MAX_REDIRECTS = 3
TIMEOUT_S = 10.0
PORTS = {"http": 80, "https": 443}
_TYPES = ("image/jpeg", "image/jpg", "image/png", "image/webp", "application/octet-stream", "binary/octet-stream")
_REDIRECTS = (301, 302, 303, 307, 308)


class _NotFetchedError(Exception):
    """Some reason why there is no image."""


async def fetch(url: str, param: str, settings: ServerSettings) -> bytes:
    """The bytes behind ``url``. Raises HttpError: 400 that says nothing of why, 403 where it is not permitted."""
    if not settings.remote_images:
        message = "images are not fetched from the network here (server.remote_images): send a data: URL"
        raise refused(param, message, status=403, code="remote_images_off")
    import aiohttp

    try:
        return await asyncio.wait_for(_fetched(url, settings), TIMEOUT_S)
    except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError, _NotFetchedError):
        message = "no image could be fetched from this URL"
        raise refused(param, message, code="image_not_fetched") from None


async def _fetched(url: str, settings: ServerSettings) -> bytes:
    import aiohttp
    from yarl import URL

    place = URL(url)
    async with aiohttp.ClientSession(
        connector=connector(private_allowed=settings.private_targets),
        auto_decompress=False,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": ", ".join(_TYPES[:4]), "Accept-Encoding": "identity", "User-Agent": "vlm-captiond"},
    ) as session:
        for _ in range(MAX_REDIRECTS + 1):
            check_url(place, any_port=settings.private_targets)
            async with session.get(place, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await _body(response, settings.max_image_bytes)
                place = place.join(URL(response.headers.get("Location", "")))
    raise _NotFetchedError


def check_url(url: URL, *, any_port: bool) -> None:
    """Refuse what is no plain web address. Raises ValueError."""
    if url.scheme not in PORTS or not url.host or url.user is not None or url.password is not None:
        raise ValueError("no plain web address")
    if not any_port and url.port != PORTS[url.scheme]:
        raise ValueError("another port")


async def _body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    plain = response.headers.get("Content-Encoding", "identity").lower() == "identity"
    if response.status != 200 or response.content_type.lower() not in _TYPES or not plain:
        raise _NotFetchedError
    if (response.content_length or 0) > limit:
        raise _NotFetchedError
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise _NotFetchedError
    return bytes(body)
