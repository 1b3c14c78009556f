"""Which shapes the GEMV family takes: every layer of the supported models, and what it refuses by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernels.arrays import Activation, DeviceArray
from kernels.errors import ArrayError
from kernels.launch.gemv import gemv, gemv_qkv_rope_kv, gemv_residual, gemv_swiglu
from kernels.launch.head import head_argmax, head_logits
from kernels.launch.kv import KvLayer
from kernels.launch.weights import T16Weight, upload_t16
from kernels.packing import IntWeight, pack

# hidden, ffn, heads, key heads, head size, vocabulary
MODELS = {
    "LLaVA-1.5-7B": (4096, 11008, 32, 32, 128, 32064),
    "Llama-2-7B": (4096, 11008, 32, 32, 128, 32000),
    "VILA1.5-3B": (2560, 6912, 20, 20, 128, 32000),
    "NVILA-Lite-2B": (1536, 8960, 12, 2, 128, 151651),
    "NVILA-8B": (3584, 18944, 28, 4, 128, 151651),
    "demo-nvila": (128, 384, 2, 1, 64, 512),
    "demo-llava": (256, 384, 4, 4, 64, 512),
}
ADDRESS = 1 << 20


class Recorder:
    """Stands for `Kernels`: notes launches, runs nothing."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[int, int, int], tuple[int, int, int]]] = []

    def launch(
        self, entry: str, grid: Any, block: Any, shared_bytes: int, stream: Any, signature: str, *args: Any
    ) -> None:
        assert shared_bytes == 0
        assert len(signature) == len(args)
        self.launches.append((entry, grid, block))


def array(dtype: Any, *shape: int) -> DeviceArray:
    return DeviceArray(ADDRESS, shape, dtype)


