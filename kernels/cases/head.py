"""Launches of the LM head with known answers: every entry once, the vocabulary not a whole number of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.cases.gemv import SHAPES
from kernels.cases.products import DTYPES, Product, product
from kernels.kernel import Case
from kernels.launch.head import head_argmax, head_logits
from kernels.reference import head as reference
from kernels.state import HEAD_PARTIAL
from kernels.workbench import Workbench

VOCABULARY = 45


def cases() -> Iterator[Case]:
    """Every entry of head.cu."""
    for index, (group_size, k, tokens) in enumerate(SHAPES):
        for dtype in DTYPES:
            of = product(
                7000 + 1000 * index + (500 if dtype == "bf16" else 0), tokens, VOCABULARY, k, group_size, dtype
            )
            yield argmax(of)
            yield logits(of)


def argmax(of: Product) -> Case:
    """head_argmax; the largest logit of every tile is far enough from the next for its id to be sure."""
    w = of.dequantized()
    answer = reference.head_argmax(of.x, w)

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        x, weight = of.upload(bench)
        partials = bench.empty((weight.tiles, of.x.shape[0], HEAD_PARTIAL.itemsize), "u8")
        head_argmax(bench.kernels, bench.stream, x, weight, partials)
        found = bench.download(partials).view(HEAD_PARTIAL)[..., 0]
        return {"max": found["max"], "index": found["index"], "sum": found["sum"]}

    largest, total = reference.argmax_bounds(of.x, w, of.weight.group_size)
    expected = {name: np.ascontiguousarray(answer[name]) for name in ("max", "index", "sum")}
    entry = f"head_argmax_{of.entry_suffix}"
    return Case("head_argmax", entry, of.name, run, expected, {"max": largest, "sum": total})


def logits(of: Product) -> Case:
    """head_logits."""
    w = of.dequantized()

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        x, weight = of.upload(bench)
        out = bench.empty((of.x.shape[0], weight.n), "f32")
        head_logits(bench.kernels, bench.stream, x, weight, out)
        return {"logits": bench.download(out)}

    expected = reference.head_logits(of.x, w)
    bound = reference.logits_bound(of.x, w, of.weight.group_size)
    entry = f"head_logits_{of.entry_suffix}"
    return Case("head_logits", entry, of.name, run, {"logits": expected}, {"logits": bound})
