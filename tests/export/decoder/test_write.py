"""The written decoder: valid ONNX, one external file, the integers of its weights, little memory, honest failures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from export.decoder import open_decoder_checkpoint, quantize_rtn, write_decoder  # noqa: E402
from kernels.packing import WeightDigest, unpack  # noqa: E402
from runtime.errors import ExportError, OutputError  # noqa: E402
from tests.decoder_models import Shape, export_decoder, save_checkpoint, with_shape  # noqa: E402

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("written")
    checkpoint = save_checkpoint(folder / "checkpoint", with_shape(family="qwen2"))
    (folder / "out").mkdir()
    with open_decoder_checkpoint(checkpoint) as opened:
        record = write_decoder(opened, folder / "out", max_seq_len=100, group_size=32)
    return folder / "out", record


def external(model: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray]:
    """All initialisers, read by onnx's own loader."""
    onnx.load_external_data_for_model(model, str(folder))
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_the_model_passes_the_checker_with_its_declared_opset(written: tuple[Path, dict]) -> None:
    path = written[0] / "decoder" / "decoder.onnx"
    onnx.checker.check_model(str(path))
    model = onnx.load(str(path), load_external_data=False)
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 18, "com.microsoft": 1}


def test_large_tensors_share_one_file_and_begin_on_pages(written: tuple[Path, dict]) -> None:
    model = onnx.load(str(written[0] / "decoder" / "decoder.onnx"), load_external_data=False)
    end = 0
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            assert len(tensor.raw_data) < 64
            continue
        assert place["location"] == "decoder.onnx.data"
        offset, length = int(place["offset"]), int(place["length"])
        assert offset >= end
        assert offset % (4096 if length >= 4096 else 64) == 0
        end = offset + length
    assert (written[0] / "decoder" / "decoder.onnx.data").stat().st_size == end


def test_stored_integers_are_the_quantised_weights(written: tuple[Path, dict]) -> None:
    model = onnx.load(str(written[0] / "decoder" / "decoder.onnx"), load_external_data=False)
    stored = external(model, written[0] / "decoder")
    weights = with_shape(family="qwen2").weights()
    parts = [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"]
    expected = quantize_rtn(np.concatenate([weights[f"{name}.weight"] for name in parts]), 32)
    tensors = {"B": stored["layers.1.qkv.weight"], "scales": stored["layers.1.qkv.scales"]}
    tensors["zero_points"] = stored["layers.1.qkv.zero_points"]
    assert unpack(tensors, "matmulnbits", expected.shape, 32).equals(expected)
    assert np.array_equal(stored["layers.1.qkv.bias"], np.concatenate([weights[f"{name}.bias"] for name in parts]))


def test_the_digest_is_over_single_linears_in_canonical_order(written: tuple[Path, dict]) -> None:
    weights = with_shape(family="qwen2").weights()
    digest = WeightDigest()
    for layer in range(2):
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"):
            full = f"layers.{layer}.{name}_proj"
            digest.add(full, quantize_rtn(weights[f"model.{full}.weight"], 32))
    digest.add("lm_head", quantize_rtn(weights["lm_head.weight"], 32))
    assert written[1]["quantization"]["digest"] == digest.hexdigest()


def test_the_record_has_the_manifests_groups(written: tuple[Path, dict]) -> None:
    from runtime.bundle.manifest import DecoderSection, QuantizationSection

    group, quantization = written[1]["decoder"], written[1]["quantization"]
    assert set(group) == set(DecoderSection.__dataclass_fields__)
    assert set(quantization) == set(QuantizationSection.__dataclass_fields__)
    assert group["token_embeds"]["shape"] == [96, 128]
    assert group["max_seq_len"] == 100
    assert all((written[0] / name).is_file() for name in written[1]["files"])


def test_token_embeds_are_the_table_in_f16(written: tuple[Path, dict]) -> None:
    table = np.fromfile(written[0] / "decoder" / "token_embeds.bin", "<f2").reshape(96, 128)
    assert np.array_equal(table, with_shape(family="qwen2").weights()["model.embed_tokens.weight"].astype(np.float16))


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path, written: tuple[Path, dict]) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", with_shape(family="qwen2"))
    export_decoder(checkpoint, tmp_path / "out", max_seq_len=100)
    for name in written[1]["files"]:
        assert (tmp_path / "out" / name).read_bytes() == (written[0] / name).read_bytes()


