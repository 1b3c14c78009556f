"""Timing on a device: graphs of many launches between two events, and the ceilings of the memory. For benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.arrays import DeviceArray
from kernels.driver.opening import open_device
from kernels.driver.protocol import Device, Graph, Stream
from kernels.emulator import build_library
from kernels.images import image_for
from kernels.loading import Kernels
from kernels.workbench import Workbench

READ_SOURCE = Path(__file__).with_name("read.cu")
READ_THREADS = 256
BLOCKS_PER_SM = 8
EMULATED = "emulated on a CPU: the figures say nothing about speed"
NOT_YET_ON_A_GPU = "figures of this script had not been taken on a GPU when it was written"
Launch = Callable[[int], None]  # enqueues the i-th of several launches that rotate over copies of the data
Replay = Callable[[], None]  # enqueues a whole graph


@dataclass(frozen=True)
class Effort:
    """``launches`` in a graph, ``repeats`` of it; ``rotation_bytes``: what the copies of the data come to, beyond four
    times the L2 cache; ``read_bytes``: what the ceiling is measured over."""

    launches: int = 50
    repeats: int = 21
    rotation_bytes: int = 256 * 2**20
    read_bytes: int = 2**30


QUICK = Effort(launches=2, repeats=2, rotation_bytes=2**12, read_bytes=2**16)


def open_bench_device(name: str) -> Device:
    """``cuda`` or ``emulator``. Raises NoDeviceError."""
    return open_device("emulator" if name == "emulator" else "auto")


def facts(device: Device) -> dict[str, Any]:
    """What a line says of the device."""
    found: dict[str, Any] = {"device": device.name, "backend": device.backend, "sms": device.multiprocessors}
    return found | ({"note": EMULATED} if device.backend == "emulator" else {"driver": device.driver_version})


def capture(device: Device, stream: Stream, launch: Launch, count: int) -> Graph:
    """A graph of ``count`` launches; each kernel is launched once before, since a capture cannot load one."""
    launch(0)
    stream.synchronize()
    with device.capture(stream) as captured:
        for index in range(count):
            launch(index)
    return captured.graph


def interleaved_us(
    device: Device, stream: Stream, replays: Mapping[str, Replay], effort: Effort
) -> dict[str, list[float]]:
    """Microseconds per launch of each of several graphs, replayed in turn: A B A B …, after one round to warm up."""
    begin, end = device.create_event(timing=True), device.create_event(timing=True)
    taken: dict[str, list[float]] = {name: [] for name in replays}
    for turn in range(effort.repeats + 1):
        for name, replay in replays.items():
            begin.record(stream)
            replay()
            end.record(stream)
            end.synchronize()
            if turn:
                taken[name].append(1000 * end.elapsed_ms(begin) / effort.launches)
    begin.close()
    end.close()
    return taken


def spread(values: list[float]) -> dict[str, float]:
    """Median and the tenth and ninetieth percentile."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return {"median": round(float(middle), 3), "p10": round(float(low), 3), "p90": round(float(high), 3)}


def ceilings(kernels: Kernels, effort: Effort) -> dict[str, float]:
    """read_gb_s, copy_gb_s (read and written together) and the microseconds of an empty kernel in a graph."""
    device = kernels.device
    image = build_library(READ_SOURCE) if device.backend == "emulator" else image_for(device, READ_SOURCE)
    module = device.load_module(image)
    functions = {name: module.function(name) for name in ("read_all", "copy_all", "nothing")}
    blocks = device.multiprocessors * BLOCKS_PER_SM
    words = effort.read_bytes // 16
    with Workbench(kernels) as bench:
        source, target = (bench.empty((effort.read_bytes,), "u8") for _ in range(2))
        grid, block, stream = (blocks, 1, 1), (READ_THREADS, 1, 1), bench.stream

        def launch_of(name: str, signature: str, *args: int) -> Launch:
            return lambda index: functions[name].launch(grid, block, 0, stream, signature, args)

        launches = {
            "read_all": launch_of("read_all", "PPq", source.ptr, target.ptr, words),
            "copy_all": launch_of("copy_all", "PPq", source.ptr, target.ptr, words),
            "nothing": lambda index: functions["nothing"].launch((1, 1, 1), (32, 1, 1), 0, stream, "i", (index,)),
        }
        us = {name: _median_us(device, stream, launch, effort) for name, launch in launches.items()}
    module.close()
    return {
        "read_gb_s": effort.read_bytes / us["read_all"] / 1e3,
        "copy_gb_s": 2 * effort.read_bytes / us["copy_all"] / 1e3,
        "empty_kernel_us": us["nothing"],
    }


def _median_us(device: Device, stream: Stream, launch: Launch, effort: Effort) -> float:
    graph = capture(device, stream, launch, effort.launches)
    taken = interleaved_us(device, stream, {"": lambda: graph.launch(stream)}, effort)[""]
    graph.close()
    return float(np.median(taken))


def copies_of(array: DeviceArray, bench: Workbench, count: int) -> list[DeviceArray]:
    """``array`` and count - 1 copies of it."""
    copies = [array]
    for _ in range(count - 1):
        copy = bench.empty(array.shape, array.dtype)
        bench.kernels.device.copy(copy.ptr, array.ptr, array.nbytes, bench.stream)
        copies.append(copy)
    return copies
