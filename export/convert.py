"""Turns a pickled checkpoint into safetensors, once, without running code from it.

python -m export.convert <checkpoint> --out <directory>
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PICKLES = ("*.bin", "*.pt", "*.pth")
_KEPT_MAX_BYTES = 64 << 20  # configurations and tokenizers; nothing else belongs to a checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m export.convert", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder with pytorch_model.bin or its shards")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the converted checkpoint")
    options = parser.parse_args(argv)
    from runtime.errors import VlmError

    try:
        count = convert(options.checkpoint, options.out)
    except VlmError as problem:
        sys.stderr.write(f"error: {problem.message}\n" + (f"hint: {problem.hint}\n" if problem.hint else ""))
        return problem.exit_code
    sys.stdout.write(f"{options.out}: {count} files of weights\n")
    return 0


def convert(source: Path, out: Path) -> int:
    """Writes the tensors of every pickle below ``source`` as safetensors, and copies the other files.

    Pickles are read with torch's ``weights_only``, which makes tensors and refuses code. Shards get the names that
    transformers' index expects. Returns how many files were converted. Raises ExportError, OutputError.
    """
    from runtime.errors import ExportError, OutputError

    pickles = sorted(path for pattern in _PICKLES for path in source.rglob(pattern))
    if not pickles:
        raise ExportError(
            f"{source}: no {', '.join(_PICKLES)} in it", hint="safetensors checkpoints need no conversion"
        )
    if out.exists():
        raise OutputError(f"{out}: exists", hint="name a new folder")
    try:
        for path in sorted(source.rglob("*")):
            target = out / path.relative_to(source)
            if path in pickles or not path.is_file() or path.stat().st_size > _KEPT_MAX_BYTES:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        for folder in sorted({path.parent for path in pickles}):
            inside = [path for path in pickles if path.parent == folder]
            _convert_folder(inside, out / folder.relative_to(source))
    except OSError as problem:
        raise OutputError(
            f"{out}: cannot be written: {problem.strerror}", hint="check disk and permissions"
        ) from problem
    return len(pickles)


def _convert_folder(pickles: Sequence[Path], target: Path) -> None:
    import json

    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    for number, path in enumerate(pickles, 1):
        shard = f"model-{number:05d}-of-{len(pickles):05d}.safetensors" if len(pickles) > 1 else "model.safetensors"
        tensors = _read(path)
        save_file(tensors, target / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, shard)
    for stale in target.glob("*.bin.index.json"):
        stale.unlink()
    if len(pickles) > 1:
        index = {"metadata": {}, "weight_map": where}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    import pickle

    import torch

    from runtime.errors import ExportError

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise ExportError(f"{path}: holds more than tensors, or is damaged: {reason}") from problem
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ExportError(f"{path}: is no table of tensors", hint="only model weights can be converted")
    # A tensor of its own each: safetensors refuses storage that two names share.
    return {str(name): value.detach().clone().contiguous() for name, value in content.items()}


if __name__ == "__main__":
    sys.exit(main())
