#!/usr/bin/env python3
"""What does int8 cost in the vision tower, and what does SmoothQuant save? On the demo models, question by question.

    python scripts/bench/vision_int8.py [--families demo-llava demo-nvila] [--scenes 1000] [--out results.jsonl]

Two towers of each family: as trained, and with planted outlier channels (see outliers.py), which compute the same in
fp32. Each is measured by `export.quantize --vision` on pictures of another seed than the test's, and then computes in
int8: by token or with one fixed scale for each input (torch, exact integers), plain or smoothed; and as the graph that
`export.build_engines --vision-precision int8` writes, in ONNX Runtime. Projector and decoder stay fp32.

Reported for unseen scenes: the features' relative error (Euclidean, against fp32), exact match under teacher forcing
(mean over the ten kinds of question with a bootstrap interval), and its difference from fp32 with a paired 95 %
interval. Exit code 1 when a limit is missed: smoothed towers and the graph lose at most one point; with outliers the
plain tower with fixed scales loses five or more, and smoothing cuts the feature error at least five times, by token and
with fixed scales.
"""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from export.checkpoint import read_checkpoint  # noqa: E402
from export.progress import Progress  # noqa: E402
from export.quantization.request import QuantizeRequest  # noqa: E402
from export.quantization.vision import quantize_vision  # noqa: E402
from export.vision.int8_graph import write_int8_tower  # noqa: E402
from export.vision.names import TOWER_FILE, TOWER_INPUT  # noqa: E402
from export.vision.trace import trace_vision  # noqa: E402
from models.smoothquant import ActivationScales, read_scales, w8a8_layer  # noqa: E402
from models.vision_scales import FILE, FOLDER  # noqa: E402
from scripts.bench.accuracy import paired_difference  # noqa: E402
from scripts.bench.outliers import FRACTION, plant  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402
from scripts.demo_model.architecture import DemoModel  # noqa: E402
from scripts.demo_model.batches import prepare  # noqa: E402
from scripts.demo_model.evalset import EvalItem, digest, eval_items  # noqa: E402
from scripts.demo_model.evaluation import BATCH, SEED, outcomes, summarize  # noqa: E402
from scripts.demo_model.packing import Packer  # noqa: E402
from scripts.demo_model.pictures import FAMILIES, Family  # noqa: E402
from scripts.demo_model.release import load_for_evaluation  # noqa: E402

CALIBRATION_SEED = 7200
FULL = "fp32"
KINDS: dict[str, dict[str, bool]] = {  # of torch towers
    "token-plain": {"static": False, "smooth": False},
    "token-smoothed": {"static": False, "smooth": True},
    "fixed-plain": {"static": True, "smooth": False},
    "fixed-smoothed": {"static": True, "smooth": True},
}
GRAPH = "graph"
_ENCODER = re.compile(r"^(?:.*\.)?(encoder\.layers\.\d+\.(?:layer_norm[12]|self_attn|mlp)\..+)$")


def plant_in_tower(vision: Any, seed: int = 0) -> None:
    """Outliers in both norms of every layer of a CLIP or SigLIP tower, other channels each time, in place."""
    generator = torch.Generator().manual_seed(seed)
    for layer in vision.encoder.layers:
        attention = layer.self_attn
        fed = (attention.q_proj, attention.k_proj, attention.v_proj), (layer.mlp.fc1,)
        for norm, linears in zip((layer.layer_norm1, layer.layer_norm2), fed, strict=True):
            width = len(norm.weight)
            plant(norm, linears, torch.randperm(width, generator=generator)[: round(width * FRACTION)])


def write_checkpoint(model: DemoModel, source: Path, target: Path) -> Path:
    """The checkpoint with the encoder weights of ``model``'s tower, these in f32 so that none is rounded."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("onnx"))
    folder = target / "vision_tower" if (target / "vision_tower").is_dir() else target
    tensors, ours = load_file(folder / "model.safetensors"), model.vision.state_dict()
    for name in tensors:
        match = _ENCODER.match(name)
        if match and "vision" in name:
            tensors[name] = ours[match[1]].float().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return target


def measured(checkpoint: Path, items: Sequence[EvalItem], scratch: Path) -> ActivationScales:
    """Through the command's own function, on pictures in a folder."""
    pictures = scratch / "pictures"
    pictures.mkdir(exist_ok=True)
    for index, item in enumerate(items):
        Image.fromarray(item.image).save(pictures / f"{index:04}.png")
    out = scratch / f"{checkpoint.name}-measured"
    quantize_vision(QuantizeRequest(checkpoint, out, pictures, samples=len(items)), Progress())
    return read_scales(out / FOLDER / FILE)


def in_int8(model: DemoModel, scales: ActivationScales, *, static: bool, smooth: bool) -> DemoModel:
    """A copy whose tower's encoder is W8A8."""
    twin = copy.deepcopy(model)
    for index in range(scales.layers):
        layer = twin.vision.encoder.layers[index]
        twin.vision.encoder.layers[index] = w8a8_layer(layer, index, scales, static=static, smooth=smooth)
    return twin


