"""A model that answers questions about images: the way in for programs.

`Session.open` loads a bundle; `stream`, `generate`, `chat` and `watch` ask it. `Session._stream` is the life of a
frame.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from runtime.answer_job import AnswerJob
from runtime.bundle import Bundle, Manifest, Verify, load_bundle
from runtime.clock import StageClock
from runtime.constraint import Constraint
from runtime.decoder import CudaOptions
from runtime.engine import Owner
from runtime.errors import ClosedError, UsageError
from runtime.memory import MemoryReport
from runtime.pictures import Color, ImageLike, VideoLike, lay_out, take_pictures
from runtime.pipeline import Pipeline, Units
from runtime.prompt import Message
from runtime.request import Request, check_request
from runtime.scheduling import Share
from runtime.slots import KvCache
from runtime.startup import DecoderChoice, open_pipeline
from runtime.text_stream import Channel, Control, TextStream
from runtime.turn import Turn, single_turn
from runtime.types import Answer, Delta, GenerationParams

if TYPE_CHECKING:
    from runtime.chat import Chat
    from runtime.sources import Source
    from runtime.watch import Watch

MAX_PENDING_DEFAULT = 8
_NS_PER_S = 1_000_000_000


class Session:
    """One loaded model. Any thread may ask; one thread of its own answers, in the order of asking.

    Opened with ``parallel`` above 1 it writes that many answers at once, token by token: those with the highest
    priority, and among equals each by its weight.

    An OpenCV frame is BGR: say so.

        import cv2
        import runtime

        with runtime.Session.open("demo-llava.bundle") as session:
            ok, frame = cv2.VideoCapture(0).read()
            for delta in session.stream("Describe the image.", images=[frame], color="bgr"):
                print(delta.text, end="", flush=True)

    An image is a path, the bytes of an image file, a PIL image, an array u8 [H, W, 3] (RGB unless ``color="bgr"``),
    [H, W] or [H, W, 4], a DLPack or ``__cuda_array_interface__`` object, or a `Frame`. It is read before the call
    returns, so a buffer may be used again. Images come before the text of their message, as the models were trained;
    special-token strings in a prompt are text. The same object twice in one request is seen once.

    Times are CLOCK_MONOTONIC ns; ``wall_offset_ns`` is added to get wall-clock time. Close it, or use it as a context
    manager.
    """

    def __init__(self, bundle: Bundle, owner: Owner, pipeline: Pipeline, chats: int) -> None:
        self._bundle = bundle
        self._owner = owner
        self._pipeline = pipeline
        self._chats = chats
        self._finalizer = weakref.finalize(self, owner.request_stop)
        self.wall_offset_ns = time.time_ns() - time.monotonic_ns()

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        decoder: DecoderChoice = "auto",
        *,
        threads: int | None = None,
        verify: Verify = "cached",
        chats: int = 1,
        parallel: int = 1,
        max_pending: int = MAX_PENDING_DEFAULT,
        cuda: CudaOptions | None = None,
    ) -> Session:
        """Load a bundle directory.

        decoder: "onnx", "cuda", or "auto" (the fastest that the bundle has and this machine can run). threads: of the
        CPU engines, None for what suits the machine. verify: "cached" hashes files that changed since they were last
        hashed, "full" all of them, "none" nothing. chats: conversations whose KV cache is kept at the same time;
        parallel: answers that are written at once (each of both costs the memory of ``max_seq_len`` positions).
        max_pending: requests that may wait; one more gets a BusyError. cuda: settings of the decoder "cuda". Raises
        BundleError, EngineError, MemoryLimitError (before anything large is allocated).
        """
        if chats < 0:
            raise UsageError(f"chats is {chats}, the least is 0")
        loaded = load_bundle(bundle, verify)
        owner = Owner(max_pending=max_pending, parallel=parallel)
        try:
            pipeline = owner.call(
                lambda: open_pipeline(loaded, decoder, threads=threads, answers=parallel, chats=chats, cuda=cuda)
            )
        except BaseException:
            owner.close()
            raise
        owner.at_exit(pipeline.close)
        return cls(loaded, owner, pipeline, chats)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about the model."""
        return self._bundle.manifest

    @property
    def decoder_kind(self) -> Literal["onnx", "cuda"]:
        """Which decoder answers: what "auto" has chosen."""
        return self._pipeline.decoder_kind

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds in the middle of a text: possibly part of a character; special tokens give their name."""
        return self._pipeline.token_bytes.of(token_id)

    def memory_report(self) -> MemoryReport:
        """What the engines keep in memory, by purpose; waits for the answer that is being written."""
        self._check_open()
        return MemoryReport(tuple(sorted(self._owner.call(self._pipeline.memory), key=lambda use: -use.bytes)))

    @property
    def steps(self) -> int:
        """Units of work done so far (a picture, a chunk of a prompt, a token): they tell work from a hang."""
        return self._owner.units

    @property
    def closed(self) -> bool:
        """Whether close was called."""
        return not self._finalizer.alive

    def stream(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageLike] = (),
        *,
        video: VideoLike | None = None,
        system: str | None = None,
        color: Color = "rgb",
        params: GenerationParams | None = None,
        max_new_tokens: int | None = None,
        deadline_s: float | None = None,
        on_delta: Callable[[Delta], object] | None = None,
        priority: int = 0,
        weight: float = 1.0,
        constraint: Constraint | None = None,
    ) -> TextStream:
        """Ask, and read the answer while it is written.

        prompt: the user's question, or a conversation of messages that ends with one and places ``images`` itself.
        video: a path or URI of a video, or a list of images; as many frames as the model was trained with are taken at
        equal distances and stand behind ``images``. system: replaces the model's default system message. params:
        sampling, end conditions; ``max_new_tokens`` overrides the one in it. deadline_s: seconds from now, then the
        answer ends with finish_reason "deadline". on_delta: called with each `Delta` on the session's thread; the
        deltas then go nowhere else. priority, weight: higher priorities go first, among equals each gets units of work
        by its weight. constraint: the form that the answer must have (`runtime.constraint`). Raises ImageError,
        PromptError, InputError, BusyError, ClosedError here; what goes wrong later is raised by reading (DeadlineError
        when not even one token came in time).
        """
        return self._stream(
            single_turn(self._pipeline, prompt, system),
            images,
            video=video,
            color=color,
            params=_merged(params, max_new_tokens),
            deadline_s=deadline_s,
            on_delta=on_delta,
            share=Share(priority, weight),
            constraint=constraint,
        )

    def generate(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageLike] = (),
        *,
        video: VideoLike | None = None,
        system: str | None = None,
        color: Color = "rgb",
        params: GenerationParams | None = None,
        max_new_tokens: int | None = None,
        deadline_s: float | None = None,
        priority: int = 0,
        weight: float = 1.0,
        constraint: Constraint | None = None,
    ) -> Answer:
        """Ask and wait for the whole answer. Arguments and errors are those of `stream`."""
        stream = self._stream(
            single_turn(self._pipeline, prompt, system),
            images,
            video=video,
            color=color,
            params=_merged(params, max_new_tokens),
            deadline_s=deadline_s,
            share=Share(priority, weight),
            constraint=constraint,
        )
        return stream.answer()

    def chat(self, system: str | None = None) -> Chat:
        """Begin a conversation whose turns share one KV cache. Raises UsageError when opened with ``chats=0``."""
        from runtime.chat import Chat

        self._check_open()
        if self._chats == 0:
            raise UsageError("this session keeps no conversations", hint="Session.open(bundle, chats=1)")
        return Chat(self, system)

    def watch(
        self,
        source: str | os.PathLike[str] | Source,
        prompt: str,
        *,
        every_frame: bool = False,
        params: GenerationParams | None = None,
        max_new_tokens: int | None = None,
        priority: int = 0,
        weight: float = 1.0,
        constraint: Constraint | None = None,
    ) -> Watch:
        """Caption a camera or a video: one `Caption` per newest frame, or per frame with ``every_frame``.

        source: a URI or path, or an open source (which is then closed with the watch). The iterator ends with the
        source; closing it ends the capture. Raises SourceError when the source cannot be opened.
        """
        from runtime.watch import Watch

        self._check_open()
        merged = _merged(params, max_new_tokens)
        check_request(merged, None)
        share = Share(priority, weight)
        return Watch(self, source, prompt, every_frame=every_frame, params=merged, share=share, constraint=constraint)

    def wall_time_ns(self, t_ns: int) -> int:
        """Wall-clock ns since 1970 of an instant of this session."""
        return t_ns + self.wall_offset_ns

    def close(self) -> None:
        """End the running answer within one token, refuse those that wait with ClosedError, free the engines.

        Idempotent; waits, except on the session's own thread.
        """
        self._finalizer.detach()
        self._owner.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the session is closed", hint="open another one: Session.open(bundle)")

    def _stream(
        self,
        turn: Turn,
        images: Sequence[ImageLike],
        *,
        video: VideoLike | None = None,
        color: Color = "rgb",
        params: GenerationParams,
        deadline_s: float | None = None,
        on_delta: Callable[[Delta], object] | None = None,
        share: Share,
        constraint: Constraint | None = None,
    ) -> TextStream:
        """The life of a frame, stage by stage; what can be refused is refused before it queues."""
        self._check_open()
        check_request(params, deadline_s)
        pipeline, clock, control = self._pipeline, StageClock(), Control(_instant(deadline_s))
        tiling = pipeline.tiling
        with clock.stage("capture"):
            shown = take_pictures(images, video, color, video_frames=tiling.video_frames)
        with clock.stage("layout"):
            pictures = [*turn.pictures, *lay_out(shown, tiling, turn.together(shown))]
        with clock.stage("prompt"):  # before the engines run: a prompt that does not fit costs nothing
            messages = turn.messages(shown)
            encoded = pipeline.encode(messages, [picture.layout for picture in pictures])
            matcher = None if constraint is None else pipeline.matcher(constraint, params, encoded)
        request = Request(params, control, clock, pictures, messages, encoded, matcher)

        def stages(cache: KvCache) -> Units:  # on the owner thread; between two units others have their turns
            yield from pipeline.see(request)  # stages preprocess, vision: a unit each picture
            with clock.stage("fusion"):
                fused = pipeline.fuse(request, cache)
            logits = yield from pipeline.prefill(request, cache, fused)  # stage prefill: a unit each chunk
            return (yield from pipeline.write(request, cache, logits))  # stages sample, detokenize, decode: each token

        return self._submit(request, stages, turn, share, on_delta)

    def _submit(
        self,
        request: Request,
        stages: Callable[[KvCache], Units],
        turn: Turn,
        share: Share,
        on_delta: Callable[[Delta], object] | None,
    ) -> TextStream:
        """Stage "sink": deltas go to the stream's reader or to the callback."""
        channel = Channel(request.control, on_delta, owner_thread=self._owner.thread_id)
        slots = self._pipeline.slots
        job = AnswerJob(request, channel, stages, share=share, slots=slots, lend=turn.lend, commit=turn.commit)
        self._owner.submit(job)
        turn.begun(channel)
        return TextStream(channel, self._owner.sweep, keep=self)


def _merged(params: GenerationParams | None, max_new_tokens: int | None) -> GenerationParams:
    merged = params or GenerationParams()
    return merged if max_new_tokens is None else replace(merged, max_new_tokens=max_new_tokens)


def _instant(deadline_s: float | None) -> int | None:
    return None if deadline_s is None else time.monotonic_ns() + int(deadline_s * _NS_PER_S)
