"""``python -m runtime.doctor``: versions, which engines can run here and why not, limits of this machine.

Libraries are looked up, not imported, so that the report also comes when one of them is broken. Exit status 0 when at
least one engine can run, 4 when none can or the bundle that was named cannot be used.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol

from runtime import machine
from runtime.availability import ONNXRUNTIME, OPENCV, Engine, engines, installed, versions
from runtime.errors import BundleError, VlmError

LOW_DISK_BYTES = 1 << 30
GIB = 1 << 30

Status = Literal["ok", "note", "problem"]


class BoardFacts(Protocol):
    """What an entry point of ``vlm.board`` returns for a board that it knows."""

    @property
    def model(self) -> str: ...
    @property
    def l4t(self) -> tuple[int, ...] | None: ...
    @property
    def memory_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at and found, why it matters, and the exact fix."""

    name: str
    status: Status
    what: str
    why: str = ""
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All that the doctor found."""

    versions: dict[str, str]
    engines: tuple[Engine, ...]
    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        unusable = any(check.name == "bundle" and check.status == "problem" for check in self.checks)
        return 0 if any(engine.can_run for engine in self.engines) and not unusable else BundleError.exit_code


def clashes() -> list[Check]:
    """Find distributions that overwrite one another's files."""
    found = []
    for names, why in (
        (ONNXRUNTIME, "both write the package onnxruntime, and the one installed last wins in parts"),
        (OPENCV, "all of them write the package cv2, and the one installed last wins in parts"),
    ):
        present = [name for name in names if installed(name)]
        if len(present) > 1:
            drop = " ".join(present)
            fix = f"pip uninstall {drop}, then install the one you want: pip install {present[0]}"
            found.append(Check(f"{names[0]} twice", "problem", f"{' and '.join(present)} are installed", why, fix))
    return found


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def limits(cache: Path) -> list[Check]:
    """Report cores, memory and the disk of the cache."""
    cpu, memory = machine.cpu(), machine.memory()
    quota = "" if cpu.quota is None else f", a control group grants {cpu.quota:g}"
    checks = [Check("cores", "ok", f"{cpu.cores} present, {cpu.allowed} allowed by the affinity mask{quota}")]
    if cpu.quota is not None and cpu.quota < cpu.allowed:
        why = "more threads than granted cores are stopped by the kernel in the middle of a token"
        checks.append(
            Check(
                "threads",
                "note",
                f"{cpu.quota:g} cores granted",
                why,
                f"pass threads={max(1, int(cpu.quota))} to Session.open",
            )
        )
    if memory.total_bytes is not None:
        available = "" if memory.available_bytes is None else f", {_gib(memory.available_bytes)} available"
        limit = "" if memory.limit_bytes is None else f", a control group grants {_gib(memory.limit_bytes)}"
        checks.append(Check("memory", "ok", f"{_gib(memory.total_bytes)}{available}{limit}"))
    free = machine.disk_free_bytes(cache)
    if free < LOW_DISK_BYTES:
        why = f"less than {_gib(LOW_DISK_BYTES)}: plans and hashes are kept there"
        checks.append(
            Check(
                "cache",
                "problem",
                f"{_gib(free)} free at {cache}",
                why,
                "free space, or set XDG_CACHE_HOME to a folder on another disk",
            )
        )
    else:
        checks.append(Check("cache", "ok", f"{_gib(free)} free at {cache}"))
    return checks


def board() -> Check:
    """Ask the entry points ``vlm.board`` what board this is."""
    found = sorted(metadata.entry_points(group="vlm.board"), key=lambda point: point.name)
    for point in found:
        try:
            facts: BoardFacts | None = point.load()()
        except (ImportError, AttributeError, VlmError) as error:
            fix = getattr(error, "hint", None) or "reinstall the distribution that offers it"
            return Check("board", "problem", f"{point.value} failed: {error}", "limits of the board stay unknown", fix)
        if facts is not None:
            l4t = "unknown release" if facts.l4t is None else f"L4T {'.'.join(str(part) for part in facts.l4t)}"
            return Check("board", "ok", f"{facts.model}, {l4t}, {_gib(facts.memory_bytes)}")
    if not found:
        return Check("board", "note", "not looked for", "no installed distribution offers vlm.board", "pip install .")
    return Check("board", "ok", "none: this is not a Jetson")


