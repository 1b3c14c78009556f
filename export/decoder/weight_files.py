"""The safetensors files of one folder as a single table of tensors: one file, or an index and its shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy.typing as npt

from export.decoder.safetensors_file import COPY_HINT, F32, SafetensorsFile
from runtime.bundle.tensor_header import TensorInfo
from runtime.errors import ExportError
from runtime.strict_json import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 100_000_000
MAX_SHARDS = 2_000
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class WeightFiles:
    """Tensors of a folder by name, read row by row. A context manager; ``paths`` are the files that it reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: tuple[Path, ...] = ()
        self._of: dict[str, SafetensorsFile] = {}
        with ExitStack() as stack:
            self._open(stack)
            self._files = stack.pop_all()

    def __enter__(self) -> WeightFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files."""
        self._files.close()

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._of)

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of a tensor; ExportError when there is none of that name."""
        return self._file(name).tensors[name]

    def read(self, name: str) -> F32:
        """A whole tensor as f32; for the small ones (norms, biases)."""
        shape = self.info(name).shape
        return self._file(name).read_rows(name, 0, shape[0] if shape else 1)

    def read_array(self, name: str) -> npt.NDArray[Any]:
        """A whole tensor: integers as they are, floats as f32."""
        return self._file(name).read_array(name)

    def iter_rows(self, name: str, block_bytes: int) -> Iterator[F32]:
        """The rows of a tensor in blocks of about ``block_bytes`` in f32."""
        return self._file(name).iter_rows(name, block_bytes)

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._of:
            raise ExportError(f"{self.folder}: there is no tensor {name!r} in the checkpoint", hint=COPY_HINT)
        return self._of[name]

    def _open(self, stack: ExitStack) -> None:
        single, index = self.folder / SINGLE, self.folder / INDEX
        if single.is_file():
            file = stack.enter_context(SafetensorsFile(single))
            self.paths, self._of = (single,), dict.fromkeys(file.tensors, file)
            return
        if not index.is_file():
            raise _no_weights(self.folder)
        weight_map = _read_index(index)
        shards = {}
        for shard in sorted(set(weight_map.values())):
            shards[shard] = stack.enter_context(SafetensorsFile(self.folder / shard))
        for shard, file in shards.items():
            for name in file.tensors:
                if weight_map.get(name, shard) != shard or name in self._of:
                    raise ExportError(f"{index}: {name!r} is in {shard} too", hint=COPY_HINT)
                self._of[name] = file
        for name, shard in weight_map.items():
            if name not in self._of:
                raise ExportError(f"{index}: {name!r} is not in {shard}", hint=COPY_HINT)
        self.paths = (index, *(file.path for file in shards.values()))


def _read_index(index: Path) -> dict[str, str]:
    table = read_json(index, max_bytes=MAX_INDEX_BYTES, error=ExportError, hint=COPY_HINT)
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ExportError(f"{index}: there is no weight_map", hint=COPY_HINT)
    for name, shard in weight_map.items():
        # A link is followed (hubs keep blobs behind links), a name that leaves the folder is not.
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", "..") or "\\" in shard:
            raise ExportError(f"{index}: {name!r} lies in {shard!r}, not a file of this folder", hint=COPY_HINT)
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise ExportError(f"{index}: more than {MAX_SHARDS} shards", hint=COPY_HINT)
    return weight_map


def _no_weights(folder: Path) -> ExportError:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return ExportError(
            f"{folder}: {pickles[0]} is a pickle, which can run code when it is read; there is no {SINGLE}",
            hint=f"convert it once: python -m export.convert {folder} --out <directory>",
        )
    return ExportError(f"{folder}: there is neither {SINGLE} nor {INDEX}", hint=COPY_HINT)
