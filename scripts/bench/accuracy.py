#!/usr/bin/env python3
"""Does the int4 bundle answer as well as the fp32 torch model? Both on the same unseen scenes, question by question.

    python scripts/bench/accuracy.py BUNDLE [--checkpoint models/demo/NAME] [--scenes 2000] [--out results.jsonl]
    python scripts/bench/accuracy.py BUNDLE --decoder cuda --device emulator --scenes 100   # the CUDA kernels, on a CPU

The bundle's answers come from `runtime.Session` alone (greedy text, compared exactly). The torch model is scored by
teacher forcing, which is exact for greedy decoding. Reported: the mean over the ten kinds of question for both, their
difference with a paired 95 % interval (scenes are resampled), how many answers differ which way, and the mean KL
divergence of the logits on the right answers' tokens, which notices small numeric faults that exact match does not.
Exit code 1 when the difference is more than --limit points.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import runtime  # noqa: E402
from runtime.bundle import Bundle, load_bundle  # noqa: E402
from runtime.decoder import open_decoder  # noqa: E402
from runtime.fusion import fuse  # noqa: E402
from runtime.preprocess import preprocess  # noqa: E402
from runtime.prompt import ImagePart, Message, PromptEncoder  # noqa: E402
from runtime.tiling import layout_for  # noqa: E402
from runtime.vision import open_vision  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402
from scripts.demo_model.architecture import DemoModel  # noqa: E402
from scripts.demo_model.batches import prepare  # noqa: E402
from scripts.demo_model.evalset import EvalItem, digest, eval_items  # noqa: E402
from scripts.demo_model.evaluation import SEED, Outcome, outcomes, summarize  # noqa: E402
from scripts.demo_model.packing import Packer, Row  # noqa: E402
from scripts.demo_model.pictures import FAMILIES, Family  # noqa: E402
from scripts.demo_model.questions import KINDS  # noqa: E402
from scripts.demo_model.release import load_for_evaluation  # noqa: E402

MAX_ANSWER_TOKENS = 64
Logits = npt.NDArray[np.float32]


def session_outcomes(bundle: Path, items: Sequence[EvalItem], args: argparse.Namespace) -> list[Outcome]:
    """Which questions of which scene the bundle answers exactly, asked one by one through a session."""
    found: list[Outcome] = []
    began = time.monotonic()
    with runtime.Session.open(bundle, args.decoder, threads=args.threads, cuda=cuda_options(args)) as session:
        for index, item in enumerate(items):
            answers = [
                (kind, session.generate(question, images=[item.image], max_new_tokens=MAX_ANSWER_TOKENS).text == answer)
                for kind, question, answer in item.qas
            ]
            found.append(answers)
            if (index + 1) % 200 == 0:
                sys.stderr.write(f"{index + 1} of {len(items)} scenes, {time.monotonic() - began:.0f} s\n")
    return found


def cuda_options(args: argparse.Namespace) -> runtime.CudaOptions:
    """Settings of the decoder "cuda"."""
    return runtime.CudaOptions(device=args.device, kv=args.kv)


class Engines:
    """The bundle's engines without a session, for logits under teacher forcing."""

    def __init__(self, bundle: Bundle, packer: Packer, args: argparse.Namespace) -> None:
        self.spec = bundle.manifest.vision
        self.tiling = self.spec.tiling_spec()
        self.encoder = PromptEncoder(bundle)
        self.vision = open_vision(bundle)
        self.decoder = open_decoder(bundle, kind=args.decoder, cuda=cuda_options(args))
        self.packer = packer

    def logits(self, item: EvalItem) -> list[Logits]:
        """For each question f32 [n, V]: the logits that choose each token of the right answer, end token included."""
        layout = layout_for(item.image.shape[0], item.image.shape[1], self.tiling)
        embeds = self.vision.encode(preprocess(item.image, layout, self.spec), layout)
        found = []
        for _, question, answer in item.qas:
            prompt = self.encoder.encode([Message("user", (ImagePart(0), question))], [layout])
            ids = np.concatenate([prompt.token_ids, np.array(self.packer.answer(answer)[:-1], np.int64)])
            placeholder = self.encoder.placeholder_id
            text = self.decoder.embed(np.where(ids == placeholder, 0, ids).tolist())
            fused = fuse(ids, text, prompt.split_embeds([embeds]), prompt.image_slices, placeholder_id=placeholder)
            self.decoder.truncate(0, 0)
            wanted = len(ids) - len(prompt.token_ids) + 1
            found.append(self.decoder.prefill(0, fused, num_logits=wanted).copy())
        return found


