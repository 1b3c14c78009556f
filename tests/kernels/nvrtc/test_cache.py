"""The cache of cubins compiled on this machine."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.nvrtc.cache import cache_folder, cache_path, compiled_here
from kernels.nvrtc.compiler import Nvrtc
from kernels.nvrtc.sources import Source, read_source
from kernels.nvrtc.toolkit import find_toolkits
from tests.kernels.stub_nvrtc import Stub, make_stub


@pytest.fixture()
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_stub(tmp_path / "kit", (12, 6))


@pytest.fixture()
def compiler(stub: Stub) -> Nvrtc:
    return Nvrtc(find_toolkits([stub.root])[0])


@pytest.fixture()
def source(tmp_path: Path) -> Source:
    path = tmp_path / "one.cu"
    path.write_text("// one\n")
    return read_source(path)


def test_a_source_is_compiled_once_and_then_read(compiler: Nvrtc, source: Source, stub: Stub) -> None:
    expected = (stub.images / "sm_87").read_bytes()
    assert compiled_here(compiler, source, "sm_87") == expected
    assert compiled_here(compiler, source, "sm_87") == expected
    assert stub.compiled() == ["one.cu sm_87"]
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    assert [path.suffix for path in cache_folder().iterdir()] == [".cubin"]


def test_source_arch_and_version_each_have_an_entry_of_their_own(
    compiler: Nvrtc, source: Source, tmp_path: Path
) -> None:
    newer = Nvrtc(find_toolkits([make_stub(tmp_path / "newer", (12, 9)).root])[0])
    other = replace(source, digest="0" * 64)
    paths = {
        cache_path(compiler, source, "sm_87"),
        cache_path(compiler, source, "sm_90"),
        cache_path(compiler, other, "sm_87"),
        cache_path(newer, source, "sm_87"),
    }
    assert len(paths) == 4


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_entry_is_compiled_again(damage: str, compiler: Nvrtc, source: Source, stub: Stub) -> None:
    image = compiled_here(compiler, source, "sm_87")
    path = cache_path(compiler, source, "sm_87")
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-7], "changed": bytes([data[0] ^ 1]) + data[1:], "empty": b""}[damage])
    assert compiled_here(compiler, source, "sm_87") == image
    assert len(stub.compiled()) == 2
    assert path.read_bytes() == data


@pytest.mark.parametrize("writable", ["entry", "folder"])
def test_what_others_could_have_written_is_not_loaded(
    writable: str, compiler: Nvrtc, source: Source, stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    compiled_here(compiler, source, "sm_87")
    path = cache_path(compiler, source, "sm_87")
    (path if writable == "entry" else path.parent).chmod(0o777)
    with caplog.at_level(logging.WARNING):
        compiled_here(compiler, source, "sm_87")
    assert len(stub.compiled()) == 2
    assert "others could have written it" in caplog.text


def test_a_link_in_place_of_an_entry_is_not_followed(compiler: Nvrtc, source: Source, stub: Stub) -> None:
    compiled_here(compiler, source, "sm_87")
    path = cache_path(compiler, source, "sm_87")
    path.rename(stub.root / "elsewhere")
    path.symlink_to(stub.root / "elsewhere")
    compiled_here(compiler, source, "sm_87")
    assert len(stub.compiled()) == 2
    assert not path.is_symlink()


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    compiler: Nvrtc, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiled_here(compiler, source, "sm_87").startswith(b"\x7fELF")
    assert "not kept" in caplog.text


def test_many_at_once_end_with_one_whole_entry(compiler: Nvrtc, source: Source) -> None:
    with ThreadPoolExecutor(8) as pool:
        images = set(pool.map(lambda _: compiled_here(compiler, source, "sm_90"), range(16)))
    assert len(images) == 1
    assert list(cache_folder().iterdir()) == [cache_path(compiler, source, "sm_90")]
