#!/usr/bin/env python3
"""Decoding with the CUDA decoder: tokens/s, bytes a token, the fraction of the memory's own rate, and what is lost.

    python scripts/bench/decode.py --model NVILA-8B --out decode.jsonl       # random weights of a model's shape
    python scripts/bench/decode.py --bundle BUNDLE                           # a bundle's own
    python scripts/bench/decode.py --device emulator --quick                 # shows that it runs; no speed

Per context: seconds to the first token of a prompt of that length, then 128 greedy tokens chosen on the device (median
and percentiles over the tokens), and a step of 2, 4 and 8 tokens as drafts are verified. ``lost_us_per_launch`` is the
time of a step that reading its bytes at the measured rate does not explain, per kernel: the gaps between kernels and
everything that is not at the ceiling. JSON lines on stdout. This script has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from kernels.driver.protocol import Device  # noqa: E402
from kernels.errors import KernelError  # noqa: E402
from kernels.loading import Kernels  # noqa: E402
from runtime.bundle import load_bundle  # noqa: E402
from runtime.decoder import CudaOptions, FoundDevice, open_decoder  # noqa: E402
from runtime.decoder.cuda import CudaDecoder  # noqa: E402
from runtime.errors import VlmError  # noqa: E402
from runtime.sampling import Draws  # noqa: E402
from runtime.types import GenerationParams  # noqa: E402
from scripts.bench.decode_weights import random_files  # noqa: E402
from scripts.bench.device_timing import QUICK, Effort, ceilings, facts, open_bench_device, spread  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402
from scripts.bench.shapes import MODELS, TINY, DecoderShape  # noqa: E402

Row = dict[str, Any]
VERIFIED = (2, 4, 8)  # tokens of a step


@dataclass(frozen=True)
class Plan:
    """Contexts in positions, tokens that are decoded at each, repeats of a verification."""

    contexts: tuple[int, ...] = (128, 256, 1024, 2048, 3072)
    tokens: int = 128
    repeats: int = 21


QUICK_PLAN = Plan((9, 20), 4, 2)


def decode_rows(
    decoder: CudaDecoder, shape: DecoderShape, plan: Plan, read_gb_s: float, kv_bytes: int
) -> Iterator[Row]:
    """A line per context."""
    random = np.random.default_rng(1)
    for context in plan.contexts:
        if context + plan.tokens + max(VERIFIED) * (plan.repeats + 1) > decoder.max_seq_len:
            continue
        embeds = random.standard_normal((context, decoder.hidden)).astype(np.float32)
        first_s = [_prefill_s(decoder, embeds) for _ in range(3)]
        step_us = _step_us(decoder, plan.tokens)
        step = spread(step_us)
        nbytes = shape.bytes_per_token(context + plan.tokens // 2, kv_bytes)
        reading_us = nbytes / read_gb_s / 1e3
        yield {
            "kind": "decode",
            "context": context,
            "first_token_s": round(float(np.median(first_s)), 5),
            "step_us": step,
            "tokens_per_s": round(1e6 / step["median"], 2),
            "bytes_per_token": nbytes,
            "roofline_tokens_per_s": round(1e6 / reading_us, 2),
            "roofline_fraction": round(reading_us / step["median"], 3),
            "launches": shape.launches,
            "lost_us_per_launch": round((step["median"] - reading_us) / shape.launches, 3),
            "verify_us": {str(n): spread(_verify_us(decoder, n, plan.repeats)) for n in VERIFIED},
        }


def _prefill_s(decoder: CudaDecoder, embeds: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    decoder.truncate(0, 0)
    begin = time.perf_counter()
    decoder.prefill(0, embeds)
    return time.perf_counter() - begin


def _step_us(decoder: CudaDecoder, tokens: int) -> list[float]:
    """Between one token and the next, as a caller sees them. The first two steps of a graph launch and capture it."""
    draws = Draws(GenerationParams(), seed=1, step=0, seen=None)
    start, taken = decoder.length(0), []
    for timed in (False, True):
        decoder.truncate(0, start)
        generated = decoder.sampled(0, 1, draws)
        last = time.perf_counter()
        for number, _ in enumerate(generated, 1):
            now = time.perf_counter()
            if timed:
                taken.append(1e6 * (now - last))
            last = now
            if number == (tokens if timed else 3):
                break
        generated.close()
    decoder.truncate(0, start)
    return taken


def _verify_us(decoder: CudaDecoder, count: int, repeats: int) -> list[float]:
    """A step of ``count`` given tokens with all logits on the host."""
    start, taken = decoder.length(0), []
    for turn in range(repeats + 2):
        begin = time.perf_counter()
        decoder.decode(0, [1 + token for token in range(count)])
        if turn > 1:
            taken.append(1e6 * (time.perf_counter() - begin))
        decoder.truncate(0, start)
    return taken


def open_random(model: DecoderShape, plan: Plan, options: CudaOptions, device: Device, stack: ExitStack) -> CudaDecoder:
    """A decoder of random weights in a temporary folder."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vlm-decode-")))
    room = max(plan.contexts) + plan.tokens + max(VERIFIED) * (plan.repeats + 2)
    files = random_files(model, folder, -(-room // 64) * 64)
    return CudaDecoder(files, options, device, owned=False)


def open_of_bundle(path: Path, options: CudaOptions, device: Device) -> tuple[CudaDecoder, DecoderShape]:
    """A bundle's decoder and its shape."""
    bundle = load_bundle(path)
    section = bundle.manifest.decoder
    decoder = open_decoder(bundle, kind="cuda", cuda=options, found=FoundDevice(device, owned=False))
    assert isinstance(decoder, CudaDecoder)
    sizes = (section.hidden, section.layers, section.heads, section.kv_heads, section.head_dim, section.ffn)
    quantization = bundle.manifest.quantization
    shape = DecoderShape(path.name, *sizes, section.vocab, quantization.group_size, quantization.head_bits // 4)
    return decoder, shape


def lines(options: argparse.Namespace, device: Device) -> Iterator[Row]:
    """The ceilings, then the rows of the model or the bundle."""
    kernels = Kernels(device)
    ceiling = ceilings(kernels, QUICK if options.quick else Effort())
    kernels.close()
    yield {"kind": "ceilings", **{name: round(value, 3) for name, value in ceiling.items()}}
    plan = QUICK_PLAN if options.quick else Plan()
    settings = CudaOptions(device=device, kv=options.kv, graphs=not options.no_graphs)
    with ExitStack() as stack:
        if options.bundle:
            decoder, shape = open_of_bundle(options.bundle, settings, device)
        else:
            shape = TINY if options.quick else next(model for model in MODELS if model.name == options.model)
            decoder = open_random(shape, plan, settings, device, stack)
        stack.callback(decoder.close)
        common = {"model": shape.name, "kv": options.kv, "graphs": not options.no_graphs}
        yield {"kind": "memory", **common, "device_bytes": {use.purpose: use.bytes for use in decoder.memory()}}
        for row in decode_rows(decoder, shape, plan, ceiling["read_gb_s"], 1 if options.kv == "i8" else 2):
            yield {**row, **common}


def parser() -> argparse.ArgumentParser:
    parsed = argparse.ArgumentParser(description="Time decoding with the CUDA decoder.")
    parsed.add_argument("--device", choices=("cuda", "emulator"), default="cuda")
    parsed.add_argument("--quick", action="store_true", help="a tiny shape: that it runs, not how fast")
    parsed.add_argument("--model", default="NVILA-8B", choices=[model.name for model in MODELS])
    parsed.add_argument("--bundle", type=Path, help="in place of --model")
    parsed.add_argument("--kv", choices=("f16", "i8"), default="f16")
    parsed.add_argument("--no-graphs", action="store_true", help="launch every kernel by itself")
    parsed.add_argument("--out", type=Path, help="append the lines there too")
    return parsed


def main() -> int:
    options = parser().parse_args()
    try:
        device = open_bench_device(options.device)
        try:
            for number, line in enumerate(lines(options, device)):
                extra = {**facts(device), **({} if number else environment())}
                write_line({"bench": "decode", **line, **extra}, options.out)
        finally:
            device.close()
    except (KernelError, VlmError) as problem:
        print(f"error: {problem.message}" + (f"\nhint: {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
