#!/usr/bin/env python3
"""Train one of the demo models from scratch, resumable, on one CPU core or a GPU; or evaluate a checkpoint.

    python scripts/train_demo.py demo-llava --out runs/llava
    python scripts/train_demo.py demo-nvila --out runs/nvila --resume
    python scripts/train_demo.py demo-llava --out runs/llava --evaluate models/demo/demo-llava
    python scripts/train_demo.py demo-llava --out runs/llava --release models/demo/demo-llava

Everything is a function of the seed and the step, so a run that was stopped (SIGTERM saves) continues with
`--resume` as if it had not been. The end of the linear decay is `--steps`: resuming with fewer steps starts the
decay earlier.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository, when run as a file

# What the committed checkpoints were trained with.
STEPS = {"demo-llava": 7800, "demo-nvila": 6800}
DECAY_STEPS = {"demo-llava": 1800, "demo-nvila": 2500}
TOKEN_FROM = {"demo-llava": None, "demo-nvila": 3730}
VISION_STEPS = {"demo-llava": 1000, "demo-nvila": 1000}


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    import torch

    torch.set_num_threads(args.threads)
    if args.evaluate:
        return _evaluate(args)
    if args.release:
        return _release(args)
    from scripts.demo_model.training import Options, train

    steps = args.steps or STEPS[args.family]
    vision_steps = args.vision_steps if args.vision_steps is not None else min(VISION_STEPS[args.family], steps // 3)
    train(
        Options(
            args.family,
            args.out,
            steps,
            vision_steps,
            args.decay_steps or max(1, steps * DECAY_STEPS[args.family] // STEPS[args.family]),
            TOKEN_FROM[args.family],
            args.seed,
            args.device,
            half=not args.fp32,
            compile=not args.eager,
            resume=args.resume,
        )
    )
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from scripts.demo_model.evaluation import Sizes, full_evaluation
    from scripts.demo_model.release import load_for_evaluation

    model, packer = load_for_evaluation(args.family, args.evaluate)
    model.to(args.device)
    sizes = Sizes(*(max(1, n // 10) for n in (2500, 600, 300, 600))) if args.quick else Sizes()
    record = full_evaluation(model, packer, sizes)
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1)
    (args.out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return 0


def _release(args: argparse.Namespace) -> int:
    """Export, evaluate what was exported, and write its card."""
    from scripts.demo_model.card import write_card
    from scripts.demo_model.release import export_run

    export_run(args.family, args.out, args.release, args.note)
    if not args.unscored:
        args.evaluate, args.out = args.release, args.release
        _evaluate(args)
        write_card(args.release)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=list(STEPS))
    parser.add_argument("--out", type=Path, required=True, help="directory of the run: state, log, evaluation")
    parser.add_argument("--steps", type=int, help=f"steps of 32 pictures (default: {STEPS})")
    parser.add_argument("--vision-steps", type=int, help=f"of which vision only (default: {VISION_STEPS})")
    parser.add_argument(
        "--decay-steps", type=int, help=f"at the end with a falling rate (default: {DECAY_STEPS}, in proportion)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the state in --out")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: two runs share two cores well)")
    parser.add_argument("--fp32", action="store_true", help="no bf16 matrix products (CPUs without AVX512-BF16)")
    parser.add_argument("--eager", action="store_true", help="no torch.compile")
    parser.add_argument("--evaluate", type=Path, metavar="CHECKPOINT", help="score this checkpoint directory and stop")
    parser.add_argument("--quick", action="store_true", help="with --evaluate: a tenth of the scenes")
    parser.add_argument(
        "--release", type=Path, metavar="DIR", help="write the run's weights, scores and model card to DIR and stop"
    )
    parser.add_argument("--note", default="", help="with --release: what the card should say about the run")
    parser.add_argument("--unscored", action="store_true", help="with --release: weights and record only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
