"""Where an NVRTC library and CUDA's headers lie: wheels of this environment, given folders, an installed toolkit."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# What the wheels of the package index unpack to: (library folder, header folder), CUDA 13 and CUDA 12.
_WHEELS = (
    ("nvidia/cu13/lib", "nvidia/cu13/include"),
    ("nvidia/cuda_nvrtc/lib", "nvidia/cuda_runtime/include"),
)
_SYSTEM = (
    ("lib64", "include"),
    ("targets/*/lib", "targets/*/include"),
    ("lib/*-linux-gnu", "include"),  # a distribution's own package, below /usr
)
_LIBRARY = re.compile(r"libnvrtc\.so\.(\d+)(?:\.[\d.]+)?")
HEADER = "cuda_fp16.h"


@dataclass(frozen=True, slots=True)
class Toolkit:
    """``includes`` is None where CUDA's headers are not beside the library."""

    library: Path
    major: int
    includes: Path | None


def find_toolkits(folders: Sequence[Path] = ()) -> list[Toolkit]:
    """All that are here, in the order to try them: ``folders`` (as filled by pip --target), sys.path, the system."""
    wheels = [*folders, *(Path(entry) for entry in sys.path if entry)]
    found = [_toolkits(root, _WHEELS) for root in wheels] + [_toolkits(root, _SYSTEM) for root in _system_roots()]
    unique: dict[Path, Toolkit] = {}
    for toolkit in (toolkit for group in found for toolkit in group):
        unique.setdefault(toolkit.library.resolve(), toolkit)
    return list(unique.values())


def _system_roots() -> list[Path]:
    named = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [*named, Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True), Path("/usr")]


def _toolkits(root: Path, layouts: Iterable[tuple[str, str]]) -> Iterator[Toolkit]:
    for library_folder, header_folder in layouts:
        for library in sorted(root.glob(f"{library_folder}/libnvrtc.so.*")):
            match = _LIBRARY.fullmatch(library.name)
            if match:
                includes = next((path.parent for path in sorted(root.glob(f"{header_folder}/{HEADER}"))), None)
                yield Toolkit(library, int(match[1]), includes)
