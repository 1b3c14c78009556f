"""The structures of the host lie in memory as those of the kernels do: a compiled kernel tells its offsets."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from kernels import state
from kernels.driver import open_device
from kernels.emulator import CSRC, build_library

STRUCTURES = {
    "DecodeState": state.DECODE_STATE,
    "SampleParams": state.SAMPLE_PARAMS,
    "RingEntry": state.RING_ENTRY,
    "HeadPartial": state.HEAD_PARTIAL,
}
CONSTANTS = ["MAX_STEP_TOKENS", *(name for name in vars(state) if name.startswith("STATUS_"))]


def questions() -> list[str]:
    """C expressions: constants, then per structure its size, and of each field offset and size."""
    found = list(CONSTANTS)
    for name, dtype in STRUCTURES.items():
        found.append(f"sizeof({name})")
        for field in dtype.names or ():
            found += [f"offsetof({name}, {field})", f"sizeof((({name}*)nullptr)->{field})"]
    return found


def answers() -> list[int]:
    """The same of the host's dtypes."""
    found = [int(getattr(state, name)) for name in CONSTANTS]
    for dtype in STRUCTURES.values():
        found.append(dtype.itemsize)
        for field in dtype.names or ():
            kind, offset = (dtype.fields or {})[field][:2]
            found += [int(offset), kind.itemsize]
    return found


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
def test_fields_lie_where_the_kernels_have_them(tmp_path: Path) -> None:
    asked = questions()
    lines = "\n".join(f"  out[{index}] = (long long)({question});" for index, question in enumerate(asked))
    source = tmp_path / "layout.cu"
    source.write_text(
        '#include <stddef.h>\n#include "ptx.cuh"\n#include "state.cuh"\n'
        f'extern "C" __global__ void layout(long long* out) {{\n{lines}\n}}\nCUDA_KERNEL_EXPORT(layout)\n'
    )
    device = open_device("emulator")
    stream, out, found = device.create_stream(), device.alloc(8 * len(asked)), np.zeros(len(asked), np.int64)
    module = device.load_module(build_library(source))
    module.function("layout").launch((1, 1, 1), (1, 1, 1), 0, stream, "P", [out.ptr])
    device.copy_out(found, out.ptr, stream)
    device.close()
    assert dict(zip(asked, found.tolist(), strict=True)) == dict(zip(asked, answers(), strict=True))


def test_every_structure_and_field_of_the_header_is_there() -> None:
    text = re.sub(r"//.*", "", (CSRC / "state.cuh").read_text(encoding="utf-8"))
    found = {
        name: tuple(re.findall(r"(\w+)(?:\[\w+\])?;", body))
        for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.DOTALL)
    }
    assert found == {name: dtype.names for name, dtype in STRUCTURES.items()}
    assert set(re.findall(r"STATUS_\w+", text)) == set(CONSTANTS) - {"MAX_STEP_TOKENS"}
