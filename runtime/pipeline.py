"""The stages of an answer as functions over the engines; `Session.stream` puts them in their order.

Everything from "preprocess" on runs on the session's owner thread, in units: a generator of `Units` gives the thread
back after each picture, each chunk of a prompt and each token, and others may run then.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt

from runtime.budget import memory_budget
from runtime.bundle import Bundle
from runtime.constraint import Constraint, Matcher
from runtime.decoder import Decoder, FusingDecoder, PreprocessingDecoder, TileMaker
from runtime.detokenize import Detokenizer, TokenBytes
from runtime.errors import DeadlineError, PromptError
from runtime.fusion import PlacedIds, fuse, place
from runtime.memory import MemoryUse
from runtime.next_token import Ahead, Chosen, NextTokens
from runtime.preprocess import preprocess
from runtime.prompt import EncodedPrompt, Message, PromptEncoder
from runtime.request import Picture, Request
from runtime.slots import KvCache, SlotPool, slot_of
from runtime.tiling import TileLayout
from runtime.types import Delta, FinishReason, GenerationParams
from runtime.vision import VisionEngine

Embeds = npt.NDArray[np.float32]
Deltas = Sequence[Delta]
Units = Generator[Deltas, None, Deltas]  # what each unit of work wrote; the last one's is returned

PREFILL_CHUNK = 512  # a cancelled request waits for one chunk at most
_MAX_CHARS_PER_TOKEN = 256  # a prompt beyond this cannot fit and is not tokenised


class Pipeline:
    """The engines of one session, and the stages that need them."""

    def __init__(
        self,
        bundle: Bundle,
        encoder: PromptEncoder,
        vision: VisionEngine,
        decoder: Decoder,
        *,
        slots: int,
        answers: int,
    ) -> None:
        self._tokenizer_json = bundle.file(bundle.manifest.prompt.tokenizer).read_text(encoding="utf-8")
        self._vision_section = bundle.manifest.vision
        self.tiling = bundle.manifest.vision.tiling_spec()
        self._context_tokens = min(decoder.max_seq_len, bundle.manifest.prompt.context_tokens)
        self._encoder = encoder
        self._vision = vision
        self._decoder = decoder
        self.decoder_kind = decoder.kind
        self._ahead = Ahead(decoder)
        self._fusing = decoder if isinstance(decoder, FusingDecoder) else None
        self._tile_maker: TileMaker | None = None
        if isinstance(decoder, PreprocessingDecoder):
            self._tile_maker = decoder.tile_maker(self._vision_section)
        self._vision_bytes = memory_budget(bundle.manifest).vision_bytes
        self.slots = SlotPool(decoder, slots, answers)
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

    def matcher(self, constraint: Constraint, params: GenerationParams, encoded: EncodedPrompt) -> Matcher:
        """What follows one answer of that form. InputError when none fits into its tokens; any thread."""
        stop_ids, budget = sorted(self._encoder.stop_ids), self._limit(params, encoded)
        return constraint.matcher(self._tokenizer_json, self._decoder.vocab, stop_ids, budget)

    def see(self, request: Request) -> Generator[Deltas, None, None]:
        """Stages "preprocess" and "vision", a unit for each picture that was not seen yet.

        Pictures get their embeddings f32 [N, D] and let go of their pixels.
        """
        clock = request.clock
        self._ahead.enter(request)
        for picture in dict.fromkeys(request.pictures):
            if picture.rgb is None:
                continue
            if request.control.verdict() is not None:
                return
            self._ahead.enter(request)
            with clock.stage("preprocess"):
                tiles = self._tiles(picture)
            with clock.stage("vision"):
                picture.embeds = self._vision.encode(tiles, picture.layout)
            picture.rgb = None
            yield ()

    def _tiles(self, picture: Picture) -> Embeds:
        """Tiles f32 [T, 3, S, S]."""
        assert picture.rgb is not None, "a picture without pixels"
        if self._tile_maker is not None:
            return self._tile_maker.host_tiles(picture.rgb, picture.layout)
        return preprocess(picture.rgb, picture.layout, self._vision_section)

    def fuse(self, request: Request, cache: KvCache) -> Embeds | PlacedIds | None:
        """Stage "fusion": the decoder's input for what is not in the KV cache yet: f32 [S, D], or which rows it is.

        None for a request that was ended before all of its pictures were seen.
        """
        images = [picture.embeds for picture in request.pictures if picture.embeds is not None]
        if len(images) < len(request.pictures):
            return None
        encoded = request.encoded
        start = request.cached_tokens = _common_prefix(cache.ids, encoded)
        self.slots.keep(cache, start)
        ids = encoded.token_ids[start:]
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

    def prefill(
        self, request: Request, cache: KvCache, prompt: Embeds | PlacedIds | None
    ) -> Generator[Deltas, None, Embeds | None]:
        """Stage "prefill", a unit for each chunk: logits f32 [V] of the last position; None when it was ended."""
        if prompt is None:
            return None
        slot = slot_of(cache)
        new_ids = request.encoded.token_ids[request.cached_tokens :].tolist()
        logits = None
        for start in range(0, len(prompt), PREFILL_CHUNK):
            if start > 0:
                yield ()
            if request.control.verdict() is not None:
                return None
            self._ahead.enter(request)
            end = min(start + PREFILL_CHUNK, len(prompt))
            with request.clock.stage("prefill"):
                if isinstance(prompt, PlacedIds):
                    assert self._fusing is not None, "ids were placed for another decoder"
                    logits = self._fusing.prefill_ids(slot, prompt.part(start, end))[-1]
                else:
                    logits = self._decoder.prefill(slot, prompt[start:end])[-1]
            cache.ids += new_ids[start:end]
        return logits

    def write(self, request: Request, cache: KvCache, logits: Embeds | None) -> Units:
        """Stages "sample", "detokenize" and "decode" in turn, a unit for each step, until something ends the answer.

        Without ``logits`` it ended before its first token.
        """
        control = request.control
        text = Detokenizer(self._encoder.tokenizer, request.params.stop)
        request.finish_reason = control.verdict() or "cancelled"
        if logits is None:
            return _rest(request, text)
        stop_ids, limit = self._encoder.stop_ids, self._limit(request.params, request.encoded)
        tokens = NextTokens(self._decoder, self._ahead, request, cache, stop_ids=stop_ids, limit=limit)
        with closing(tokens):
            chosen = [] if tokens.whole else tokens.begin(logits)
            while True:
                deltas, ended = self._told(request, text, chosen)
                if ended is None and tokens.whole:
                    ended = "stop"
                if ended is None and len(request.token_ids) == limit:
                    ended = "length"
                if ended is None:
                    yield deltas
                    deltas, ended = [], control.verdict()  # somebody else may have run
                if ended is not None:
                    request.finish_reason = ended
                    return [*deltas, *_rest(request, text)]
                chosen = tokens.step()

    def _told(
        self, request: Request, text: Detokenizer, chosen: Sequence[Chosen]
    ) -> tuple[list[Delta], FinishReason | None]:
        """Deltas of these tokens, and why the answer ends with them."""
        deltas: list[Delta] = []
        ended = request.control.verdict()
        if ended is not None:
            return deltas, ended
        for token in chosen:
            if token.token_id in self._encoder.stop_ids:
                return deltas, "stop"
            with request.clock.stage("detokenize"):
                piece = text.push(token.token_id)
            deltas.append(_delta(request, piece, token))
            if text.stopped:
                return deltas, "stop"
        return deltas, None

    def _limit(self, params: GenerationParams, encoded: EncodedPrompt) -> int:
        """Tokens that an answer may have."""
        return min(params.max_new_tokens, self._context_tokens - len(encoded.token_ids))

    def memory(self) -> tuple[MemoryUse, ...]:
        """What the engines keep in memory; that of the vision engine's library is estimated from its graphs."""
        return (*self._decoder.memory(), MemoryUse("vision", self._vision_bytes, "host", exact=False))

    def close(self) -> None:
        """Close the engines; idempotent."""
        self._vision.close()
        self._decoder.close()


