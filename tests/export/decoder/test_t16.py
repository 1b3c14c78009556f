"""The CUDA decoder's weights: the integers of the ONNX decoder, in the kernels' order, written in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

onnx = pytest.importorskip("onnx")

from export.decoder import open_decoder_checkpoint, quantize_rtn, write_decoder  # noqa: E402
from export.decoder.integer_stream import IntegerStream  # noqa: E402
from export.decoder.t16 import t16_bytes  # noqa: E402
from kernels.packing import IntWeight, WeightDigest, unpack  # noqa: E402
from runtime.errors import ExportError  # noqa: E402
from tests.decoder_models import Shape, save_checkpoint, with_shape  # noqa: E402

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "models" / "demo"
# Heads of 64 that share keys, a vocabulary that does not fill its last tile.
QWEN = with_shape(family="qwen2", hidden=192, heads=3, kv_heads=1, head_dim=64, ffn=320, vocab=85)
Arrays = dict[str, np.ndarray[Any, Any]]


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Tensors and metadata, by the safetensors library."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def stored(tensors: Arrays, name: str, n: int, k: int, group: int) -> IntWeight:
    return unpack({part: tensors[f"{name}.{part}"] for part in ("qw", "sc", "zp")}, "t16", (n, k), group)


def row_of(order: np.ndarray[Any, Any], weight: IntWeight) -> IntWeight:
    """The weight with row i back at order[i]."""
    back = np.argsort(order)
    return IntWeight(weight.q[back], weight.zeros[back], weight.scales[back], weight.group_size, weight.bits)


def qkv_rows(heads: int, kv_heads: int, head_dim: int) -> np.ndarray[Any, Any]:
    """Which row of [q; k; v] each stored row is, written out: tiles of dims d..d+7 and d+D/2.. of q and k heads."""
    rows = []
    for head in range(heads + kv_heads):
        for tile in range(head_dim // 16):
            rows += [head * head_dim + half * head_dim // 2 + 8 * tile + i for half in (0, 1) for i in range(8)]
    return np.array([*rows, *range((heads + kv_heads) * head_dim, (heads + 2 * kv_heads) * head_dim)])


def gate_up_rows(ffn: int) -> np.ndarray[Any, Any]:
    """Eight gate rows, then the same eight up rows."""
    return np.array([part * ffn + 8 * tile + i for tile in range(ffn // 8) for part in (0, 1) for i in range(8)])


def onnx_integers(folder: Path, group: int) -> dict[str, IntWeight]:
    """The matrices of the ONNX decoder, read by onnx's own loader."""
    model = onnx.load(str(folder / "decoder.onnx"), load_external_data=False)
    onnx.load_external_data_for_model(model, str(folder))
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            sizes = {a.name: a.i for a in node.attribute}
            names = dict(zip(("B", "scales", "zero_points"), node.input[1:4], strict=True))
            packed = {ours: tensors[theirs] for ours, theirs in names.items()}
            bits = sizes["bits"]
            found[node.input[1].removesuffix(".weight")] = unpack(
                packed, "matmulnbits", (sizes["N"], sizes["K"]), group, bits
            )
    return found


def written(checkpoint: Path, out: Path, **settings: Any) -> tuple[dict[str, Any], Path]:
    out.mkdir()
    with open_decoder_checkpoint(checkpoint) as opened:
        record = write_decoder(opened, out, max_seq_len=64, kinds=("onnx", "cuda"), **settings)
    return record, out / "decoder"


def natural(name: str, weight: IntWeight, group: dict[str, Any]) -> IntWeight:
    """A stored matrix with its rows below one another as the linears have them."""
    if name.endswith("qkv"):
        return row_of(qkv_rows(group["heads"], group["kv_heads"], group["head_dim"]), weight)
    return row_of(gate_up_rows(group["ffn"]), weight) if name.endswith("gate_up") else weight


