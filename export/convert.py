"""Turns a pickled checkpoint into safetensors, once, without running code from it.

python -m export.convert <checkpoint> --out <directory>

Every .bin, .pt, .pth and .ckpt file is read as tensors alone, in a child process with limits (``models.torch_files``).
Weights become model.safetensors or numbered shards with an index; an adapter, an activation-scale file or a
linearclip range keeps its own name. Dtypes and values stay as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from export.command import out, run_command
from export.progress import Progress

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_KEPT_MAX_BYTES = 64 << 20  # configurations and tokenizers; nothing else belongs to a checkpoint
_TRAINING = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state|trainer_state)\b.*", re.IGNORECASE)
_SHARD = re.compile(r"^(.+)-(\d{5})-of-(\d{5})$")
# One file that holds a model: transformers' name, Meta's, and llm-awq's (llama-w4-g128-awq-v2.pt).
_WHOLE = re.compile(r"^(pytorch_model|model|consolidated)\b|awq|-v2$", re.IGNORECASE)
_RANGE = re.compile(r"min_?max", re.IGNORECASE)


@dataclass(frozen=True)
class Conversion:
    """What was written: ``files`` and ``tensors`` converted, their ``bytes``, and files left out with the reason."""

    out: str
    files: int
    tensors: int
    bytes: int
    left_out: dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m export.convert", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder with pytorch_model.bin, its shards, or llm/*.pt")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the converted checkpoint")
    parser.add_argument("--json", action="store_true", help="the result as one JSON line on standard output")
    options = parser.parse_args(argv)
    return run_command(lambda: _run(options), as_json=options.json, interrupted="interrupted; nothing was written")


def _run(options: argparse.Namespace) -> None:
    result = convert(options.checkpoint, options.out, Progress())
    if options.json:
        out(json.dumps(asdict(result)))
        return
    for name, reason in result.left_out.items():
        out(f"left out {name}: {reason}")
    out(f"{result.out}: {result.tensors} tensors from {result.files} files")


def convert(source: Path, out: Path, progress: Progress | None = None) -> Conversion:
    """Writes the tensors of every pickle below ``source`` as safetensors into ``out``, and copies the other files.

    ``out`` is written beside its place and renamed at the end. A training state, weights that stand there as
    safetensors too, and other files over 64 MiB are left out and named. Raises ExportError for a file that holds more
    than tensors and for missing shards, OutputError when ``out`` exists or the disk does not take it.
    """
    from runtime.errors import ExportError, OutputError

    pickles = sorted(path for path in source.rglob("*") if path.suffix in _PICKLES and path.is_file())
    if not pickles:
        raise ExportError(
            f"{source}: no {', '.join('*' + s for s in _PICKLES)} in it",
            hint="safetensors checkpoints need no conversion",
        )
    if out.exists():
        raise OutputError(f"{out}: exists", hint="name a new folder")
    building = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        result = _Writer(source, building, progress or Progress()).run(pickles, out)
        building.chmod(0o755)
        building.rename(out)
    except OSError as problem:
        raise OutputError(
            f"{out}: cannot be written: {problem.strerror}", hint="check disk and permissions"
        ) from problem
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
    return result


class _Writer:
    """One conversion into a folder that nobody sees yet."""

    def __init__(self, source: Path, building: Path, progress: Progress) -> None:
        self._source, self._building, self._progress = source, building, progress
        self._left_out: dict[str, str] = {}
        self._files = self._tensors = self._bytes = 0
        self._done_bytes = self._all_bytes = 0

    def run(self, pickles: Sequence[Path], out: Path) -> Conversion:
        self._copy_others(pickles)
        targets = {path: name for folder in _folders(pickles) for path, name in self._plan(folder, pickles).items()}
        self._all_bytes = sum(path.stat().st_size for path in targets)
        self._progress.begin("converting")
        for path, name in targets.items():
            self._convert(path, self._building / path.parent.relative_to(self._source) / name)
        self._progress.end()
        for folder in _folders(targets):
            _write_index(
                self._building / folder.relative_to(self._source), [n for p, n in targets.items() if p.parent == folder]
            )
        return Conversion(str(out), self._files, self._tensors, self._bytes, self._left_out)

    def _copy_others(self, pickles: Sequence[Path]) -> None:
        stale = {path.name + ".index.json" for path in pickles} | {"pytorch_model.bin.index.json"}
        for path in sorted(self._source.rglob("*")):
            if path in pickles or not path.is_file() or path.name in stale:
                continue
            if path.suffix != ".safetensors" and path.stat().st_size > _KEPT_MAX_BYTES:
                self._leave_out(path, f"{path.stat().st_size >> 20} MiB of something that is no weight file")
                continue
            target = self._building / path.relative_to(self._source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def _plan(self, folder: Path, pickles: Sequence[Path]) -> dict[Path, str]:
        """The new name of each pickle of ``folder`` that is converted."""
        inside = [path for path in pickles if path.parent == folder]
        for path in [path for path in inside if _TRAINING.match(path.name)]:
            self._leave_out(path, "a training state")
            inside.remove(path)
        shards = [path for path in inside if _SHARD.match(path.stem)]
        whole = [path for path in inside if path not in shards and _WHOLE.search(path.stem)]
        if not shards and not whole and len(inside) == 1 and not _is_side_file(inside[0]):
            whole = inside
        _check_one_model(folder, shards, whole)
        if any(folder.glob("*.safetensors")):
            for path in shards + whole:
                self._leave_out(path, "the folder's weights stand there as safetensors")
                inside.remove(path)
        names = {path: f"{path.stem}.safetensors" for path in inside}
        names |= {path: f"model-{'-of-'.join(_numbers(path))}.safetensors" for path in shards if path in names}
        return names | {path: "model.safetensors" for path in whole if path in names}

    def _convert(self, path: Path, target: Path) -> None:
        from models.torch_files import convert_torch_file
        from runtime.errors import ExportError

        target.parent.mkdir(parents=True, exist_ok=True)
        if _RANGE.search(path.stem):
            _convert_range(path, target)
        else:
            kind = convert_torch_file(path, target).kind
            if kind != "table":
                raise ExportError(
                    f"{path}: is no table of tensors but {kind}", hint="only model weights can be converted"
                )
        self._files += 1
        self._tensors += len(_names(target))
        self._bytes += target.stat().st_size
        self._done_bytes += path.stat().st_size
        self._progress.update(self._done_bytes, self._all_bytes)

    def _leave_out(self, path: Path, reason: str) -> None:
        self._left_out[str(path.relative_to(self._source))] = reason


def _folders(paths: Iterable[Path]) -> list[Path]:
    return sorted({path.parent for path in paths})


def _is_side_file(path: Path) -> bool:
    """A file that belongs to a model without being its weights: a projector alone, a range, activation scales."""
    return bool(re.search(r"projector|scale|min_?max|adapter", path.stem, re.IGNORECASE))


def _numbers(path: Path) -> tuple[str, str]:
    match = _SHARD.match(path.stem)
    assert match is not None
    return match[2], match[3]


def _check_one_model(folder: Path, shards: Sequence[Path], whole: Sequence[Path]) -> None:
    from runtime.errors import ExportError

    if len(whole) + bool(shards) > 1:
        several = ", ".join(path.name for path in [*whole, *shards[:1]])
        raise ExportError(f"{folder}: several files of weights: {several}", hint="keep one of them in the folder")
    found = {_numbers(path)[0] for path in shards}
    for number in range(1, int(_numbers(shards[0])[1]) + 1) if shards else ():
        if f"{number:05d}" not in found:
            raise ExportError(
                f"{folder}: shard {number} of {_numbers(shards[0])[1]} is missing", hint="copy the missing shard"
            )


def _convert_range(path: Path, target: Path) -> None:
    """The two tensors of a linearclip range as ``min`` and ``max``."""
    from safetensors.torch import save_file

    from models.projector import read_range
    from runtime.errors import ExportError

    try:
        minimum, maximum = read_range(path)
    except (AssertionError, TypeError, AttributeError) as problem:
        raise ExportError(f"{path}: is no range: {problem}", hint="a range is two tensors") from problem
    save_file({"min": minimum.clone(), "max": maximum.clone()}, target, metadata={"format": "pt"})


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as opened:
        return list(opened.keys())


def _write_index(folder: Path, converted: Sequence[str]) -> None:
    """transformers' index where a reader would not find the weights by their name alone."""
    from runtime.errors import ExportError

    weights = sorted(name for name in converted if re.match(r"model(-\d{5}-of-\d{5})?\.safetensors$", name))
    if not weights or (len(weights) == 1 and len(converted) == 1):
        return
    where: dict[str, str] = {}
    for file in weights:
        for name in _names(folder / file):
            if name in where:
                raise ExportError(f"{name!r} is in {where[name]} and in {file}", hint="copy the checkpoint again")
            where[name] = file
    size = sum((folder / file).stat().st_size for file in weights)
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
