"""The decoder made of our own CUDA kernels. It has run on the emulator (in CI); on a GPU it has not been run yet."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kernels.driver.protocol import Device
from runtime.bundle.manifest import VisionSection
from runtime.decoder.cuda.engine import CudaEngine
from runtime.decoder.cuda.shape import STEP_TOKENS, CudaDecoderFiles
from runtime.decoder.cuda.table import device_values
from runtime.decoder.options import CudaOptions
from runtime.decoder.protocol import TileMaker
from runtime.decoder.token_table import TokenTable
from runtime.device_errors import device_errors, status_error
from runtime.errors import ClosedError, EngineError, InputError, PromptError
from runtime.fusion import PlacedIds
from runtime.memory import MemoryUse
from runtime.sampling import Draws

F32 = npt.NDArray[np.float32]

MAX_SLOTS = 64


class CudaDecoder:
    """Implements :class:`runtime.decoder.Decoder`, and beside it all that a decoder may do on its device.

    ``owned``: whether the device is closed with the decoder. Raises MemoryLimitError with the numbers before anything
    is allocated, BundleError, EngineError.
    """

    def __init__(
        self, files: CudaDecoderFiles, options: CudaOptions, device: Device, *, slots: int = 1, owned: bool = True
    ) -> None:
        self._files = files
        self._closing = ExitStack()
        self._active: object | None = None
        with ExitStack() as stack:
            if owned:
                stack.callback(device.close)
            _check_slots(slots)
            self._table = TokenTable(files.token_embeds, files.token_embeds_dtype, (files.embed_rows, files.hidden))
            stack.callback(self._table.close)
            with device_errors("opening the decoder"):
                self._engine = CudaEngine(files, options, device, self._table, slots)
            stack.callback(self._engine.close)
            self._closing = stack.pop_all()
        self._closed = False

    @property
    def kind(self) -> Literal["cuda"]:
        """Its name in a manifest."""
        return "cuda"

    @property
    def hidden(self) -> int:
        """Width of an embedding."""
        return self._files.hidden

    @property
    def vocab(self) -> int:
        """Length of a row of logits."""
        return self._files.vocab

    @property
    def max_seq_len(self) -> int:
        """Positions of a slot's KV cache."""
        return self._files.max_seq_len

    def open(self, slots: int) -> None:
        """Gives the decoder this many empty slots."""
        _check_slots(slots)
        with self._call("opening slots"):
            self._engine.open_slots(slots)

    def prefill(self, slot: int, inputs_embeds: F32, *, num_logits: int = 1) -> F32:
        """Appends embeddings f32 [S, hidden] in chunks; new logits f32 [num_logits, vocab] of the last positions."""
        self._check_slot(slot)
        if inputs_embeds.ndim != 2 or inputs_embeds.shape[1] != self.hidden or inputs_embeds.dtype != np.float32:
            found = f"{inputs_embeds.dtype} {list(inputs_embeds.shape)}"
            raise PromptError(f"inputs_embeds is {found}, expected float32 [S, {self.hidden}]")
        embeds = np.ascontiguousarray(inputs_embeds)
        return self._prefill(slot, len(embeds), num_logits, lambda at, end: self._engine.load_embeds(embeds[at:end]))

    def prefill_ids(self, slot: int, placed: PlacedIds, *, num_logits: int = 1) -> F32:
        """As `prefill`, from token ids and the rows of images: the embeddings are put together on the device."""
        self._check_slot(slot)
        if placed.images.shape[1:] != (self.hidden,):
            raise PromptError(f"image rows have the shape {list(placed.images.shape)}, expected [R, {self.hidden}]")
        self._check_ids(placed.ids[placed.ids >= 0])
        return self._prefill(slot, len(placed), num_logits, lambda at, end: self._engine.load_ids(placed.part(at, end)))

    def decode(self, slot: int, token_ids: Sequence[int]) -> F32:
        """Appends n tokens, eight at a time; logits f32 [n, vocab]."""
        self._check_slot(slot)
        count, ids = len(token_ids), [int(token) for token in token_ids]
        self._check_room(slot, count)
        self._check_ids(np.array(ids, np.int64))
        start = self._engine.lengths[slot]
        logits = np.empty((count, self.vocab), np.float32)
        with self._call(f"decoding at position {start}"):
            for begin in range(0, count, STEP_TOKENS):
                part = ids[begin : begin + STEP_TOKENS]
                self._engine.step(slot, start + begin, part)
                self._engine.download_logits(logits[begin : begin + len(part)])
                self._check_status(start + begin)
        self._engine.lengths[slot] = start + count
        return logits

    def sampled(self, slot: int, token_id: int, draws: Draws) -> Generator[tuple[int, float], None, None]:
        """Appends ``token_id``, chooses the next token on the device, appends that, and so on."""
        self._check_slot(slot)
        self._check_room(slot, 1)
        self._check_ids(np.array([token_id], np.int64))
        return self._sampled(slot, token_id, draws)

    def embed(self, token_ids: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """Rows of the token table as the device has them, a new f32 [n, hidden]."""
        self._check_open()
        return device_values(self._table.lookup(token_ids), self._engine.table_form)

    def length(self, slot: int) -> int:
        """Positions of the slot that are filled."""
        self._check_slot(slot)
        return self._engine.lengths[slot]

    def truncate(self, slot: int, length: int) -> None:
        """Forgets all positions from ``length`` on."""
        self._check_slot(slot)
        filled = self._engine.lengths[slot]
        if not 0 <= length <= filled:
            raise InputError(f"slot {slot} cannot be cut to {length} positions, it has {filled}")
        with self._call("cutting a slot"):
            self._engine.lengths[slot] = length

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Makes ``target`` hold the first ``length`` positions of ``source``."""
        self._check_slot(source)
        self._check_slot(target)
        filled = self._engine.lengths[source]
        if not 0 <= length <= filled:
            raise InputError(f"slot {source} has {filled} positions, {length} cannot be copied")
        with self._call("copying a prefix"):
            if source != target:
                self._engine.copy_prefix(source, target, length)
            self._engine.lengths[target] = length

    def tile_maker(self, vision: VisionSection) -> TileMaker:
        """Makes tiles on the decoder's device and stream."""
        with self._call("preparing for pictures"):
            return self._engine.tile_maker(vision)

    def memory(self) -> tuple[MemoryUse, ...]:
        """What it keeps allocated."""
        self._check_open()
        return self._engine.uses()

    def close(self) -> None:
        """Gives everything back; harmless when repeated."""
        if not self._closed:
            self._closed = True
            self._active = None
            with device_errors("closing the decoder"):
                self._closing.close()

    def _prefill(self, slot: int, count: int, num_logits: int, load: Callable[[int, int], None]) -> F32:
        self._check_room(slot, count)
        if not 1 <= num_logits <= count:
            raise PromptError(f"num_logits is {num_logits}, the prompt has {count} positions")
        start, wanted = self._engine.lengths[slot], count - num_logits  # the first row whose logits are wanted
        logits = np.empty((num_logits, self.vocab), np.float32)
        with self._call(f"prefilling {count} positions at {start}"):
            for begin in range(0, count, self._files.chunk):
                end = min(begin + self._files.chunk, count)
                span = self._engine.span(slot, start + begin, end - begin, tail=end - max(begin, min(wanted, end)))
                load(begin, end)
                self._engine.run(span)
                for first in range(0, span.tail, STEP_TOKENS):
                    rows = min(STEP_TOKENS, span.tail - first)
                    at = end - span.tail + first - wanted
                    self._engine.tail_logits(span, first, rows, logits[at : at + rows])
                self._check_status(start + begin)
        self._engine.lengths[slot] = start + count
        return logits

    def _sampled(self, slot: int, token_id: int, draws: Draws) -> Generator[tuple[int, float], None, None]:
        start, room = self._engine.lengths[slot], self.max_seq_len - self._engine.lengths[slot]
        with self._call(f"sampling from position {start}"):
            self._engine.begin_sampling(slot, start, token_id, draws)
        active = self._active = object()
        try:
            enqueued = 0
            for taken in range(room):
                with device_errors(f"sampling at position {start + taken}"):
                    for ahead in range(enqueued, min(taken + 2, room)):
                        self._engine.enqueue_sample(start + ahead, draws, draws.step + ahead)
                        enqueued = ahead + 1
                    token, logprob, status = self._engine.wait_sample(draws.step + taken)
                if status or token < 0:
                    raise status_error(status, f"at position {start + taken}")
                self._engine.lengths[slot] = start + taken + 1
                yield token, logprob
                if self._active is not active:
                    raise EngineError(
                        "another call of the decoder ended the sampling", hint="take one answer at a time"
                    )
            self._check_room(slot, 1)
        finally:
            if self._active is active:
                self._active = None
                with device_errors("ending the sampling"):
                    self._engine.drain()

    @contextmanager
    def _call(self, doing: str) -> Iterator[None]:
        """A call that uses the device: ends a sampling that is under way, and translates errors."""
        self._check_open()
        with device_errors(doing):
            if self._active is not None:
                self._active = None
                self._engine.drain()
            yield

    def _check_status(self, position: int) -> None:
        status = self._engine.status()
        if status:
            raise status_error(status, f"at position {position}")

    def _check_ids(self, ids: npt.NDArray[Any]) -> None:
        rows = self._files.embed_rows
        outside = ids[(ids < 0) | (ids >= rows)]
        if len(outside):
            message = f"token id {outside[0]} is outside the table of {rows} rows"
            raise PromptError(message, hint="use the tokenizer of this bundle")

    def _check_room(self, slot: int, count: int) -> None:
        used = self._engine.lengths[slot]
        if count < 1:
            raise PromptError("there is nothing to append: 0 positions")
        if used + count > self.max_seq_len:
            raise PromptError(
                f"{count} positions after {used} do not fit into the context of {self.max_seq_len}",
                hint="shorten the prompt, or export with a larger --max-seq-len",
            )

    def _check_slot(self, slot: int) -> None:
        self._check_open()
        if not 0 <= slot < len(self._engine.lengths):
            raise InputError(f"slot {slot} is not one of the {len(self._engine.lengths)} slots")

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the decoder is closed")


def _check_slots(slots: int) -> None:
    if not 1 <= slots <= MAX_SLOTS:
        raise InputError(f"{slots} slots, expected 1 to {MAX_SLOTS}")
