"""Reading a cubin, which is an ELF file: its kernels and what each of them takes of a multiprocessor.

The attribute numbers are those that cuobjdump and the open-source tools around it use (EIATTR_*); the tests compare
with what ptxas itself reports.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kernels.errors import ImageError

_MAGIC = b"\x7fELF\x02\x01"
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SHT_SYMTAB, _SHT_NOBITS = 2, 8
_REGISTERS, _FRAME = 0x2F, 0x11  # EIATTR_REGCOUNT, EIATTR_FRAME_SIZE
_FORMAT_SIZED = 4  # EIFMT_SVAL: a u16 length and that many bytes follow; others hold their value in those two bytes
_SPILLS = re.compile(r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Resources:
    """Per thread: ``registers``, ``local_bytes`` (stack), ``spill_bytes`` (stores and loads); per block:
    ``shared_bytes`` (static; from sm_90 on with what the driver reserves)."""

    registers: int
    shared_bytes: int
    local_bytes: int
    spill_bytes: int


@dataclass(frozen=True, slots=True)
class Section:
    """``size`` is that in memory: a section without contents in the file has an empty ``data``."""

    name: str
    kind: int
    size: int
    data: bytes


def sections(cubin: bytes) -> list[Section]:
    """All sections of a cubin. Raises ImageError when it is not one, or is cut short."""
    if not cubin.startswith(_MAGIC):
        raise ImageError("not a cubin: it does not begin as a 64-bit ELF file")
    try:
        (offset,) = struct.unpack_from("<Q", cubin, 40)
        size, count, names_at = struct.unpack_from("<HHH", cubin, 58)
        headers = [_SECTION.unpack_from(cubin, offset + index * size) for index in range(count)]
        names = cubin[headers[names_at][4] :]
        return [_section(cubin, names, head) for head in headers]
    except (struct.error, IndexError, ValueError) as problem:
        raise ImageError(f"a damaged cubin of {len(cubin)} bytes: {problem}") from problem


def resources(cubin: bytes, log: str) -> dict[str, Resources]:
    """What each kernel of a cubin takes; spills are in the compiler's log alone. ImageError when one has no report."""
    parts = {section.name: section for section in sections(cubin)}
    spills = {name: int(stores) + int(loads) for name, stores, loads in _SPILLS.findall(log)}
    names = _symbols(parts)
    registers = _attribute(parts, names, _REGISTERS)
    frames = _attribute(parts, names, _FRAME)
    found = {}
    for name in sorted(part.removeprefix(".text.") for part in parts if part.startswith(".text.")):
        if name not in registers or name not in spills:
            raise ImageError(f"{name}: neither the cubin nor the compiler's log says what it takes")
        shared = parts.get(f".nv.shared.{name}")
        found[name] = Resources(registers[name], shared.size if shared else 0, frames.get(name, 0), spills[name])
    return found


def _section(cubin: bytes, names: bytes, header: tuple[int, ...]) -> Section:
    name, kind, _flags, _address, start, size = header[:6]
    return Section(_text(names, name), kind, size, b"" if kind == _SHT_NOBITS else cubin[start : start + size])


def _text(table: bytes, start: int) -> str:
    return table[start : table.index(b"\0", start)].decode()


def _symbols(parts: Mapping[str, Section]) -> list[str]:
    strings = parts[".strtab"].data
    table = next(part.data for part in parts.values() if part.kind == _SHT_SYMTAB)
    return [_text(strings, entry[0]) for entry in _SYMBOL.iter_unpack(table)]


def _attribute(parts: Mapping[str, Section], names: list[str], wanted: int) -> dict[str, int]:
    """One number per kernel of the section that speaks of all of them: pairs (symbol, value)."""
    found = {}
    info = parts.get(".nv.info")  # not there when the cubin has no kernel
    for attribute, value in _attributes(info.data if info else b""):
        if attribute == wanted and len(value) == 8:
            symbol, number = struct.unpack("<II", value)
            found[names[symbol]] = number
    return found


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(data):
        form, attribute, length = struct.unpack_from("<BBH", data, position)
        position += 4
        if form == _FORMAT_SIZED:
            yield attribute, data[position : position + length]
            position += length
