"""How a route is declared: its handler and, beside it, who may ask. The server refuses to start without that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from aiohttp import web

Permission = Literal["read", "chat", "control"]
Access = Literal["anyone", "read", "chat", "control"]
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """``access``: any one of these permissions is enough; "anyone" needs no key. ``stream``: the answer goes on until
    the client leaves (it counts as a watcher, and gets no HEAD)."""

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    access: tuple[Access, ...]
    stream: bool = False
