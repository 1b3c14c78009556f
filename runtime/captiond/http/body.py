"""Bodies of requests: whole, in time, within their limit, and JSON without traps."""

from __future__ import annotations

import re

from aiohttp import web

from runtime.captiond.http.connection import Connection
from runtime.captiond.http.errors import HttpError
from runtime.captiond.http.gate import connection_of
from runtime.captiond.http.json_text import parse_json

# A body in chunks: so many are read whatever their size, then they must have this mean size.
FREE_CHUNKS = 2048
MIN_CHUNK_BYTES = 64
_JSON_TYPE = re.compile(r"application/(?:[a-z0-9.+-]+\+)?json", re.IGNORECASE)


async def read_json(request: web.Request, limit_bytes: int) -> object:
    """The JSON value of a request's body.

    Raises:
        HttpError: 413, 415, 400 for tiny chunks.
        InputError: no JSON, too deep, too many values (`runtime.captiond.http.json_text`).
    """
    if _JSON_TYPE.fullmatch(request.content_type) is None:
        raise HttpError(
            415, f"Content-Type is {request.content_type!r}, it must be 'application/json'", code="unsupported_type"
        )
    return parse_json(await read_body(request, limit_bytes))


async def read_body(request: web.Request, limit_bytes: int) -> bytes:
    """A request's body of at most ``limit_bytes``; the connection ends with a body that is refused."""
    connection = connection_of(request)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        connection.hang_up_hearing()
        raise HttpError(415, "compressed bodies are not taken", code="unsupported_encoding", close=True)
    if (request.content_length or 0) > limit_bytes:
        raise too_large(connection, limit_bytes)
    connection.expect_body()
    try:
        return await (_chunks if request.content_length is None else _pieces)(request, connection, limit_bytes)
    finally:
        connection.body_came()


async def _pieces(request: web.Request, connection: Connection, limit_bytes: int) -> bytes:
    body = bytearray()
    while piece := await request.content.readany():
        body += piece
        if len(body) > limit_bytes:
            raise too_large(connection, limit_bytes)
    return bytes(body)


async def _chunks(request: web.Request, connection: Connection, limit_bytes: int) -> bytes:
    body, chunks = bytearray(), 0
    while True:
        piece, whole = await request.content.readchunk()
        if not piece and not whole:
            return bytes(body)
        body += piece
        chunks += 1
        if len(body) > limit_bytes:
            raise too_large(connection, limit_bytes)
        if chunks > FREE_CHUNKS and len(body) < chunks * MIN_CHUNK_BYTES:
            connection.hang_up_hearing()
            raise HttpError(
                400, f"body of {chunks} chunks with {len(body)} bytes; send larger ones", code="tiny_chunks", close=True
            )


def too_large(connection: Connection, limit_bytes: int) -> HttpError:
    """The refusal of a body, whose rest is not listened to."""
    connection.hang_up_hearing()
    message = f"the body is larger than {limit_bytes} bytes (server.max_body_bytes)"
    return HttpError(413, message, code="body_too_large", close=True)
