"""Compiling a source for the CPU: cached by content, compiled once, refused with words; memory and launches checked."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest

from kernels.driver.emulator import EmulatorDevice
from kernels.emulator import CSRC, allocate, build, build_library, memory, release
from kernels.errors import CompileError, KernelError
from kernels.loading import Kernels
from kernels.workbench import Workbench

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")

KERNEL = """#include "ptx.cuh"
extern "C" __global__ void one(float* out, int n) { if (static_cast<int>(threadIdx.x) < n) out[threadIdx.x] = 1.f; }
CUDA_KERNEL_EXPORT(one)
extern "C" __global__ void two(float* out) { *out = 2.f; }
CUDA_KERNEL_EXPORT(two)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("VLM_EMULATOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jetson-vlm" / "emulator"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "small.cu"
    path.write_text(KERNEL, encoding="utf-8")
    return path


def libraries(folder: Path) -> set[Path]:
    return set(folder.glob("*.so"))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The libraries that were compiled; nothing is."""
    made: list[Path] = []

    def compile_nothing(command: list[str], path: Path, library: Path) -> None:
        library.write_bytes(b"")
        made.append(library)

    monkeypatch.setattr(build, "_compile", compile_nothing)
    return made


def test_a_folder_of_ones_own_comes_before_the_users_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.cache_folder() == cache
    monkeypatch.setenv("VLM_EMULATOR_CACHE", str(tmp_path / "mine"))
    assert build.cache_folder() == tmp_path / "mine"


@needs_compiler
def test_library_is_found_again_until_something_changes(cache: Path, source: Path, compiled: list[Path]) -> None:
    first = build_library(source)
    assert build_library(source) == first and compiled == [first]
    assert libraries(cache) == {first}
    others = {first, build_library(source, defines=["UNUSED=1"]), build_library(source, "asan")}
    source.write_text(KERNEL + "// longer\n", encoding="utf-8")
    assert len(others | {build_library(source)}) == len(compiled) == 4


@needs_compiler
def test_changed_header_gives_another_library(cache: Path, source: Path, tmp_path: Path, compiled: list[Path]) -> None:
    headers = tmp_path / "csrc"
    shutil.copytree(CSRC, headers)
    first = build_library(source, directory=headers)
    assert build_library(source, directory=headers) == first == build_library(source)
    (headers / "ptx.cuh").write_text((CSRC / "ptx.cuh").read_text(encoding="utf-8") + "\n// changed\n")
    assert build_library(source, directory=headers) != first


def _built(source: str) -> str:
    return str(build_library(source))


@needs_compiler
def test_processes_that_ask_at_once_compile_once(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = source.with_name("calls")
    compiler = source.with_name("g++")
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *-o*) echo run >> {calls};; esac\nexec {shutil.which("g++")} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{source.parent}:/usr/bin:/bin")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_built, [str(source)] * 3)
    assert len(set(found)) == 1
    assert calls.read_text() == "run\n"
    assert {path.suffix for path in cache.iterdir()} == {".so", ".lock"}


@needs_compiler
def test_refused_source_is_told_with_the_compilers_words(cache: Path, source: Path) -> None:
    source.write_text(KERNEL + "nonsense;\n", encoding="utf-8")
    with pytest.raises(CompileError, match="nonsense"):
        build_library(source)
    assert not libraries(cache) and not list(cache.glob("*.partial"))


def test_missing_compiler_and_source_are_named(monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path) -> None:
    if shutil.which("g++"):
        with pytest.raises(CompileError, match=r"nowhere\.cu"):
            build_library("nowhere.cu")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match="needs g\\+\\+") as raised:
        build_library(source)
    assert raised.value.hint == "apt install g++"


@needs_compiler
def test_only_wanted_kernels_are_compiled(cache: Path, source: Path) -> None:
    library = build_library(source, defines=['EMULATOR_ONLY="three,one"'])
    kernels = Kernels(EmulatorDevice(), image=lambda device, name: library)
    kernels.function("one", "small.cu")
    with pytest.raises(KernelError, match="two"):
        kernels.function("two", "small.cu")


@needs_compiler
@pytest.mark.parametrize(
    ("grid", "block", "shared", "says"),
    [
        ((1, 1, 1), (1025, 1, 1), 0, "1025"),
        ((1, 65536, 1), (32, 1, 1), 0, "65536"),
        ((1, 1, 1), (32, 1, 1), 163 * 1024 + 1, str(163 * 1024 + 1)),
    ],
)
def test_launch_that_no_gpu_takes_is_refused(
    source: Path, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, says: str
) -> None:
    library = build_library(source)
    kernels = Kernels(EmulatorDevice(), image=lambda device, name: library)
    with Workbench(kernels) as bench:
        out = bench.empty((64,), "f32")
        with pytest.raises(KernelError, match=says):
            kernels.launch("one", grid, block, shared, bench.stream, "Pi", out.ptr, 64, source="small.cu")


@needs_compiler
@pytest.mark.parametrize(("signature", "count"), [("PiI", 3), ("P", 1), ("Pq", 2)])
def test_arguments_of_another_number_or_size_are_refused(source: Path, signature: str, count: int) -> None:
    library = build_library(source)
    kernels = Kernels(EmulatorDevice(), image=lambda device, name: library)
    with Workbench(kernels) as bench:
        out = bench.empty((64,), "f32")
        arguments = [out.ptr, 64, 64][:count]
        with pytest.raises(KernelError, match="argument"):
            kernels.launch("one", (1, 1, 1), (32, 1, 1), 0, bench.stream, signature, *arguments, source="small.cu")


@pytest.mark.parametrize("nbytes", [1, 255, 256, 257, 4095, 4096, 70000])
def test_memory_is_aligned_filled_and_given_back(nbytes: int) -> None:
    import ctypes

    address = allocate(nbytes)
    assert address % memory.ALIGNMENT == 0
    assert ctypes.string_at(address, nbytes) == b"\xff" * nbytes
    release(address, nbytes)


def test_cpu_without_the_features_gets_code_for_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_cpu_flags", lambda: frozenset({"avx2"}))
    assert build.machine_flags() == ()


@needs_compiler
def test_half_arithmetic_is_the_same_without_those_features(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversions written out in C++ agree with F16C on every f16 and at every tie between two."""
    from tests.kernels.emulator import test_arithmetic

    monkeypatch.setattr(build, "machine_flags", lambda: ())
    library = build_library(test_arithmetic.SOURCE)
    monkeypatch.setattr(test_arithmetic, "build_library", lambda source: library)
    run = next(test_arithmetic.run.__wrapped__())  # type: ignore[attr-defined]
    test_arithmetic.test_every_half_and_its_neighbourhood_convert(run)
    test_arithmetic.test_half_fma_rounds_once(run, "half_fma")
    test_arithmetic.test_mma_multiplies_in_the_layout_of_ptx(run, "mma_half")


def test_kernels_know_nothing_of_the_emulator() -> None:
    """`ptx.cuh` alone, and whoever uses its export macro, so that what is tested is what a GPU runs."""
    words = ("EMULATOR", "emulator", "CUEMU", "__CUDACC_EMU__")
    found = [
        f"{path.name}:{number}"
        for path in sorted(CSRC.iterdir())
        if path.suffix in (".cu", ".cuh") and path.name != "ptx.cuh"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.lstrip().startswith("#") and any(word in line for word in words)
    ]
    assert found == []
    lines = (CSRC / "ptx.cuh").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith(("#if", "#elif")) and "EMULATOR" in line for line in lines) == 1
