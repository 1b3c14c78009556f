"""The command that quantises a checkpoint's decoder to four bits.

python -m export.quantize models/demo/demo-llava --out demo-llava-awq --calibration pictures/
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
    from export.quantization.request import QuantizeRequest, QuantizeResult

_EXAMPLES = """examples:
  python -m export.quantize ~/NVILA-Lite-2B --out ~/NVILA-Lite-2B-AWQ --calibration pictures/
  python -m export.quantize ~/llava-1.5-7b-hf --out llava-awq --calibration prompts.jsonl --samples 64 --dry-run
  python -m export.quantize models/demo/demo-llava --out demo-rtn --method rtn --head-bits 4

A run that is interrupted goes on where it stopped when the same command is given again.

exit codes: 0 done, 2 usage, 4 checkpoint or device, 6 memory, 8 disk, 130 interrupted, 143 terminated
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    return run_command(
        lambda: _run(options),
        as_json=options.json,
        interrupted="interrupted; the same command goes on where it stopped",
    )


def _run(options: argparse.Namespace) -> None:
    from export.progress import Progress

    if options.vision:
        from export.quantization.vision import quantize_vision

        result = quantize_vision(_request(options), Progress())
    else:
        from export.quantization.run import quantize

        result = quantize(_request(options), Progress())
    if options.json:
        out(json.dumps(_as_json(result), ensure_ascii=False))
    else:
        out(f"{result.out}: {'would be written' if result.record is None else 'done'}")


def _request(options: argparse.Namespace) -> QuantizeRequest:
    from export.quantization.request import QuantizeRequest

    return QuantizeRequest(
        checkpoint=options.checkpoint,
        out=options.out,
        calibration=options.calibration,
        method=options.method,
        group_size=options.group_size,
        format=options.format,
        head_bits=options.head_bits,
        samples=options.samples,
        max_seq_len=options.max_seq_len,
        tokens=options.tokens,
        clip=options.clip,
        device=options.device,
        dry_run=options.dry_run,
        force=options.force,
    )


def _as_json(result: QuantizeResult) -> dict[str, Any]:
    return {"out": str(result.out), "plan": result.plan, "quantization": result.record}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.quantize",
        description="Quantise the decoder of a LLaVA, VILA or NVILA checkpoint to four bits.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="folder with config.json, weights and tokenizer")
    add("--out", type=Path, required=True, help="folder to write the quantised checkpoint to")
    add("--calibration", type=Path, metavar="PATH", help="a folder of pictures, a .txt or a .jsonl file")
    add("--method", choices=("awq", "rtn"), default="awq", help="rtn rounds to nearest, without a search")
    add("--group-size", type=int, choices=(128, 64, 32), default=128, help="weights that share a scale (default: 128)")
    add("--format", choices=("awq", "compressed-tensors"), default="awq", help="how it is stored (default: awq)")
    add("--head-bits", choices=("auto", "4", "8", "16"), default="auto", help="of the LM head (auto: measured)")
    add("--samples", type=positive, default=32, metavar="N", help="calibration prompts (default: 32)")
    add("--max-seq-len", type=positive, default=2048, metavar="N", help="positions of a prompt (default: 2048)")
    add("--tokens", type=positive, default=16_384, metavar="N", help="positions of all prompts (default: 16384)")
    clip = "search for clipped ranges, as AWQ was published; more loss with the rounding that is used here"
    add("--clip", action=argparse.BooleanOptionalAction, default=False, help=clip)
    add("--device", default="cpu", help="where the search runs: cpu, cuda or cuda:N (default: cpu)")
    add("--vision", action="store_true", help="measure the vision tower for --vision-precision int8 instead")
    add("--dry-run", action="store_true", help="say what would be done, write nothing")
    add("--force", action="store_true", help="replace what is at --out; drop what an interrupted run of others left")
    add("--json", action="store_true", help="print the result as JSON on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
