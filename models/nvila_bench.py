"""Times of an NVILA model on its loaded weights."""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from models.nvila_stream import StreamState
from models.prompts import as_conversation, take_apart

ROUNDS = 5
DECODE_STEPS = 16
_logger = logging.getLogger(__name__)


@torch.inference_mode()
def measure(
    model: Any, prompt: Any, quant_llm: bool, rounds: int = ROUNDS, steps: int = DECODE_STEPS
) -> dict[str, Any]:
    """Medians and spreads over ``rounds``: vision ms, prefill ms, decode tokens/s over ``steps`` greedy tokens."""
    ids, media, media_config = model.prepare_prompt(prompt)
    times: dict[str, list[float]] = {"vision_ms": [], "prefill_ms": [], "decode_tokens_per_s": []}
    length, conversation = 0, model._stream
    model._stream = StreamState()  # a conversation that is under way keeps its cache
    try:
        for _ in range(rounds):
            vision_ms, (embeds, _, _) = _timed(model, lambda: model._embed(ids, media, media_config, None, None))
            llm, length = model.decoder(quant_llm), embeds.shape[1]
            prefill_ms, logits = _timed(model, lambda llm=llm, embeds=embeds: model._stream.feed(llm, embeds, 0))
            decode_ms, _ = _timed(model, lambda logits=logits, n=length: _decode(model, logits, n, steps, quant_llm))
            times["vision_ms"].append(vision_ms)
            times["prefill_ms"].append(prefill_ms)
            times["decode_tokens_per_s"].append(1000.0 * steps / decode_ms)
    finally:
        model._stream = conversation
    images = list(media.get("image", []))
    return {
        "images_px": _sizes(model, prompt),
        "tile_px": list(images[0].shape[-2:]) if images else None,
        "tiles": len(images) + sum(len(video) for video in media.get("video", [])),
        "prompt_tokens": length,
        "quant_llm": quant_llm,
        "n": rounds,
        **{name: _summary(values) for name, values in times.items()},
    }


def _sizes(model: Any, prompt: Any) -> list[list[int]]:
    """(width, height) of each picture of the prompt, and of each video's frames."""
    _, found = take_apart(as_conversation(prompt), model.tiling_spec().video_frames)
    return [list(image.size) for image in [*found.images, *(frames[0] for frames in found.videos)]]


def report(result: dict[str, Any]) -> None:
    """Write the result as a table to standard output and as JSON to the log."""
    _logger.info("%s", json.dumps(result))
    sizes = ", ".join(f"{width}x{height}" for width, height in result["images_px"])
    lines = [
        f"{'image size px':24}{sizes or 'none'}",
        f"{'tiles':24}{result['tiles']}",
        f"{'prompt tokens':24}{result['prompt_tokens']}",
        f"{'':24}{'median':>10}{'min':>10}{'max':>10}{'n':>4}",
    ]
    for name in ("vision_ms", "prefill_ms", "decode_tokens_per_s"):
        values = "".join(f"{result[name][key]:10.2f}" for key in ("median", "min", "max"))
        lines.append(f"{name:24}{values}{result['n']:4}")
    sys.stdout.write("\n".join(lines) + "\n")


def _decode(model: Any, logits: torch.Tensor, length: int, steps: int, quant_llm: bool) -> None:
    for step in range(steps):
        token = logits[:, -1].argmax(dim=-1, keepdim=True)
        logits, _ = model.stream_gen(token, None, None, length + step, True, quant_llm)


def _timed(model: Any, work: Callable[[], Any]) -> tuple[float, Any]:
    _synchronize(model)
    start = time.perf_counter()
    result = work()
    _synchronize(model)
    return (time.perf_counter() - start) * 1000.0, result


def _synchronize(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
