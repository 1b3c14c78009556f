"""Quantised checkpoints of every layout: their integers reach the decoder unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

onnx = pytest.importorskip("onnx")

from export.decoder import open_decoder_checkpoint, quantize_rtn  # noqa: E402
from kernels.packing import (  # noqa: E402
    CHECKPOINT_FORMATS,
    IntWeight,
    WeightDigest,
    pack,
    quantization_config,
    quantize_nearest,
    unpack,
)
from runtime.errors import ExportError  # noqa: E402
from tests.decoder_models import (  # noqa: E402
    Arrays,
    Shape,
    decoder_record,
    packed_weights,
    save_checkpoint,
    save_packed,
    with_shape,
)

ROOT = Path(__file__).parents[3]
ORDER = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
QWEN = with_shape(family="qwen2")


def expected_digest(integers: dict[str, IntWeight], head: IntWeight) -> str:
    """The digest of what the checkpoint was packed from, linear by linear in canonical order."""
    digest = WeightDigest()
    for layer in range(2):
        for short in ORDER:
            digest.add(f"layers.{layer}.{short}_proj", integers[f"layers.{layer}.{short}_proj"])
    digest.add("lm_head", head)
    return digest.hexdigest()


def head_of(shape: Shape, bits: int = 4) -> IntWeight:
    return quantize_nearest(shape.weights()["lm_head.weight"], 32, bits)


@pytest.mark.parametrize("layout", CHECKPOINT_FORMATS)
def test_the_integers_of_every_layout_reach_the_graph_unchanged(tmp_path: Path, layout: str) -> None:
    integers = save_packed(tmp_path, QWEN, layout)
    record = decoder_record(tmp_path)
    method = {"gptq-v2": "gptq", "gptq": "gptq", "compressed-tensors": "compressed-tensors"}.get(layout, "awq")
    quantization = record["quantization"]
    assert (quantization["method"], quantization["group_size"], quantization["head_bits"]) == (method, 32, 4)
    assert quantization["digest"] == expected_digest(integers, head_of(QWEN))
    model = onnx.load(str(tmp_path / "bundle" / "decoder" / "decoder.onnx"))
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    tensors = {part: found[f"layers.1.qkv.{name}"] for part, name in (("B", "weight"), ("scales", "scales"))}
    tensors["zero_points"] = found["layers.1.qkv.zero_points"]
    qkv = [integers[f"layers.1.self_attn.{part}_proj"] for part in "qkv"]
    fused = unpack(tensors, "matmulnbits", (sum(one.shape[0] for one in qkv), 128), 32)
    for name in ("q", "zeros", "scales"):
        assert np.array_equal(getattr(fused, name), np.concatenate([getattr(one, name) for one in qkv])), name
    biases = [QWEN.weights()[f"model.layers.1.self_attn.{part}_proj.bias"] for part in "qkv"]
    assert np.array_equal(found["layers.1.qkv.bias"], np.concatenate(biases))


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("model.language_model.", "lm_head."),
        ("language_model.model.", "language_model.lm_head."),
        ("model.", "lm_head."),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_every_layout_of_folders_holds_integers(tmp_path: Path, prefix: str, head: str, sharded: bool) -> None:
    stored, integers = packed_weights(Shape().weights(), "autoawq-gemm")
    renamed = {
        head + name.removeprefix("lm_head.") if name.startswith("lm_head.") else prefix + name.removeprefix("model."): t
        for name, t in stored.items()
    }
    config: dict[str, Any] = {"model_type": "llava", "text_config": Shape().config()}
    config["quantization_config"] = quantization_config("autoawq-gemm", 32, ["vision_tower"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = sorted(renamed)
    parts = [names[::2], names[1::2]] if sharded else [names]  # tensors of one linear lie in different files
    files = [f"model-{at}.safetensors" for at in range(len(parts))] if sharded else ["model.safetensors"]
    for file, part in zip(files, parts, strict=True):
        save_file({name: renamed[name] for name in part}, tmp_path / file)
    if sharded:
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert decoder_record(tmp_path)["quantization"]["digest"] == expected_digest(integers, head_of(Shape()))


def test_the_llm_folder_of_vila_with_the_record_at_the_top(tmp_path: Path) -> None:
    integers = save_packed(tmp_path / "llm", QWEN, "autoawq-gemm")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "quantization.json").write_text(json.dumps({"method": "awq", "group_size": 32, "head_bits": 8}))
    record = decoder_record(tmp_path)
    assert record["quantization"]["head_bits"] == 8
    assert record["quantization"]["digest"] == expected_digest(integers, head_of(QWEN, 8))
    with open_decoder_checkpoint(tmp_path) as checkpoint:
        assert tmp_path / "quantization.json" in checkpoint.files


def test_llm_awq_files_that_say_nothing_are_recognised(tmp_path: Path) -> None:
    stored, integers = packed_weights(Shape().weights(), "llm-awq-v2")
    save_checkpoint(tmp_path, Shape(), weights=stored)
    record = decoder_record(tmp_path)
    assert record["quantization"]["method"] == "awq"
    assert record["quantization"]["digest"] == expected_digest(integers, head_of(Shape()))


def test_gemv_fast_is_read_by_its_own_names(tmp_path: Path) -> None:
    def rename(stored: Arrays) -> None:
        for name in [name for name in stored if name.endswith(".scaled_zeros")]:
            stored[name.replace("scaled_zeros", "qzeros")] = stored.pop(name)

    integers = save_packed(tmp_path, Shape(), "llm-awq-v2", change=rename)
    assert decoder_record(tmp_path)["quantization"]["digest"] == expected_digest(integers, head_of(Shape()))


@pytest.mark.parametrize(
    ("file", "layout", "config"),
    [
        ("quant_config.json", "autoawq-gemm", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}),
        ("quantize_config.json", "gptq", {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}),
    ],
)
def test_the_files_of_older_tools_are_read(tmp_path: Path, file: str, layout: str, config: dict[str, Any]) -> None:
    integers = save_packed(tmp_path, Shape(), layout)
    (tmp_path / "config.json").write_text(json.dumps(Shape().config()))
    (tmp_path / file).write_text(json.dumps(config))
    assert decoder_record(tmp_path)["quantization"]["digest"] == expected_digest(integers, head_of(Shape()))
    with open_decoder_checkpoint(tmp_path) as checkpoint:
        assert tmp_path / file in checkpoint.files


def as_bf16(values: np.ndarray) -> np.ndarray:
    """Rounded towards zero to bf16, as f32."""
    bits = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def test_scales_of_a_wider_type_are_taken_where_f16_holds_them(tmp_path: Path) -> None:
    """compressed-tensors keeps the model's bf16; bf16 scales of usual size are f16 values."""
    stored, integers = packed_weights(Shape().weights(), "compressed-tensors")
    expected = {}
    for name, weight in integers.items():
        scales = as_bf16(weight.scales)
        stored[f"model.{name}.weight_scale"] = scales
        expected[name] = IntWeight(weight.q, weight.zeros, scales.astype(np.float16), 32)
    save_checkpoint(tmp_path, Shape(), weights=stored)
    config = Shape().config() | {"quantization_config": quantization_config("compressed-tensors", 32, [])}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert decoder_record(tmp_path)["quantization"]["digest"] == expected_digest(expected, head_of(Shape()))


