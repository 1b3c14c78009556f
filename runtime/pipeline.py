"""The stages of an answer as functions over the engines; `Session.stream` puts them in their order.

`Request` is what travels through them. Everything from "preprocess" on runs on the session's owner thread.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from runtime.budget import memory_budget
from runtime.bundle import Bundle
from runtime.clock import StageClock
from runtime.decoder import Decoder, FusingDecoder, PreprocessingDecoder, SamplingDecoder, TileMaker
from runtime.detokenize import Detokenizer, TokenBytes
from runtime.errors import DeadlineError, PromptError
from runtime.fusion import PlacedIds, fuse, place
from runtime.memory import MemoryUse
from runtime.preprocess import preprocess
from runtime.prompt import EncodedPrompt, Message, PromptEncoder
from runtime.sampling import Sampler, check_params
from runtime.slots import KvCache, SlotPool
from runtime.text_stream import Control
from runtime.tiling import TileLayout
from runtime.types import Answer, Delta, FinishReason, GenerationParams, ImageArray, Usage
from runtime.vision import VisionEngine

Embeds = npt.NDArray[np.float32]
Tokens = Generator[tuple[int, float], None, None]

PREFILL_CHUNK = 512  # a cancelled request waits for one chunk at most
_MAX_CHARS_PER_TOKEN = 256  # a prompt beyond this cannot fit and is not tokenised


@dataclass(slots=True, eq=False)
class Picture:
    """An image of a request: its pixels until the vision engine has seen them, its embeddings from then on."""

    rgb: ImageArray | None
    layout: TileLayout
    embeds: Embeds | None = None


@dataclass(slots=True, eq=False)
class Request:
    """One answer on its way through the stages."""

    params: GenerationParams
    control: Control
    clock: StageClock
    pictures: list[Picture]
    messages: tuple[Message, ...]
    encoded: EncodedPrompt
    cached_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish_reason: FinishReason = "length"

    def answer(self) -> Answer:
        """What came out, once the stages are through."""
        usage = Usage(
            prompt_tokens=len(self.encoded.token_ids),
            completion_tokens=len(self.token_ids),
            image_tokens=self.encoded.num_image_tokens,
            cached_tokens=self.cached_tokens,
        )
        ids, logprobs = tuple(self.token_ids), tuple(self.logprobs)
        return Answer("".join(self.text), ids, logprobs, self.finish_reason, usage, self.clock.timings())


class Pipeline:
    """The engines of one session, and the stages that need them."""

    def __init__(
        self, bundle: Bundle, encoder: PromptEncoder, vision: VisionEngine, decoder: Decoder, slots: int
    ) -> None:
        self._vision_section = bundle.manifest.vision
        self.tiling = bundle.manifest.vision.tiling_spec()
        self._context_tokens = min(decoder.max_seq_len, bundle.manifest.prompt.context_tokens)
        self._encoder = encoder
        self._vision = vision
        self._decoder = decoder
        self.decoder_kind = decoder.kind
        self._sampling = decoder if isinstance(decoder, SamplingDecoder) else None
        self._fusing = decoder if isinstance(decoder, FusingDecoder) else None
        self._tile_maker: TileMaker | None = None
        if isinstance(decoder, PreprocessingDecoder):
            self._tile_maker = decoder.tile_maker(self._vision_section)
        self._vision_bytes = memory_budget(bundle.manifest).vision_bytes
        self.slots = SlotPool(decoder, slots)
        self.token_bytes = TokenBytes(encoder.tokenizer)

    def encode(self, messages: Sequence[Message], layouts: Sequence[TileLayout]) -> EncodedPrompt:
        """Stage "prompt". Raises PromptError when no token of an answer would fit behind it; any thread."""
        chars = sum(len(part) for message in messages for part in message.parts if isinstance(part, str))
        if chars > self._context_tokens * _MAX_CHARS_PER_TOKEN:
            raise PromptError(f"a prompt of {chars} characters for a context of {self._context_tokens} tokens")
        encoded = self._encoder.encode(messages, layouts)
        if len(encoded.token_ids) >= self._context_tokens:
            raise PromptError(
                f"the prompt has {len(encoded.token_ids)} tokens ({encoded.num_image_tokens} of images), "
                f"the context holds {self._context_tokens} with the answer",
                hint="shorten the prompt, pass fewer images, or build the bundle with a larger --max-seq-len",
            )
        return encoded

    def preprocess(self, picture: Picture) -> npt.NDArray[np.float32] | None:
        """Stage "preprocess": tiles f32 [T, 3, S, S]; None for a picture whose embeddings are known."""
        if picture.embeds is not None or picture.rgb is None:
            return None
        if self._tile_maker is not None:
            return self._tile_maker.host_tiles(picture.rgb, picture.layout)
        return preprocess(picture.rgb, picture.layout, self._vision_section)

    def see(self, pictures: Sequence[Picture], tiles: Sequence[Embeds | None]) -> None:
        """Stage "vision": pictures with tiles get their embeddings f32 [N, D] and let go of their pixels."""
        for picture, its_tiles in zip(pictures, tiles, strict=True):
            if its_tiles is not None:
                picture.embeds = self._vision.encode(its_tiles, picture.layout)
                picture.rgb = None

    def fuse(self, request: Request, cache: KvCache) -> Embeds | PlacedIds:
        """Stage "fusion": the decoder's input for what is not in the KV cache yet: f32 [S, D], or which rows it is."""
        encoded = request.encoded
        start = request.cached_tokens = _common_prefix(cache.ids, encoded)
        self.slots.keep(cache, start)
        ids = encoded.token_ids[start:]
        images = [picture.embeds for picture in request.pictures if picture.embeds is not None]
        blocks = encoded.split_embeds(images)
        places = [slice(block.start - start, block.stop - start) for block in encoded.image_slices]
        fresh = [index for index, block in enumerate(places) if block.start >= 0]
        rows, where = [blocks[i] for i in fresh], [places[i] for i in fresh]
        placeholder = self._encoder.placeholder_id
        if self._fusing is not None:
            return place(ids, rows, where, placeholder_id=placeholder, width=self._decoder.hidden)
        # A placeholder has no row in the token table: any row will do, the image's embeddings replace it.
        token_embeds = self._decoder.embed(np.where(ids == placeholder, 0, ids).tolist())
        return fuse(ids, token_embeds, rows, where, placeholder_id=placeholder)

    def prefill(self, request: Request, cache: KvCache, prompt: Embeds | PlacedIds) -> Embeds | None:
        """Stage "prefill": logits f32 [V] of the last position; None when the request was ended meanwhile."""
        slot = _slot(cache)
        new_ids = request.encoded.token_ids[request.cached_tokens :].tolist()
        logits = None
        for start in range(0, len(prompt), PREFILL_CHUNK):
            if request.control.verdict() is not None:
                return None
            end = min(start + PREFILL_CHUNK, len(prompt))
            if isinstance(prompt, PlacedIds):
                assert self._fusing is not None, "ids were placed for another decoder"
                logits = self._fusing.prefill_ids(slot, prompt.part(start, end))[-1]
            else:
                logits = self._decoder.prefill(slot, prompt[start:end])[-1]
            cache.ids += new_ids[start:end]
        return logits

    def write(self, request: Request, cache: KvCache, logits: Embeds | None) -> Iterator[Delta]:
        """Stages "sample", "detokenize" and "decode" in turn, until something ends the answer."""
        clock, control = request.clock, request.control
        text = Detokenizer(self._encoder.tokenizer, request.params.stop)
        limit = min(request.params.max_new_tokens, self._context_tokens - len(request.encoded.token_ids))
        request.finish_reason = control.verdict() or "cancelled"
        with closing(self._tokens(request, cache, logits)) as tokens:
            for token_id, logprob in tokens:
                ended = control.verdict()
                if ended is not None or token_id in self._encoder.stop_ids:
                    request.finish_reason = ended or "stop"
                    break
                with clock.stage("detokenize"):
                    piece = text.push(token_id)
                yield _delta(request, piece, token_id, logprob)
                if text.stopped or len(request.token_ids) == limit:
                    request.finish_reason = "stop" if text.stopped else "length"
                    break
        yield from _rest(request, text)

    def _tokens(self, request: Request, cache: KvCache, logits: Embeds | None) -> Tokens:
        """(token, logprob) without end; nothing after a prompt that was not finished.

        ``cache.ids`` follows the KV cache: it has every token but the last one that was given out.
        """
        if logits is None:
            return
        clock, slot = request.clock, _slot(cache)
        sampler = Sampler(request.params, self._decoder.vocab, request.encoded.token_ids.tolist())
        with clock.stage("sample"):
            drawn = sampler.sample(logits)
        yield drawn
        if self._sampling is not None:
            with closing(self._sampling.sampled(slot, drawn[0], sampler.draws())) as following:
                while True:
                    with clock.stage("decode"):
                        after = next(following)
                    cache.ids.append(drawn[0])
                    drawn = after
                    yield drawn
        while True:
            with clock.stage("decode"):
                logits = self._decoder.decode(slot, [drawn[0]])[0]
            cache.ids.append(drawn[0])
            with clock.stage("sample"):
                drawn = sampler.sample(logits)
            yield drawn

    def memory(self) -> tuple[MemoryUse, ...]:
        """What the engines keep in memory; that of the vision engine's library is estimated from its graphs."""
        return (*self._decoder.memory(), MemoryUse("vision", self._vision_bytes, "host", exact=False))

    def close(self) -> None:
        """Close the engines; idempotent."""
        self._vision.close()
        self._decoder.close()


