"""Benchmarks for GPUs: what they count and predict, and that they run from end to end on the emulator."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kernels.driver.opening import open_device
from kernels.launch.weights import T16Weight
from kernels.loading import Kernels
from kernels.nvrtc.compiler import Nvrtc
from kernels.nvrtc.cubin import sections
from kernels.nvrtc.sources import read_source
from kernels.nvrtc.toolkit import find_toolkits
from kernels.registry import KERNELS
from kernels.workbench import Workbench
from runtime.decoder import CudaOptions
from runtime.sampling import Draws
from runtime.types import GenerationParams
from scripts.bench import decode, kernel_rivals, roofline, sass, shapes
from scripts.bench import kernels as kernel_bench
from scripts.bench.device_timing import QUICK, spread
from scripts.bench.kernel_data import Lab
from scripts.bench.kernel_rows import PICTURE_ROWS, QUICK_SIZES, ROWS, quick

RESULTS = Path(sass.__file__).with_name("results")
GEMV_SYMBOLS = ("gemv", "gemv_residual", "gemv_swiglu", "gemv_qkv_rope_kv", "head_argmax", "head_logits")


@pytest.fixture()
def emulated() -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")


def instruction(opcode: int, offset: int = 0) -> bytes:
    """An instruction of sm_87; ``offset``: of a branch, in bytes from the next instruction."""
    field = offset // 4 & (2**48 - 1)
    return struct.pack("<QQ", opcode | (field & (2**30 - 1)) << 34, field >> 30)


def test_the_loop_with_the_most_mma_is_counted_with_everything_in_it() -> None:
    mma, load, other = (instruction(code) for code in (0x23C, 0x981, 0x210))
    code = mma + other * 3  # before any loop
    code += (mma + other) * 2 + instruction(0x947, -5 * 16)  # a small one
    code += load * 4 + mma * 4 + instruction(0x947, 16) + other * 3 + instruction(0x947, -13 * 16)
    code += other * 20 + instruction(0x947, -21 * 16)  # a long one without mma
    assert sass.inner_loop(code) == sass.Loop(13, 4, 4, 0, 0)
    assert sass.inner_loop(other * 4) is None


def test_loops_of_a_real_cubin_are_found(tmp_path: Path) -> None:
    toolkit = next((kit for kit in find_toolkits() if kit.major == 12 and kit.includes), None)
    if toolkit is None:
        pytest.skip("NVRTC 12 is not installed")
    path = tmp_path / "loop.cu"
    path.write_text(
        '#include "ptx.cuh"\nextern "C" __global__ void loop(const uint4* a, const uint2* b, float* y, int n) {\n'
        "  float c[4] = {};\n#pragma unroll 1\n  for (int i = 0; i < n; i++) {\n"
        "    const uint4 v = ld_stream(a + i * 32 + threadIdx.x);\n    const uint2 w = b[i * 32 + threadIdx.x];\n"
        "    const uint32_t fa[4] = {v.x, v.y, v.z, v.w}, fb[2] = {w.x, w.y};\n    mma_f16(c, fa, fb);\n  }\n"
        "  for (int i = 0; i < 4; i++) y[threadIdx.x * 4 + i] = c[i];\n}\n"
    )
    image = Nvrtc(toolkit).compile(read_source(path), "sm_87").image
    code = next(section.data for section in sections(image) if section.name == ".text.loop")
    loop = sass.inner_loop(code)
    assert loop is not None
    assert (loop.mma, loop.loads) == (1, 2)
    assert 4 < loop.instructions < 16


def test_committed_counts_of_the_gemv_loops_keep_the_goal() -> None:
    counts = roofline.instruction_counts(RESULTS / "sass.jsonl")
    for symbol in GEMV_SYMBOLS:
        for dtype in ("f16", "bf16"):
            assert counts[f"{symbol}_g128_{dtype}"] <= sass.GOAL


@pytest.mark.parametrize(
    ("name", "linear", "gigabytes", "cache"),
    [  # from the models' configurations, computed apart
        ("LLaVA-1.5-7B", 6.476e9, 3.433, 0.537),
        ("NVILA-8B", 6.525e9, 3.673, 0.059),
        ("NVILA-Lite-2B", 1.310e9, 0.802, 0.029),
        ("VILA1.5-3B", 2.538e9, 1.361, 0.336),
    ],
)
def test_bytes_of_a_token_are_those_of_the_published_shapes(
    name: str, linear: float, gigabytes: float, cache: float
) -> None:
    model = next(model for model in shapes.MODELS if model.name == name)
    assert model.layer_weights == pytest.approx(linear, rel=1e-3)
    assert model.bytes_per_token(0) / 1e9 == pytest.approx(gigabytes, rel=2e-3)
    assert (model.bytes_per_token(1024) - model.bytes_per_token(0)) / 1e9 == pytest.approx(cache, rel=2e-2)


def test_bytes_of_a_weight_are_those_of_its_arrays(emulated: None) -> None:
    device = open_device("emulator")
    with Workbench(Kernels(device)) as bench:
        lab = Lab(bench, QUICK, "f16")
        for n, k in shapes.TINY.linears().values():
            weights = lab.weights(n, k, shapes.TINY.group_size)
            assert isinstance(weights[0], T16Weight)
            assert weights[0].nbytes == shapes.TINY.weight_bytes(n, k)
            assert len({weight.qw.ptr for weight in weights}) == len(weights) >= 2
            assert np.array_equal(bench.download(weights[0].qw), bench.download(weights[-1].qw))
    device.close()


def test_every_prediction_is_called_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["roofline.py"])
    assert roofline.main() == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["label"] == "prediction, not measured" for row in rows)
    decoded = {(row["model"], row["board"]) for row in rows if row["kind"] == "decode"}
    assert decoded == {(model.name, board.name) for model in shapes.MODELS for board in roofline.BOARDS}
    for row in (row for row in rows if row["kind"] == "decode"):
        assert row["predicted_tokens_per_s"] < row["ceiling_tokens_per_s"]
    prompts = {row["prompt_tokens"] for row in rows if row["kind"] == "first_token"}
    assert prompts == {256, 1024, 3072}


def test_a_loop_with_more_instructions_than_the_tensor_cores_need_is_predicted_slower() -> None:
    model, board = shapes.MODELS[-1], roofline.BOARDS[2]
    fast, slow = (roofline.first_token_row(model, board, 1024, per_mma)["predicted_s"][0] for per_mma in (8, 40))
    assert slow > 2 * fast
    assert roofline.decode_row(model, board, 13.8) == {
        **roofline.decode_row(model, board, 17.0),
        "issue_slots": roofline.decode_row(model, board, 13.8)["issue_slots"],
    }


def test_every_symbol_of_the_registry_has_a_benchmark_row() -> None:
    assert {*ROWS, *PICTURE_ROWS} == set(KERNELS)
    assert {row.symbol for row in quick()} == set(KERNELS)


def test_every_row_runs_on_the_emulator_and_says_that_it_is_one(
    emulated: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--device", "emulator", "--quick"])
    assert kernel_bench.main() == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["symbol"] for row in rows if row["kind"] == "kernel"} == set(KERNELS)
    assert all("say nothing about speed" in row["note"] for row in rows)
    assert all("error" not in row for row in rows)
    assert rows[0]["kind"] == "ceilings" and rows[0]["read_gb_s"] > 0


def test_decoding_runs_on_the_emulator_and_says_that_it_is_one(
    emulated: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "QUICK_PLAN", decode.Plan((9,), 2, 1))
    monkeypatch.setattr(decode, "VERIFIED", (2,))
    monkeypatch.setattr(sys, "argv", ["decode.py", "--device", "emulator", "--quick"])
    assert decode.main() == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["context"] for row in rows if row["kind"] == "decode"] == [9]
    assert all("say nothing about speed" in row["note"] for row in rows)


def test_a_step_launches_as_many_kernels_as_the_predictions_count(emulated: None) -> None:
    device = open_device("emulator")
    options = CudaOptions(device=device, graphs=False)
    with ExitStack() as stack:
        stack.callback(device.close)
        decoder = decode.open_random(shapes.TINY, decode.Plan((4,), 8, 1), options, device, stack)
        stack.callback(decoder.close)
        decoder.prefill(0, np.ones((4, shapes.TINY.hidden), np.float32))
        launched = []
        for tokens in (2, 5):
            before = decoder._engine.kernels.launched.total()
            list(islice(decoder.sampled(0, 1, Draws(GenerationParams(), 1, 0, None)), tokens))
            launched.append(decoder._engine.kernels.launched.total() - before)
            decoder.truncate(0, 4)
    assert launched[1] - launched[0] == 3 * shapes.TINY.launches


def test_the_better_of_two_ways_to_prefill_is_by_what_was_measured() -> None:
    line = {"symbol": "gemm_128", "model": "m", "n": 1, "k": 2, "m": 512, "us": {"median": 10.0}}
    other = {"us": {"median": 8.0}, "times_ours": 0.8}
    slower = {"us": {"median": 12.0}, "times_ours": 1.2}
    assert kernel_bench.choice_of(line) is None
    assert (kernel_bench.choice_of(line | {"dequantize_cublas_f16": other}) or {})["better"] == "dequantize_cublas_f16"
    assert (kernel_bench.choice_of(line | {"dequantize_cublas_f16": slower}) or {})["better"] == "own"
    assert kernel_bench.choice_of(line | {"dequantize_cublas_f16": other, "m": 128}) is None


def test_without_rivals_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(backend="cuda_bindings")
    blind = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", blind)
    with kernel_rivals.find_rivals(gpu, None, None) as rivals:  # type: ignore[arg-type]
        assert (rivals.names, rivals.missing) == ([], {"torch": "it finds no GPU"})
    seeing = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", seeing)
    before = list(sys.path)
    with kernel_rivals.find_rivals(gpu, Path("/nowhere"), Path("/nowhere")) as rivals:  # type: ignore[arg-type]
        assert rivals.names == ["cublas_f16", "dequantize_cublas_f16"]
        assert set(rivals.missing) == {"marlin", "awq_inference_engine"}
    assert sys.path == before


def test_a_spread_is_the_median_and_two_percentiles() -> None:
    assert spread([float(value) for value in range(101)]) == {"median": 50.0, "p10": 10.0, "p90": 90.0}


def test_quick_sizes_cover_more_than_one_token_and_more_than_one_tile() -> None:
    assert max(QUICK_SIZES.step_tokens) > 1 and min(QUICK_SIZES.chunk_tokens) > 8