def as_graph(model: DemoModel, checkpoint: Path, scales: ActivationScales, scratch: Path) -> DemoModel:
    """A copy whose tower is the exported int8 graph in ONNX Runtime."""
    folder = scratch / f"{checkpoint.name}-graphs"
    folder.mkdir()
    trace_vision(read_checkpoint(checkpoint), folder)
    write_int8_tower(folder / TOWER_FILE, folder / "int8.onnx", scales)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(folder / "int8.onnx"), options, providers=["CPUExecutionProvider"])
    class_tokens = 1 if model.family == "demo-llava" else 0

    def tower(tiles: Tensor) -> Tensor:
        features = torch.from_numpy(session.run(None, {TOWER_INPUT: tiles.numpy()})[0])
        return torch.nn.functional.pad(features, (0, 0, class_tokens, 0))  # the graph left it out, the model will too

    twin = copy.copy(model)
    object.__setattr__(twin, "tower", tower)
    return twin


@torch.no_grad()
def feature_errors(models: dict[str, DemoModel], items: Sequence[EvalItem], family: Family) -> dict[str, float]:
    """|features - fp32| / |fp32| over all tiles of all scenes, for each model but fp32."""
    off, size = dict.fromkeys(models, 0.0), 0.0
    drop = 1 if family == "demo-llava" else 0
    for start in range(0, len(items), BATCH):
        tiles = prepare([item.image for item in items[start : start + BATCH]], family).tiles
        expected = models[FULL].tower(tiles)[:, drop:].double()
        size += float(expected.square().sum())
        for name, model in models.items():
            off[name] += float((model.tower(tiles)[:, drop:].double() - expected).square().sum())
    return {name: (value / size) ** 0.5 for name, value in off.items()}


def compare(family: Family, args: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Rows of one family: as trained, and with planted outliers."""
    source = ROOT / "models" / "demo" / family
    model, packer = load_for_evaluation(family, source)
    planted = copy.deepcopy(model)
    plant_in_tower(planted.vision)
    calibration = list(eval_items(args.calibration_scenes, CALIBRATION_SEED, family))
    items = list(eval_items(args.scenes, SEED, family))
    about = {
        "scenes": args.scenes,
        "questions": sum(len(item.qas) for item in items),
        "sha256": digest(items),
        "calibration_scenes": args.calibration_scenes,
        "calibration_sha256": digest(calibration),
    }
    rows = []
    for outliers, tower in ((False, model), (True, planted)):
        name = f"{family}-{'planted' if outliers else 'trained'}"
        checkpoint = write_checkpoint(tower, source, scratch / name)
        scales = measured(checkpoint, calibration, scratch)
        models = {FULL: model} | {kind: in_int8(tower, scales, **how) for kind, how in KINDS.items()}
        models |= {"planted-fp32": tower} if outliers else {}
        models[GRAPH] = as_graph(tower, checkpoint, scales, scratch)
        row = {"bench": "vision_int8", "model": family, "outliers": outliers, "alpha": scales.alpha}
        rows.append(row | {"tiles": scales.tiles} | scored(models, packer, items, family, outliers) | about)
    return rows


def scored(
    models: dict[str, DemoModel], packer: Packer, items: Sequence[EvalItem], family: Family, outliers: bool
) -> dict[str, Any]:
    """Feature errors and exact match of every tower; fp32's own first."""
    errors = feature_errors(models, items, family)
    began, found = time.monotonic(), {}
    for name, model in models.items():
        found[name] = outcomes(model, packer, items)
        sys.stderr.write(f"{family} {name}: {time.monotonic() - began:.0f} s\n")
    row: dict[str, Any] = {"fp32_percent": summarize(found[FULL])["mean"]}
    for name in models:
        if name != FULL:
            lost = paired_difference(found[name], found[FULL])
            row[name] = {
                "feature_error": float(f"{errors[name]:.4g}"),
                "exact_match": summarize(found[name])["mean"],
                "against_fp32_points": {key: lost[key] for key in ("points", "interval")},
            }
    for kind in ("token", "fixed"):
        row[f"{kind}_gain"] = round(errors[f"{kind}-plain"] / errors[f"{kind}-smoothed"], 2)
    row["passed"] = passed(row, outliers)
    return row


def passed(row: dict[str, Any], outliers: bool) -> bool:
    """Whether the limits hold."""
    points = {name: row[name]["against_fp32_points"]["points"] for name in (*KINDS, GRAPH)}
    good = all(points[name] >= -1 for name in ("token-smoothed", "fixed-smoothed", GRAPH))
    if not outliers:
        return good
    return good and points["fixed-plain"] <= -5 and min(row["token_gain"], row["fixed_gain"]) >= 5


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for reading."""
    lines = ["model       outliers tower           features off   exact match %   points against fp32 [95 %]"]
    for row in rows:
        start = f"{row['model']:<11} {'yes' if row['outliers'] else 'no':<8} "
        lines.append(f"{start}{FULL:<15} {0:>11.2%}   {row['fp32_percent']['percent']:>13.2f}")
        for name in [name for name in ("planted-fp32", *KINDS, GRAPH) if name in row]:
            item = row[name]
            lost = item["against_fp32_points"]
            lines.append(
                f"{start}{name:<15} {item['feature_error']:>11.2%}   {item['exact_match']['percent']:>13.2f}"
                f"   {lost['points']:+.2f} {lost['interval']}" + ("" if row["passed"] else "  MISSED")
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--calibration-scenes", type=int, default=32)
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vision-int8-") as scratch:
        rows = [row for family in args.families for row in compare(family, args, Path(scratch))]
    for row in rows:
        write_line(row | environment(), args.out)
    sys.stderr.write(table(rows) + "\n")
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