def test_a_head_in_integers_is_kept_too(tmp_path: Path) -> None:
    stored, integers = packed_weights(Shape().weights(), "compressed-tensors")
    head = quantize_nearest(stored.pop("lm_head.weight") * 3, 32)
    stored |= {f"lm_head.{part}": array for part, array in pack(head, "compressed-tensors").items()}
    save_checkpoint(tmp_path, Shape(), weights=stored)
    config = Shape().config() | {"quantization_config": quantization_config("compressed-tensors", 32, [])}
    (tmp_path / "config.json").write_text(json.dumps(config))
    record = decoder_record(tmp_path)
    assert record["decoder"]["vocab"] == 96
    assert record["quantization"]["digest"] == expected_digest(integers, head)
    (tmp_path / "quantization.json").write_text('{"head_bits": 8}')
    with pytest.raises(ExportError, match="head_bits 8, but lm_head is stored in 4 bits"):
        open_decoder_checkpoint(tmp_path)


def test_one_matrix_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """Eight layers of 8.9 MB pass through a process whose peak grows by far less than the 75 MB of all.

    Their largest matrices are stored in several blocks of rows.
    """
    shape = Shape(hidden=1024, layers=8, heads=8, kv_heads=8, head_dim=128, ffn=4096, vocab=64)
    rng = np.random.default_rng(0)
    parts = {}
    for n, k in ((1024, 1024), (4096, 1024), (1024, 4096)):
        q, zeros = (rng.integers(0, 16, side, dtype=np.uint8) for side in ((n, k), (n, k // 128)))
        parts[n, k] = IntWeight(q, zeros, np.full((n, k // 128), 0.01, np.float16), 128)
    packed = {side: pack(weight, "autoawq-gemm") for side, weight in parts.items()}
    one = replace(shape, layers=1).weights()
    stored: Arrays = {name: tensor for name, tensor in one.items() if ".layers." not in name}
    for name, tensor in one.items():
        for index in range(8) if ".layers." in name else ():
            here = name.replace(".layers.0.", f".layers.{index}.")
            tensors = packed.get(tensor.shape, {})
            stored |= {here.removesuffix("weight") + part: array for part, array in tensors.items()} or {here: tensor}
    save_checkpoint(tmp_path / "checkpoint", shape, weights=stored)
    described = {"quantization_config": quantization_config("autoawq-gemm", 128, [])}
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(shape.config() | described))
    program = f"""
import json
from pathlib import Path
from export.decoder import open_decoder_checkpoint, write_decoder
peak = lambda: 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
with open_decoder_checkpoint(Path({str(tmp_path / "checkpoint")!r})) as checkpoint:
    record = write_decoder(checkpoint, Path({str(tmp_path)!r}), max_seq_len=16)
print(json.dumps([peak() - before, record["quantization"]["digest"]]))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    grown, digest = json.loads(run.stdout)
    assert (tmp_path / "checkpoint" / "model.safetensors").stat().st_size > 70_000_000
    assert grown < 50_000_000
    sides = [(1024, 1024)] * 4 + [(4096, 1024)] * 2 + [(1024, 4096)]
    names = [(f"layers.{i}.{short}_proj", side) for i in range(8) for short, side in zip(ORDER, sides, strict=True)]
    expected = WeightDigest()
    for name, side in names:
        expected.add(name, parts[side])
    expected.add("lm_head", quantize_nearest(one["lm_head.weight"], 128))
    assert digest == expected.hexdigest()


def test_floats_are_still_rounded_to_nearest(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Shape())
    weights = Shape().weights()
    integers = {
        name.removeprefix("model.").removesuffix(".weight"): quantize_rtn(tensor, 32)
        for name, tensor in weights.items()
        if ".layers." in name and tensor.ndim == 2
    }
    record = decoder_record(tmp_path, group_size=32)
    assert record["quantization"]["method"] == "rtn"
    assert record["quantization"]["digest"] == expected_digest(integers, head_of(Shape()))
