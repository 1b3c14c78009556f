"""Build bundles and caption a video with them; scripts/demo starts this with the Python it found.

It runs the two commands that a user would type, prints each before it runs, and adds nothing of its own to the path.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from environment import ROOT, SetupError, ensure, venv_path

CHECKPOINTS = ("models/demo/demo-llava", "models/demo/demo-nvila")
VIDEO = "runtime/demo/demo.avi"
TRUTH = "runtime/demo/demo_truth.jsonl"
PROMPT = "Describe the image."
OUT = "build/demo"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Build a bundle from a checkpoint and stream captions of a video. Without arguments: both embedded "
        "models on the embedded video, scored against its ground truth.",
    )
    parser.add_argument("model", nargs="?", help="a checkpoint folder to build from, or a bundle to use as it is")
    parser.add_argument("--source", help=f"what to caption: a file, glob, folder, video or URI (default: {VIDEO})")
    parser.add_argument("--prompt", help=f"the question asked of each frame (default: {PROMPT!r})")
    parser.add_argument("--trace", action="store_true", help="install torch and trace the ONNX graphs anew")
    parser.add_argument("--venv", help="folder of the virtual environment (default: VLM_VENV, else .venv)")
    return parser.parse_args(argv)


def build_command(checkpoint: str, bundle: str, trace: bool) -> list[str]:
    """Return the arguments of python that turn ``checkpoint`` into ``bundle``."""
    return ["-m", "export.build_engines", checkpoint, "--out", bundle, *(["--trace"] if trace else [])]


def caption_command(bundle: str, source: str | None, prompt: str | None) -> list[str]:
    """Return the arguments of python that caption; the embedded video with its own question is scored."""
    command = ["-m", "runtime.caption", bundle, "--source", source or VIDEO, "--prompt", prompt or PROMPT]
    return command if source or prompt else [*command, "--every-frame", "--truth", TRUTH]


def from_root(name: str) -> str:
    """Write a path that exists relative to the caller's folder as the commands see it, which run in the root."""
    path = Path.cwd() / Path(name).expanduser()
    if Path.cwd() == ROOT or not path.exists():
        return name
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def plan(options: argparse.Namespace) -> list[list[str]]:
    """List the commands, as arguments of python, that the demo runs one after another."""
    models = [from_root(options.model)] if options.model else list(CHECKPOINTS)
    source = from_root(options.source) if options.source else None
    # The embedded truth is worded as the embedded models are taught; another model says the same in other words.
    source = source or (VIDEO if options.model else None)
    commands = []
    for model in models:
        folder = ROOT / Path(model).expanduser()
        if not folder.is_dir():
            raise SetupError(f"{model}: no such folder; name a checkpoint (config.json) or a bundle (manifest.json)")
        bundle = model
        if not (folder / "manifest.json").is_file():
            bundle = f"{OUT}/{folder.resolve().name}"
            commands.append(build_command(model, bundle, options.trace))
        elif options.trace:
            raise SetupError(f"{model} is a bundle: --trace needs the checkpoint that it was built from")
        commands.append(caption_command(bundle, source, options.prompt))
    return commands


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the environment, then run the commands; the first that fails ends the demo with its exit status."""
    options = parse(argv)
    try:
        commands = plan(options)
        python = ensure(venv_path(options.venv), ["demo", "trace"] if options.trace else ["demo"], options.trace)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    for command in commands:
        print(f"\n$ python {shlex.join(command)}", flush=True)
        status = subprocess.run([str(python), *command], cwd=ROOT).returncode
        if status != 0:
            return status if status > 0 else 128 - status
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
