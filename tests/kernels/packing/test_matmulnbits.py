"""The layout ``matmulnbits`` against the operator itself in ONNX Runtime: what it multiplies by are our integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from kernels.packing import IntWeight, pack, quantize_nearest  # noqa: E402


def matrix_of_operator(weight: IntWeight, accuracy_level: int = 0) -> np.ndarray:
    """The matrix [N, K] that the operator multiplies by, taken out with the identity."""
    n, k = weight.shape
    helper, tensors = onnx.helper, pack(weight, "matmulnbits")
    node = helper.make_node(
        "MatMulNBits",
        ["x", *tensors],
        ["y"],
        domain="com.microsoft",
        N=n,
        K=k,
        bits=weight.bits,
        block_size=weight.group_size,
        accuracy_level=accuracy_level,
    )
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["M", w]) for name, w in (("x", k), ("y", n)))
    model = helper.make_model(
        helper.make_graph([node], "one", [x], [y], constants),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.eye(k, dtype=np.float32)})
    return np.asarray(product).T


def random_weight(bits: int, n: int, k: int, group: int) -> IntWeight:
    rng = np.random.default_rng(bits * n * k)
    top = 1 << bits
    return IntWeight(
        q=rng.integers(0, top, (n, k), dtype=np.uint8),
        zeros=rng.integers(0, top, (n, k // group), dtype=np.uint8),
        scales=rng.uniform(1e-4, 0.5, (n, k // group)).astype(np.float16),
        group_size=group,
        bits=bits,
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n", "k", "group"), [(8, 128, 32), (24, 192, 64), (13, 384, 128), (5, 896, 128), (3, 64, 16)])
def test_the_operator_multiplies_by_the_dequantised_integers(bits: int, n: int, k: int, group: int) -> None:
    weight = random_weight(bits, n, k, group)
    np.testing.assert_allclose(matrix_of_operator(weight), weight.dequantize(), rtol=1e-6, atol=1e-6)


def test_all_256_integers_and_zero_points_of_eight_bits_are_the_operators() -> None:
    q = np.arange(256, dtype=np.uint8).repeat(2)[None].repeat(256, axis=0)
    zeros = np.arange(256, dtype=np.uint8)[:, None].repeat(4, axis=1)
    weight = IntWeight(q, zeros, np.ones((256, 4), np.float16), 128, bits=8)
    assert np.array_equal(matrix_of_operator(weight), weight.dequantize())


@pytest.mark.parametrize("bits", [4, 8])
def test_int8_activations_lose_no_more_than_their_own_rounding(bits: int) -> None:
    """Level 4, which decoders run at, on a random activation: the int8 rounding of the activation alone."""
    weight = quantize_nearest(np.random.default_rng(5).normal(0, 0.05, (64, 256)).astype(np.float32), 64, bits)
    found, exact = matrix_of_operator(weight, accuracy_level=4), weight.dequantize()
    assert np.abs(found - exact).max() <= 1 / 127 * np.abs(exact).max()
