"""What a CUDA decoder has on its device, and the work that it enqueues there. `CudaDecoder` keeps the rules."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from kernels.driver.protocol import Device
from kernels.errors import StickyError
from kernels.launch.attention import partials_shape, split_positions
from kernels.launch.kv import KvLayer
from kernels.launch.sample import sample_filtered, sample_greedy
from kernels.loading import Kernels
from runtime.bundle.manifest import VisionSection
from runtime.decoder.cuda.allocation import GRAPHS_BYTES, Allocation, shortage
from runtime.decoder.cuda.cache import KvCache
from runtime.decoder.cuda.forward import Forward, Span
from runtime.decoder.cuda.graphs import StepGraphs
from runtime.decoder.cuda.model import load_weights, model_of
from runtime.decoder.cuda.plan import (
    Item,
    TableForm,
    activation_items,
    cache_items,
    head_items,
    sampling_items,
    table_items,
    weight_items,
)
from runtime.decoder.cuda.sampling import TokenRing
from runtime.decoder.cuda.shape import STEP_TOKENS, CudaDecoderFiles
from runtime.decoder.cuda.step_state import StepStates
from runtime.decoder.cuda.table import float_form, load_table, table_parts
from runtime.decoder.cuda.upload import BUFFER_BYTES, Uploader
from runtime.decoder.cuda.weight_file import WeightFile
from runtime.decoder.options import CudaOptions
from runtime.decoder.token_table import TokenTable
from runtime.fusion import PlacedIds
from runtime.memory import MemoryUse
from runtime.preprocess_cuda import CudaPreprocessor
from runtime.sampling import Draws

F32 = npt.NDArray[np.float32]
_log = logging.getLogger(__name__)

Choice = Literal["logits", "greedy", "filtered"]


class CudaEngine:
    """Weights, buffers, cache, kernels and graphs of one decoder. Errors are those of `kernels` and BundleError.

    MemoryLimitError before anything is allocated when the plan exceeds what is free.
    """

    def __init__(
        self, files: CudaDecoderFiles, options: CudaOptions, device: Device, table: TokenTable, slots: int
    ) -> None:
        self._files, self._options, self.device = files, options, device
        self._tile_makers: list[CudaPreprocessor] = []
        self._held: tuple[object, ...] = ()  # host arrays that copies may still read
        with ExitStack() as stack:
            weights = WeightFile(files)
            stack.callback(weights.close)
            self.table_form, items = self._planned(weights, table, slots)
            self.stream = device.create_stream()
            stack.callback(self.stream.close)
            self._fixed = Allocation(device, items)
            stack.callback(self._fixed.close)
            arrays = self._fixed.arrays
            self._ring = TokenRing(device, self.stream, arrays)
            stack.callback(self._ring.close)
            self._cache = KvCache(device, self.stream, files, options.kv, slots)
            stack.callback(self._close_cache)
            with Uploader(device, self.stream, min(BUFFER_BYTES, _largest(items))) as uploader:
                load_weights(files, weights, arrays, uploader)
                load_table(files, self.table_form, table, arrays, uploader)
            self.kernels = Kernels(device)
            stack.callback(self.kernels.close)
            self._states = StepStates(device, self.stream, arrays["states"])
            model, parts = model_of(files, arrays), table_parts(files, self.table_form, arrays)
            self._forward = Forward(self.kernels, self.stream, files, model, parts, arrays)
            self._forward.kv, self._forward.staged = self._cache.layers, self._staging()
            self._graphs = StepGraphs(device, self.stream, enabled=options.graphs)
            stack.callback(self._graphs.close)
            stack.callback(self._settle)
            weights.close()
            self._stack = stack.pop_all()

    @property
    def lengths(self) -> list[int]:
        """Filled positions per slot; the decoder changes them."""
        return self._cache.lengths

    def open_slots(self, slots: int) -> None:
        """Another cache, empty; the old one goes first. Graphs go too: its addresses are in them."""
        self.stream.synchronize()
        self._graphs.close()
        self._cache.close()
        refused = shortage(self.device, cache_items(self._files, self._options.kv, slots))
        if refused is not None:
            raise refused
        self._cache = KvCache(self.device, self.stream, self._files, self._options.kv, slots)
        self._forward.kv = self._cache.layers

    def span(self, slot: int, position: int, rows: int, *, tail: int) -> Span:
        """Rows at ``position`` of a slot, whose states are written for them."""
        self._states.write(pos=position, slot=slot, tail_pos=position + rows - tail)
        return self._span(position, rows, tail)

    def load_embeds(self, embeds: F32) -> None:
        """Enqueue the copy of embeddings f32 [rows, hidden] into the residual stream."""
        self._held = (embeds,)
        self.device.copy_in(self._fixed.arrays["residual"].ptr, embeds, self.stream)

    def load_ids(self, placed: PlacedIds) -> None:
        """Put embeddings together from the token table and rows of images."""
        arrays, rows = self._fixed.arrays, len(placed.images)
        self._held = (placed.ids, placed.images)
        self.device.copy_in(arrays["ids"].ptr, placed.ids, self.stream)
        if rows:
            self.device.copy_in(arrays["images"].ptr, placed.images, self.stream)
        self._forward.fuse(self._states.first, len(placed), rows)

    def run(self, span: Span) -> None:
        """Enqueue all layers over what was loaded."""
        self._forward.layers(span)

    def tail_logits(self, span: Span, first: int, count: int, target: F32) -> None:
        """Logits of ``count`` rows of the tail from ``first`` on, at most 8; waits for them."""
        self._forward.logits(span, first, count)
        self.download_logits(target)

    def step(self, slot: int, position: int, tokens: Sequence[int]) -> None:
        """Enqueue a step of 1 to 8 tokens that leaves their logits on the device."""
        self._states.write(pos=position, slot=slot, tail_pos=position, tokens=tokens)
        self._enqueue_step(position, len(tokens), "logits")

    def download_logits(self, target: F32) -> None:
        """The last logits f32 [n, vocab]; waits for them."""
        parts = [(part.first_id, array) for part, array in self._forward.logit_parts(len(target))]
        if len(parts) == 1 and target.flags.c_contiguous:
            self.device.copy_out(target, parts[0][1].ptr, self.stream)
            self.stream.synchronize()
            return
        for first, array in parts:
            found = np.empty(array.shape, np.float32)
            self.device.copy_out(found, array.ptr, self.stream)
            self.stream.synchronize()
            target[:, first : first + array.shape[1]] = found

    def begin_sampling(self, slot: int, position: int, token: int, draws: Draws) -> None:
        """Prepare the device for steps that choose their next token."""
        self._ring.begin(draws)
        self._states.write(pos=position, slot=slot, tail_pos=position, tokens=(token,), step=draws.step)

    def enqueue_sample(self, position: int, draws: Draws, step: int) -> None:
        """Enqueue a step at ``position`` of the slot that is being sampled."""
        plain = draws.params.temperature == 0.0 and draws.seen is None
        self._enqueue_step(position, 1, "greedy" if plain else "filtered")
        self._ring.enqueued(step)

    def wait_sample(self, step: int) -> tuple[int, float, int]:
        """(token, logprob, status) of a step."""
        return self._ring.wait(step)

    def status(self) -> int:
        """Status bits of the last pass; waits for it."""
        status = self._states.status()
        self._held = ()
        return status

    def drain(self) -> None:
        """Wait for everything that was enqueued."""
        self.stream.synchronize()

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy positions between slots."""
        self._cache.copy_prefix(source, target, length)

    def tile_maker(self, vision: VisionSection) -> CudaPreprocessor:
        """Makes tiles on this device; its buffers grow with the pictures and are given back with the rest."""
        maker = CudaPreprocessor(self.kernels, self.stream, vision)
        self._tile_makers.append(maker)
        self._stack.callback(maker.close)
        return maker

    def uses(self) -> tuple[MemoryUse, ...]:
        """Allocated memory by purpose, and what the driver may take for graphs and modules."""
        pinned = MemoryUse("token ring", self._ring.nbytes, "host")
        driver = MemoryUse("graphs and modules", GRAPHS_BYTES, "device", exact=False)
        pictures = MemoryUse("pictures", sum(maker.nbytes for maker in self._tile_makers), "device")
        return (*self._fixed.uses(), *self._cache.uses(), pictures, driver, pinned)

    def close(self) -> None:
        """Give everything back; harmless when repeated."""
        self._stack.close()

    def _enqueue_step(self, position: int, tokens: int, choice: Choice) -> None:
        span = self._span(position, tokens, tokens)
        self._graphs.run((tokens, span.bucket, choice), partial(self._launch_step, span, choice))

    def _launch_step(self, span: Span, choice: Choice) -> None:
        state, arrays = span.state, self._fixed.arrays
        self._forward.embed(state, span.rows)
        self._forward.layers(span)
        if choice == "greedy":
            sample_greedy(self.kernels, self.stream, self._forward.argmax(span), state, self._ring.array)
            return
        self._forward.logits(span, 0, span.rows)
        if choice == "filtered":
            sample_filtered(
                self.kernels,
                self.stream,
                arrays["logits"].rows(0, self._files.vocab),
                arrays["sample_params"],
                arrays["seen"],
                state,
                self._ring.array,
                arrays["sample_scratch"],
            )

    def _span(self, position: int, rows: int, tail: int) -> Span:
        bucket = self._files.bucket(position + rows)
        # A step's sampler moves the first state on, so its rows must all read that one.
        return Span(rows, tail, bucket, self._states.first, self._states.first if rows == tail else self._states.tail)

    def _planned(self, weights: WeightFile, table: TokenTable, slots: int) -> tuple[TableForm, list[Item]]:
        """The form of the token table and what is allocated once. Raises MemoryLimitError when it does not fit."""
        files, kv = self._files, self._options.kv
        splits = -(-files.max_seq_len // split_positions(files.kv_heads))
        partials = int(np.prod(partials_shape(STEP_TOKENS, files.heads, files.head_dim, splits)))
        fixed = [
            *weight_items(files, weights.biases),
            *head_items(files),
            *activation_items(files, kv, partials),
            *sampling_items(files),
        ]
        caches = cache_items(files, kv, slots)
        wide: TableForm = "i8" if self._options.embeddings == "i8" else float_form(table)
        forms: list[TableForm] = [wide, "i8"] if self._options.embeddings == "auto" else [wide]
        for form in forms:
            items = [*fixed, *table_items(files, form)]
            refused = shortage(self.device, [*items, *caches])
            if refused is None:
                return form, items
        assert refused is not None
        raise refused

    def _staging(self) -> KvLayer | None:
        """Where a pass leaves keys and values that are then quantised."""
        if self._options.kv != "i8":
            return None
        files, arrays = self._files, self._fixed.arrays
        addresses = np.array([arrays["staged.k"].ptr, arrays["staged.v"].ptr], np.uint64)
        table = arrays["staged.addresses"]
        self.device.copy_in(table.ptr, addresses, self.stream)
        self.stream.synchronize()
        keys, values = (table.rows(part, part + 1).reshape(1) for part in (0, 1))
        return KvLayer(keys, values, files.kv_heads, files.head_dim, files.chunk, files.activations, staged=True)

    def _close_cache(self) -> None:
        self._cache.close()

    def _settle(self) -> None:
        """Nothing runs any more when memory is given back; in a lost context nothing does anyway."""
        try:
            self.stream.synchronize()
        except StickyError as problem:
            _log.warning("closing a decoder whose context is lost: %s", problem.message)


def _largest(items: Sequence[Item]) -> int:
    return max(2 * 4096, *(2 * item.nbytes for item in items))
