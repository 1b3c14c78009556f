"""Kernels are found by name, loaded once, counted, and unloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kernels import loading
from kernels.driver import Device, open_device
from kernels.driver.cuda_bindings import BindingsDevice
from kernels.driver.protocol import Image
from kernels.emulator import build_library
from kernels.errors import ArrayError, DeviceError, ImageError
from kernels.loading import Kernels, compiled_image
from kernels.registry import SOURCES
from kernels.workbench import Workbench
from tests.kernels.driver.backends import TRIAL, needs_compiler, stand_ins

ONE = (1, 1, 1)
pytestmark = needs_compiler


@pytest.fixture
def device() -> Iterator[Device]:
    made = open_device("emulator")
    yield made
    made.close()


class Images:
    """Gives the trial kernels for every source, and remembers for which."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, device: Device, source: str) -> Image:
        self.asked.append(source)
        library = build_library(TRIAL)
        return library if device.backend == "emulator" else os.fsencode(library)


def test_module_is_loaded_once_for_all_its_entries(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SOURCES", {"add_scaled": "trial.cu", "sum_shared": "trial.cu", "follow": "other.cu"})
    images = Images()
    kernels = Kernels(device, image=images)
    with Workbench(kernels) as bench:
        y = bench.upload(np.ones(4), "f32")
        for _ in range(3):
            kernels.launch("add_scaled", ONE, (32, 1, 1), 0, bench.stream, "PPfi", y.ptr, y.ptr, 1.0, 4)
        kernels.load("sum_shared", "add_scaled")
        assert images.asked == ["trial.cu"]
        kernels.load("follow")
        assert images.asked == ["trial.cu", "other.cu"]
        assert bench.download(y).tolist() == [8] * 4
    assert kernels.launched == {"add_scaled": 3}
    assert device.live()["module"] == 2
    kernels.close()
    kernels.close()
    assert device.live()["module"] == 0


def test_launch_that_is_refused_is_not_counted(device: Device) -> None:
    kernels = Kernels(device, image=Images())
    with Workbench(kernels) as bench:
        with pytest.raises(ArrayError, match="grid"):
            kernels.launch("add_scaled", (0, 1, 1), ONE, 0, bench.stream, "PPfi", 256, 256, 1.0, 1, source="trial.cu")
    assert not kernels.launched


def test_unknown_entry_is_named(device: Device) -> None:
    with pytest.raises(ImageError, match="no kernel is named gemv_g7"):
        Kernels(device).load("gemv_g7")


def test_loading_is_refused_in_a_capture_and_works_before_it(device: Device) -> None:
    kernels = Kernels(device, image=Images())
    with Workbench(kernels) as bench:
        y = bench.upload(np.ones(4), "f32")
        args = (ONE, (32, 1, 1), 0, bench.stream, "PPfi", y.ptr, y.ptr, 1.0, 4)
        with pytest.raises(DeviceError, match="cuModuleLoadData is not permitted"):
            with device.capture(bench.stream):
                kernels.launch("add_scaled", *args, source="trial.cu")
        kernels.function("add_scaled", "trial.cu")
        with device.capture(bench.stream) as capture:
            kernels.launch("add_scaled", *args)
        capture.graph.launch(bench.stream)
        capture.graph.launch(bench.stream)
        assert bench.download(y).tolist() == [4] * 4
    assert kernels.launched == {"add_scaled": 1}, "a replay is no launch of ours"


def test_emulator_builds_the_registered_source(device: Device) -> None:
    entry = "embed_f16" if "embed_f16" in SOURCES else next(iter(SOURCES))
    image = compiled_image(device, SOURCES[entry])
    assert isinstance(image, Path) and image.suffix == ".so"
    kernels = Kernels(device)
    assert kernels.function(entry).name == entry


def test_gpu_is_given_the_image_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def image_for(device: Device, source: str) -> bytes:
        asked.append((device.name, source))
        return b"cubin"

    monkeypatch.setattr("kernels.images.image_for", image_for)
    with stand_ins(monkeypatch):
        assert compiled_image(BindingsDevice(0), "gemv.cu") == b"cubin"
    assert asked == [("Stand-in", "gemv.cu")]
