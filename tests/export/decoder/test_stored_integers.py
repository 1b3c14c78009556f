"""Quantised checkpoints of every layout: their integers reach the decoder unchanged, what cannot be read is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

onnx = pytest.importorskip("onnx")

from export.decoder import open_decoder_checkpoint, quantize_rtn, write_decoder  # noqa: E402
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
from tests.decoder_models import Arrays, Shape, packed_weights, save_checkpoint, save_packed, with_shape  # noqa: E402

ROOT = Path(__file__).parents[3]
ORDER = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
QWEN = with_shape(family="qwen2")
Q = "model.layers.0.self_attn.q_proj"


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


def exported(folder: Path, **settings: Any) -> dict[str, Any]:
    """The record of an export of the checkpoint in ``folder``."""
    out = folder / "bundle"
    out.mkdir()
    with open_decoder_checkpoint(folder) as checkpoint:
        return write_decoder(checkpoint, out, max_seq_len=16, **settings)


def reworked(folder: Path, change: Callable[[Arrays], None], layout: str = "autoawq-gemm") -> Path:
    """A quantised checkpoint whose tensors are changed before they are written."""
    stored, _ = packed_weights(Shape().weights(), layout)
    change(stored)
    save_checkpoint(folder, Shape(), weights=stored)
    described = {"quantization_config": quantization_config(layout, 32, ["lm_head"])}
    (folder / "config.json").write_text(json.dumps(Shape().config() | described))
    return folder


def reconfigured(folder: Path, layout: str = "autoawq-gemm", **changes: Any) -> Path:
    """A quantised checkpoint whose quantization_config is changed."""
    save_packed(folder, Shape(), layout)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(folder: Path, message: str, **settings: Any) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        exported(folder, **settings)
    assert caught.value.hint


@pytest.mark.parametrize("layout", CHECKPOINT_FORMATS)
def test_the_integers_of_every_layout_reach_the_graph_unchanged(tmp_path: Path, layout: str) -> None:
    integers = save_packed(tmp_path, QWEN, layout)
    record = exported(tmp_path)
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
    assert exported(tmp_path)["quantization"]["digest"] == expected_digest(integers, head_of(Shape()))


def test_the_llm_folder_of_vila_with_the_record_at_the_top(tmp_path: Path) -> None:
    integers = save_packed(tmp_path / "llm", QWEN, "autoawq-gemm")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "quantization.json").write_text(json.dumps({"method": "awq", "group_size": 32, "head_bits": 8}))
    record = exported(tmp_path)
    assert record["quantization"]["head_bits"] == 8
    assert record["quantization"]["digest"] == expected_digest(integers, head_of(QWEN, 8))
    with open_decoder_checkpoint(tmp_path) as checkpoint:
        assert tmp_path / "quantization.json" in checkpoint.files


def test_llm_awq_files_that_say_nothing_are_recognised(tmp_path: Path) -> None:
    stored, integers = packed_weights(Shape().weights(), "llm-awq-v2")
    save_checkpoint(tmp_path, Shape(), weights=stored)
    record = exported(tmp_path)
    assert record["quantization"]["method"] == "awq"
    assert record["quantization"]["digest"] == expected_digest(integers, head_of(Shape()))


def test_gemv_fast_is_read_by_its_own_names(tmp_path: Path) -> None:
    def rename(stored: Arrays) -> None:
        for name in [name for name in stored if name.endswith(".scaled_zeros")]:
            stored[name.replace("scaled_zeros", "qzeros")] = stored.pop(name)

    folder = reworked(tmp_path, rename, "llm-awq-v2")
    integers = packed_weights(Shape().weights(), "llm-awq-v2")[1]
    assert exported(folder)["quantization"]["digest"] == expected_digest(integers, head_of(Shape()))


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
    assert exported(tmp_path)["quantization"]["digest"] == expected_digest(integers, head_of(Shape()))
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
    assert exported(tmp_path)["quantization"]["digest"] == expected_digest(expected, head_of(Shape()))


def test_a_head_in_integers_is_kept_too(tmp_path: Path) -> None:
    stored, integers = packed_weights(Shape().weights(), "compressed-tensors")
    head = quantize_nearest(stored.pop("lm_head.weight") * 3, 32)
    stored |= {f"lm_head.{part}": array for part, array in pack(head, "compressed-tensors").items()}
    save_checkpoint(tmp_path, Shape(), weights=stored)
    config = Shape().config() | {"quantization_config": quantization_config("compressed-tensors", 32, [])}
    (tmp_path / "config.json").write_text(json.dumps(config))
    record = exported(tmp_path)
    assert record["decoder"]["vocab"] == 96
    assert record["quantization"]["digest"] == expected_digest(integers, head)
    (tmp_path / "quantization.json").write_text('{"head_bits": 8}')
    with pytest.raises(ExportError, match="head_bits 8, but lm_head is stored in 4 bits"):
        open_decoder_checkpoint(tmp_path)


def test_biases_of_zeros_that_autogptq_adds_change_nothing(tmp_path: Path) -> None:
    def add(stored: Arrays) -> None:
        stored["model.layers.0.self_attn.o_proj.bias"] = np.zeros(128, np.float16)

    exported(reworked(tmp_path / "zeros", add, "gptq"))

    def add_more(stored: Arrays) -> None:
        stored["model.layers.0.self_attn.o_proj.bias"] = np.ones(128, np.float16)

    refused(reworked(tmp_path / "ones", add_more, "gptq"), r"o_proj\.bias' does not belong to a llama decoder")


def test_a_group_size_that_differs_from_the_integers_is_refused(tmp_path: Path) -> None:
    save_packed(tmp_path, Shape(), "autoawq-gemm")
    refused(tmp_path, "--group-size 64: the checkpoint's integers are in groups of 32", group_size=64)
    (tmp_path / "bundle").rmdir()
    assert exported(tmp_path, group_size=32)["quantization"]["group_size"] == 32


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("autoawq-gemm", {"bits": 3}, "config.json: quantization_config: bits is 3; only 4 can be read"),
        ("autoawq-gemm", {"version": "marlin"}, "version is 'marlin'"),
        ("autoawq-gemm", {"group_size": -1}, "integers in whole rows; groups of 128, 64, 32 can be exported"),
        ("autoawq-gemm", {"group_size": 16}, "integers in groups of 16; groups of 128"),
        ("autoawq-gemm", {"group_size": 64}, r"q_proj.qzeros is I32 \[4, 16\], expected int32 \[2, 16\]"),
        ("autoawq-gemm", {"version": "gemv"}, r"q_proj.qzeros is I32 \[4, 16\], expected int32 \[128, 4\]"),
        ("gptq", {"desc_act": True}, "desc_act is True"),
        ("gptq", {"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'"),
    ],
)
def test_a_form_that_cannot_be_read_is_named(
    tmp_path: Path, layout: str, changes: dict[str, Any], message: str
) -> None:
    refused(reconfigured(tmp_path, layout, **changes), message)


def drop(name: str) -> Callable[[Arrays], None]:
    def change(stored: Arrays) -> None:
        del stored[name]

    return change


def put(name: str, array: np.ndarray) -> Callable[[Arrays], None]:
    def change(stored: Arrays) -> None:
        stored[name] = array

    return change


def zero_scale(stored: Arrays) -> None:
    stored[f"{Q}.scales"][1, 2] = 0


def wide_scale(stored: Arrays) -> None:
    stored[f"{Q}.scales"] = stored[f"{Q}.scales"].astype(np.float32)
    stored[f"{Q}.scales"][1, 2] = 1e-9


def reorder(stored: Arrays) -> None:
    stored[f"{Q}.g_idx"] = stored[f"{Q}.g_idx"][::-1].copy()


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("autoawq-gemm", drop(f"{Q}.qzeros"), "q_proj: 'qzeros' is missing, which the layout autoawq-gemm has"),
        ("autoawq-gemm", put(f"{Q}.g_idx", np.zeros(128, np.int32)), "q_proj.g_idx: does not belong to the layout"),
        ("autoawq-gemm", put(f"{Q}.scales", np.ones((4, 128), np.int32)), "scales is I32 .*, expected float"),
        ("autoawq-gemm", put(f"{Q}.weight", np.ones((128, 128), np.float16)), "q_proj.weight' does not belong"),
        ("autoawq-gemm", zero_scale, "q_proj: scales has the value 0, expected positive"),
        ("autoawq-gemm", wide_scale, r"q_proj: scales has the value 9.99999972e-10, which float16"),
        ("gptq", reorder, "q_proj: g_idx reorders the inputs"),
        (
            "compressed-tensors",
            put(f"{Q}.weight_g_idx", np.zeros(128, np.int32)),
            "weight_g_idx: the inputs are reordered",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_layout_are_named(
    tmp_path: Path, layout: str, change: Callable[[Arrays], None], message: str
) -> None:
    refused(reworked(tmp_path, change, layout), message)


def test_a_linear_that_was_kept_in_floats_is_named_with_the_reason(tmp_path: Path) -> None:
    def keep(stored: Arrays) -> None:
        for part in ("qweight", "qzeros", "scales"):
            del stored[f"model.layers.1.mlp.down_proj.{part}"]
        stored["model.layers.1.mlp.down_proj.weight"] = Shape().weights()["model.layers.1.mlp.down_proj.weight"]

    folder = reworked(tmp_path, keep)
    refused(
        folder, r"layers\.1\.mlp\.down_proj is stored in floats, with 1 of the 14 linears in the layers; the others"
    )
    (folder / "bundle").rmdir()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["lm_head", "layers.1.mlp.down_proj"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, r"in floats \(modules_to_not_convert has 'layers\.1\.mlp\.down_proj'\)")


def test_a_configuration_without_integers_and_integers_without_one_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", Shape())
    described = {"quantization_config": quantization_config("autoawq-gemm", 32, [])}
    (tmp_path / "a" / "config.json").write_text(json.dumps(Shape().config() | described))
    refused(tmp_path / "a", "quantization_config says awq, but '.*q_proj' has no integers")
    stored, _ = packed_weights(Shape().weights(), "gptq")
    save_checkpoint(tmp_path / "b", Shape(), weights=stored)
    refused(tmp_path / "b", "is stored as integers, and no quantization_config says how")


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
    record = exported(tmp_path, group_size=32)
    assert record["quantization"]["method"] == "rtn"
    assert record["quantization"]["digest"] == expected_digest(integers, head_of(Shape()))
