#!/usr/bin/env python3
"""A checkpoint of a real model's size from export to answer: peak memory and time of each step, each in a child.

    python scripts/bench/full_shape.py nvila-2b --work /tmp/full_shape --limit-gib 3
    python scripts/bench/full_shape.py nvila-8b --work /tmp/full_shape --limit-gib 6 --steps build

Steps: write (the checkpoint with random weights, by transformers; not limited), build (``export.build_engines``),
quantize (``export.quantize``, AWQ on a picture's prompt and a line of text, each cut to ``--calibration-tokens``),
build-quantized, session (open the bundle on the CPU, one picture). How the limit is kept: ``full_shape_watch.py``.
Shapes whose decoder is too large to be written here hold two of its layers and the head; their lines say so, and what
is computed from them is labelled "extrapolated".
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.full_shape_sizes import SHAPES, FullShape  # noqa: E402
from scripts.bench.full_shape_watch import Run, run_limited  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402

STEPS = ("write", "build", "quantize", "build-quantized", "session")
GIB = 1 << 30
WRITE_LIMIT = 8 * GIB
GROUP = 128
PICTURE = "picture.png"
PROMPTS = (
    {"text": "What is in the image? A red car on a street.", "images": [PICTURE]},
    {"text": "How many people are there? Two people at a table."},
)

SESSION = """
import json, sys, time
began = time.perf_counter()
import numpy, runtime
def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return {name: round(int(lines[name].split()[0]) / 1024, 1) for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}
imported = time.perf_counter()
session = runtime.Session.open(sys.argv[1], chats=0)
opened = time.perf_counter()
after_open = memory()
picture = numpy.random.default_rng(0).integers(0, 255, (448, 448, 3), dtype=numpy.uint8)
answer = session.generate("Describe the image.", images=[picture], max_new_tokens=int(sys.argv[2]))
print(json.dumps({
    "import_s": round(imported - began, 2), "open_s": round(opened - imported, 2), "memory_after_open_mb": after_open,
    "memory_after_answer_mb": memory(), "prompt_tokens": answer.usage.prompt_tokens,
    "image_tokens": answer.usage.image_tokens, "completion_tokens": answer.usage.completion_tokens,
    "ttft_s": round(answer.timings.ttft_ms / 1e3, 2), "vision_s": round(answer.timings.vision_ms / 1e3, 2),
    "prefill_s": round(answer.timings.prefill_ms / 1e3, 2),
    "decode_tokens_per_s": round(answer.timings.decode_tokens_per_s, 2),
    "finite": all(value == value and value <= 0 for value in answer.logprobs),
}))
"""


class Bench:
    """The steps of one shape; each gives the figures of its line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name, self.shape = args.shape, SHAPES[args.shape]
        self.checkpoint = args.work / self.name
        self.quantized = args.work / f"{self.name}-awq"
        self.limit, self.args = int(args.limit_gib * GIB), args

    def run(self, step: str) -> dict[str, Any]:
        """One step's command, run and described."""
        if step == "write":
            return _described(self._python(WRITE_LIMIT, _script(), self.name, self.checkpoint))
        if step == "quantize":
            tokens = self.args.calibration_tokens
            few = ["--samples", len(PROMPTS), "--tokens", 2 * tokens, "--max-seq-len", tokens, "--head-bits", 4]
            out = ["--out", self.quantized, "--calibration", self._prompts(), "--force", *few]
            run = self._python(self.limit, "-m", "export.quantize", self.checkpoint, *out)
            return _described(run) | {"calibration_tokens": tokens}
        if step == "session":
            run = self._python(self.limit, "-c", SESSION, self._bundle(), self.args.tokens)
            return _described(run) | (json.loads(run.stdout) if run.code == 0 else {})
        source = self.quantized if step == "build-quantized" else self.checkpoint
        return self._build(source)

    def _build(self, source: Path) -> dict[str, Any]:
        out = source.with_suffix(".bundle")
        extra = ["--vision-precision", self.args.vision_precision, "--json", "--force"]
        run = self._python(self.limit, "-m", "export.build_engines", source, "--out", out, *extra)
        figures = _described(run) | {"vision_precision": self.args.vision_precision}
        if run.code == 0:
            sizes = {path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()}
            figures["bundle_mb"] = _mb(sum(sizes.values()))
            figures["largest_files_mb"] = {
                name: _mb(size) for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:4]
            }
            missing = self.shape.real_layers - self.shape.layers
            if missing:
                whole = sum(sizes.values()) + missing * layer_bytes(self.shape)
                figures["extrapolated"] = {"layers": self.shape.real_layers, "bundle_mb": _mb(whole)}
        return figures

    def _prompts(self) -> Path:
        pixels = numpy.random.default_rng(0).integers(0, 255, (640, 480, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(self.args.work / PICTURE)
        path: Path = self.args.work / "prompts.jsonl"
        path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS), encoding="utf-8")
        return path

    def _bundle(self) -> Path:
        found = [path.with_suffix(".bundle") for path in (self.quantized, self.checkpoint)]
        return next((path for path in found if path.is_dir()), found[-1])

    def _python(self, limit: int, *arguments: object) -> Run:
        return run_limited([sys.executable, *map(str, arguments)], limit, ROOT)

    def clean(self) -> None:
        """Removes what the steps wrote."""
        for name in ("prompts.jsonl", PICTURE):
            (self.args.work / name).unlink(missing_ok=True)
        for path in (self.checkpoint, self.quantized):
            shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(path.with_suffix(".bundle"), ignore_errors=True)