def canonical_digest(tensors: Arrays, group: dict[str, Any], size: int) -> str:
    """The digest of the integers that the file holds, linear by linear."""
    wide, narrow = group["heads"] * group["head_dim"], group["kv_heads"] * group["head_dim"]
    hidden, ffn, digest = group["hidden"], group["ffn"], WeightDigest()
    for layer in range(group["layers"]):
        for matrix, k, parts in (
            ("qkv", hidden, {"self_attn.q": wide, "self_attn.k": narrow, "self_attn.v": narrow}),
            ("o", wide, {"self_attn.o": hidden}),
            ("gate_up", hidden, {"mlp.gate": ffn, "mlp.up": ffn}),
            ("down", ffn, {"mlp.down": hidden}),
        ):
            name = f"layers.{layer}.{matrix}"
            weight, at = natural(name, stored(tensors, name, sum(parts.values()), k, size), group), 0
            for part, n in parts.items():
                rows = slice(at, at + n)
                block = IntWeight(weight.q[rows], weight.zeros[rows], weight.scales[rows], size)
                digest.add(f"layers.{layer}.{part}_proj", block)
                at += n
    digest.add("lm_head", stored(tensors, "head", group["vocab"], hidden, size))
    return digest.hexdigest()


@pytest.mark.parametrize("name", ["demo-llava", "demo-nvila"])
def test_the_integers_are_those_of_the_onnx_decoder(tmp_path: Path, name: str) -> None:
    record, folder = written(DEMO / name, tmp_path / "out")
    group, size = record["decoder"], record["quantization"]["group_size"]
    tensors, metadata = read(folder / "t16.safetensors")
    expected = onnx_integers(folder, size)
    assert len(expected) == 4 * group["layers"] + 1
    for matrix, weight in expected.items():
        ours = "head" if matrix == "lm_head" else matrix
        assert natural(matrix, stored(tensors, ours, *weight.shape, size), group).equals(weight), matrix
    assert metadata == {
        "format": "t16",
        "version": "1",
        "group_size": str(size),
        "activations": "f16",
        "digest": record["quantization"]["digest"],
    }
    assert canonical_digest(tensors, group, size) == metadata["digest"]
    assert group["kinds"] == ["onnx", "cuda"]
    assert group["t16"] == {"file": "decoder/t16.safetensors", "activations": "f16"}
    assert "decoder/t16.safetensors" in record["files"]


