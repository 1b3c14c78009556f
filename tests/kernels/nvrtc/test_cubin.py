"""Reading cubins: what kernels take, and files that are none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kernels.errors import ImageError
from kernels.nvrtc.compiler import Nvrtc
from kernels.nvrtc.cubin import Resources, resources, sections
from kernels.nvrtc.sources import read_source
from kernels.nvrtc.toolkit import find_toolkits
from tests.kernels.stub_nvrtc import make_cubin, make_log

KERNELS = {"alpha": Resources(40, 4096, 0, 0), "beta": Resources(255, 0, 16, 24)}

SPILLING = """
extern "C" __global__ void __launch_bounds__(1024, 2) crowded(const float* x, float* y) {
  __shared__ float row[96];
  float v[48];
#pragma unroll
  for (int i = 0; i < 48; i++) v[i] = x[threadIdx.x * 48 + i];
  row[threadIdx.x % 96] = x[threadIdx.x];
  for (int turn = 0; turn < 100; turn++) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 48; i++) v[i] = v[i] * v[(i * 7 + 5) % 48] + row[(turn + i) % 96];
  }
#pragma unroll
  for (int i = 0; i < 48; i++) y[threadIdx.x * 48 + i] = v[i];
}
extern "C" __global__ void plain(float* y) { y[threadIdx.x] = 1.0f; }
"""


def test_resources_are_those_that_were_written() -> None:
    assert resources(make_cubin(KERNELS), make_log(KERNELS)) == KERNELS


def test_a_kernel_that_the_log_does_not_name_is_an_error() -> None:
    with pytest.raises(ImageError, match="beta"):
        resources(make_cubin(KERNELS), make_log({"alpha": KERNELS["alpha"]}))


@pytest.mark.parametrize("cut", [10, 63, 200, 800])
def test_a_cubin_that_is_cut_short_is_refused(cut: int) -> None:
    whole = make_cubin(KERNELS)
    assert cut < len(whole)
    with pytest.raises(ImageError, match="cubin"):
        sections(whole[:cut])


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(ImageError, match="not a cubin"):
        sections(b"// PTX")


@pytest.mark.parametrize(("major", "arch"), [(12, "sm_87"), (13, "sm_90"), (13, "sm_110")])
def test_what_is_read_from_a_real_cubin_is_what_ptxas_reports(major: int, arch: str, tmp_path: Path) -> None:
    toolkit = next((kit for kit in find_toolkits() if kit.major == major and kit.includes), None)
    if toolkit is None:
        pytest.skip(f"NVRTC {major} is not installed")
    path = tmp_path / "crowded.cu"
    path.write_text(SPILLING)
    made = Nvrtc(toolkit).compile(read_source(path), arch)
    found = resources(made.image, made.log)
    reported = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack.*?Used (\d+) registers", made.log, re.S
    )
    assert {name: (found[name].local_bytes, found[name].registers) for name in found} == {
        name: (int(stack), int(registers)) for name, stack, registers in reported
    }
    assert found["crowded"].spill_bytes > 0 and found["plain"].spill_bytes == 0
    assert found["crowded"].shared_bytes % 1024 == 96 * 4  # from sm_90 on the driver's own KiB comes on top
