"""Compile every .cu file of csrc for the boards of a release: ``python -m kernels.build --arch 87 90 110``.

Cubins for the named SMs and PTX for all others go to kernels/compiled with a manifest, as package data. NVRTC from the
package index does it: no CUDA toolkit, GPU or driver is needed. ``--check`` compares what the kernels take of a
multiprocessor with the committed table, which allows no spills; ``--table`` writes that table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

from kernels.errors import CompileError, ImageError, KernelError
from kernels.nvrtc import registers, store
from kernels.nvrtc.compiler import OPTIONS, Nvrtc, install_hint
from kernels.nvrtc.cubin import resources
from kernels.nvrtc.sources import Source, read_source, source_files
from kernels.nvrtc.targets import CUBINS, PTX, Target
from kernels.nvrtc.toolkit import Toolkit, find_toolkits

Job = tuple[Toolkit, Source, Target]
EXIT_OK, EXIT_CONFIGURATION, EXIT_KERNELS, EXIT_DISK = 0, 3, 4, 8


def compilers(targets: Iterable[Target], folders: Sequence[Path] = ()) -> dict[tuple[int, int], Nvrtc]:
    """A loaded NVRTC of every version that ``targets`` need. CompileError with the command that installs it."""
    toolkits = find_toolkits(folders)
    found: dict[tuple[int, int], Nvrtc] = {}
    for wanted in sorted({target.nvrtc for target in targets}):
        seen = []
        for toolkit in (toolkit for toolkit in toolkits if toolkit.major == wanted[0]):
            compiler = Nvrtc(toolkit)
            seen.append(f"{compiler.version[0]}.{compiler.version[1]} at {toolkit.library}")
            if compiler.version == wanted and toolkit.includes is not None:
                found[wanted] = compiler
                break
        else:
            here = f" (here: {'; '.join(seen)})" if seen else ""
            raise CompileError(
                f"NVRTC {wanted[0]}.{wanted[1]} with CUDA's headers was not found{here}", hint=install_hint(wanted[0])
            )
    return found


def build(
    targets: Sequence[Target], out: Path, folders: Sequence[Path] = (), names: Sequence[str] = (), *, jobs: int = 1
) -> list[str]:
    """Bring the images in ``out`` up to date and return the names of those that were compiled anew.

    names: of files in csrc; all of them when empty. Images of sources that are gone are removed. jobs: processes that
    compile, since NVRTC does one thing at a time. Raises CompileError, ImageError, OSError.
    """
    loaded = compilers(targets, folders)
    out.mkdir(parents=True, exist_ok=True)
    entries = _kept(_known(out), out)
    work = []
    for source in (read_source(name) for name in names or source_files()):
        for target in targets:
            name = store.image_name(source, target)
            if not _is_current(entries.get(name), source, target, out / name):
                work.append((loaded[target.nvrtc].toolkit, source, target))
    for (_, source, target), (image, entry) in zip(work, _compiled(work, jobs), strict=True):
        name = store.image_name(source, target)
        store.write_atomically(out / name, image)
        entries[name] = entry
    store.write_manifest(out, entries)
    return [store.image_name(source, target) for _, source, target in work]


def _compiled(work: Sequence[Job], jobs: int) -> Iterator[tuple[bytes, store.Entry]]:
    """The results in the order of ``work``; the first refusal ends it."""
    if min(jobs, len(work)) < 2:
        yield from map(_compile, work)
        return
    with ProcessPoolExecutor(min(jobs, len(work)), mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(_compile, work)
        except CompileError:
            pool.shutdown(cancel_futures=True)
            raise


def _known(out: Path) -> dict[str, store.Entry]:
    """What the folder's manifest lists; nothing when it is damaged, so that all is compiled again."""
    try:
        return store.read_manifest(out)
    except ImageError:
        return {}


