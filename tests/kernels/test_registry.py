"""The registry holds exactly the kernels that the runtime is made of, and each of them is whole."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from kernels.kernel import Case
from kernels.registry import FAMILIES, KERNELS, SOURCES
from tests.imports import ROOT

CSRC = ROOT / "kernels" / "csrc"
# Written out here, so that a kernel cannot vanish from both lists in one careless edit.
SYMBOLS = {
    "gemv",
    "gemv_residual",
    "gemv_swiglu",
    "gemv_qkv_rope_kv",
    "head_argmax",
    "head_logits",
    "gemm_64",
    "gemm_128",
    "gemm_swiglu",
    "gemm_qkv_rope_kv",
    "dequantize",
    "rmsnorm_residual",
    "embed_f16",
    "embed_i8",
    "fuse_image_text",
    "attn_decode_split",
    "attn_decode_combine",
    "attn_prefill",
    "kv_quantize_i8",
    "attn_decode_split_i8",
    "sample_greedy",
    "sample_filtered",
    "resize_normalize",
}


def cases_of(symbol: str) -> list[Case]:
    """The selftest cases that launch ``symbol``; they stand in the module named as its launcher's."""
    module = KERNELS[symbol].launcher.__module__.rpartition(".")[2]
    return [case for case in importlib.import_module(f"kernels.cases.{module}").cases() if case.symbol == symbol]


def test_registry_holds_exactly_the_kernels_of_the_list() -> None:
    assert set(KERNELS) == SYMBOLS
    assert sum(len(family) for family in FAMILIES) == len(SYMBOLS), "a symbol is registered twice"


def exported(source: Path) -> set[str]:
    """Entries that a source exports, with macros expanded by hand: the names as the compiler would paste them."""
    return set(re.findall(r"CUDA_KERNEL_EXPORT\((\w+)\)", source.read_text(encoding="utf-8")))


@pytest.mark.parametrize("symbol", sorted(SYMBOLS))
def test_kernel_has_launcher_reference_source_and_selftest_cases(symbol: str) -> None:
    kernel = KERNELS[symbol]
    assert kernel.launcher.__module__.startswith("kernels.launch.")
    assert kernel.launcher.__doc__
    assert kernel.reference.__module__.startswith("kernels.reference.")
    assert (CSRC / kernel.source).is_file()
    assert kernel.entries
    assert all(entry == symbol or entry.startswith(f"{symbol}_") for entry in kernel.entries)
    found = cases_of(symbol)
    assert len(found) >= 2
    assert {case.entry for case in found} <= set(kernel.entries)
    for case in found:
        assert case.expected, case.name
        assert set(case.bound) <= set(case.expected), case.name


def test_every_entry_has_one_source() -> None:
    assert len(SOURCES) == sum(len(kernel.entries) for kernel in KERNELS.values())


def test_every_source_belongs_to_a_kernel() -> None:
    strangers = {path.name for path in CSRC.glob("*.cu")} - set(SOURCES.values())
    assert strangers <= {"conformance.cu"}, "wrappers of ptx.cuh alone may stand outside the registry"
