"""A pass through the model: which kernels are launched, in which order, over which rows.

Up to eight rows go through the GEMV kernels and split attention: the same kernels whether they are a step, the tokens
of a draft or a short prompt, so that n tokens together give bit for bit what single steps give. More rows go through
GEMM and prefill attention; their last layer runs for the rows alone whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernels.arrays import DeviceArray
from kernels.driver.protocol import Stream
from kernels.launch.attention import (
    attn_decode_combine,
    attn_decode_split,
    attn_decode_split_i8,
    attn_prefill,
    partials_shape,
    split_positions,
)
from kernels.launch.embed import embed_f16, embed_i8, fuse_image_text
from kernels.launch.gemm import gemm, gemm_qkv_rope_kv, gemm_swiglu
from kernels.launch.gemv import gemv, gemv_qkv_rope_kv, gemv_residual, gemv_swiglu
from kernels.launch.head import head_argmax, head_logits
from kernels.launch.kv import KvLayer, kv_quantize_i8
from kernels.launch.norm import rmsnorm_residual
from kernels.loading import Kernels
from runtime.decoder.cuda.model import HeadPart, Layer, Model
from runtime.decoder.cuda.shape import STEP_TOKENS, CudaDecoderFiles
from runtime.decoder.cuda.table import TablePart

Arrays = Mapping[str, DeviceArray]


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of a pass and where they stand: the tokens at state.pos … of the cache, launched for contexts up to bucket.

    state: of the first row. tail: rows at the end whose logits are wanted; tail_state: of the first of those.
    """

    rows: int
    tail: int
    bucket: int
    state: DeviceArray
    tail_state: DeviceArray


