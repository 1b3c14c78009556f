"""Which image a device gets: cubin, PTX, NVRTC, or an error that says what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from kernels import build, images
from kernels.errors import ImageError
from kernels.nvrtc import sources, store
from kernels.nvrtc.targets import CUBINS, PTX, Target
from kernels.nvrtc.toolkit import find_toolkits
from tests.kernels.stub_nvrtc import Stub, make_stub

SOURCE = "one.cu"


@dataclass(frozen=True)
class Facts:
    """What a driver says of a device."""

    compute_capability: tuple[int, int]
    driver_version: int
    name: str = "Test device"


ORIN, THOR = Facts((8, 7), 12060), Facts((11, 0), 13000)


@pytest.fixture()
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, Stub]:
    """A package with one source and nothing compiled, no NVRTC that counts, and stubs to be offered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VLM_JIT", raising=False)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / SOURCE).write_text("// one\n")
    monkeypatch.setattr(sources, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(store, "COMPILED", tmp_path / "compiled")
    monkeypatch.setattr(images, "find_toolkits", list)
    return {version[0]: make_stub(tmp_path / str(version[0]), version) for version in ((12, 6), (13, 0))}


def compile_for(stubs: dict[int, Stub], *targets: Target) -> None:
    build.build(targets, store.COMPILED, [stub.root for stub in stubs.values()])


def offer(monkeypatch: pytest.MonkeyPatch, *stubs: Stub) -> None:
    monkeypatch.setattr(images, "find_toolkits", lambda: find_toolkits([stub.root for stub in stubs])[: len(stubs)])


def test_the_cubin_of_exactly_this_sm_comes_first(stubs: dict[int, Stub]) -> None:
    compile_for(stubs, *CUBINS.values(), PTX)
    assert images.image_for(ORIN, SOURCE) == (stubs[12].images / "sm_87").read_bytes()
    assert images.image_for(Facts((9, 0), 13000), SOURCE) == (stubs[13].images / "sm_90").read_bytes()
    assert images.image_for(THOR, SOURCE) == (stubs[13].images / "sm_110").read_bytes()


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (12, 0)])
def test_other_devices_get_ptx_with_its_nul(capability: tuple[int, int], stubs: dict[int, Stub]) -> None:
    compile_for(stubs, *CUBINS.values(), PTX)
    assert images.image_for(Facts(capability, 12060), SOURCE) == b"// ptx\0"


def test_a_driver_too_old_for_a_cubin_gets_ptx(stubs: dict[int, Stub]) -> None:
    compile_for(stubs, *CUBINS.values(), PTX)
    assert images.image_for(Facts((9, 0), 12060), SOURCE) == b"// ptx\0"


def test_a_driver_too_old_for_the_ptx_is_told_so(stubs: dict[int, Stub]) -> None:
    compile_for(stubs, *CUBINS.values(), PTX)
    assert images.image_for(Facts((8, 7), 12020), SOURCE).startswith(b"\x7fELF")  # its own cubin is of the same major
    with pytest.raises(ImageError, match=r"the PTX needs a driver of CUDA 12\.6, this is 12\.2"):
        images.image_for(Facts((8, 6), 12020), SOURCE)


def test_a_device_older_than_ampere_is_refused(stubs: dict[int, Stub]) -> None:
    compile_for(stubs, PTX)
    with pytest.raises(ImageError, match=r"capability 7\.2; the kernels need 8\.0"):
        images.image_for(Facts((7, 2), 12060, "Xavier"), SOURCE)


@pytest.mark.parametrize("loss", ["damaged", "gone", "source"])
def test_an_image_that_is_not_what_the_manifest_says_is_not_used(loss: str, stubs: dict[int, Stub]) -> None:
    compile_for(stubs, CUBINS[87])
    path = store.COMPILED / "one.sm_87.cubin"
    if loss == "source":
        (sources.CSRC / SOURCE).write_text("// two\n")
    elif loss == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    words = {"damaged": "is damaged", "gone": "No such file", "source": "compiled from another one.cu"}[loss]
    with pytest.raises(ImageError, match=words):
        images.image_for(ORIN, SOURCE)
    assert words in str(images.installed_images(SOURCE, store.COMPILED)["sm_87"])


def test_nothing_compiled_and_no_compiler_says_both_and_what_helps(stubs: dict[int, Stub]) -> None:
    with pytest.raises(ImageError, match=r"one\.sm_87\.cubin is not in this installation; .*no NVRTC") as caught:
        images.image_for(ORIN, SOURCE)
    assert "python -m kernels.build" in str(caught.value.hint)
    assert "nvidia-cuda-nvrtc-cu12==12.6" in str(caught.value.hint)


def test_a_compiler_on_the_device_is_used_when_nothing_fits(
    stubs: dict[int, Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, stubs[13], stubs[12])
    assert images.image_for(ORIN, SOURCE) == (stubs[12].images / "sm_87").read_bytes()
    assert images.image_for(ORIN, SOURCE) == (stubs[12].images / "sm_87").read_bytes()
    assert stubs[12].compiled() == ["one.cu sm_87"]
    assert stubs[13].compiled() == []  # newer than the driver


def test_a_compiler_of_a_newer_cuda_than_the_driver_is_of_no_use(
    stubs: dict[int, Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, stubs[13])
    with pytest.raises(ImageError, match=r"libnvrtc\.so\.13 is newer than the driver, which is of CUDA 12\.6"):
        images.image_for(ORIN, SOURCE)
    assert stubs[13].compiled() == []


def test_the_newest_compiler_that_the_driver_knows_is_taken(
    stubs: dict[int, Stub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    newer = make_stub(tmp_path / "newer", (12, 9))
    offer(monkeypatch, stubs[12], newer)
    images.image_for(ORIN, SOURCE)
    assert (stubs[12].compiled(), newer.compiled()) == (["one.cu sm_87"], [])
    images.image_for(Facts((8, 7), 12090), SOURCE)
    assert newer.compiled() == ["one.cu sm_87"]


def test_vlm_jit_passes_the_installed_image_by(stubs: dict[int, Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    compile_for(stubs, CUBINS[87])
    offer(monkeypatch, stubs[12])
    images.image_for(ORIN, SOURCE)
    assert len(stubs[12].compiled()) == 1  # by the build
    monkeypatch.setenv("VLM_JIT", "1")
    images.image_for(ORIN, SOURCE)
    assert len(stubs[12].compiled()) == 2


def test_a_source_of_somebody_else_is_compiled_here(
    stubs: dict[int, Stub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offer(monkeypatch, stubs[13])
    own = tmp_path / "own.cu"
    own.write_text("// own\n")
    assert images.image_for(THOR, own) == (stubs[13].images / "sm_110").read_bytes()
    assert stubs[13].compiled() == ["own.cu sm_110"]