def check_request(params: GenerationParams, deadline_s: float | None) -> None:
    """Refuse what cannot be before anything is loaded."""
    check_params(params)
    if deadline_s is not None and not deadline_s > 0:
        raise DeadlineError(f"deadline_s is {deadline_s}: it has passed already")


def _delta(request: Request, text: str, token_id: int, logprob: float) -> Delta:
    request.token_ids.append(token_id)
    request.logprobs.append(logprob)
    request.text.append(text)
    return Delta(text, token_id, logprob, len(request.token_ids) - 1, request.clock.token())


def _rest(request: Request, text: Detokenizer) -> Iterator[Delta]:
    """What was held back when the answer ended, as one more delta of its last token."""
    if not request.token_ids:
        if request.finish_reason == "deadline":
            raise DeadlineError("the deadline passed before the first token", hint="allow a longer deadline_s")
        return
    piece = text.flush()
    if piece:
        request.text.append(piece)
        last = len(request.token_ids) - 1
        yield Delta(piece, request.token_ids[last], request.logprobs[last], last, request.clock.token())


def _common_prefix(cached: Sequence[int], encoded: EncodedPrompt) -> int:
    """How many tokens of the prompt are in the cache already: never all of them, never part of an image."""
    limit = min(len(cached), len(encoded.token_ids) - 1)
    differ = np.flatnonzero(np.asarray(cached[:limit], np.int64) != encoded.token_ids[:limit])
    length = int(differ[0]) if len(differ) else limit
    cut = [place.start for place in encoded.image_slices if place.start < length < place.stop]
    return int(min([length, *cut]))


def _slot(cache: KvCache) -> int:
    slot = cache.slot
    assert slot is not None, "a cache without a slot reached the decoder"
    return slot
