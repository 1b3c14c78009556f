"""Sources with their headers: what is found, and what changes the digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.errors import ImageError
from kernels.nvrtc.sources import CSRC, read_source, source_files


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_cuh", ".cuh").replace("_cu", ".cu")).write_text(text)


def test_headers_of_headers_are_found_and_others_left_to_the_compiler(tmp_path: Path) -> None:
    write(
        tmp_path,
        a_cu='#include "one.cuh"\n#include <cuda_fp16.h>\n  #  include "nowhere.h"\n',
        one_cuh='#include "two.cuh"\n#include "one.cuh"\n',
        two_cuh="int two;\n",
        three_cuh="int three;\n",
    )
    source = read_source(tmp_path / "a.cu")
    assert (source.name, source.stem) == ("a.cu", "a")
    assert source.headers == {"one.cuh": '#include "two.cuh"\n#include "one.cuh"\n', "two.cuh": "int two;\n"}


def test_the_digest_follows_the_source_and_its_headers_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, a_cu='#include "one.cuh"\n', one_cuh="int one;\n", other_cuh="int other;\n")
    first = read_source(tmp_path / "a.cu").digest
    write(tmp_path, other_cuh="int changed;\n")
    assert read_source(tmp_path / "a.cu").digest == first
    write(tmp_path, one_cuh="int changed;\n")
    second = read_source(tmp_path / "a.cu").digest
    write(tmp_path, a_cu='#include "one.cuh"\n\n', one_cuh="int one;\n")
    assert len({first, second, read_source(tmp_path / "a.cu").digest}) == 3


def test_every_source_of_the_package_reads_with_the_headers_of_the_package() -> None:
    assert source_files() == sorted(path.name for path in CSRC.iterdir() if path.suffix == ".cu")
    for name in source_files():
        assert all((CSRC / header).is_file() for header in read_source(name).headers)


def test_a_source_that_is_not_there_is_named() -> None:
    with pytest.raises(ImageError, match=r"nothing\.cu"):
        read_source("nothing.cu")
