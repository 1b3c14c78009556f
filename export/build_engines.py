"""The command that turns a checkpoint into a bundle.

python -m export.build_engines models/demo/demo-llava --out demo-llava.bundle
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.command import out, positive, run_command

if TYPE_CHECKING:
    from export.build import BuildRequest, BuildResult

_EXAMPLES = """examples:
  python -m export.build_engines models/demo/demo-llava --out demo-llava.bundle
  python -m export.build_engines ~/NVILA-Lite-2B --out nvila.bundle --max-seq-len 2048 --dry-run

exit codes: 0 done, 2 usage, 4 checkpoint or engine, 8 disk, 130 interrupted, 143 terminated
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    return run_command(lambda: _run(options), as_json=options.json, interrupted="interrupted; nothing was changed")


def _run(options: argparse.Namespace) -> None:
    from export.build import build
    from export.progress import Progress

    result = build(_request(options), Progress())
    if options.json:
        out(json.dumps(_as_json(options, result), ensure_ascii=False))
    elif result.manifest is not None and not options.dry_run:
        size = sum(entry.bytes for entry in result.manifest.files.values())
        out(f"{result.out}: {size / 1e6:.1f} MB")


def _request(options: argparse.Namespace) -> BuildRequest:
    from export.build import BuildRequest

    return BuildRequest(
        checkpoint=options.checkpoint,
        out=options.out,
        stage=options.stage,
        decoder=options.decoder,
        activations=options.activations,
        group_size=options.group_size,
        max_seq_len=options.max_seq_len,
        vision_precision=options.vision_precision,
        trace=options.trace,
        save_traced=options.save_traced,
        dry_run=options.dry_run,
        force=options.force,
        template_file=options.chat_template,
    )


def _as_json(options: argparse.Namespace, result: BuildResult) -> dict[str, Any]:
    manifest = result.manifest
    return {
        "bundle": None if manifest is None else str(result.out),
        "dry_run": options.dry_run,
        "stages": [stage.as_json() for stage in result.stages],
        "estimated_bytes": result.estimated_bytes,
        "bytes": None if manifest is None else sum(entry.bytes for entry in manifest.files.values()),
        "quantization_digest": None if manifest is None else manifest.quantization.digest,
        "tower_max_error": None if manifest is None else manifest.checks.tower_max_error,
        "projector_max_error": None if manifest is None else manifest.checks.projector_max_error,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.build_engines",
        description="Build a bundle from a LLaVA, VILA or NVILA checkpoint.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="folder with config.json, weights and tokenizer")
    add("--out", type=Path, help="bundle directory to write")
    add("--stage", choices=("onnx", "weights", "plans", "all"), default="all", help="default: all")
    forms = "forms of the decoder (auto: both where the CUDA kernels take its shape, else onnx)"
    add("--decoder", choices=("onnx", "cuda", "both", "auto"), default="auto", help=forms)
    computes = "what the CUDA decoder computes in; bf16 for a checkpoint whose values exceed f16 (default: f16)"
    add("--activations", choices=("f16", "bf16"), default="f16", help=computes)
    groups = "weights that share a scale (default: 128, or what a quantised checkpoint has)"
    add("--group-size", type=int, choices=(128, 64, 32), help=groups)
    add(
        "--max-seq-len",
        type=positive,
        metavar="N",
        help="positions of the KV cache (default: the context, at most 4096)",
    )
    add(
        "--vision-precision", choices=("fp32", "fp16", "int8"), default="fp32", help="what the vision graphs compute in"
    )
    add("--chat-template", type=Path, metavar="FILE", help="a Jinja template instead of the checkpoint's own")
    add("--trace", action="store_true", help="trace the vision graphs anew, whatever is stored (needs torch)")
    add("--save-traced", action="store_true", help="keep the traced graphs in <checkpoint>/onnx")
    add("--dry-run", action="store_true", help="say what would be done, write nothing")
    add("--force", action="store_true", help="do every stage again, and replace a bundle of another checkpoint")
    add("--json", action="store_true", help="print the result as JSON on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
