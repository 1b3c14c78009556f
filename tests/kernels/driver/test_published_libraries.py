"""The suite of all backends on the published cuda-bindings (and pycuda), over a stub of libcuda.so.1: no GPU needed.

In a process of its own, because a process keeps the libcuda that it has loaded.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.emulator import build_library
from tests.imports import ROOT
from tests.kernels.driver.backends import STUB, TRIAL, needs_compiler

SOURCE = Path(__file__).with_name("stub_cuda.cpp")


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libcuda")
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(SOURCE), "-ldl"]
    subprocess.run([*command, "-o", str(folder / "libcuda.so.1")], check=True, timeout=300)
    return folder


@needs_compiler
@pytest.mark.parametrize(("backend", "package"), [("cuda_bindings", "cuda.bindings"), ("pycuda", "pycuda")])
def test_suite_passes_on_the_published_package(stub: Path, backend: str, package: str) -> None:
    if importlib.util.find_spec(package.split(".")[0]) is None or importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    suite = [str(Path(__file__).with_name(name)) for name in ("test_conformance.py", "test_graphs.py")]
    chosen = ["-m", "gpu", "-k", f"{backend} and not stand"]
    paths = os.pathsep.join([str(stub), os.environ.get("LD_LIBRARY_PATH", "")]).strip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *suite, *chosen],
        cwd=ROOT, env={**os.environ, "LD_LIBRARY_PATH": paths, STUB: str(build_library(TRIAL))},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "no GPU" not in done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 40, done.stdout[-400:]
