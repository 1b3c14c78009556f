"""``python -m runtime.caption`` or ``vlm-caption``: watch a source and tell what it shows, token by token.

Captions go to standard output, messages to standard error. Heavy modules are imported when they are needed:
``--help`` is quick.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from runtime.errors import UsageError, VlmError
from runtime.version import __version__

if TYPE_CHECKING:
    from runtime.sinks import Sink

DEMO_FOLDER = Path(__file__).parent / "demo"
DEMO_PROMPT = "Describe the image."
MAX_NEW_TOKENS = 96
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


@dataclass(frozen=True, slots=True)
class Task:
    """One model on one source."""

    bundle: Path
    source: str
    prompt: str
    truth: Path | None


class Terminated(BaseException):
    """SIGTERM came."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(argv)
    try:
        with _terminable():
            tasks = plan(options)
            sink = _sink(options)
            for task in tasks:
                run(task, options, sink)
    except VlmError as error:
        _complain(error)
        return _quiet_output(error.exit_code)
    except KeyboardInterrupt:
        return _quiet_output(EXIT_INTERRUPTED)
    except Terminated:
        return _quiet_output(EXIT_TERMINATED)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="vlm-caption",
        description="Caption a camera, a video or pictures: one line per frame, written token by token.",
        epilog="Exit codes: 0 ok, 2 usage, 3 configuration, 4 model, 5 camera, 6 memory, 8 output, 130 interrupted.",
    )
    parser.add_argument("bundle", nargs="?", help="directory made by python -m export.build_engines")
    parser.add_argument("--source", help="image file, glob, directory, video file, or URI such as synthetic://")
    parser.add_argument("--prompt", default=DEMO_PROMPT, help="question asked of each frame (default: %(default)s)")
    parser.add_argument("--every-frame", action="store_true", help="caption each frame of a file, not the newest one")
    parser.add_argument("--max-frames", type=int, metavar="N", help="end after N captions")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", default=MAX_NEW_TOKENS, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, metavar="T", default=0.0, help="0 is greedy (default)")
    parser.add_argument("--seed", type=int, metavar="N", help="makes sampling reproducible")
    parser.add_argument("--decoder", choices=("auto", "onnx", "cuda"), default="auto", help="default: %(default)s")
    add_cuda_arguments(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the engines")
    parser.add_argument("--verify", choices=("cached", "full", "none"), default="cached", help="hashes of the bundle")
    parser.add_argument("--truth", metavar="FILE", help='JSON lines {"frame", "caption", "ambiguous"} to score against')
    parser.add_argument("--json", action="store_true", help="JSON lines on standard output")
    parser.add_argument(
        "--demo",
        nargs="?",
        const="all",
        choices=("all", "llava", "nvila"),
        help="caption the embedded video with the embedded models, every frame, and score them",
    )
    parser.add_argument("--version", action="version", version=f"jetson-vlm {__version__}")
    return parser.parse_args(argv)


def add_cuda_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings of the decoder "cuda"; the values are those of `runtime.CudaOptions`."""
    group = parser.add_argument_group("decoder cuda")
    devices = ("auto", "cuda_bindings", "pycuda", "emulator")
    group.add_argument("--device", choices=devices, default="auto", help="default: auto")
    group.add_argument("--kv", choices=("f16", "i8"), default="f16", help="values of the KV cache (default: f16)")
    group.add_argument("--embeddings", choices=("auto", "f16", "i8"), default="auto", help="default: auto")
    group.add_argument("--no-graphs", dest="graphs", action="store_false", help="launch kernels one by one")


def plan(options: argparse.Namespace) -> list[Task]:
    """What the command line asks for. Raises UsageError for what contradicts itself."""
    if options.max_frames is not None and options.max_frames < 1:
        raise UsageError(f"--max-frames is {options.max_frames}, the least is 1")
    if options.demo is not None:
        if options.bundle is not None:
            raise UsageError(
                f"--demo brings its own models, and {options.bundle} was named too", hint="name one of them"
            )
        return _demo_tasks(options)
    if options.bundle is None or options.source is None:
        missing = "a bundle" if options.bundle is None else "--source"
        raise UsageError(f"{missing} is missing", hint="vlm-caption BUNDLE --source URI, or vlm-caption --demo")
    truth = None if options.truth is None else Path(options.truth)
    return [Task(Path(options.bundle), options.source, options.prompt, truth)]


def run(task: Task, options: argparse.Namespace, sink: Sink) -> None:
    """Caption one source with one model until it ends, ``--max-frames`` is reached, or the user ends it."""
    from runtime.decoder.options import CudaOptions
    from runtime.sampling import check_params
    from runtime.session import Session
    from runtime.tally import Tally, read_truth
    from runtime.types import GenerationParams

    tally = Tally(None if task.truth is None else read_truth(task.truth))
    params = GenerationParams(options.temperature, seed=options.seed, max_new_tokens=options.max_new_tokens)
    check_params(params)  # before the model is loaded
    every_frame = options.every_frame or options.demo is not None
    with (
        Session.open(
            task.bundle,
            options.decoder,
            threads=options.threads,
            verify=options.verify,
            chats=0,
            cuda=CudaOptions(options.device, options.kv, options.embeddings, options.graphs),
        ) as session,
        session.watch(task.source, task.prompt, every_frame=every_frame, params=params) as watch,
    ):
        try:
            for number, caption in enumerate(watch, 1):
                sink.begin(caption)
                for delta in caption:
                    sink.delta(delta)
                answer = caption.answer()
                sink.end(caption, answer, tally.add(caption.seq, answer))
                if number == options.max_frames:
                    break
        finally:
            name, frames = task.bundle.name, watch.frames_seen
            sink.summary(tally.line(name, frames), {"bundle": name, **tally.figures(frames)})


def _demo_tasks(options: argparse.Namespace) -> list[Task]:
    bundles = sorted(path.parent for path in DEMO_FOLDER.glob("*/manifest.json"))
    chosen = [path for path in bundles if options.demo == "all" or path.name.endswith(options.demo)]
    videos = sorted(DEMO_FOLDER.glob("demo.*"))
    if not chosen or not videos:
        what = f"no bundle for {options.demo!r}" if not chosen else "no demo video"
        raise UsageError(f"{DEMO_FOLDER}: {what}", hint="install the package again: its data is incomplete")
    source = options.source or str(videos[0])
    # The embedded truth belongs to the embedded video and its question; anything else has its own or none.
    own = options.source is None and options.prompt == DEMO_PROMPT
    truth = Path(options.truth) if options.truth else DEMO_FOLDER / "demo_truth.jsonl" if own else None
    return [Task(path, source, options.prompt, truth) for path in chosen]


def _sink(options: argparse.Namespace) -> Sink:
    from runtime.sinks import JsonlSink, TerminalSink

    out = sys.stdout
    reconfigure = getattr(out, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a caption may have characters that the terminal's encoding has not
    if options.json:
        return JsonlSink(out)
    live = out.isatty() and os.environ.get("TERM") != "dumb"
    return TerminalSink(out, live=live, color=live and not os.environ.get("NO_COLOR"))


def _complain(error: VlmError) -> None:
    sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))


def _quiet_output(code: int) -> int:
    """The exit code, after making sure that a closed pipe does not speak up when the interpreter flushes it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: what is open is closed."""

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, raise_terminated)
    except ValueError:  # not the main thread: whoever embeds this command handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    raise SystemExit(main())
