"""Files of torch's format give tensors and nothing else, whatever they claim to be."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import torch_child
from models.torch_files import Limits, convert_torch_file, read_torch_file, read_torch_table
from runtime.errors import ExportError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(*bits)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_dtypes_shapes_and_values_come_back_bit_for_bit(zipped: bool, tmp_path: Path) -> None:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 3
    dtypes = DTYPES if zipped else [dtype for dtype in DTYPES if "float8" not in str(dtype)]  # torch itself fails there
    stored = {str(dtype): base.to(dtype) for dtype in dtypes}
    stored |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 7), "turned": base.T, "part": base[1:3, ::2]}
    stored |= {"parameter": nn.Parameter(base), "nan": torch.tensor([float("nan"), float("inf"), -0.0])}
    stored |= {"shared": base, "row of it": base[2]}  # names that share memory each get their tensor
    torch.save(OrderedDict(stored), tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "a.bin")
    assert (found.kind, found.length) == ("table", len(stored))
    assert found.tensors.keys() == stored.keys()
    assert all(same_bits(found.tensors[name], tensor.detach()) for name, tensor in stored.items())


@pytest.mark.parametrize(
    ("content", "kind", "length"),
    [
        (None, "none", 0),
        ((torch.zeros(2), torch.ones(2)), "list", 2),
        (torch.arange(6).reshape(2, 3), "tensor", 2),
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "table", 1),
        ({"a": 1}, "other dict", 1),
        ([1, 2, 3], "other list", 3),
        ({3: torch.zeros(1)}, "other dict", 1),
        ({"__metadata__": torch.zeros(1)}, "other dict", 1),
        ("text", "other str", 0),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[:20],
)
def test_what_a_file_holds_is_told(content: Any, kind: str, length: int) -> None:
    found, items, tensors = torch_child.describe(content)
    assert (found, items) == (kind, length)
    assert bool(tensors) is (kind in ("table", "list", "tensor"))


def test_a_list_is_no_table(tmp_path: Path) -> None:
    torch.save([torch.zeros(2), torch.ones(2)], tmp_path / "a.pt")
    with pytest.raises(ExportError, match="no table of tensors but list"):
        read_torch_table(tmp_path / "a.pt")


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def test_code_in_a_file_is_refused_by_name_and_not_run(tmp_path: Path) -> None:
    evil = Evil(tmp_path / "ran")
    torch.save({"a": torch.zeros(1), "b": evil}, tmp_path / "zip.pt")
    torch.save({"b": evil}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(evil, protocol=2))
    for name in ("zip.pt", "legacy.pt", "plain.pt"):
        with pytest.raises(ExportError, match=f"{name} holds more than tensors") as found:
            read_torch_file(tmp_path / name)
        assert "system" in found.value.message or name == "plain.pt"
        assert "weights_only" not in found.value.message  # torch's advice to switch the safety off is not passed on
        assert not (tmp_path / "ran").exists()


def test_truncated_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(50, 50)}, tmp_path / "whole.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "whole.bin").read_bytes()[:-300])
    (tmp_path / "empty.bin").write_bytes(b"")
    for name in ("cut.bin", "empty.bin"):
        with pytest.raises(ExportError, match=f"{name} holds more than tensors, or is damaged"):
            read_torch_file(tmp_path / name)
    with pytest.raises(ExportError, match=r"none\.bin is missing"):
        read_torch_file(tmp_path / "none.bin")


def test_an_archive_that_unpacks_to_more_than_its_size_allows_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(None, protocol=2))
        archive.writestr("archive/version", "3")
        archive.writestr("archive/data/0", b"\0" * (100 << 20))
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 20
    with pytest.raises(ExportError, match="unpacks to 1048576.. bytes, at most"):
        read_torch_file(tmp_path / "bomb.pt")


def test_a_small_storage_stretched_to_a_huge_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    with pytest.raises(ExportError, match="take 4000000000000 bytes, at most"):
        read_torch_file(tmp_path / "a.pt")


class Claiming(pickle.Pickler):
    """torch's old format, written so that its one storage claims to be 2^34 floats."""

    def persistent_id(self, obj: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", 2**34, None) if obj == "the storage" else None


class Rebuilt:
    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, ("the storage", 0, (2**34,), (1,), False, OrderedDict())


def test_memory_that_a_file_claims_is_not_given(tmp_path: Path) -> None:
    with (tmp_path / "a.pt").open("wb") as file:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        for part in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(part, file, protocol=2)
        Claiming(file, protocol=2).dump({"a": Rebuilt()})
        pickle.dump(["0"], file, protocol=2)
    with pytest.raises(ExportError, match="asks for more than the 528 MiB"):
        read_torch_file(tmp_path / "a.pt")


def test_a_file_that_only_burns_time_is_stopped(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "slow.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"Nq\x00" * 20_000_000 + b".")
        archive.writestr("archive/version", "3")
    with pytest.raises(ExportError, match="took more than the 2 s of CPU time"):
        read_torch_file(tmp_path / "slow.pt", Limits(1 << 30, 2, 1 << 26))


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(3).to_sparse(), torch.zeros(3, device="meta"), torch.zeros(2).cfloat()],
    ids=lambda t: str(t.layout) + str(t.dtype),
)
def test_tensors_that_safetensors_cannot_hold_are_named(tensor: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(torch_child.Refused, match="'strange' is a"):
        torch_child._write({"strange": tensor}, tmp_path / "a", 1000)


def test_the_child_takes_its_modules_from_the_installation_alone(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("torch.py", "zipfile.py", "json.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'imported')!r}, 'w').write('x')")
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read_torch_table("a.pt")["a"].item() == 1
    assert not (tmp_path / "imported").exists()


def test_a_refused_file_leaves_nothing_behind_and_a_good_one_only_its_target(tmp_path: Path, monkeypatch: Any) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    torch.save({"a": torch.ones(3)}, tmp_path / "b.pt")
    read_torch_file(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"x")
    with pytest.raises(ExportError):
        convert_torch_file(tmp_path / "c.pt", tmp_path / "c.safetensors")
    assert convert_torch_file(tmp_path / "b.pt", tmp_path / "b.safetensors").kind == "table"
    assert {path.name for path in tmp_path.iterdir()} == {"scratch", "b.pt", "c.pt", "b.safetensors"}
    assert list(scratch.iterdir()) == []


def test_limits_hold_in_the_child_before_the_file_is_opened() -> None:
    code = (
        "import json, resource, sys; sys.argv = ['x', '{}']; from models import torch_child\n"
        "torch_child._limit({'memory_bytes': 1 << 28, 'cpu_s': 7, 'result_bytes': 100})\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0], resource.getrlimit(resource.RLIMIT_FSIZE)[0],\n"
        "      resource.getrlimit(resource.RLIMIT_CORE))\n"
        "try:\n    bytearray(1 << 29)\nexcept MemoryError:\n    print('refused')"
    )
    root = Path(torch_child.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.split() == ["7", str(100 + (64 << 20)), "(0,", "0)", "refused"], done.stderr