def layer_bytes(shape: FullShape) -> int:
    """One decoder layer in a bundle: int4 values, an f32 scale and half a byte of zero for each group, f32 norms."""
    hidden, ffn = shape.decoder["hidden_size"], shape.decoder["intermediate_size"]
    narrow = hidden // shape.decoder["num_attention_heads"] * shape.decoder["num_key_value_heads"]
    values = 2 * hidden * hidden + 2 * hidden * narrow + 3 * hidden * ffn
    return values // 2 + values // GROUP * 9 // 2 + 2 * 4 * hidden


def _script() -> Path:
    return Path(__file__).with_name("full_shape_checkpoint.py")


def _described(run: Run) -> dict[str, Any]:
    figures: dict[str, Any] = {"seconds": run.seconds, "peak_mb": run.peak_mb, "exit_code": run.code}
    if run.killed:
        figures["killed_over_limit"] = True
    if run.code:
        figures["stderr"] = run.stderr_tail
    return figures


def _mb(size: int) -> float:
    return round(size / 1e6, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--work", type=Path, required=True, help="directory for checkpoint and bundle (gigabytes)")
    parser.add_argument("--limit-gib", type=float, default=3.0, help="resident memory of one process")
    parser.add_argument("--steps", default="write,build,session", help=f"of {','.join(STEPS)}")
    parser.add_argument("--vision-precision", choices=("fp32", "fp16", "int8"), default="fp32")
    parser.add_argument("--calibration-tokens", type=int, default=128, help="of each prompt, for quantize")
    parser.add_argument("--tokens", type=int, default=16, help="of the answer")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and bundle where they are")
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file")
    args = parser.parse_args()
    steps = args.steps.split(",")
    if unknown := set(steps) - set(STEPS):
        parser.error(f"--steps: {', '.join(sorted(unknown))} is none of {', '.join(STEPS)}")
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    bench, failed = Bench(args), False
    shape = {"layers": bench.shape.layers, "real_layers": bench.shape.real_layers, "sizes": _sizes(bench.shape)}
    for step in steps:
        figures = bench.run(step)
        failed |= figures["exit_code"] != 0
        limit = WRITE_LIMIT if step == "write" else bench.limit
        row = {"bench": "full_shape", "shape": args.shape, "step": step, "limit_mb": limit >> 20, **figures, **shape}
        write_line(row | environment(), args.out)
        if failed:
            break
    if not args.keep:
        bench.clean()
    return 1 if failed else 0


def _sizes(shape: FullShape) -> dict[str, Any]:
    fields = dataclasses.asdict(shape)
    return {name: fields[name] for name in ("tower", "decoder", "scales", "projector")}


if __name__ == "__main__":
    raise SystemExit(main())