def weight(n: int, k: int, group: int = 128) -> T16Weight:
    tiles = (n + 15) // 16
    return T16Weight(
        array("u32", tiles, (k + 63) // 64, 32, 4),
        array("f16", tiles, k // group, 8, 2),
        array("u8", tiles, k // group, 8),
        n,
        k,
        group,
    )


@pytest.mark.parametrize("tokens", [1, 5, 8])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_every_layer_of_the_models_is_taken(model: str, dtype: Activation, tokens: int) -> None:
    hidden, ffn, heads, kv_heads, dim, vocabulary = MODELS[model]
    k: Any = Recorder()
    s: Any = None
    x, wide = array(dtype, tokens, hidden), array(dtype, tokens, ffn)
    attended = array(dtype, tokens, heads * dim)
    residual = array("f32", tokens, hidden)
    rows = (heads + 2 * kv_heads) * dim
    kv = KvLayer(array("u64", 1), array("u64", 1), kv_heads, dim, 4096, dtype)
    for bias in (None, array("f32", rows)):
        gemv_qkv_rope_kv(
            k, s, x, weight(rows, hidden), bias, array("f32", 4096, dim // 2, 2), array("u8", 64),
            array(dtype, tokens, heads, dim), kv, heads=heads,
        )  # fmt: skip
    gemv_residual(k, s, attended, weight(hidden, heads * dim), residual)
    gemv(k, s, attended, weight(hidden, heads * dim), x)
    gemv_swiglu(k, s, x, weight(2 * ffn, hidden), wide)
    gemv_residual(k, s, wide, weight(hidden, ffn), residual)
    head = weight(vocabulary, hidden)
    head_argmax(k, s, x, head, array("u8", head.tiles, tokens, 16))
    head_logits(k, s, x, head, array("f32", tokens, vocabulary))
    assert len(k.launches) == 8
    for _, grid, block in k.launches:
        assert grid[1:] == block[1:] == (1, 1)
        assert 32 <= block[0] <= 256
    assert [grid[0] for _, grid, _ in k.launches[-2:]] == [(vocabulary + 15) // 16] * 2


@pytest.mark.parametrize("group", [32, 64, 128])
def test_entries_are_named_after_group_and_dtype(group: int) -> None:
    k: Any = Recorder()
    for dtype in ("f16", "bf16"):
        gemv(k, k, array(dtype, 1, 256), weight(20, 256, group), array(dtype, 1, 20))
    assert k.launches == [(f"gemv_g{group}_{dtype}", (2, 1, 1), (32, 1, 1)) for dtype in ("f16", "bf16")]


X, W, Y = array("f16", 2, 256), weight(48, 256), array("f16", 2, 48)


@pytest.mark.parametrize(
    ("x", "y", "bias", "message"),
    [
        (array("f16", 9, 256), array("f16", 9, 48), None, "x has 9 tokens, expected 1 to 8"),
        (array("f16", 0, 256), array("f16", 0, 48), None, r"x has the shape \[0, 256\], expected \[any, 256\]"),
        (array("f16", 2, 320), Y, None, r"x has the shape \[2, 320\], expected \[any, 256\]"),
        (array("f32", 2, 256), Y, None, "x is f32, expected f16 or bf16"),
        (replace(X, ptr=ADDRESS + 8), Y, None, "x lies at 0x100008, which is not a multiple of 16"),
        (replace(X, ptr=0), Y, None, "x is a null pointer"),
        (X, array("bf16", 2, 48), None, "y is bf16, expected f16"),
        (X, array("f16", 1, 48), None, r"y has the shape \[1, 48\], expected \[2, 48\]"),
        (X, replace(Y, ptr=ADDRESS + 2), None, "y lies at"),
        (X, Y, array("f16", 48), "bias is f16, expected f32"),
        (X, Y, array("f32", 64), r"bias has the shape \[64\], expected \[48\]"),
    ],
)
def test_arrays_that_do_not_fit_are_named(x: DeviceArray, y: DeviceArray, bias: DeviceArray, message: str) -> None:
    k: Any = Recorder()
    with pytest.raises(ArrayError, match=message):
        gemv(k, k, x, W, y, bias=bias)
    assert not k.launches


def test_residual_swiglu_and_head_refuse_what_they_do_not_write() -> None:
    k: Any = Recorder()
    with pytest.raises(ArrayError, match="residual is f16, expected f32"):
        gemv_residual(k, k, X, W, Y)
    with pytest.raises(ArrayError, match="the weight has 40 rows, expected whole tiles of 8 gate and 8 up rows"):
        gemv_swiglu(k, k, X, weight(40, 256), array("f16", 2, 20))
    with pytest.raises(ArrayError, match=r"y has the shape \[2, 48\], expected \[2, 24\]"):
        gemv_swiglu(k, k, X, W, Y)
    with pytest.raises(ArrayError, match=r"partials has the shape \[2, 3, 16\], expected \[3, 2, 16\]"):
        head_argmax(k, k, X, W, array("u8", 2, 3, 16))
    with pytest.raises(ArrayError, match="logits is f16, expected f32"):
        head_logits(k, k, X, W, Y)
    assert not k.launches


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "the weight has 256 rows, expected 320 for 3 query and 1 key heads of 64"),
        ({"heads": 0}, "the weight has 256 rows, expected 128"),
        ({"kv_dtype": "bf16"}, "kv is bf16, expected f16"),
        ({"kv_dtype": "i8"}, "kv is i8, expected f16"),
        ({"staged": True, "capacity": 1}, "kv stages 1 tokens, not 2"),
        ({"rope": array("f32", 16, 64, 2)}, r"rope has the shape \[16, 64, 2\], expected \[any, 32, 2\]"),
        ({"state": array("u8", 32)}, r"state has the shape \[32\], expected \[64\]"),
        ({"q": array("f16", 2, 64, 2)}, r"q has the shape \[2, 64, 2\], expected \[2, 2, 64\]"),
        ({"bias": array("f32", 128)}, r"bias has the shape \[128\], expected \[256\]"),
    ],
)
def test_qkv_refuses_arrays_that_do_not_belong_together(changes: dict[str, Any], message: str) -> None:
    k: Any = Recorder()
    given: dict[str, Any] = {
        "heads": 2, "kv_dtype": "f16", "staged": False, "capacity": 16, "bias": None, "rope": array("f32", 16, 32, 2),
        "state": array("u8", 64), "q": array("f16", 2, 2, 64),
    }  # fmt: skip
    given |= changes
    kv = KvLayer(array("u64", 1), array("u64", 1), 1, 64, given["capacity"], given["kv_dtype"], given["staged"])
    with pytest.raises(ArrayError, match=message):
        gemv_qkv_rope_kv(
            k, k, X, weight(256, 256), given["bias"], given["rope"], given["state"], given["q"], kv,
            heads=given["heads"],
        )  # fmt: skip
    assert not k.launches


@pytest.mark.parametrize(
    ("n", "k", "group", "message"),
    [
        (0, 256, 128, r"the weight is \[0, 256\]"),
        (16, 0, 128, r"the weight is \[16, 0\]"),
        (16, 320, 128, "320 inputs are not a multiple of the group size 128"),
        (16, 256, 256, "group size 256 is not one of 32, 64, 128"),
    ],
)
def test_weights_that_no_kernel_takes_are_refused(n: int, k: int, group: int, message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        weight(n, k, group)


def test_a_weight_whose_arrays_do_not_fit_is_refused() -> None:
    with pytest.raises(ArrayError, match=r"qw has the shape \[3, 4, 32, 4\], expected \[4, 4, 32, 4\]"):
        replace(W, n=49)
    with pytest.raises(ArrayError, match="sc is f32, expected f16"):
        replace(W, sc=array("f32", 3, 2, 8, 2))
    with pytest.raises(ArrayError, match="zp lies at"):
        replace(W, zp=replace(W.zp, ptr=ADDRESS + 4))
    assert (W.tiles, W.groups, W.nbytes) == (3, 2, 3 * (4 * 512 + 2 * 32 + 2 * 8))


def test_uploading_asks_for_all_three_tensors() -> None:
    integers = IntWeight(
        np.zeros((5, 64), np.uint8), np.zeros((5, 1), np.uint8), np.ones((5, 1), np.float16), group_size=64
    )
    tensors = pack(integers, "t16")
    uploaded = upload_t16(tensors, 5, 64, 64, lambda values, dtype: array(dtype, *values.shape))
    assert (uploaded.qw.dtype, uploaded.sc.dtype, uploaded.zp.dtype) == ("u32", "f16", "u8")
    del tensors["sc"]
    with pytest.raises(ArrayError, match=r"tensors sc are missing; there are \['qw', 'zp'\]"):
        upload_t16(tensors, 5, 64, 64, lambda values, dtype: array(dtype, *values.shape))
