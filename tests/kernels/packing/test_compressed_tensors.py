"""The layout ``compressed-tensors`` against that package's own compressor and decompressor, run here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.packing import IntWeight, pack, quantization_config, read_quantization_config, unpack


def random_weight(n: int, k: int, group: int) -> IntWeight:
    rng = np.random.default_rng(n * k)
    return IntWeight(
        q=rng.integers(0, 16, (n, k), dtype=np.uint8),
        zeros=rng.integers(0, 16, (n, k // group), dtype=np.uint8),
        scales=rng.uniform(1e-3, 0.5, (n, k // group)).astype(np.float16),
        group_size=group,
    )


def scheme_of(config: dict[str, Any]) -> Any:
    """The package's own reading of a quantization_config; its one scheme."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    parsed = quantization.QuantizationConfig.model_validate(config)
    assert parsed.format == "pack-quantized"
    return parsed.config_groups["group_0"]


@pytest.mark.torch
@pytest.mark.parametrize(("n", "k", "group"), [(8, 64, 32), (24, 192, 64), (40, 256, 128)])
def test_their_decompressor_reads_our_tensors(n: int, k: int, group: int) -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
    weight = random_weight(n, k, group)
    scheme = scheme_of(quantization_config("compressed-tensors", group, ["lm_head"]))
    state = {name: torch.from_numpy(array) for name, array in pack(weight, "compressed-tensors").items()}
    state["weight_scale"] = state["weight_scale"].float()  # their arithmetic is in the type of the scales
    found = module.PackedQuantizationCompressor.decompress(state, scheme)["weight"].numpy()
    assert np.array_equal(found, weight.dequantize())


@pytest.mark.torch
def test_we_read_what_their_compressor_makes_of_symmetric_weights() -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
    weight = random_weight(16, 128, 32)
    weight.zeros[:] = 8
    config = quantization_config("compressed-tensors", 32, [])
    config["config_groups"]["group_0"]["weights"]["symmetric"] = True
    state = {
        "weight": torch.from_numpy(weight.dequantize()),
        "weight_scale": torch.from_numpy(weight.scales),
    }
    packed = module.PackedQuantizationCompressor.compress(state, scheme_of(config))
    tensors = {name: tensor.numpy() for name, tensor in packed.items()}
    assert "weight_zero_point" not in tensors
    assert unpack(tensors, "compressed-tensors", (16, 128), 32).equals(weight)
    assert read_quantization_config(config).group_size == 32


def test_zero_points_of_early_versions_are_signed_bytes() -> None:
    weight = random_weight(16, 128, 32)
    tensors = pack(weight, "compressed-tensors")
    tensors["weight_zero_point"] = (weight.zeros.astype(np.int16) - 8).astype(np.int8)
    assert unpack(tensors, "compressed-tensors", (16, 128), 32).equals(weight)
    for outside in (-9, 8, 127, -128):
        tensors["weight_zero_point"][3, 1] = outside
        with pytest.raises(ValueError, match="zeros has the value"):
            unpack(tensors, "compressed-tensors", (16, 128), 32)