class Forward:
    """Launches passes of one model on one stream. ``kv``: the cache of each layer; ``staged``: beside an int8 one."""

    def __init__(
        self,
        kernels: Kernels,
        stream: Stream,
        files: CudaDecoderFiles,
        model: Model,
        table: Sequence[TablePart],
        buffers: Arrays,
    ) -> None:
        self._kernels, self._stream, self._files = kernels, stream, files
        self._model, self._table, self._buffers = model, table, buffers
        self.kv: Sequence[KvLayer] = ()
        self.staged: KvLayer | None = None

    def embed(self, state: DeviceArray, rows: int) -> None:
        """Rows of the table for the tokens in ``state``, into the residual stream."""
        target = self._buffers["residual"].rows(0, rows)
        for part in self._table:
            at = {"first_id": part.first_id, "vocab": self._files.embed_rows}
            if part.scales is None:
                embed_f16(self._kernels, self._stream, part.rows, state, target, **at)
            else:
                embed_i8(self._kernels, self._stream, part.rows, part.scales, state, target, **at)

    def fuse(self, state: DeviceArray, rows: int, image_rows: int) -> None:
        """Token rows of the table and rows of ``images`` by the numbers in ``ids``, into the residual stream."""
        ids, target = self._buffers["ids"].rows(0, rows), self._buffers["residual"].rows(0, rows)
        images = self._buffers["images"].rows(0, image_rows) if image_rows else None
        for part in self._table:
            fuse_image_text(
                self._kernels,
                self._stream,
                ids,
                part.rows,
                part.scales,
                images,
                target,
                state,
                first_id=part.first_id,
                vocab=self._files.embed_rows,
            )

    def layers(self, span: Span) -> None:
        """All layers over the rows of the residual stream; of the last one only what the tail needs."""
        final = self._model.layers[-1]
        for layer, kv in zip(self._model.layers, self.kv, strict=True):
            self._project(layer, kv, span)
            rows, state = range(span.rows), span.state
            if layer is final:
                rows, state = range(span.rows - span.tail, span.rows), span.tail_state
            if rows:
                self._attend(layer, kv, rows, state, span.bucket)
                self._mlp(layer, rows, last=layer is final)

    def normed_tail(self, span: Span, first: int, count: int) -> DeviceArray:
        """The head's input for ``count`` rows of the tail from ``first`` on; once for each row."""
        begin = span.rows - span.tail + first
        target = self._buffers["head_input"].rows(0, count)
        rmsnorm_residual(
            self._kernels,
            self._stream,
            self._buffers["residual"].rows(begin, begin + count),
            self._model.norm,
            target,
            eps=self._files.rms_eps,
            delta=self._buffers["delta"].rows(begin, begin + count),
            copies=self._files.head_copies,
        )
        return target

    def logits(self, span: Span, first: int, count: int) -> list[tuple[HeadPart, DeviceArray]]:
        """Logits f32 [count, rows of the part] of rows of the tail, part by part."""
        source = self.normed_tail(span, first, count)
        found = self.logit_parts(count)
        for part, target in found:
            head_logits(self._kernels, self._stream, source, part.weight, target)
        return found

    def logit_parts(self, count: int) -> list[tuple[HeadPart, DeviceArray]]:
        """Where `logits` leaves its results; for one row the parts follow each other without a gap."""
        flat = self._buffers["logits"]
        return [
            (
                part,
                flat.rows(count * part.first_id, count * (part.first_id + part.weight.n)).reshape(count, part.weight.n),
            )
            for part in self._model.head
        ]

    def argmax(self, span: Span) -> DeviceArray:
        """Partial maxima u8 [tiles, 1, 16] of the last row's logits."""
        source = self.normed_tail(span, span.tail - 1, 1)
        buffer = self._buffers["head_partials"]
        tiles = sum(part.weight.tiles for part in self._model.head)
        whole = DeviceArray(buffer.ptr, (tiles, 1, buffer.shape[2]), buffer.dtype, buffer.owner)
        for part in self._model.head:
            target = whole.rows(part.first_tile, part.first_tile + part.weight.tiles)
            head_argmax(self._kernels, self._stream, source, part.weight, target, first_id=part.first_id)
        return whole

    def _project(self, layer: Layer, kv: KvLayer, span: Span) -> None:
        """Norm, query, key and value of every row; keys and values go into the cache."""
        rows = range(span.rows)
        normed = self._normed(layer.input_norm, rows)
        launch = gemv_qkv_rope_kv if len(rows) <= STEP_TOKENS else gemm_qkv_rope_kv
        launch(
            self._kernels,
            self._stream,
            normed,
            layer.qkv,
            layer.qkv_bias,
            self._model.rope,
            span.state,
            self._rows("queries", rows),
            self.staged or kv,
            heads=self._files.heads,
        )
        if self.staged is not None:
            kv_quantize_i8(self._kernels, self._stream, self.staged, kv, span.state, tokens=len(rows))

    def _attend(self, layer: Layer, kv: KvLayer, rows: range, state: DeviceArray, bucket: int) -> None:
        """Attention and its projection; ``state`` is that of the first of the rows."""
        queries, attended = self._rows("queries", rows), self._rows("attended", rows)
        heads = attended.reshape(*queries.shape)
        residual = self._rows("residual", rows)
        if len(rows) > STEP_TOKENS:
            attn_prefill(self._kernels, self._stream, queries, kv, state, heads)
            gemm(self._kernels, self._stream, attended, layer.o, None, bias=layer.o_bias, residual=residual)
            return
        splits = -(-bucket // split_positions(self._files.kv_heads))
        flat = self._buffers["partials"]
        shape = partials_shape(len(rows), self._files.heads, self._files.head_dim, splits)
        partials = DeviceArray(flat.ptr, shape, flat.dtype, flat.owner)
        split = attn_decode_split_i8 if kv.dtype == "i8" else attn_decode_split
        split(self._kernels, self._stream, queries, kv, state, partials, splits=splits)
        attn_decode_combine(self._kernels, self._stream, partials, heads, splits=splits)
        gemv_residual(self._kernels, self._stream, attended, layer.o, residual, bias=layer.o_bias)

    def _mlp(self, layer: Layer, rows: range, *, last: bool) -> None:
        """The last layer's result goes to the final norm as its delta: nobody reads the residual stream after that."""
        normed, gated = self._normed(layer.post_norm, rows), self._rows("gated", rows)
        residual, delta = self._rows("residual", rows), self._rows("delta", rows)
        if len(rows) > STEP_TOKENS:
            gemm_swiglu(self._kernels, self._stream, normed, layer.gate_up, gated)
            target = (delta, None) if last else (None, residual)
            gemm(self._kernels, self._stream, gated, layer.down, target[0], residual=target[1])
            return
        gemv_swiglu(self._kernels, self._stream, normed, layer.gate_up, gated)
        if last:
            gemv(self._kernels, self._stream, gated, layer.down, delta)
        else:
            gemv_residual(self._kernels, self._stream, gated, layer.down, residual)

    def _normed(self, gamma: DeviceArray, rows: range) -> DeviceArray:
        target = self._rows("normed", rows)
        source = self._rows("residual", rows)
        rmsnorm_residual(self._kernels, self._stream, source, gamma, target, eps=self._files.rms_eps)
        return target

    def _rows(self, name: str, rows: range) -> DeviceArray:
        return self._buffers[name].rows(rows.start, rows.stop)
