"""Finding and calling NVRTC, on a stand-in library and, where it is installed, the real one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kernels.errors import CompileError
from kernels.nvrtc.compiler import Nvrtc
from kernels.nvrtc.sources import read_source
from kernels.nvrtc.toolkit import find_toolkits
from tests.kernels.stub_nvrtc import LAYOUTS, make_stub


@pytest.fixture()
def source(tmp_path: Path) -> Path:
    path = tmp_path / "one.cu"
    path.write_text("// nothing\n")
    return path


def test_two_versions_stand_side_by_side_in_one_process(tmp_path: Path, source: Path) -> None:
    stubs = [make_stub(tmp_path / str(version[0]), version) for version in ((12, 6), (13, 0))]
    toolkits = find_toolkits([stub.root for stub in stubs])[:2]
    compilers = [Nvrtc(toolkit) for toolkit in toolkits]
    assert [compiler.version for compiler in compilers] == [(12, 6), (13, 0)]
    assert [110 in compiler.architectures for compiler in compilers] == [False, True]
    for compiler, stub, arch in zip(compilers, stubs, ("sm_87", "sm_110"), strict=True):
        assert compiler.compile(read_source(source), arch).image == (stub.images / arch).read_bytes()
        assert stub.compiled() == [f"one.cu {arch}"]


def test_ptx_comes_without_its_final_nul(tmp_path: Path, source: Path) -> None:
    stub = make_stub(tmp_path / "kit", (12, 6))
    assert Nvrtc(find_toolkits([stub.root])[0]).compile(read_source(source), "compute_80").image == b"// ptx"


def test_a_refused_source_is_an_error_in_the_compilers_words(tmp_path: Path, source: Path) -> None:
    source.write_text("REFUSE\n")
    stub = make_stub(tmp_path / "kit", (12, 6))
    with pytest.raises(CompileError, match=r"refused one\.cu for sm_87:\nsource\.cu\(1\): error: REFUSE"):
        Nvrtc(find_toolkits([stub.root])[0]).compile(read_source(source), "sm_87")


def test_an_unknown_architecture_is_refused_before_compiling(tmp_path: Path, source: Path) -> None:
    stub = make_stub(tmp_path / "kit", (12, 6))
    with pytest.raises(CompileError, match=r"12\.6 does not know sm_110; it knows 80, 87, 89, 90"):
        Nvrtc(find_toolkits([stub.root])[0]).compile(read_source(source), "sm_110")
    assert stub.compiled() == []


def test_missing_headers_of_cuda_are_named_with_the_command_that_brings_them(tmp_path: Path, source: Path) -> None:
    stub = make_stub(tmp_path / "kit", (13, 0))
    (stub.root / LAYOUTS[13][1] / "cuda_fp16.h").unlink()
    with pytest.raises(CompileError, match=r"cuda_fp16\.h") as caught:
        Nvrtc(find_toolkits([stub.root])[0]).compile(read_source(source), "sm_110")
    assert "nvidia-cuda-runtime==13" in (caught.value.hint or "")


def test_a_library_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    library = tmp_path / LAYOUTS[12][0]
    library.parent.mkdir(parents=True)
    library.write_bytes(b"not a library")
    with pytest.raises(CompileError, match="cannot be loaded"):
        Nvrtc(find_toolkits([tmp_path])[0])


def test_an_installed_toolkit_is_found_by_cuda_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "targets" / "aarch64-linux" / "lib" / "libnvrtc.so.12.6.85"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    found = find_toolkits()[0]
    assert (found.library, found.major, found.includes) == (library, 12, None)


@pytest.mark.parametrize(("major", "arch"), [(12, "sm_87"), (12, "compute_80"), (13, "sm_90"), (13, "sm_110")])
def test_the_real_compiler_makes_code_and_says_what_is_wrong(major: int, arch: str, source: Path) -> None:
    toolkit = next((kit for kit in find_toolkits() if kit.major == major and kit.includes), None)
    if toolkit is None:
        pytest.skip(f"NVRTC {major} is not installed")
    compiler = Nvrtc(toolkit)
    source.write_text(
        '#include <cuda_fp16.h>\nextern "C" __global__ void one(__half* y) { *y = __float2half(1.0f); }\n'
    )
    made = compiler.compile(read_source(source), arch)
    assert made.image.startswith(b"\x7fELF" if arch.startswith("sm_") else b"//")
    source.write_text("int f() { return missing; }\n")
    with pytest.raises(CompileError, match="missing"):
        compiler.compile(read_source(source), arch)