def _kept(entries: Mapping[str, store.Entry], out: Path) -> dict[str, store.Entry]:
    """Entries whose source still exists; the files of others are deleted."""
    stems = {name.removesuffix(".cu") for name in source_files()}
    for name in (name for name in entries if name.partition(".")[0] not in stems):
        (out / name).unlink(missing_ok=True)
    return {name: entry for name, entry in entries.items() if name.partition(".")[0] in stems}


def _is_current(entry: store.Entry | None, source: Source, target: Target, path: Path) -> bool:
    return (
        entry is not None
        and (entry.source_sha256, entry.nvrtc, entry.options) == (source.digest, _version(target), OPTIONS)
        and path.is_file()
        and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
    )


def _version(target: Target) -> str:
    return f"{target.nvrtc[0]}.{target.nvrtc[1]}"


def _compile(job: Job) -> tuple[bytes, store.Entry]:
    toolkit, source, target = job
    made = _loaded(toolkit).compile(source, target.arch)
    kernels = resources(made.image, made.log) if target.suffix.endswith("cubin") else {}
    digest = hashlib.sha256(made.image).hexdigest()
    entry = store.Entry(source.digest, digest, len(made.image), _version(target), OPTIONS, kernels)
    return made.image, entry


@lru_cache(maxsize=4)
def _loaded(toolkit: Toolkit) -> Nvrtc:
    """Loading takes longer than some of the files; a process that compiles does it once."""
    return Nvrtc(toolkit)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parsed = argparse.ArgumentParser(prog="python -m kernels.build", description="Compile the kernels for a release.")
    parsed.add_argument(
        "--arch", nargs="+", type=int, choices=sorted(CUBINS), default=sorted(CUBINS), help="SMs (default: all)"
    )
    parsed.add_argument("--source", nargs="+", default=[], metavar="FILE.cu", help="of csrc (default: all)")
    parsed.add_argument("--out", type=Path, default=store.COMPILED, help="default: kernels/compiled")
    parsed.add_argument("--no-ptx", action="store_true", help="leave out the PTX for other GPUs")
    parsed.add_argument(
        "--nvrtc", nargs="+", type=Path, default=[], metavar="DIR", help="folders that pip --target filled"
    )
    parsed.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: the CPUs)")
    parsed.add_argument("--check", action="store_true", help="compare with the committed table of registers")
    parsed.add_argument("--table", action="store_true", help="write that table")
    parsed.add_argument("--json", action="store_true", help="print one JSON line")
    return parsed


def main(argv: Sequence[str] | None = None) -> int:
    """Build, then compare or write the table when asked to."""
    options = parser().parse_args(argv)
    targets = [CUBINS[arch] for arch in sorted(set(options.arch))] + ([] if options.no_ptx else [PTX])
    try:
        compiled = build(targets, options.out, options.nvrtc, options.source, jobs=options.jobs)
        entries = store.read_manifest(options.out)
        if options.table:
            registers.write_table(entries)
        problems = registers.differences(entries, whole=not options.source) if options.check else []
    except OSError as problem:
        _say(f"error: {problem}", error=True)
        return EXIT_DISK
    except KernelError as problem:
        _say(f"error: {problem.message}" + (f"\nhint: {problem.hint}" if problem.hint else ""), error=True)
        return EXIT_CONFIGURATION if isinstance(problem, CompileError) and problem.hint else EXIT_KERNELS
    _report(options.json, options.out, entries, compiled, problems)
    return EXIT_KERNELS if problems else EXIT_OK


def _report(
    as_json: bool, out: Path, entries: Mapping[str, store.Entry], compiled: Sequence[str], problems: Sequence[str]
) -> None:
    total = sum(entry.bytes for entry in entries.values())
    if as_json:
        summary = {"out": str(out), "images": len(entries), "bytes": total, "compiled": compiled, "problems": problems}
        _say(json.dumps(summary))
        return
    _say(f"{out}: {len(entries)} images of {total} bytes, {len(compiled)} compiled now")
    for problem in problems:
        _say(f"error: {problem}", error=True)


def _say(line: str, *, error: bool = False) -> None:
    (sys.stderr if error else sys.stdout).write(line + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
