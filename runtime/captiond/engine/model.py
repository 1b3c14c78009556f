"""`runtime.Session` as the model of the engine's child."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence

import numpy as np

from runtime.captiond.asks import Ask, AskDelta, AskResult, ConstraintSpec, TokenChance
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine.messages import EngineFacts
from runtime.captiond.engine.server import Pixels
from runtime.constraint import Constraint
from runtime.decoder.options import CudaOptions
from runtime.errors import DeviceLostError, InputError
from runtime.prompt import ImagePart, Message
from runtime.session import Session
from runtime.text_stream import TextStream
from runtime.types import Delta, GenerationParams, ImageArray


def load(settings: EngineSettings, captions: int) -> SessionModel:
    """Open the bundle with a KV cache for each caption and each chat that may be written at once."""
    parallel = captions + settings.chats
    session = Session.open(
        settings.bundle or "",
        settings.decoder,  # type: ignore[arg-type]  # the configuration has checked its choices
        threads=settings.threads,
        verify=settings.verify,  # type: ignore[arg-type]
        chats=0,
        parallel=parallel,
        max_pending=2 * parallel,  # those that were cancelled may still be leaving
        cuda=CudaOptions(settings.device, settings.kv),  # type: ignore[arg-type]
    )
    return SessionModel(session)


class SessionModel:
    """Questions of the daemon as requests of a session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def steps(self) -> int:
        """Grows while the engine works."""
        return self._session.steps

    def facts(self) -> EngineFacts:
        """What was loaded; waits for what is being answered."""
        manifest = self._session.manifest
        memory: Counter[str] = Counter()
        for use in self._session.memory_report().uses:
            memory[use.purpose] += use.bytes
        return EngineFacts(
            model=manifest.source.name,
            decoder=self._session.decoder_kind,
            max_seq_len=manifest.decoder.max_seq_len,
            context_tokens=min(manifest.decoder.max_seq_len, manifest.prompt.context_tokens),
            memory_bytes=dict(memory),
        )

    def begin(self, ask: Ask, images: Sequence[Pixels]) -> Answer:
        """Queue a question; the session copies the pixels."""
        conversation = [
            Message(one.role, tuple(ImagePart(part) if isinstance(part, int) else part for part in one.parts))
            for one in ask.messages
        ]
        stream = self._session.stream(
            conversation,
            images=[_array(image) for image in images],
            params=_params(ask),
            deadline_s=ask.deadline_s,
            priority=ask.priority,
            weight=ask.weight,
            constraint=None if ask.constraint is None else _constraint(ask.constraint),
        )
        return Answer(stream, self._session if "top_logprobs" in ask.params else None)

    def fatal(self, error: BaseException) -> bool:
        """Whether the device is lost: nothing on it works until another process opens it."""
        return isinstance(error, DeviceLostError)


class Answer:
    """A stream of the session as messages want it. ``chances``: the session, when tokens have to be named."""

    def __init__(self, stream: TextStream, chances: Session | None) -> None:
        self._stream = stream
        self._chances = chances

    def __aiter__(self) -> AsyncIterator[AskDelta]:
        return self._deltas()

    async def _deltas(self) -> AsyncIterator[AskDelta]:
        async for delta in self._stream:
            yield self._ask_delta(delta)

    def _ask_delta(self, delta: Delta) -> AskDelta:
        if self._chances is None:
            return AskDelta(delta.text, delta.token_id, delta.logprob, delta.index, delta.t_ns)
        token = _chance(self._chances, delta.token_id, delta.logprob)
        top = tuple(_chance(self._chances, token_id, logprob) for token_id, logprob in delta.top)
        return AskDelta(delta.text, delta.token_id, delta.logprob, delta.index, delta.t_ns, token, top)

    async def result(self) -> AskResult:
        """The whole."""
        answer = await self._stream.answer_async()
        return AskResult(
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.usage.prompt_tokens,
            completion_tokens=answer.usage.completion_tokens,
            image_tokens=answer.usage.image_tokens,
            cached_tokens=answer.usage.cached_tokens,
            first_t_ns=self._stream.first_t_ns,
            last_t_ns=self._stream.last_t_ns,
            timings_ms=answer.timings.as_dict(),
        )

    def cancel(self) -> None:
        """End it within one token."""
        self._stream.cancel()


def _chance(session: Session, token_id: int, logprob: float) -> TokenChance:
    content = session.token_bytes(token_id)
    return TokenChance(content.decode("utf-8", "replace"), content, logprob)


def _array(image: Pixels) -> ImageArray:
    return np.frombuffer(image.view, np.uint8).reshape(image.height, image.width, 3)


def _params(ask: Ask) -> GenerationParams:
    try:
        return GenerationParams(**ask.params)  # type: ignore[arg-type]  # the session checks types and ranges
    except TypeError as problem:
        raise InputError(f"parameters {', '.join(ask.params)}: one of them is unknown") from problem


def _constraint(spec: ConstraintSpec) -> Constraint:
    from runtime.constraints import from_spec  # llguidance is loaded by those who use it

    return from_spec(spec)