@pytest.mark.parametrize("group_size", [32, 64])
def test_norms_and_biases_are_floats_in_the_order_of_their_rows(tmp_path: Path, group_size: int) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", QWEN)
    record, folder = written(checkpoint, tmp_path / "out", group_size=group_size, activations="bf16")
    tensors, metadata = read(folder / "t16.safetensors")
    weights = QWEN.weights()
    assert metadata["activations"] == record["decoder"]["t16"]["activations"] == "bf16"
    assert np.array_equal(tensors["norm"], weights["model.norm.weight"])
    parts = [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"]
    bias = np.concatenate([weights[f"{part}.bias"] for part in parts])
    assert np.array_equal(tensors["layers.1.qkv.bias"], bias[qkv_rows(3, 1, 64)])
    assert not [name for name in tensors if name.endswith(".bias") and "qkv" not in name]
    for ours, theirs in (("input_norm", "input_layernorm"), ("post_norm", "post_attention_layernorm")):
        assert np.array_equal(tensors[f"layers.0.{ours}"], weights[f"model.layers.0.{theirs}.weight"])
        assert tensors[f"layers.0.{ours}"].dtype == np.float32
    weight = quantize_rtn(np.concatenate([weights[f"{part}.weight"] for part in parts]), group_size)
    stored_rows = stored(tensors, "layers.1.qkv", 320, 192, group_size)
    assert row_of(qkv_rows(3, 1, 64), stored_rows).equals(weight)


def test_a_head_of_eight_bits_is_two_halves_of_four(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", QWEN)
    (checkpoint / "quantization.json").write_text(json.dumps({"head_bits": 8}))
    record, folder = written(checkpoint, tmp_path / "out", group_size=32)
    assert record["quantization"]["head_bits"] == 8
    tensors, metadata = read(folder / "t16.safetensors")
    assert metadata["digest"] == record["quantization"]["digest"]
    head = onnx_integers(folder, 32)["lm_head"]
    halves = stored(tensors, "head", 85, 2 * 192, 32)
    upper, lower = np.split(halves.dequantize().astype(np.float64), 2, axis=1)
    assert head.bits == 8
    assert np.array_equal(upper + lower, head.dequantize())
    assert np.array_equal(halves.q[:, :192] * 16 + halves.q[:, 192:], head.q)


def test_a_head_whose_scales_cannot_be_split_is_refused_by_name(tmp_path: Path) -> None:
    weights = QWEN.weights()
    weights["lm_head.weight"][3, :32] = np.linspace(0, 1.2e6, 32)
    checkpoint = save_checkpoint(tmp_path / "checkpoint", QWEN, weights=weights)
    (checkpoint / "quantization.json").write_text(json.dumps({"head_bits": 8}))
    with pytest.raises(ExportError, match="lm_head: scales has the value") as caught:
        written(checkpoint, tmp_path / "out", group_size=32)
    assert caught.value.hint == "use --decoder onnx for this checkpoint"


def test_alone_it_has_the_same_bytes_as_beside_the_onnx_decoder(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", QWEN)
    both, folder = written(checkpoint, tmp_path / "both", group_size=64)
    (tmp_path / "alone").mkdir()
    seen: list[tuple[int, int]] = []
    with open_decoder_checkpoint(checkpoint) as opened:
        record = write_decoder(
            opened,
            tmp_path / "alone",
            max_seq_len=64,
            group_size=64,
            kinds=("cuda",),
            progress=lambda *at: seen.append(at),
        )
        estimate = t16_bytes(opened, 64)
    assert record["decoder"]["onnx"] is None
    assert record["decoder"]["kinds"] == ["cuda"]
    assert record["quantization"] == both["quantization"]
    alone = tmp_path / "alone" / "decoder"
    assert sorted(path.name for path in alone.iterdir()) == ["t16.safetensors", "token_embeds.bin"]
    assert (alone / "t16.safetensors").read_bytes() == (folder / "t16.safetensors").read_bytes()
    header = int.from_bytes((alone / "t16.safetensors").read_bytes()[:8], "little")
    assert header % 64 == 56, "the first tensor begins at a multiple of 64"
    assert (alone / "t16.safetensors").stat().st_size == 8 + header + estimate
    assert seen[-1][0] == seen[-1][1]


def test_a_stream_gives_the_integers_once_and_digests_them(tmp_path: Path) -> None:
    checkpoint, counted = save_checkpoint(tmp_path / "checkpoint", QWEN), []
    with open_decoder_checkpoint(checkpoint) as opened:
        stream, layer = IntegerStream(opened, 64, counted.append), opened.layer(0)
        rows = list(stream.matrix([layer["gate"], layer["up"]]))
        assert sum(block.shape[0] for block in rows) == 2 * QWEN.ffn
        assert sum(counted) == 2 * QWEN.ffn * QWEN.hidden
        digest = WeightDigest()
        for part in ("gate", "up"):
            digest.add(
                f"layers.0.mlp.{part}_proj", quantize_rtn(QWEN.weights()[f"model.layers.0.mlp.{part}_proj.weight"], 64)
            )
        assert stream.digest.hexdigest() == digest.hexdigest()
        with pytest.raises(ValueError, match="was closed already"):
            list(stream.matrix([layer["gate"]]))


def test_the_weights_are_never_all_in_memory(tmp_path: Path) -> None:
    """108 MB of weights, most in the head, pass through a process whose peak grows by far less than that."""
    shape = Shape(hidden=1024, layers=1, heads=16, kv_heads=2, head_dim=64, ffn=1024, vocab=24576, tied=True)
    save_checkpoint(tmp_path / "checkpoint", shape)
    size = (tmp_path / "checkpoint" / "model.safetensors").stat().st_size
    program = f"""
from pathlib import Path
from export.decoder import open_decoder_checkpoint, write_decoder
# Not ru_maxrss: a child begins with its parent's.
peak = lambda: 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
with open_decoder_checkpoint(Path({str(tmp_path / "checkpoint")!r})) as checkpoint:
    write_decoder(checkpoint, Path({str(tmp_path)!r}), max_seq_len=16, group_size=128, kinds=("cuda",))
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert size > 95_000_000
    assert int(run.stdout) < size / 2
