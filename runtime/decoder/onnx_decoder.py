"""The decoder on ONNX Runtime: int4 weights, one KV cache per slot that the graph updates in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runtime.bundle.manifest import GRAPH_DATA_SUFFIX
from runtime.decoder.free_memory import return_free_memory
from runtime.decoder.ort_session import SessionSettings, open_session, ort_errors, shrinking_options
from runtime.decoder.token_table import TokenTable
from runtime.errors import BundleError, ClosedError, EngineError, InputError, PromptError
from runtime.memory import MemoryUse

F32 = npt.NDArray[np.float32]

CHUNK_TOKENS = 512
TRIM_TOKENS = 64  # from this length on, a prefill takes far longer than giving its memory back
MAX_SLOTS = 64


@dataclass(frozen=True, slots=True)
class OnnxDecoderFiles:
    """What the manifest says of this decoder: two files and the shape of the model."""

    model: Path
    token_embeds: Path
    token_embeds_dtype: str
    embed_rows: int
    hidden: int
    layers: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_seq_len: int


class _Slot:
    """KV cache, binding and reusable buffers of one slot."""

    def __init__(self, ort: Any, session: Any, files: OnnxDecoderFiles) -> None:
        shape = (1, files.kv_heads, files.max_seq_len, files.head_dim)
        self.length = 0
        # Zeroed memory is taken from the system page by page as positions are filled.
        self.cache = [np.zeros(shape, np.float32) for _ in range(2 * files.layers)]
        self.binding = session.io_binding()
        self.embeds = np.zeros((1, 0, files.hidden), np.float32)
        self.logits = np.zeros((1, 0, files.vocab), np.float32)
        self.bound: tuple[F32, F32] | None = None
        names = [f"{index}.{part}" for index in range(files.layers) for part in ("key", "value")]
        for name, array in zip(names, self.cache, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(array)
            self.binding.bind_ortvalue_input(f"past.{name}", value)
            self.binding.bind_ortvalue_output(f"present.{name}", value)


class OnnxDecoder:
    """Implements :class:`runtime.decoder.Decoder` with ONNX Runtime on the CPU."""

    def __init__(self, files: OnnxDecoderFiles, settings: SessionSettings, *, slots: int = 1) -> None:
        self._files = files
        self._table = TokenTable(files.token_embeds, files.token_embeds_dtype, (files.embed_rows, files.hidden))
        try:
            self._ort, self._session = open_session(files.model, settings)
            _check_graph(self._session, files)
            self._errors = ort_errors()
            self._shrinking = shrinking_options(self._ort)
            self._seqlens = np.zeros(1, np.int32)
            self._total = np.zeros((), np.int32)
            self._num_logits = np.zeros(1, np.int64)
            self._slots: list[_Slot] = []
            self._closed = False
            self.open(slots)
        except BaseException:
            self._table.close()
            raise

    @property
    def kind(self) -> Literal["onnx"]:
        """Its name in a manifest."""
        return "onnx"

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
        self._check_open()
        if not 1 <= slots <= MAX_SLOTS:
            raise InputError(f"{slots} slots, expected 1 to {MAX_SLOTS}")
        self._slots = []
        self._slots = [_Slot(self._ort, self._session, self._files) for _ in range(slots)]
        for slot in self._slots:
            for name, array in (
                ("seqlens_k", self._seqlens),
                ("total_sequence_length", self._total),
                ("num_logits", self._num_logits),
            ):
                slot.binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(array))

    def prefill(self, slot: int, inputs_embeds: F32, *, num_logits: int = 1) -> F32:
        """Appends embeddings f32 [S, hidden] in chunks; new logits f32 [num_logits, vocab] of the last positions."""
        state = self._slot(slot)
        if inputs_embeds.ndim != 2 or inputs_embeds.shape[1] != self.hidden or inputs_embeds.dtype != np.float32:
            found = f"{inputs_embeds.dtype} {list(inputs_embeds.shape)}"
            raise PromptError(f"inputs_embeds is {found}, expected float32 [S, {self.hidden}]")
        count = inputs_embeds.shape[0]
        self._check_room(slot, count)
        if not 1 <= num_logits <= count:
            raise PromptError(f"num_logits is {num_logits}, the prompt has {count} positions")
        embeds = np.ascontiguousarray(inputs_embeds)[None]
        logits = np.empty((1, num_logits, self.vocab), np.float32)
        skipped = np.empty((1, 1, self.vocab), np.float32) if count > CHUNK_TOKENS else logits
        start, trim = state.length, count >= TRIM_TOKENS
        try:
            for begin in range(0, count, CHUNK_TOKENS):
                end = min(begin + CHUNK_TOKENS, count)
                first = max(begin, count - num_logits)
                target = logits[:, first - (count - num_logits) : end - (count - num_logits)]
                self._run(state, embeds[:, begin:end], target if first < end else skipped, shrink=trim and end == count)
        except BaseException:
            state.length = start
            raise
        if trim:
            return_free_memory()
        result: F32 = logits[0]
        return result

    def decode(self, slot: int, token_ids: Sequence[int]) -> F32:
        """Appends n tokens; logits f32 [n, vocab], valid until the next call for this slot."""
        state = self._slot(slot)
        count = len(token_ids)
        self._check_room(slot, count)
        rows = self._table.lookup(token_ids)
        if state.embeds.shape[1] != count:
            state.embeds = np.empty((1, count, self.hidden), np.float32)
            state.logits = np.empty((1, count, self.vocab), np.float32)
        state.embeds[0] = rows
        self._run(state, state.embeds, state.logits)
        result: F32 = state.logits[0]
        return result

    def embed(self, token_ids: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """Rows of the token table, a new f32 [n, hidden]."""
        self._check_open()
        return self._table.lookup(token_ids)

    def length(self, slot: int) -> int:
        """Positions of the slot that are filled."""
        return self._slot(slot).length

    def truncate(self, slot: int, length: int) -> None:
        """Forgets all positions from ``length`` on."""
        state = self._slot(slot)
        if not 0 <= length <= state.length:
            raise InputError(f"slot {slot} cannot be cut to {length} positions, it has {state.length}")
        state.length = length

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Makes ``target`` hold the first ``length`` positions of ``source``."""
        origin, state = self._slot(source), self._slot(target)
        if not 0 <= length <= origin.length:
            raise InputError(f"slot {source} has {origin.length} positions, {length} cannot be copied")
        if origin is not state:
            for old, new in zip(origin.cache, state.cache, strict=True):
                new[:, :, :length] = old[:, :, :length]
        state.length = length

    def memory(self) -> tuple[MemoryUse, ...]:
        """The KV caches as they are reserved, and the weights as the graph stores them."""
        self._check_open()
        caches = sum(array.nbytes for state in self._slots for array in state.cache)
        stored = self._files.model.with_name(self._files.model.name + GRAPH_DATA_SUFFIX)
        size = stored.stat().st_size if stored.is_file() else self._files.model.stat().st_size
        return (MemoryUse("KV cache", caches, "host"), MemoryUse("weights", size, "host", exact=False))

    def close(self) -> None:
        """Gives memory and threads back; harmless when repeated."""
        if not self._closed:
            self._closed = True
            self._slots = []
            del self._session
            self._table.close()

    def _run(self, state: _Slot, embeds: F32, logits: F32, *, shrink: bool = False) -> None:
        """One pass over [1, S, hidden], whose last ``logits.shape[1]`` positions give logits into that array."""
        total = state.length + embeds.shape[1]
        self._seqlens[0], self._total[...], self._num_logits[0] = total - 1, total, logits.shape[1]
        if state.bound is None or state.bound[0] is not embeds or state.bound[1] is not logits:
            value = self._ort.OrtValue.ortvalue_from_numpy
            state.binding.bind_ortvalue_input("inputs_embeds", value(embeds))
            state.binding.bind_ortvalue_output("logits", value(logits))
            state.bound = (embeds, logits)
        try:
            self._session.run_with_iobinding(state.binding, self._shrinking if shrink else None)
        except self._errors as problem:
            raise EngineError(f"the decoder failed at position {state.length}: {problem}") from problem
        state.length = total

    def _check_room(self, slot: int, count: int) -> None:
        used = self._slots[slot].length
        if count < 1:
            raise PromptError("there is nothing to append: 0 positions")
        if used + count > self.max_seq_len:
            raise PromptError(
                f"{count} positions after {used} do not fit into the context of {self.max_seq_len}",
                hint="shorten the prompt, or export with a larger --max-seq-len",
            )

    def _slot(self, slot: int) -> _Slot:
        self._check_open()
        if not 0 <= slot < len(self._slots):
            raise InputError(f"slot {slot} is not one of the {len(self._slots)} slots")
        return self._slots[slot]

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the decoder is closed")


def _check_graph(session: Any, files: OnnxDecoderFiles) -> None:
    """The graph has the shape that the manifest gives it, so that no binding reads past a buffer."""
    cache: list[int | str] = [1, files.kv_heads, "T", files.head_dim]
    wanted: dict[str, list[int | str]] = {
        "inputs_embeds": [1, "S", files.hidden],
        "seqlens_k": [1],
        "total_sequence_length": [],
        "num_logits": [1],
        "logits": [1, "n", files.vocab],
    }
    for index in range(files.layers):
        for side in ("past", "present"):
            for part in ("key", "value"):
                wanted[f"{side}.{index}.{part}"] = list(cache)
    found = {node.name: list(node.shape) for node in (*session.get_inputs(), *session.get_outputs())}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            message = f"{files.model}: {name!r} has the shape {found.get(name)}, by the manifest {wanted.get(name)}"
            raise BundleError(message, hint="build it again")
