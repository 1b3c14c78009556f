"""The routes ``POST /v1/chat/completions``, ``GET /v1/models`` and ``GET /v1/models/{model}``."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress

from aiohttp import web

from runtime.captiond.asks import Ask, AskDelta, AskMessage, AskResult
from runtime.captiond.events import ChatFinished
from runtime.captiond.http.body import read_json
from runtime.captiond.http.errors import HttpError, error_json, from_vlm_error
from runtime.captiond.http.json_answer import json_answer
from runtime.captiond.http.route import Route
from runtime.captiond.http.services import AskedView, Services
from runtime.captiond.openai.answers import Writer, event
from runtime.captiond.openai.images import Images
from runtime.captiond.openai.parse import parse_request
from runtime.captiond.openai.request import ChatRequest, ImageRef
from runtime.errors import ImageError, InputError, PromptError, VlmError

_log = logging.getLogger(__name__)
_NS_PER_S = 1_000_000_000
_OWNER = "jetson-vlm"
_RETRY_AFTER_S = {"loading": 2, "restarting": 2, "degraded": 30, "stopped": 30}


def routes(services: Services) -> list[Route]:
    """The declarations of the OpenAI API."""
    chats = Chats(services)
    return [
        Route("POST", "/v1/chat/completions", chats.complete, ("chat",)),
        Route("GET", "/v1/models", chats.models, ("read", "chat")),
        Route("GET", "/v1/models/{model}", chats.model, ("read", "chat")),
    ]


class Chats:
    """Answers chat requests. A client that leaves cancels its answer within one token."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._endings: set[asyncio.Task[None]] = set()

    async def models(self, request: web.Request) -> web.StreamResponse:
        """The model that is loaded; none while there is none."""
        model = self._services.engine.model
        return json_answer({"object": "list", "data": [] if model is None else [self._described(model)]})

    async def model(self, request: web.Request) -> web.StreamResponse:
        """One model by its name."""
        name = request.match_info["model"]
        if name != self._services.engine.model:
            raise _unknown_model(name)
        return json_answer(self._described(name))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, whole or in pieces."""
        server = self._services.server
        chat = parse_request(await read_json(request, server.max_body_bytes), max_images=server.max_images)
        self._check_ready(chat.model)
        images = Images(self._services)
        asked: AskedView | None = None
        began_ns = self._services.clock.now_ns()
        name = f"chatcmpl-{secrets.token_hex(12)}"
        try:
            await images.load(chat.images)
            asked = self._services.engine.ask(_ask(chat, images))
            return await self._answer(request, chat, Answering(name, asked, began_ns))
        except VlmError as error:
            raise _told(error, chat) from error
        finally:
            self._end(asked, images)

    async def _answer(self, request: web.Request, chat: ChatRequest, answering: Answering) -> web.StreamResponse:
        created = self._services.clock.wall_ns() // _NS_PER_S
        writer = Writer(answering.name, chat.model, created, logprobs=chat.logprobs, include_usage=chat.include_usage)
        # Nothing is sent before the first token: what fails until then gets a status of its own.
        first = await answering.next()
        if chat.stream:
            return await self._stream(request, answering, writer, first)
        deltas = [] if first is None else [first]
        async for delta in answering.rest():
            deltas.append(delta)
        result = await answering.asked.result()
        self._finished(answering, result)
        tokens = [delta for index, delta in enumerate(deltas) if index == 0 or delta.index != deltas[index - 1].index]
        return json_answer(writer.whole(result, tokens))

    async def _stream(
        self, request: web.Request, answering: Answering, writer: Writer, first: AskDelta | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        await response.prepare(request)
        await response.write(writer.first())
        try:
            index = -1
            delta = first
            while delta is not None:
                piece = writer.piece(delta, new_token=delta.index != index)
                index = delta.index
                if piece:
                    await response.write(piece)
                delta = await answering.next()
            result = await answering.asked.result()
        except VlmError as error:
            told = from_vlm_error(error)
            await response.write(event(error_json(told.message, told.kind, told.param, told.code)))
            _log.warning("%s ended in an error: %s", answering.name, told.message)
        else:
            self._finished(answering, result)
            await response.write(writer.last(result))
        await response.write_eof()
        return response

    def _check_ready(self, model: str) -> None:
        engine = self._services.engine
        status = engine.state.status
        if status != "ready" or engine.model is None:
            raise HttpError(
                503,
                f"the model is not ready: {status}{f' ({engine.state.message})' if engine.state.message else ''}",
                kind="service_unavailable_error",
                code="engine_unavailable",
                headers={"Retry-After": str(_RETRY_AFTER_S.get(status, 2))},
            )
        if model != engine.model:
            raise _unknown_model(model)

    def _described(self, model: str) -> dict[str, object]:
        about = self._services.about
        age_s = (self._services.clock.now_ns() - about.started_ns) // _NS_PER_S
        created = self._services.clock.wall_ns() // _NS_PER_S - age_s
        facts = self._services.engine.facts
        length = {} if facts is None else {"max_model_len": facts.max_seq_len}
        return {"id": model, "object": "model", "created": created, "owned_by": _OWNER, **length}

    def _finished(self, answering: Answering, result: AskResult) -> None:
        first_ns = result.first_t_ns if result.first_t_ns is not None else self._services.clock.now_ns()
        self._services.bus.publish(
            ChatFinished(
                request=answering.name,
                finish_reason=result.finish_reason,
                prompt_tokens=result.prompt_tokens,
                tokens=result.completion_tokens,
                ttft_ms=max(0.0, (first_ns - answering.began_ns) / 1e6),
                tokens_per_s=_rate(result),
            )
        )

    def _end(self, asked: AskedView | None, images: Images) -> None:
        """Cancel what may still be written; its pictures go when the engine has let go of them."""
        if asked is None:
            images.close()
            return
        asked.cancel()
        ending = asyncio.get_running_loop().create_task(_close_after(asked, images))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


class Answering:
    """One answer on its way to a client."""

    def __init__(self, name: str, asked: AskedView, began_ns: int) -> None:
        self.name, self.asked, self.began_ns = name, asked, began_ns
        self._deltas = asked.__aiter__()

    async def next(self) -> AskDelta | None:
        """The next piece; None at the end. Raises what ended the answer."""
        try:
            return await self._deltas.__anext__()
        except StopAsyncIteration:
            return None

    async def rest(self) -> AsyncIterator[AskDelta]:
        """The pieces that are still to come."""
        while (delta := await self.next()) is not None:
            yield delta


async def _close_after(asked: AskedView, images: Images) -> None:
    try:
        with suppress(VlmError):  # told to the client, who is served or gone
            await asked.result()
    finally:
        images.close()


def _ask(chat: ChatRequest, images: Images) -> Ask:
    number = 0
    messages = []
    for turn in chat.turns:
        parts: list[str | int] = []
        for part in turn.parts:
            if isinstance(part, ImageRef):
                parts.append(number)
                number += 1
            else:
                parts.append(part)
        messages.append(AskMessage(turn.role, tuple(parts)))
    return Ask("chat", tuple(messages), tuple(images.pictures), chat.params, chat.constraint)


def _told(error: VlmError, chat: ChatRequest) -> HttpError:
    """The HTTP answer to an error of the engine, with the parameter that it is most likely about."""
    param = None
    if isinstance(error, (PromptError, ImageError)):
        param = "messages"
    elif isinstance(error, InputError) and chat.constraint is not None:
        param = "response_format"
    return from_vlm_error(error, param)


def _unknown_model(name: str) -> HttpError:
    return HttpError(
        404, f"the model {name[:100]!r} does not exist; GET /v1/models names the one that is loaded",
        param="model", code="model_not_found",
    )  # fmt: skip


def _rate(result: AskResult) -> float:
    if result.first_t_ns is None or result.last_t_ns is None or result.last_t_ns <= result.first_t_ns:
        return 0.0
    return (result.completion_tokens - 1) * _NS_PER_S / (result.last_t_ns - result.first_t_ns)
