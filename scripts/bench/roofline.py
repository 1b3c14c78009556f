#!/usr/bin/env python3
"""Predicted decode speed and time to the first token on Jetson boards, from bytes and counted instructions.

    python scripts/bench/roofline.py --sass scripts/bench/results/sass.jsonl --out scripts/bench/results/roofline.jsonl
    python scripts/bench/roofline.py --table        # Markdown, as in docs/gpu.md

Nothing is measured here: every line says "prediction". What goes in is measured by others (read bandwidth, matrix
products of the vendor's library) or counted (bytes, launches, instructions of the inner loops). Beside them stand
published results of TinyChat and TensorRT-Edge-LLM for the nearest model, scaled by bytes or operations to our shape
and by measured bandwidth or TFLOP/s to the board.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.record import environment, write_line  # noqa: E402
from scripts.bench.shapes import MODELS, DecoderShape  # noqa: E402

CONTEXT = 1024
PROMPTS = (256, 1024, 3072)
CHUNK = 512  # tokens of a prefill step
BOUNDARY_US = 2.5  # between two kernels of a graph; an estimate, to be measured
WARP_MMA_CYCLES = 8  # m16n8k16 on one of four tensor cores: 2048 products at 256 a cycle (Orin)
ISSUE_PER_SM = 4  # warp instructions a cycle
REACHED = (0.6, 0.7)  # of the vendor's own products, in prefill
Row = dict[str, Any]


@dataclass(frozen=True)
class Board:
    """read_gb_s and tflops (16-bit products, f32 sums) are measured by others where ``measured``; pin_gb_s is the
    data sheet's. On Thor prefill expands the weights and calls the vendor's library."""

    name: str
    sms: int
    ghz: float
    pin_gb_s: float
    read_gb_s: float
    tflops: float
    measured: bool
    own_prefill: bool = True

    @property
    def tensor_tflops(self) -> float:
        """What the tensor cores could do at this clock: 2048 products of an mma in WARP_MMA_CYCLES on each of four."""
        return self.sms * ISSUE_PER_SM * 2 * 2048 / WARP_MMA_CYCLES * self.ghz / 1e3


AGX_TFLOPS = 33.7  # infinigence/ApxInf PR 74: 33.4 to 34.1
BOARDS = (
    # Clocks are the data sheets'. Nano and NX: nobody published a read test; the best published decode results imply
    # 92 GB/s and more.
    Board("Orin Nano 8GB (Super)", 8, 1.02, 102.4, 92.0, AGX_TFLOPS * 8 * 1.02 / (16 * 1.3), False),
    Board("Orin NX 16GB", 8, 0.918, 102.4, 92.0, AGX_TFLOPS * 8 * 0.918 / (16 * 1.3), False),
    Board("AGX Orin 64GB", 16, 1.3, 204.8, 152.8, AGX_TFLOPS, True),
    Board("AGX Thor", 20, 1.57, 273.0, 257.0, 135.0, True, own_prefill=False),
)

# Published decode speed: (system, board, model, tokens/s, GB a token of that model as run, our nearest model).
DECODE_ROWS = (
    ("TinyChat", "AGX Orin 64GB", "NVILA-2B", 44.9, 1.16, "NVILA-Lite-2B"),
    ("TinyChat", "AGX Orin 64GB", "NVILA-8B", 32.8, 4.56, "NVILA-8B"),
    ("TinyChat", "AGX Orin 64GB", "LLaMA-2-7B", 38.6, 3.70, "LLaVA-1.5-7B"),
    ("TinyChat", "AGX Orin 64GB", "VILA1.5-3B", 42.5, 1.48, "VILA1.5-3B"),
    ("Edge-LLM 0.9", "Orin NX 16GB", "Qwen3-1.7B", 60.4, 1.35, "NVILA-Lite-2B"),
    ("Edge-LLM 0.9", "Orin NX 16GB", "Qwen3-8B", 19.0, 4.83, "NVILA-8B"),
    ("Edge-LLM 0.9", "AGX Orin 64GB", "Qwen3-1.7B", 98.6, 1.35, "NVILA-Lite-2B"),
    ("Edge-LLM 0.9", "AGX Orin 64GB", "Qwen3-8B", 32.5, 4.83, "NVILA-8B"),
    ("Edge-LLM 0.9", "AGX Thor", "Qwen3-8B", 49.3, 4.83, "NVILA-8B"),
)
# Published time to the first token: (…, prompt tokens, seconds, weights of its layers, our nearest model).
QWEN3_8B, QWEN3_1B7, LLAMA3_8B = 6.946e9, 1.409e9, 6.979e9
FIRST_TOKEN_ROWS = (
    ("TinyChat", "AGX Orin 64GB", "Llama-3-8B", 256, 0.166, LLAMA3_8B, "NVILA-8B"),
    ("TinyChat", "AGX Orin 64GB", "Llama-3-8B", 1024, 0.623, LLAMA3_8B, "NVILA-8B"),
    ("TinyChat", "AGX Orin 64GB", "Llama-3-8B", 3072, 1.907, LLAMA3_8B, "NVILA-8B"),
    ("Edge-LLM 0.9", "AGX Orin 64GB", "Qwen3-VL-8B", 292, 0.225, QWEN3_8B, "NVILA-8B"),
    ("Edge-LLM 0.9", "Orin NX 16GB", "Qwen3-VL-8B", 292, 0.462, QWEN3_8B, "NVILA-8B"),
    ("Edge-LLM 0.9", "AGX Thor", "Qwen3-VL-8B", 292, 0.156, QWEN3_8B, "NVILA-8B"),
    ("Edge-LLM 0.9", "Orin Nano 8GB (Super)", "Qwen3-VL-2B", 292, 0.191, QWEN3_1B7, "NVILA-Lite-2B"),
)


def instruction_counts(path: Path) -> dict[str, float]:
    """Instructions per mma by entry, from the lines of scripts/bench/sass.py."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["entry"]: row["instructions_per_mma"] for row in rows if row["bench"] == "sass"}