def _delta(request: Request, text: str, token: Chosen) -> Delta:
    request.token_ids.append(token.token_id)
    request.logprobs.append(token.logprob)
    request.text.append(text)
    index = len(request.token_ids) - 1
    return Delta(text, token.token_id, token.logprob, index, request.clock.token(), token.top)


def _rest(request: Request, text: Detokenizer) -> list[Delta]:
    """What was held back when the answer ended, as one more delta of its last token."""
    if not request.token_ids:
        if request.finish_reason == "deadline":
            raise DeadlineError("the deadline passed before the first token", hint="allow a longer deadline_s")
        return []
    piece = text.flush()
    if not piece:
        return []
    request.text.append(piece)
    last = len(request.token_ids) - 1
    return [Delta(piece, request.token_ids[last], request.logprobs[last], last, request.clock.token())]


def _common_prefix(cached: Sequence[int], encoded: EncodedPrompt) -> int:
    """How many tokens of the prompt are in the cache already: never all of them, never part of an image."""
    limit = min(len(cached), len(encoded.token_ids) - 1)
    differ = np.flatnonzero(np.asarray(cached[:limit], np.int64) != encoded.token_ids[:limit])
    length = int(differ[0]) if len(differ) else limit
    cut = [place.start for place in encoded.image_slices if place.start < length < place.stop]
    return int(min([length, *cut]))
