"""Launches of dequantize with known answers, which are exact: every entry, with odd N and half a tile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernels.cases.products import DTYPES, ODD_ROWS, Outputs, Product, product
from kernels.kernel import Case
from kernels.launch.dequantize import dequantize
from kernels.reference.dequantize import dequantize as reference
from kernels.workbench import Workbench

SHAPES = ((32, 352), (64, 320), (128, 256))  # group size, K


def cases() -> Iterator[Case]:
    """Every entry of dequantize.cu."""
    for group_size, k in SHAPES:
        for dtype in DTYPES:
            yield expansion(product(group_size, 1, ODD_ROWS, k, group_size, dtype))


def expansion(of: Product) -> Case:
    """dequantize of the weight of a product."""

    def run(bench: Workbench) -> Outputs:
        _, w = of.upload(bench)
        out = bench.empty(of.weight.shape, of.dtype)
        dequantize(bench.kernels, bench.stream, w, out)
        return {"out": bench.download(out)}

    expected = reference(of.weight, of.dtype)
    name = f"N{of.weight.shape[0]} K{of.weight.shape[1]}"
    entry = f"dequantize_{of.entry_suffix}"
    return Case("dequantize", entry, name, run, {"out": expected}, {"out": np.zeros_like(expected)})