def test_progress_counts_up_to_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with open_decoder_checkpoint(save_checkpoint(tmp_path / "checkpoint", Shape())) as checkpoint:
        write_decoder(checkpoint, tmp_path, max_seq_len=16, group_size=32, progress=lambda *at: seen.append(at))
    done = [at for at, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1] == sum(t.size for n, t in Shape().weights().items() if t.ndim == 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_seq_len": 161}, "max_seq_len is 161, the checkpoint was made for 1 to 160"),
        ({"max_seq_len": 0}, "max_seq_len is 0"),
        ({"max_seq_len": 16, "group_size": 256}, "group size 256"),
        ({"max_seq_len": 16, "accuracy_level": 2}, "accuracy level 2"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(tmp_path: Path, settings: dict, message: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    path = save_checkpoint(tmp_path / "checkpoint", Shape())
    with open_decoder_checkpoint(path) as checkpoint, pytest.raises(ExportError, match=message):
        write_decoder(checkpoint, out, **settings)
    assert list(out.iterdir()) == []


def test_dynamic_ntk_is_refused_beyond_its_context_with_the_reason(tmp_path: Path) -> None:
    rope = (("rope_type", "dynamic"), ("rope_theta", 1e4), ("factor", 4.0))
    path = save_checkpoint(tmp_path / "checkpoint", with_shape(rope=rope, context=64))
    named = "max_seq_len is 65, the checkpoint was made for 1 to 64 positions; beyond them dynamic NTK scaling"
    with open_decoder_checkpoint(path) as checkpoint, pytest.raises(ExportError, match=named) as caught:
        write_decoder(checkpoint, tmp_path, max_seq_len=65, group_size=32)
    assert caught.value.hint == "--max-seq-len 64"


def test_the_manifest_has_the_frequencies_that_the_tables_are_made_of(written: tuple[Path, dict]) -> None:
    frequencies = np.array(written[1]["decoder"]["rope_frequencies"])
    assert np.array_equal(frequencies, (10000.0 ** -(np.arange(0, 32, 2) / 32)).astype(np.float32))
    model = onnx.load(str(written[0] / "decoder" / "decoder.onnx"), load_external_data=False)
    stored = external(model, written[0] / "decoder")
    angles = np.arange(100)[:, None] * frequencies
    np.testing.assert_allclose(stored["rope.cos"], np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(stored["rope.sin"], np.sin(angles), atol=1e-5)


def test_a_group_that_does_not_divide_the_ffn_names_the_linear(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", with_shape(ffn=192))
    named = r"layers\.0\.mlp\.down_proj: groups of 128"
    with open_decoder_checkpoint(checkpoint) as opened, pytest.raises(ExportError, match=named) as caught:
        write_decoder(opened, tmp_path, max_seq_len=16, group_size=128)
    assert caught.value.hint == "--group-size 64"


def test_embeddings_outside_f16_are_refused(tmp_path: Path) -> None:
    weights = Shape().weights()
    weights["model.embed_tokens.weight"][5, 5] = 70000
    path = save_checkpoint(tmp_path / "checkpoint", Shape(), weights=weights)
    with open_decoder_checkpoint(path) as checkpoint, pytest.raises(ExportError, match="the value 70000, above f16"):
        write_decoder(checkpoint, tmp_path, max_seq_len=16, group_size=32)


@pytest.mark.parametrize("name", ["model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str) -> None:
    weights = Shape().weights()
    weights[name].reshape(-1)[7] = np.nan
    path = save_checkpoint(tmp_path / "checkpoint", Shape(), weights=weights)
    with open_decoder_checkpoint(path) as checkpoint, pytest.raises(ExportError, match="not finite"):
        write_decoder(checkpoint, tmp_path, max_seq_len=16, group_size=32)


@pytest.mark.parametrize("limit_bytes", [10_000, 60_000, 160_000])
def test_a_full_disk_is_an_output_error_that_names_the_file(tmp_path: Path, limit_bytes: int) -> None:
    """A limit on the size of files stands in for the disk: writes fail with an OSError in the same place."""
    save_checkpoint(tmp_path / "checkpoint", Shape())
    program = f"""
import resource, signal, sys
from pathlib import Path
from export.decoder import open_decoder_checkpoint, write_decoder
from runtime.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open_decoder_checkpoint(Path({str(tmp_path / "checkpoint")!r})) as checkpoint:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))
    try:
        write_decoder(checkpoint, Path({str(tmp_path)!r}), max_seq_len=16, group_size=32)
    except OutputError as error:
        sys.exit(0 if "decoder/" in error.message and error.hint else 3)
sys.exit(4)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "decoder").write_text("in the way")
    path = save_checkpoint(tmp_path / "checkpoint", Shape())
    with open_decoder_checkpoint(path) as checkpoint, pytest.raises(OutputError):
        write_decoder(checkpoint, tmp_path, max_seq_len=16, group_size=32)


def test_export_needs_neither_torch_nor_the_weights_in_memory(tmp_path: Path) -> None:
    """108 MB of weights, most in one matrix, pass through a process whose peak grows by far less than that."""
    shape = Shape(hidden=1024, layers=1, heads=4, kv_heads=1, head_dim=128, ffn=1024, vocab=24576, tied=True)
    save_checkpoint(tmp_path / "checkpoint", shape)
    size = (tmp_path / "checkpoint" / "model.safetensors").stat().st_size
    program = f"""
import json, sys
for name in ("torch", "transformers", "onnxruntime"):
    sys.modules[name] = None
from pathlib import Path
from export.decoder import open_decoder_checkpoint, write_decoder
# Not ru_maxrss: a child begins with its parent's.
peak = lambda: 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
with open_decoder_checkpoint(Path({str(tmp_path / "checkpoint")!r})) as checkpoint:
    write_decoder(checkpoint, Path({str(tmp_path)!r}), max_seq_len=16, group_size=128)
print(json.dumps(peak() - before))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert size > 95_000_000
    assert json.loads(run.stdout) < size / 2
