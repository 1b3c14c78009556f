"""The decoder as an ONNX graph for ONNX Runtime, written node by node.

Inputs: ``inputs_embeds`` f32 [1, S, hidden]; ``past.<i>.key|value`` f32 [1, kv_heads, T, head_dim] of T = max_seq_len
positions, bound to the same memory as ``present.<i>.key|value``; ``seqlens_k`` i32 [1] = past + S − 1 and
``total_sequence_length`` i32 [] = past + S; ``num_logits`` i64 [1] = n. Output: ``logits`` f32 [1, n, vocab] of the
last n positions. In the last layer nothing but keys and values is computed for the positions before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.decoder.checkpoint import DecoderCheckpoint
from export.decoder.external_data import ExternalData
from export.decoder.integer_stream import finite
from export.decoder.rope import rope_tables
from export.decoder.stored_linears import LinearStore, StoredLinear

MICROSOFT = "com.microsoft"
OPSET = 18
IR_VERSION = 10
FLOAT_BITS = 16
TO_THE_END = np.iinfo(np.int64).max


class DecoderGraph:
    """Builds the graph front to back; weights are stored as the nodes that use them are made."""

    def __init__(
        self,
        checkpoint: DecoderCheckpoint,
        external: ExternalData,
        linears: LinearStore,
        *,
        group_size: int,
        accuracy_level: int,
        max_seq_len: int,
    ) -> None:
        self._checkpoint, self._config = checkpoint, checkpoint.config
        self._external, self._linears = external, linears
        self._group_size, self._accuracy_level = group_size, accuracy_level
        self._max_seq_len = max_seq_len
        self._nodes: list[onnx.NodeProto] = []
        self._small: list[onnx.TensorProto] = []

    def build(self) -> onnx.ModelProto:
        """Writes all weights and returns the model, whose initialisers point into the data file."""
        self._constants()
        hidden, residual = self._first_norm("inputs_embeds"), "inputs_embeds"
        for index in range(self._config.layers):
            hidden, residual = self._layer(index, hidden, residual)
        self._logits(hidden)
        graph = helper.make_graph(
            self._nodes, "decoder", self._inputs(), self._outputs(), [*self._external.initializers, *self._small]
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=IR_VERSION,
            producer_name="jetson-vlm",
        )

    def _layer(self, index: int, hidden: str, residual: str) -> tuple[str, str]:
        """One layer: normed input and residual → those of the next (the last one's norm is the final norm)."""
        at, layer = f"layers.{index}", self._checkpoint.layer(index)
        last = index == self._config.layers - 1
        qkv = self._matmul(f"{at}.qkv", self._linears.store(f"{at}.qkv", [layer["q"], layer["k"], layer["v"]]), hidden)
        attention = self._attention(index, qkv)
        if last:
            attention, residual = self._tail(f"{at}.attention", attention), self._tail(f"{at}.residual", residual)
        attended = self._matmul(f"{at}.o", self._linears.store(f"{at}.o", [layer["o"]]), attention)
        hidden, residual = self._skip_norm(f"{at}.post_attention_layernorm", attended, residual)
        both = self._linears.store(f"{at}.gate_up", [layer["gate"], layer["up"]])
        gated = self._gate(at, self._matmul(f"{at}.gate_up", both, hidden))
        down = self._matmul(f"{at}.down", self._linears.store(f"{at}.down", [layer["down"]]), gated)
        return self._skip_norm("norm" if last else f"layers.{index + 1}.input_layernorm", down, residual)

    def _attention(self, index: int, qkv: str) -> str:
        c = self._config
        cache = [f"{side}.{index}.{part}" for side in ("past", "present") for part in ("key", "value")]
        return self._node(
            "GroupQueryAttention",
            [qkv, "", "", *cache[:2], "seqlens_k", "total_sequence_length", "rope.cos", "rope.sin"],
            [f"layers.{index}.attention", *cache[2:]],
            domain=MICROSOFT,
            num_heads=c.heads,
            kv_num_heads=c.kv_heads,
            scale=float(c.head_dim**-0.5),
            do_rotary=1,
            rotary_interleaved=0,
        )

    def _matmul(self, output: str, stored: StoredLinear, source: str) -> str:
        inputs = [source, stored.weight, stored.scales, stored.zeros]
        if stored.bias:
            inputs += ["", stored.bias]
        return self._node(
            "MatMulNBits",
            inputs,
            [output],
            domain=MICROSOFT,
            N=stored.n,
            K=stored.k,
            bits=stored.bits,
            block_size=self._group_size,
            accuracy_level=self._accuracy_level,
        )

    def _logits(self, source: str) -> None:
        """The head: integers of four or eight bits, or f16 widened once when the graph is loaded."""
        head, bits = self._checkpoint.head(), self._checkpoint.head_bits
        if bits < FLOAT_BITS:
            self._matmul("logits", self._linears.store("lm_head", [head], bits), source)
            return
        stored = self._linears.store_f16("lm_head.weight", head)
        wide = self._node("Cast", [stored], ["lm_head.f32"], to=TensorProto.FLOAT)
        self._node("FusedMatMul", [source, wide], ["logits"], domain=MICROSOFT, transB=1)

    def _gate(self, at: str, both: str) -> str:
        gate, up = f"{at}.gate", f"{at}.up"
        self._nodes.append(helper.make_node("Split", [both], [gate, up], name=f"{at}.split", axis=-1, num_outputs=2))
        sigmoid = self._node("Sigmoid", [gate], [f"{at}.sigmoid"])
        silu = self._node("Mul", [gate, sigmoid], [f"{at}.silu"])
        return self._node("Mul", [silu, up], [f"{at}.gated"])

    def _first_norm(self, source: str) -> str:
        """RMS norm in plain ONNX (there is nothing to add before it); the engine recognises the pattern."""
        squared = self._node("Pow", [source, "two"], ["first.squared"])
        mean = self._node("ReduceMean", [squared, "last_axis"], ["first.mean"], keepdims=1)
        shifted = self._node("Add", [mean, "eps"], ["first.shifted"])
        root = self._node("Sqrt", [shifted], ["first.root"])
        normed = self._node("Div", [source, root], ["first.normed"])
        return self._node("Mul", [normed, self._norm_weight("layers.0.input_layernorm")], ["first.scaled"])

    def _skip_norm(self, name: str, source: str, residual: str) -> tuple[str, str]:
        """(norm(source + residual), source + residual)."""
        total = f"{name}.sum"
        normed = self._node(
            "SkipSimplifiedLayerNormalization",
            [source, residual, self._norm_weight(name)],
            [f"{name}.normed", "", "", total],
            domain=MICROSOFT,
            epsilon=self._config.rms_eps,
        )
        return normed, total

    def _norm_weight(self, name: str) -> str:
        return self._external.add(f"{name}.weight", finite(name, self._checkpoint.norm(name)))

    def _tail(self, name: str, source: str) -> str:
        """The last ``num_logits`` positions."""
        return self._node("Slice", [source, "tail_begin", "tail_end", "position_axis"], [f"{name}.tail"])

    def _constants(self) -> None:
        c = self._config
        cos, sin = rope_tables(c.rope.frequencies(c.head_dim), self._max_seq_len)
        self._external.add("rope.cos", cos)
        self._external.add("rope.sin", sin)
        for name, value in {
            "two": np.float32(2),
            "eps": np.float32(c.rms_eps),
            "last_axis": np.array([-1], np.int64),
            "position_axis": np.array([1], np.int64),
            "tail_end": np.array([TO_THE_END], np.int64),
        }.items():
            self._small.append(numpy_helper.from_array(np.asarray(value), name))
        self._node("Neg", ["num_logits"], ["tail_begin"])

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, [1, "S", self._config.hidden]),
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
            helper.make_tensor_value_info("num_logits", TensorProto.INT64, [1]),
            *self._cache("past"),
        ]

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "n", self._checkpoint.vocab])
        return [logits, *self._cache("present")]

    def _cache(self, side: str) -> list[onnx.ValueInfoProto]:
        shape: list[str | int | None] = [1, self._config.kv_heads, "T", self._config.head_dim]
        return [
            helper.make_tensor_value_info(f"{side}.{index}.{part}", TensorProto.FLOAT, shape)
            for index in range(self._config.layers)
            for part in ("key", "value")
        ]

    def _node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> str:
        self._nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]
