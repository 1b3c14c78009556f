"""The child's end of the wire: takes questions, asks a `Model`, sends what it says. One event loop.

The model is `runtime.captiond.engine.model.SessionModel`; tests bring one of their own, so that the daemon talks to the
very same code in both.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from runtime.captiond.asks import Ask, AskDelta, AskResult, NewestFrame, SharedImage
from runtime.captiond.capture.ring import READER_ENGINE, Pinned, Ring
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine import messages
from runtime.captiond.engine.messages import EngineFacts, Taken
from runtime.captiond.engine.wire import Connection, Message, WireError
from runtime.errors import ImageError, InputError, SourceError

ALIVE_S = 0.5
_THREADS = 2


@dataclass(frozen=True, slots=True)
class Pixels:
    """RGB u8, ``height`` rows of 3 ``width`` bytes; whoever wants them later copies them."""

    view: memoryview
    width: int
    height: int


class Answering(Protocol):
    """One answer of a model."""

    def __aiter__(self) -> AsyncIterator[AskDelta]: ...
    async def result(self) -> AskResult: ...
    def cancel(self) -> None: ...


class Model(Protocol):
    """What answers. ``begin`` reads the pixels before it returns; ``fatal`` says whether an error leaves it broken."""

    @property
    def steps(self) -> int: ...
    def facts(self) -> EngineFacts: ...
    def begin(self, ask: Ask, images: Sequence[Pixels]) -> Answering: ...
    def fatal(self, error: BaseException) -> bool: ...


Loader = Callable[[EngineSettings, int], Model]


@dataclass(slots=True)
class _Running:
    """A question that was taken. It may be cancelled before the model has it."""

    answer: Answering | None = None
    cancelled: bool = False


class Server:
    """Serves one connection until its end of file.

    ``load`` and ``begin`` run on threads: a model takes long to load, and some questions (a large picture, a new
    grammar) take long to prepare, while the answers of others go on.
    """

    def __init__(self, load: Loader) -> None:
        self._load = load
        self._threads = ThreadPoolExecutor(_THREADS, "vlm-ask")
        self._model: Model | None = None
        self._rings: dict[str, Ring] = {}
        self._running: dict[int, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive
        self._over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._connection: Connection | None = None

    async def serve(self, end: socket.socket) -> bool:
        """Until the daemon hangs up (True) or the model cannot go on (False)."""
        self._connection = Connection(end, self._heard, self._hung_up)
        self._keep(asyncio.create_task(self._alive()))
        try:
            return await self._over
        finally:
            for task in list(self._tasks):
                task.cancel()
            await self._flush()
            self._connection.close()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _flush(self) -> None:
        """The last words get a moment to leave."""
        assert self._connection is not None
        for _ in range(100):
            if self._connection.closed or self._connection.unsent_bytes == 0:
                return
            await asyncio.sleep(0.01)

    def _send(self, message: Message) -> None:
        assert self._connection is not None
        self._connection.send(message)

    def _hung_up(self, problem: WireError | None) -> None:
        if not self._over.done():
            self._over.set_result(True)

    def _give_up(self, error: BaseException) -> None:
        self._send({"type": "failed", **messages.error_values(error)})
        if not self._over.done():
            self._over.set_result(False)

    async def _alive(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_S)
            if self._model is None:
                self._send({"type": "loading"})
            else:
                self._send({"type": "alive", "steps": self._model.steps})

    # ---- messages

    def _heard(self, message: dict[str, Any], files: list[int]) -> None:
        kind = message["type"]
        if kind == "ask":
            self._ask(message, files)
            return
        if kind == "attach" and len(files) == 1:
            self._attach(str(message.get("source")), files[0])
            return
        for file in files:
            os.close(file)
        if kind == "open":
            self._keep(asyncio.create_task(self._open(message)))
        elif kind == "detach":
            self._detach(str(message.get("source")))
        elif kind == "cancel":
            self._cancel(messages.number_of(message))
        else:
            raise WireError(f"the daemon sent a message of type {kind!r} with {len(files)} files")

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """None of them raises, but for a bug; without it this process would only seem to work."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._give_up(error)

    async def _open(self, message: Message) -> None:
        try:
            settings, captions = messages.settings_of(message)
            model = await asyncio.get_running_loop().run_in_executor(self._threads, self._load, settings, captions)
            facts = await asyncio.get_running_loop().run_in_executor(self._threads, model.facts)
        except Exception as error:  # noqa: BLE001 - handed over to the daemon, and the end of this process
            self._give_up(error)
            return
        self._model = model
        self._send(messages.ready_message(facts))

    def _attach(self, name: str, file: int) -> None:
        try:
            ring = Ring.attach(file)
        except ValueError as problem:
            os.close(file)
            raise WireError(f"source {name}: {problem}") from problem
        self._detach(name)
        self._rings[name] = ring

    def _detach(self, name: str) -> None:
        ring = self._rings.pop(name, None)
        if ring is not None:
            ring.close()

    def _ask(self, message: Message, files: list[int]) -> None:
        number = messages.number_of(message)
        ask = messages.ask_of(message, files)
        running = self._running[number] = _Running()
        self._keep(asyncio.create_task(self._answer(number, ask, files, running)))

    def _cancel(self, number: int) -> None:
        running = self._running.get(number)
        if running is not None:
            running.cancelled = True
            if running.answer is not None:
                running.answer.cancel()

    # ---- answers

    async def _answer(self, number: int, ask: Ask, files: Sequence[int], running: _Running) -> None:
        """The life of an answer: frames are taken, and stay pinned until its end."""
        try:
            async with AsyncExitStack() as held:
                for file in files:
                    held.callback(os.close, file)
                if self._model is None:
                    raise InputError("the engine is not loaded")
                images, taken = self._pictures(ask, held)
                begin = partial(self._model.begin, ask, images)
                answer = running.answer = await asyncio.get_running_loop().run_in_executor(self._threads, begin)
                held.callback(answer.cancel)
                if running.cancelled:
                    answer.cancel()
                self._send(messages.started_message(number, taken))
                async for delta in answer:
                    self._send(messages.delta_message(number, delta))
                result = await answer.result()
            self._send(messages.result_message(number, result))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - handed over to whoever asked
            if self._model is not None and self._model.fatal(error):
                self._give_up(error)  # it is no fault of this question: the daemon sees what becomes of it
            else:
                self._send({"type": "error", "ask": number, **messages.error_values(error)})
        finally:
            del self._running[number]

    def _pictures(self, ask: Ask, held: AsyncExitStack) -> tuple[list[Pixels], Taken | None]:
        """The pixels of a question's pictures, in their order; ``held`` lets go of them."""
        images: list[Pixels] = []
        taken: Taken | None = None
        for picture in ask.pictures:
            if isinstance(picture, SharedImage):
                images.append(_shared(picture, held))
                continue
            pinned = self._pin(picture)
            held.callback(pinned.release)
            header = pinned.header
            images.append(Pixels(pinned.view, header.width, header.height))
            taken = taken or Taken(*header, slot=pinned.slot, generation=pinned.generation)
        return images, taken

    def _pin(self, picture: NewestFrame) -> Pinned:
        ring = self._rings.get(picture.source)
        if ring is None:
            raise SourceError(f"there is no source {picture.source!r}")
        pinned = ring.take(READER_ENGINE, picture.after_seq)
        if pinned is None:
            raise SourceError(f"{picture.source} has no frame newer than {picture.after_seq}")
        return pinned


def _shared(picture: SharedImage, held: AsyncExitStack) -> Pixels:
    """An image in a memory file of somebody else, which may be smaller than it says."""
    size = 3 * picture.width * picture.height
    if picture.width < 1 or picture.height < 1 or os.fstat(picture.fd).st_size < size:
        raise ImageError(f"a shared image of {picture.width}x{picture.height} px has no {size} bytes")
    memory = mmap.mmap(picture.fd, size, prot=mmap.PROT_READ)
    view = memoryview(memory)

    def let_go() -> None:
        with suppress(BufferError):  # an error still holds on to the pixels: they go with it
            view.release()
            memory.close()

    held.callback(let_go)
    return Pixels(view, picture.width, picture.height)