def decode_row(model: DecoderShape, board: Board, per_8_weights: float, context: int = CONTEXT) -> Row:
    """One token at a time: the larger of reading and issuing, and the boundaries between kernels."""
    read_bytes = model.bytes_per_token(context)
    reading_ms = read_bytes / board.read_gb_s / 1e6
    weights = model.layer_weights + model.head_weights
    issuing_ms = weights / 8 / 32 * per_8_weights / (board.sms * ISSUE_PER_SM * board.ghz * 1e6)
    boundaries_ms = model.launches * BOUNDARY_US / 1e3
    step_ms = max(reading_ms, issuing_ms) + boundaries_ms
    return {
        "kind": "decode",
        "model": model.name,
        "board": board.name,
        "context": context,
        "gb_per_token": round(read_bytes / 1e9, 3),
        "ceiling_tokens_per_s": round(1000 / reading_ms, 1),
        "issue_slots": round(issuing_ms / reading_ms, 2),
        "predicted_tokens_per_s": round(1000 / step_ms, 1),
    }


def first_token_row(model: DecoderShape, board: Board, tokens: int, per_mma: float) -> Row:
    """Prefill in chunks: products and attention at a part of the vendor's rate, or reading the weights if slower.

    per_mma: instructions per mma of the GEMM's inner loop; beyond the tensor core's own cycles they are what limits.
    """
    products = 2 * model.layer_weights * tokens + 2 * model.head_weights
    attention = 2 * tokens**2 * model.heads * model.head_dim * model.layers  # causal: half of both products
    chunks = -(-tokens // CHUNK)
    bytes_read = chunks * (model.bytes_per_token(0) - model.weight_bytes(*model.linears()["head"]))
    reading_ms = bytes_read / board.read_gb_s / 1e6
    if not board.own_prefill:  # each product's weights are expanded to 16 bits once a chunk: written and read again
        reading_ms += chunks * 2 * 2 * model.layer_weights / board.read_gb_s / 1e6
    # On Thor the vendor's library multiplies: its rate, and no instruction counts of ours.
    issue = board.tensor_tflops * min(1.0, WARP_MMA_CYCLES / per_mma) if board.own_prefill else board.tflops
    fixed_ms = chunks * model.launches * BOUNDARY_US / 1e3
    slow, fast = (
        _prefill_ms((products + attention) / 1e9 / min(reached * board.tflops, issue), reading_ms, board) + fixed_ms
        for reached in REACHED
    )
    return {
        "kind": "first_token",
        "model": model.name,
        "board": board.name,
        "prompt_tokens": tokens,
        "tera_operations": round((products + attention) / 1e12, 2),
        "issue_limit_tflops": round(issue, 1),
        "predicted_s": [round(fast / 1e3, 3), round(slow / 1e3, 3)],
    }


def _prefill_ms(computing_ms: float, reading_ms: float, board: Board) -> float:
    """Reading hides behind computing in an own kernel; expanding first does not."""
    return max(computing_ms, reading_ms) if board.own_prefill else computing_ms + reading_ms


def published_rows() -> Iterator[Row]:
    """Other systems' results, scaled to our models and to every board."""
    shapes = {model.name: model for model in MODELS}
    boards = {board.name: board for board in BOARDS}
    for system, where, what, speed, gb_per_token, ours in DECODE_ROWS:
        for board in BOARDS:
            scale = board.read_gb_s / boards[where].read_gb_s
            yield {
                "kind": "published_decode",
                "system": system,
                "model": what,
                "board": where,
                "tokens_per_s": speed,
                "gb_per_token": gb_per_token,
                "scaled_to": [ours, board.name],
                "scaled_tokens_per_s": round(speed * scale, 1),
            }
    for system, where, what, tokens, seconds, weights, ours in FIRST_TOKEN_ROWS:
        for board, wanted in ((board, wanted) for board in BOARDS for wanted in PROMPTS):
            work = shapes[ours].layer_weights * wanted / (weights * tokens)
            yield {
                "kind": "published_first_token",
                "system": system,
                "model": what,
                "board": where,
                "prompt_tokens": tokens,
                "seconds": seconds,
                "scaled_to": [ours, board.name, wanted],
                "scaled_s": round(seconds * work * boards[where].tflops / board.tflops, 3),
            }


def predictions(counts: dict[str, float]) -> Iterator[Row]:
    """Decode and first token for every model on every board."""
    for model in MODELS:
        for board in BOARDS:
            yield decode_row(model, board, counts["gemv_g128_f16"])
            for tokens in PROMPTS:
                yield first_token_row(model, board, tokens, counts["gemm_128_g128_f16"])


def table(rows: list[Row]) -> str:
    """Two Markdown tables: decode, and the first token of the two NVILA shapes."""
    decode = {(row["model"], row["board"]): row for row in rows if row["kind"] == "decode"}
    first = {(row["model"], row["board"], row["prompt_tokens"]): row for row in rows if row["kind"] == "first_token"}
    boards = [board.name for board in BOARDS]
    lines = [f"| predicted tokens/s (ceiling) | {' | '.join(boards)} |", "|---" * (len(boards) + 1) + "|"]
    for model in MODELS:
        cells = [decode[model.name, board] for board in boards]
        shown = [f"{cell['predicted_tokens_per_s']} ({cell['ceiling_tokens_per_s']})" for cell in cells]
        lines.append(f"| {model.name} | {' | '.join(shown)} |")
    lines += ["", f"| predicted s to the first token | {' | '.join(boards)} |", "|---" * (len(boards) + 1) + "|"]
    for model in (model for model in MODELS if model.name.startswith("NVILA")):
        for tokens in PROMPTS:
            spans = [first[model.name, board, tokens]["predicted_s"] for board in boards]
            lines.append(f"| {model.name}, {tokens} | {' | '.join(f'{low:.2f}–{high:.2f}' for low, high in spans)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Predictions for Jetson boards from bytes and instruction counts.")
    parser.add_argument("--sass", type=Path, default=ROOT / "scripts/bench/results/sass.jsonl")
    parser.add_argument("--out", type=Path, help="append the lines there too")
    parser.add_argument("--table", action="store_true", help="print Markdown tables in place of JSON lines")
    options = parser.parse_args()
    rows = [*predictions(instruction_counts(options.sass)), *published_rows()]
    if options.table:
        print(table(rows))
        return 0
    facts = {key: value for key, value in environment().items() if key in ("date", "commit")}
    for row in rows:
        write_line({"bench": "roofline", "label": "prediction, not measured", **row, **facts}, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
