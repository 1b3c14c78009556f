"""What a product gets that makes queries, keys and values at once (csrc/rope_kv.cuh), for one token or many."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.arrays import DeviceArray, check_array
from kernels.errors import ArrayError
from kernels.launch.kv import KvLayer, check_state
from kernels.launch.products import check_bias, pointer
from kernels.launch.weights import T16Weight

QKV_SIGNATURE = "PPPPPPiiiiiiii"  # of QkvArrays.arguments


@dataclass(frozen=True, slots=True)
class QkvArrays:
    """The arrays beside x T [M, K] and the weight in ``qkv_order``; the launchers say what is in them."""

    bias: DeviceArray | None
    rope: DeviceArray
    state: DeviceArray
    q: DeviceArray
    kv: KvLayer
    heads: int

    def arguments(self, x: DeviceArray, w: T16Weight) -> tuple[int, ...]:
        """The kernel's arguments behind x and the weight. ArrayError unless the arrays belong together, for any M."""
        self._check(x, w)
        rope, kv = self.rope, self.kv
        return (
            pointer(self.bias),
            rope.ptr,
            self.state.ptr,
            self.q.ptr,
            kv.keys.ptr,
            kv.values.ptr,
            x.shape[0],
            w.k,
            self.heads,
            kv.kv_heads,
            kv.head_dim,
            kv.capacity,
            rope.shape[0],
            int(kv.staged),
        )

    def _check(self, x: DeviceArray, w: T16Weight) -> None:
        kv, heads, tokens = self.kv, self.heads, x.shape[0]
        kv.check("kv", "f16" if x.dtype == "f16" else "bf16")
        rows = (heads + 2 * kv.kv_heads) * kv.head_dim
        if heads < 1 or w.n != rows:
            raise ArrayError(
                f"the weight has {w.n} rows, expected {rows} for {heads} query and {kv.kv_heads} key heads "
                f"of {kv.head_dim}"
            )
        if kv.staged and tokens > kv.capacity:
            raise ArrayError(f"kv stages {kv.capacity} tokens, not {tokens}")
        check_bias(self.bias, w)
        check_array("rope", self.rope, "f32", (None, kv.head_dim // 2, 2))
        check_state(self.state)
        check_array("q", self.q, x.dtype, (tokens, heads, kv.head_dim))
