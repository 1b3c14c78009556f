"""JSON answers that nothing on the way keeps."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from runtime.captiond.http.json_text import dump_json


def json_answer(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """``body`` as the JSON of a response."""
    return web.Response(
        status=status,
        body=dump_json(body).encode("utf-8", "replace"),
        headers={"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store", **(headers or {})},
    )