@torch.no_grad()
def torch_logits(model: DemoModel, packer: Packer, item: EvalItem) -> list[Logits]:
    """As `Engines.logits`, from the fp32 torch model."""
    vision = prepare([item.image], packer.family)
    index = (vision.index.fine, vision.index.coarse) if vision.index else ()
    tokens = model.image_tokens(model.features(vision.tiles, *index))
    packed = packer.pack([Row(vision.tokens[0], [(question, answer) for _, question, answer in item.qas])])
    hidden = model.decode(model.embed(packed.ids, packed.is_image, tokens), packed.visible, packed.positions)
    logits = model.llm.lm_head(hidden)
    chosen = packed.labels >= 0
    return [logits[chosen & (packed.segment == j + 1)].numpy() for j in range(len(item.qas))]


def mean_kl(
    bundle: Bundle, model: DemoModel, packer: Packer, items: Sequence[EvalItem], args: argparse.Namespace
) -> dict[str, float]:
    """KL(torch fp32 || bundle) in nats, mean and 99th percentile over the tokens of the right answers."""
    engines = Engines(bundle, packer, args)
    values: list[npt.NDArray[np.float64]] = []
    for item in items:
        for ours, theirs in zip(engines.logits(item), torch_logits(model, packer, item), strict=True):
            p, q = _log_softmax(theirs), _log_softmax(ours)
            values.append((np.exp(p) * (p - q)).sum(-1))
    every = np.concatenate(values)
    return {"mean": float(every.mean()), "p99": float(np.percentile(every, 99)), "tokens": len(every)}


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def paired_difference(ours: Sequence[Outcome], theirs: Sequence[Outcome], draws: int = 2000) -> dict[str, Any]:
    """Bundle minus torch in points of the mean over kinds, with the 95 % interval of a bootstrap over scenes."""
    asked = np.zeros((len(ours), len(KINDS)))
    gain = np.zeros_like(asked)
    lost = won = 0
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for (kind, mine), (_, other) in zip(a, b, strict=True):
            asked[i, KINDS.index(kind)] += 1
            gain[i, KINDS.index(kind)] += int(mine) - int(other)
            lost += other and not mine
            won += mine and not other
    counts = np.random.default_rng(0).multinomial(len(ours), np.full(len(ours), 1 / len(ours)), size=draws)
    means = 100 * (counts @ gain / np.maximum(counts @ asked, 1)).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    points = 100 * (gain.sum(0) / np.maximum(asked.sum(0), 1)).mean()
    interval = [round(float(low), 3), round(float(high), 3)]
    return {"points": round(float(points), 3), "interval": interval, "only_torch_right": lost, "only_bundle_right": won}


def compare(bundle_dir: Path, checkpoint: Path, family: Family, args: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison as one JSON-able row."""
    model, packer = load_for_evaluation(family, checkpoint)
    items = list(eval_items(args.scenes, SEED, family))
    theirs = outcomes(model, packer, items)
    ours = session_outcomes(bundle_dir, items, args)
    bundle = load_bundle(bundle_dir)
    return {
        "bench": "accuracy",
        "bundle": bundle_dir.name,
        "decoder": args.decoder,
        "device": args.device if args.decoder == "cuda" else None,
        "kv": args.kv if args.decoder == "cuda" else None,
        "quantization_digest": bundle.manifest.quantization.digest,
        "scenes": args.scenes,
        "questions": sum(len(item.qas) for item in items),
        "sha256": digest(items),
        "torch_fp32": summarize(theirs),
        "session_int4": summarize(ours),
        "difference": paired_difference(ours, theirs),
        "logit_kl_nats": mean_kl(bundle, model, packer, items[: args.kl_scenes], args),
        "limit_points": args.limit,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="default: models/demo/<the bundle's source name>")
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--kl-scenes", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--decoder", choices=("onnx", "cuda"), default="onnx")
    parser.add_argument("--device", choices=("auto", "emulator"), default="auto", help="of the decoder cuda")
    parser.add_argument("--kv", choices=("f16", "i8"), default="f16", help="of the decoder cuda")
    parser.add_argument("--limit", type=float, default=1.0, help="points that the bundle may be behind")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    args = parser.parse_args()
    name = load_bundle(args.bundle).manifest.source.name
    if name not in FAMILIES:
        parser.error(f"the bundle's source is {name!r}; the scenes exist for {', '.join(FAMILIES)}")
    checkpoint = args.checkpoint or ROOT / "models" / "demo" / name
    row = compare(args.bundle, checkpoint, name, args)
    write_line(row | environment(), args.out)
    return 0 if row["difference"]["points"] >= -args.limit else 1


if __name__ == "__main__":
    raise SystemExit(main())
