"""The wrappers of PTX on the emulator, and wrappers that do something else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.driver.opening import open_device
from kernels.driver.protocol import Device
from kernels.emulator import build_library
from kernels.loading import Kernels
from kernels.nvrtc.sources import CSRC
from kernels.selftest.conformance import SOURCE, cases
from kernels.selftest.running import run_case, run_cases

WRONG = {
    "in + lane, lane < valid": "in + lane, true",
    "ldmatrix_x4_trans(transposed": "ldmatrix_x4(transposed",
    "mma_bf16(fc": "wrong_f16(fc",
    "mma_f16(fc": "mma_bf16(fc",
    "wrong_f16(fc": "mma_f16(fc",
    "and_or(in[lane], in[32 + lane], in[64 + lane])": "and_or(in[lane], in[64 + lane], in[32 + lane])",
    "ld_stream(in + threadIdx.x)": "ld_stream(in + (threadIdx.x ^ 1))",
    "exp2_fast(in[threadIdx.x])": "exp2_fast(in[threadIdx.x] * 1.00001f)",
}


@pytest.fixture()
def device() -> Iterator[Device]:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    opened = open_device("emulator")
    yield opened
    opened.close()


def test_every_wrapper_does_what_the_instruction_does(device: Device) -> None:
    kernels = Kernels(device)
    results = run_cases(kernels, cases(), None)
    assert results.failed == {}
    exported = re.findall(r"CUDA_KERNEL_EXPORT\((\w+)\)", (CSRC / SOURCE).read_text())
    assert sorted(kernels.launched) == sorted(exported)


def test_every_wrapper_of_the_header_has_a_case() -> None:
    header, source = (CSRC / "ptx.cuh").read_text(), (CSRC / SOURCE).read_text()
    gpu_side = header.split("#else")[-1]
    wrappers = set(re.findall(r"^__device__ __forceinline__ [\w ]+? \*?(\w+)\(", gpu_side, re.MULTILINE))
    assert {"cp_async16", "ldmatrix_x4", "mma_f16", "exp2_fast"} <= wrappers
    used = {name for name in wrappers if re.search(rf"\b{name}\b", source)}
    assert wrappers - used == {"shared_address"}  # which the others call


def test_a_wrapper_that_does_something_else_is_found(device: Device, tmp_path: Path) -> None:
    for path in CSRC.glob("*.cuh"):
        shutil.copy(path, tmp_path)
    source = (CSRC / SOURCE).read_text()
    for right, wrong in WRONG.items():
        assert right in source
        source = source.replace(right, wrong)
    (tmp_path / SOURCE).write_text(source)
    library = build_library(SOURCE, directory=tmp_path)
    kernels = Kernels(device, image=lambda device, source: library)
    found = {case.entry for case in cases() if run_case(kernels, case) > 1}
    assert found == {case.entry for case in cases()}
