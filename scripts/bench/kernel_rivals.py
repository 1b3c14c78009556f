"""Other implementations of the same products, where the machine has them: cuBLAS through torch, Marlin, llm-awq.

All run on the benchmark's own stream, captured by torch as graphs of as many launches as ours, over as many copies of
their weights. None of their code is here: they are imported from a checkout that the user has built. The calls are
those of IST-DASLab/marlin (marlin.mul) and mit-han-lab/llm-awq (awq_inference_engine) at the time of writing; nothing
of this file has run on a GPU yet.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels.arrays import DeviceArray
from kernels.driver.protocol import Device
from kernels.registry import KERNELS
from kernels.workbench import Workbench
from scripts.bench.device_timing import Effort, Launch, Replay
from scripts.bench.kernel_data import Benchmark, Lab

OWN = "own"
PRODUCTS = ("gemv", "gemm_64", "gemm_128")  # y = x · Wᵀ and nothing else: what the others do too
GROUP = 128
MARLIN_MAX_TOKENS = 1024
Prepare = Callable[[Any, int, int, int, int], Launch]  # (torch, n, k, m, copies)


def cublas(torch: Any, n: int, k: int, m: int, copies: int) -> Launch:
    """y = x · Wᵀ with W in f16."""
    x, y = torch.randn(m, k, dtype=torch.float16, device="cuda"), torch.empty(m, n, dtype=torch.float16, device="cuda")
    weights = [torch.randn(n, k, dtype=torch.float16, device="cuda") for _ in range(copies)]
    return lambda index: torch.mm(x, weights[index % copies].t(), out=y)


def marlin_launch(marlin: Any) -> Prepare:
    """Marlin: B int32 [K/16, 2N], scales f16 [K/128, N], workspace int32 [N/128 · 16] of zeros."""

    def prepare(torch: Any, n: int, k: int, m: int, copies: int) -> Launch:
        x = torch.randn(m, k, dtype=torch.float16, device="cuda")
        y = torch.empty(m, n, dtype=torch.float16, device="cuda")
        scales = torch.full((k // GROUP, n), 2.0**-8, dtype=torch.float16, device="cuda")
        workspace = torch.zeros(n // 128 * 16, dtype=torch.int32, device="cuda")
        weights = [_random_int(torch, torch.int32, k // 16, 2 * n) for _ in range(copies)]
        return lambda index: marlin.mul(x, weights[index % copies], y, scales, workspace)

    return prepare


def llm_awq_launch(engine: Any) -> Prepare:
    """llm-awq: weights int16 [N/4, K], scales and scaled zeros f16 [K/128 padded to 8, N]; its GEMV up to 7 tokens."""

    def prepare(torch: Any, n: int, k: int, m: int, copies: int) -> Launch:
        x = torch.randn(1, m, k, dtype=torch.float16, device="cuda")
        groups = -(-(k // GROUP) // 8) * 8
        scales = torch.full((groups, n), 2.0**-8, dtype=torch.float16, device="cuda")
        zeros = torch.full((groups, n), -(2.0**-5), dtype=torch.float16, device="cuda")
        weights = [_random_int(torch, torch.int16, n // 4, k) for _ in range(copies)]
        if m < 8:
            return lambda index: engine.gemv_forward_cuda_new(x, weights[index % copies], scales, zeros, m, n, k, GROUP)
        return lambda index: engine.gemm_forward_cuda_new(x, weights[index % copies], scales, zeros)

    return prepare


def _random_int(torch: Any, dtype: Any, *shape: int) -> Any:
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max, shape, dtype=dtype, device="cuda")


@dataclass
class Rivals:
    """``prepare``: by name, how to set up a product. ``missing``: by name, why it is not there."""

    torch: Any = None
    prepare: dict[str, Prepare] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Those that will be measured."""
        return [*self.prepare, *(["dequantize_cublas_f16"] if self.torch is not None else [])]

    def replays(self, row: Benchmark, bench: Workbench, lab: Lab, effort: Effort) -> dict[str, Replay]:
        """A graph of every rival that takes this product, on the bench's stream. Empty without torch."""
        if self.torch is None or row.symbol not in PRODUCTS:
            return {}
        n, k, m = (row.sizes[name] for name in ("n", "k", "m"))
        stream = self.torch.cuda.ExternalStream(bench.stream.handle)
        found: dict[str, Replay] = {}
        with self.torch.cuda.stream(stream):
            for name, prepare in self.prepare.items():
                if name == "marlin" and (n % 256 or k % 128 or m > MARLIN_MAX_TOKENS):
                    continue
                launch = prepare(self.torch, n, k, m, lab.copies(n * k // 2))
                found[name] = self._graph(launch, stream, effort.launches)
            if row.symbol.startswith("gemm"):
                launch = self._expanded(lab, n, k, m)
                found["dequantize_cublas_f16"] = self._graph(launch, stream, effort.launches)
        return found

    def _expanded(self, lab: Lab, n: int, k: int, m: int) -> Launch:
        """Our dequantisation into f16 and cuBLAS behind it."""
        torch, bench, dequantize = self.torch, lab.bench, KERNELS["dequantize"].launcher
        x, w, y = (torch.empty(shape, dtype=torch.float16, device="cuda") for shape in ((m, k), (n, k), (m, n)))
        target = DeviceArray(w.data_ptr(), (n, k), "f16", w)
        weights = lab.weights(n, k, GROUP)

        def launch(index: int) -> None:
            dequantize(bench.kernels, bench.stream, weights[index % len(weights)], target)
            torch.mm(x, w.t(), out=y)

        return launch

    def _graph(self, launch: Launch, stream: Any, count: int) -> Replay:
        launch(0)
        stream.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=stream):
            for index in range(count):
                launch(index)

        def replay() -> None:
            with self.torch.cuda.stream(stream):
                graph.replay()

        return replay


@contextmanager
def find_rivals(device: Device, marlin: Path | None, llm_awq: Path | None, without: bool = False) -> Iterator[Rivals]:
    """What is here; ``sys.path`` has the checkouts while the context lasts."""
    rivals = Rivals()
    before = list(sys.path)
    try:
        if device.backend == "emulator" or without:
            rivals.missing["torch"] = "left out" if without else "the emulator has nothing to compare with"
        else:
            _find(rivals, marlin, llm_awq)
        yield rivals
    finally:
        sys.path[:] = before


def _find(rivals: Rivals, marlin: Path | None, llm_awq: Path | None) -> None:
    torch = _import("torch", rivals)
    if torch is None or not torch.cuda.is_available():
        rivals.missing.setdefault("torch", "it finds no GPU")
        return
    rivals.torch = torch
    rivals.prepare["cublas_f16"] = cublas
    if marlin is not None:
        sys.path.insert(0, str(marlin))
        module = _import("marlin", rivals)
        if module is not None:
            rivals.prepare["marlin"] = marlin_launch(module)
    if llm_awq is not None:
        sys.path[:0] = [str(llm_awq), str(llm_awq / "awq" / "kernels")]
        module = _import("awq_inference_engine", rivals)
        if module is not None:
            rivals.prepare["llm_awq"] = llm_awq_launch(module)


def _import(name: str, rivals: Rivals) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        rivals.missing[name] = str(problem)
        return None
