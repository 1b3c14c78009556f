"""Pause, prompts and cadence of a source, over HTTP and over a WebSocket; every value by the configuration's rules."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

from aiohttp import web

from runtime.captiond.config import PromptSettings
from runtime.captiond.config.check import check_prompts
from runtime.captiond.config.tables import table_of
from runtime.captiond.events import Notice
from runtime.captiond.http.body import read_json
from runtime.captiond.http.errors import HttpError, error_json, from_vlm_error
from runtime.captiond.http.gate import who_of
from runtime.captiond.http.json_answer import json_answer
from runtime.captiond.http.json_text import parse_json
from runtime.captiond.http.keys import Who
from runtime.captiond.http.route import Route
from runtime.captiond.http.services import Services, SourceView
from runtime.errors import ConfigError, InputError, VlmError

_log = logging.getLogger(__name__)

MAX_CONTROL_BYTES = 262_144
MAX_PROMPTS = 32
MAX_CAPTIONS_PER_S = 120.0
# Line breaks and tabs are good in a prompt; other control characters only serve to fool whoever reads a log.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FILE_KEYS = ("schema_file",)


class Control:
    """What may be changed while the daemon runs. Nothing is written to the configuration file."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """POST /api/sources/{name}/pause, resume, prompts, cadence."""
        path = "/api/sources/{name}/"
        return [
            Route("POST", path + "pause", self._post, ("control",)),
            Route("POST", path + "resume", self._post, ("control",)),
            Route("POST", path + "prompts", self._post, ("control",)),
            Route("POST", path + "cadence", self._post, ("control",)),
        ]

    async def _post(self, request: web.Request) -> web.Response:
        action = request.path.rpartition("/")[2]
        body: object = {}
        if request.can_read_body or action in ("prompts", "cadence"):
            body = await read_json(request, min(MAX_CONTROL_BYTES, self._services.server.max_body_bytes))
        return json_answer(self.apply(request.match_info["name"], action, body, who_of(request)))

    def command(self, text: str, who: Who) -> dict[str, object]:
        """A message of a WebSocket: ``{"do": "pause" | "resume" | "prompts" | "cadence", "source": …, "id": …}`` and
        the fields of the same POST. Answers ``{"type": "reply", "id", "ok", "error"}``; never raises."""
        name: object = None
        try:
            message = parse_json(text.encode("utf-8", "surrogatepass"))
            if not isinstance(message, dict):
                raise InputError("a message is a JSON object")
            name = message.pop("id", None)
            name = name if isinstance(name, int) or (isinstance(name, str) and len(name) <= 64) else None
            if "control" not in who.may:
                raise HttpError(
                    403, "this needs the permission 'control'", kind="permission_error", code="not_permitted"
                )
            action, source = message.pop("do", None), message.pop("source", None)
            if not isinstance(action, str) or not isinstance(source, str):
                raise InputError("a message has the texts 'do' and 'source'")
            self.apply(source, action, message, who)
        except HttpError as error:
            return _reply(name, error)
        except VlmError as error:
            return _reply(name, from_vlm_error(error))
        return {"type": "reply", "id": name, "ok": True, "error": None}

    def apply(self, source: str, action: str, body: object, who: Who) -> dict[str, object]:
        """Do it, or say why not. Raises HttpError, InputError."""
        view = self._services.sources.get(source)
        if view is None:
            raise HttpError(404, "there is no such source", param="name", code="unknown_source")
        if not isinstance(body, Mapping):
            raise InputError("the body is a JSON object")
        if action == "pause" or action == "resume":
            _only(body, ())
            (view.captioner.pause if action == "pause" else view.captioner.resume)()
        elif action == "prompts":
            view.captioner.set_prompts(_prompts(body, view))
        elif action == "cadence":
            view.captioner.set_cadence(_cadence(body))
        else:
            raise InputError("'do' is one of pause, resume, prompts, cadence")
        _log.info("source %s: %s by %s", source, action, who.name)
        self._services.bus.publish(Notice("info", f"source {source}", f"{action} by {who.name}"))
        return {"source": source, "paused": view.captioner.paused, "captions_per_s": view.captioner.captions_per_s}


def _reply(name: object, error: HttpError) -> dict[str, object]:
    return {"type": "reply", "id": name, "ok": False} | error_json(error.message, error.kind, error.param, error.code)


def _only(body: Mapping[str, object], keys: tuple[str, ...]) -> None:
    for key in body:
        if key not in keys:
            raise InputError(f"unknown key {key[:64]!r}; allowed are {', '.join(keys) or 'none'}")


def _cadence(body: Mapping[str, object]) -> float:
    _only(body, ("captions_per_s",))
    value = body.get("captions_per_s")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError("captions_per_s is a number")
    if not 0 <= value <= MAX_CAPTIONS_PER_S:
        raise InputError(f"captions_per_s is {value}; allowed is from 0 (as many as the model can) to 120")
    return float(value)


def _prompts(body: Mapping[str, object], view: SourceView) -> tuple[PromptSettings, ...]:
    """Prompts as in the configuration; files of this machine cannot be named, and rules keep the prompts they read."""
    _only(body, ("prompts",))
    given = body.get("prompts")
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_PROMPTS:
        raise InputError(f"prompts is a list of 1 to {MAX_PROMPTS} objects")
    prompts = []
    for number, item in enumerate(given):
        if not isinstance(item, Mapping):
            raise InputError(f"prompts[{number}] is an object")
        # The page sends back what /api/state gave it: null stands for an absent setting.
        values = {key: value for key, value in item.items() if value is not None}
        for key in _FILE_KEYS:
            if key in values:
                raise InputError(f"prompts[{number}].{key} cannot be set here; send the schema itself")
        _check_texts(values, number)
        prompts.append(values)
    return _checked(prompts, view)


def _checked(given: list[dict[str, object]], view: SourceView) -> tuple[PromptSettings, ...]:
    where = f"source {view.settings.name}"
    try:
        prompts = tuple(table_of(PromptSettings, values, f"prompts[{n}]") for n, values in enumerate(given))
        check_prompts(where, prompts)
    except ConfigError as error:
        raise InputError(error.message, hint=error.hint) from None
    for rule in view.settings.rules:
        kept = next((prompt for prompt in prompts if prompt.id == rule.prompt), None)
        if kept is None or kept.kind == "text":
            raise InputError(f"the rule {rule.name!r} reads the prompt {rule.prompt!r}: it must stay, yes_no or json")
    return prompts


def _check_texts(values: Mapping[str, object], number: int) -> None:
    for key in ("text", "system"):
        value = values.get(key)
        if isinstance(value, str) and _CONTROL.search(value) is not None:
            raise InputError(f"prompts[{number}].{key} holds control characters")
