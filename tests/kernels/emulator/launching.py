"""Launching the kernels of violations.cu, here or in a worker."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kernels.driver.emulator import EmulatorDevice
from kernels.errors import KernelError
from kernels.loading import Kernels
from kernels.workbench import Workbench

SOURCE = Path(__file__).with_name("violations.cu")


def launch(
    library: str, entry: str, *, grid: int = 1, block: int = 128, shared: int = 0, n: int = 128, seed: int = 0,
    resident: int = 1, zeroed: bool = False,
) -> list[float]:  # fmt: skip
    """Run ``entry`` on 512 floats 0, 1, 2, ... and return its 1024 outputs, 0xFF bytes (or 0) where it wrote none."""
    os.environ["EMULATOR_SEED"], os.environ["EMULATOR_RESIDENT"] = str(seed), str(resident)
    try:
        kernels = Kernels(EmulatorDevice(), image=lambda device, source: Path(library))
        with Workbench(kernels) as bench:
            values = bench.upload(np.arange(512, dtype=np.float32), "f32")
            out = bench.upload(np.zeros(1024, np.float32), "f32") if zeroed else bench.empty((1024,), "f32")
            arguments = (out.ptr, values.ptr, n)
            kernels.launch(
                entry, (grid, 1, 1), (block, 1, 1), shared, bench.stream, "PPi", *arguments, source=SOURCE.name
            )
            return [float(value) for value in bench.download(out)]
    finally:
        del os.environ["EMULATOR_SEED"], os.environ["EMULATOR_RESIDENT"]


def launch_all(launches: Sequence[Mapping[str, Any]]) -> None:
    """Launch several kernels in turn."""
    for options in launches:
        launch(**options)


def failure(library: str, entry: str, **options: int) -> str:
    """Launch what has to fail; return the error's text."""
    try:
        launch(library, entry, **options)
    except KernelError as error:
        return error.message
    raise AssertionError(f"{entry} did not fail")