def kernels_check() -> Check:
    """Say whether compiled kernels are installed, or what will compile them."""
    from kernels.images import installed_images
    from kernels.nvrtc.compiler import install_hint
    from kernels.nvrtc.sources import source_files
    from kernels.nvrtc.toolkit import find_toolkits

    states = [installed_images(source) for source in source_files()]
    whole = [arch for arch in states[0] if all(state[arch] is None for state in states)]
    if whole:
        return Check("kernels", "ok", f"compiled for {', '.join(whole)}")
    if toolkits := find_toolkits():
        names = " and ".join(sorted(toolkit.library.name for toolkit in toolkits))
        why = "the first start on a GPU compiles them, which takes a while, and keeps the result"
        return Check("kernels", "note", f"not compiled ahead; found {names}", why, "python -m kernels.build")
    why = "the decoder 'cuda' cannot run without compiled kernels"
    return Check("kernels", "note", "not compiled ahead, and there is no NVRTC", why, install_hint(12))


def bundle_check(path: str) -> Check:
    """Open a bundle and check its files."""
    from runtime.bundle import load_bundle

    try:
        manifest = load_bundle(path).manifest
    except VlmError as error:
        return Check("bundle", "problem", error.message, "nothing can run from it", error.hint)
    size = sum(entry.bytes for entry in manifest.files.values())
    return Check("bundle", "ok", f"{manifest.source.name}: {len(manifest.files)} files, {size / 1e6:.1f} MB, whole")


def examine(bundle: str | None = None) -> Report:
    """Look at everything."""
    from runtime.bundle import cache_directory

    checks = [*limits(cache_directory()), board(), kernels_check(), *clashes()]
    if not any(installed(name) for name in OPENCV):
        checks.append(
            Check(
                "opencv",
                "note",
                "not installed",
                "video files need it",
                "pip install 'jetson-vlm[video]'",
            )
        )
    if bundle is not None:
        checks.append(bundle_check(bundle))
    return Report(versions(), engines(), tuple(checks))


def text(report: Report) -> str:
    """Render the report for people."""
    lines = ["versions"] + [f"  {name:24} {version}" for name, version in report.versions.items()] + ["engines"]
    for engine in report.engines:
        lines.append(f"  {engine.name:24} {'can run' if engine.can_run else 'cannot run'}: {engine.runs}")
        lines += [f"      why: {reason}" for reason in engine.why_not]
        lines += [] if engine.can_run or engine.fix is None else [f"      fix: {engine.fix}"]
    lines.append("checks")
    for check in report.checks:
        lines.append(f"  {check.name:24} {check.status}: {check.what}")
        lines += [f"      why: {check.why}"] if check.why else []
        lines += [f"      fix: {check.fix}"] if check.fix else []
    return "\n".join(lines) + "\n"


def as_json(report: Report) -> str:
    """Render the report for scripts."""
    value = {
        "schema": 1,
        "ok": report.exit_code == 0,
        "versions": report.versions,
        "engines": [asdict(engine) | {"can_run": engine.can_run} for engine in report.engines],
        "checks": [asdict(check) for check in report.checks],
    }
    return json.dumps(value, indent=2) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; the exit status says whether anything can run here."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.doctor", description="Say what can run on this machine, and what to do about the rest."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--bundle", metavar="DIR", help="also check this bundle")
    options = parser.parse_args(argv)
    report = examine(options.bundle)
    try:
        sys.stdout.write(as_json(report) if options.json else text(report))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`| head`); what is left in the buffer goes nowhere instead of raising at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
