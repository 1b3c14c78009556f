#!/usr/bin/env python3
"""Machine instructions per mma in the inner loops of the sm_87 cubins, counted in the cubins themselves.

    python -m kernels.build --arch 87
    python scripts/bench/sass.py --out scripts/bench/results/sass.jsonl

An inner loop is what a backward branch encloses; of those with tensor-core instructions, the one with the most. One
m16n8k16 takes 16 x 16 weights of the m operand in decode, 8 a lane: instructions per mma are instructions per 8
weights. All instructions of the loop are counted, also those of a part that a predicate may pass by: a static count
is of the longest way round. Nothing is run; no GPU and no disassembler is needed.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from kernels.nvrtc.cubin import sections  # noqa: E402
from kernels.nvrtc.store import COMPILED, read_manifest  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402

ARCH = "sm_87"
GOAL = 17.0  # per 8 weights in decode
# Opcodes are the low 12 bits of an instruction's 128; with these, bits 9 to 11 say where operands come from.
BRANCH, MMA = 0x947, 0x23C
KINDS = {"loads": (0x981,), "shared_loads": (0x984, 0x83B), "async_copies": (0xFAE, 0x9AE)}
SOURCES = ("gemv", "head", "gemm")


@dataclass(frozen=True)
class Loop:
    """``instructions`` of one turn and how many of them are mma, global loads, shared loads and asynchronous copies."""

    instructions: int
    mma: int
    loads: int
    shared_loads: int
    async_copies: int

    @property
    def per_mma(self) -> float:
        """Instructions per mma."""
        return self.instructions / self.mma


def inner_loop(code: bytes) -> Loop | None:
    """The loop with the most mma of a kernel's machine code (the shortest of equals); None without such a loop."""
    words = list(struct.iter_unpack("<QQ", code))
    opcodes = [low & 0xFFF for low, _ in words]
    found = []
    for at, (low, high) in enumerate(words):
        start = at + 1 + _offset(low, high) // 16
        if opcodes[at] == BRANCH and 0 <= start <= at:
            body = opcodes[start : at + 1]
            counts = {kind: sum(body.count(code) for code in codes) for kind, codes in KINDS.items()}
            found.append(Loop(len(body), body.count(MMA), **counts))
    return max(found, key=lambda loop: (loop.mma, -loop.instructions)) if any(loop.mma for loop in found) else None


def _offset(low: int, high: int) -> int:
    """Bytes from the next instruction to the target of a branch: 48 bits from bit 34 on, in units of 4, signed."""
    field = ((low >> 34) | ((high & 0x3FFFF) << 30)) & (2**48 - 1)
    return 4 * (field - 2**48 if field >> 47 else field)


def loops(folder: Path) -> Iterator[tuple[str, str, Loop]]:
    """(source, entry, loop) for the kernels of the products in a folder of images."""
    for name in sorted(read_manifest(folder)):
        source = name.partition(".")[0]
        if name == f"{source}.{ARCH}.cubin" and source in SOURCES:
            for section in sections((folder / name).read_bytes()):
                loop = inner_loop(section.data) if section.name.startswith(".text.") else None
                if loop is not None:
                    yield source, section.name.removeprefix(".text."), loop


def main() -> int:
    parser = argparse.ArgumentParser(description="Instructions per mma in the inner loops of the sm_87 cubins.")
    parser.add_argument("--images", type=Path, default=COMPILED, help="folder that kernels.build wrote")
    parser.add_argument("--out", type=Path, help="append the lines there too")
    options = parser.parse_args()
    manifest = read_manifest(options.images)
    counted = list(loops(options.images))
    if not counted:
        print(f"error: {options.images} has no cubins for {ARCH}\nhint: python -m kernels.build", file=sys.stderr)
        return 4
    facts = environment()
    for source, entry, loop in counted:
        row = {
            "bench": "sass",
            "arch": ARCH,
            "nvrtc": manifest[f"{source}.{ARCH}.cubin"].nvrtc,
            "entry": entry,
            **asdict(loop),
            "instructions_per_mma": round(loop.per_mma, 2),
        }
        if source != "gemm":
            row |= {"instructions_per_8_weights": row["instructions_per_mma"], "goal": GOAL}
        write_line({**row, "commit": facts["commit"], "date": facts["date"]}, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
