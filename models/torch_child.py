"""The child process of ``models.torch_files``: one file of torch's format to safetensors, under limits.

    python -I torch_child.py '{"source": ..., "target": ..., "paths": [...], "memory_bytes": ..., ...}'

Only tensors are made from the file (torch's ``weights_only``); what it holds is said in the result's metadata. The
last line on standard output is a JSON object with ``error`` when the file is refused.
"""

from __future__ import annotations

import json
import resource
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

# Tables of weights that trainers wrap in one more dictionary.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


class Refused(Exception):
    """What the file holds is not written out; the message says why."""


def main() -> int:
    """Run one conversion; 0 when the target was written, 1 when the file is refused."""
    import torch  # noqa: F401 (before the limits, so that what it maps does not count)

    request = json.loads(sys.argv[1])
    _limit(request)
    try:
        convert(Path(request["source"]), Path(request["target"]), int(request["result_bytes"]))
    except BaseException as problem:  # the parent makes a typed error of whatever it was
        sys.stdout.write("\n" + json.dumps({"error": f"{type(problem).__name__}: {_reason(problem)}"}) + "\n")
        if isinstance(problem, Exception):
            return 1
        raise
    return 0


def convert(source: Path, target: Path, result_bytes: int) -> None:
    """Write the tensors of ``source`` to ``target``. Raises Refused, and whatever torch raises for a damaged file."""
    import torch

    _check_archive(source, result_bytes)
    zipped = zipfile.is_zipfile(source)
    content = torch.load(source, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    _write(content, target, result_bytes)


def _reason(problem: BaseException) -> str:
    """One line; of torch's refusals the one that names what is refused, not the advice to switch the safety off."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [""]
    return next((line for line in lines if "GLOBAL" in line), lines[0])[:1000]


def _limit(request: dict[str, Any]) -> None:
    """Limits from here on: what torch itself has mapped so far does not count."""
    page = resource.getpagesize()
    mapped, _, _, _, _, data, _ = (int(field) * page for field in Path("/proc/self/statm").read_text().split())
    extra = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra, mapped + extra))
    resource.setrlimit(resource.RLIMIT_DATA, (data + extra, data + extra))
    seconds = int(request["cpu_s"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    # Room for the header, so that a result that is too long is told by its numbers.
    size = int(request["result_bytes"]) + (64 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _check_archive(source: Path, limit: int) -> None:
    """Refuse an archive whose members say that they are longer than the result may be."""
    if not zipfile.is_zipfile(source):
        return
    with zipfile.ZipFile(source) as archive:
        total = sum(member.file_size for member in archive.infolist())
    if total > limit:
        raise Refused(f"the archive unpacks to {total} bytes, at most {limit} are expected of its size")


def _write(content: Any, target: Path, limit: int) -> None:
    kind, length, tensors = describe(content)
    metadata = {"kind": kind, "length": str(length)}
    total, header = 0, {"__metadata__": metadata}
    for name, tensor in tensors.items():
        dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or tensor.layout.__str__() != "torch.strided" or tensor.device.type != "cpu":
            raise Refused(f"{name!r} is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}")
        end = total + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [total, end]}  # type: ignore[dict-item]
        total = end
    if total > limit:
        raise Refused(f"the tensors take {total} bytes, at most {limit} are expected of a file of this size")
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with target.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            _write_tensor(tensor, file)


def _write_tensor(tensor: Any, file: BinaryIO) -> None:
    import torch

    if tensor.numel():
        flat = tensor.detach().resolve_neg().contiguous().reshape(-1)
        file.write(memoryview(flat.view(torch.uint8).numpy()))


def describe(content: Any) -> tuple[str, int, dict[str, Any]]:
    """(kind, length, tensors) of a loaded file.

    kind: "table" (names to tensors), "list" (tensors, named by their place), "tensor" (named "0"), "none", or "other
    <type>" for anything that is not tensors alone, which then has no tensors.
    """
    import torch

    if content is None:
        return "none", 0, {}
    if isinstance(content, torch.Tensor):
        return "tensor", len(content) if content.ndim else 1, {"0": content}
    if isinstance(content, dict):
        content = _unwrapped(content)
        items: Iterator[tuple[Any, Any]] = iter(content.items())
        kind = "table"
    elif isinstance(content, (list, tuple)):
        items, kind = ((str(place), value) for place, value in enumerate(content)), "list"
    else:
        return f"other {type(content).__name__}", 0, {}
    tensors = dict(items)
    named = all(isinstance(name, str) and name != "__metadata__" for name in tensors)
    if named and all(isinstance(value, torch.Tensor) for value in tensors.values()):
        return kind, len(content), tensors
    return f"other {type(content).__name__}", len(content), {}


def _unwrapped(content: dict[Any, Any]) -> dict[Any, Any]:
    for name in WRAPPERS:
        if isinstance(content.get(name), dict):
            inner: dict[Any, Any] = content[name]
            return inner
    return content


if __name__ == "__main__":
    sys.path += [path for path in json.loads(sys.argv[1])["paths"] if path not in sys.path]
    sys.exit(main())
