"""Errors as HTTP tells them: one JSON shape, that of the OpenAI API, and no text of a library in it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

from runtime.captiond.text import one_line, redacted
from runtime.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    EngineError,
    InputError,
    MemoryLimitError,
    NetworkError,
    SourceError,
    UsageError,
    VlmError,
)

RETRY_AFTER_S = 1
# Status, type and code of the errors of this project, the narrowest class first.
_ANSWERS: tuple[tuple[type[VlmError], int, str, str], ...] = (
    (BusyError, 429, "rate_limit_error", "queue_full"),
    (InputError, 400, "invalid_request_error", "invalid_value"),
    (UsageError, 400, "invalid_request_error", "invalid_value"),
    (DeadlineError, 504, "timeout_error", "deadline_exceeded"),
    (MemoryLimitError, 503, "overloaded_error", "out_of_memory"),
    (EngineError, 503, "service_unavailable_error", "engine_unavailable"),
    (ClosedError, 503, "service_unavailable_error", "closing"),
    (SourceError, 503, "service_unavailable_error", "source_unavailable"),
    (NetworkError, 502, "bad_gateway_error", "peer_failed"),
)


class HttpError(Exception):
    """A request that is answered with ``status`` and the JSON of an error. ``close``: the connection ends with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code = param, code
        self.headers, self.close = dict(headers or {}), close


def error_json(message: str, kind: str, param: str | None, code: str | None) -> dict[str, object]:
    """The body of an error; ``message`` on one line, without credentials."""
    return {"error": {"message": one_line(redacted(message), 1000), "type": kind, "param": param, "code": code}}


def from_vlm_error(error: VlmError, param: str | None = None) -> HttpError:
    """The answer to an error of this project: its message and hint are meant for users."""
    for kind, status, name, code in _ANSWERS:
        if isinstance(error, kind):
            headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else {}
            return HttpError(status, str(error), kind=name, param=param, code=code, headers=headers)
    return HttpError(500, "internal error", kind="server_error", code="internal_error")


def error_response(error: HttpError) -> web.Response:
    """``error`` as a response."""
    body = json.dumps(error_json(error.message, error.kind, error.param, error.code), ensure_ascii=False)
    response = web.Response(
        status=error.status, text=body, content_type="application/json", headers={"Cache-Control": "no-store"}
    )
    response.headers.update(error.headers)
    if error.close:
        response.force_close()
    return response
