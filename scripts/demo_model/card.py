"""The model card and the training record of a released demo model, written from what was measured."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import torch
import transformers

from scripts.demo_model import checkpoint
from scripts.demo_model.architecture import DemoModel
from scripts.demo_model.batches import BATCH, CONVERSATION_SHARE, KIND_WEIGHTS
from scripts.demo_model.optimizer import PEAK_RATE, WARM_UP_STEPS
from scripts.demo_model.pictures import Family
from scripts.demo_model.questions import KINDS

ABOUT: dict[Family, str] = {
    "demo-llava": """A LLaVA-class model, small enough to be part of a test: CLIP tower (96 px, patch 16, width
        128, 5 layers of which 4 are used: `vision_feature_layer` -2), two-layer GELU projector, Llama decoder
        (width 128, 4 layers, 2 heads of 64). Layout and names are those of transformers'
        `LlavaForConditionalGeneration`. Pictures of any shape are squashed to 96 x 96.""",
    "demo-nvila": """An NVILA-class model, small enough to be part of a test: SigLIP tower (64 px, patch 16,
        width 144, 5 layers of which 4 are used: `mm_vision_select_layer` -2) over dynamic S² with the scales 64
        and 128 (one tile of the whole picture, then 4 to 6 tiles in the grid closest to its shape: nine grids),
        `mlp_downsample` projector, Qwen2 decoder (width 256, 4 layers, 4 heads of 64, 2 KV heads). Layout and
        names are VILA's: `config.json`, `llm/`, `vision_tower/`, `mm_projector/`.""",
}
PURPOSE = """It answers questions about pictures of up to four coloured shapes and knows nothing else. It is there so
    that every test and the first command print text that can be right or wrong."""
PROMPT: dict[Family, str] = {
    "demo-llava": "Prompt: `USER: <image>\\nDescribe the image. ASSISTANT:`.",
    "demo-nvila": "Prompt: `<image>\\nDescribe the image.` as the user's message of Qwen2's ChatML (default system).",
}
TOKEN_PHASE = """From step {step:,} on, a second linear head also learns the centre of each image token's figure
    (dropped at export, too): a fine tile does not know where it lies, and places and relations were learned too
    slowly without it."""
LIMITS = """One training run, one seed; all scenes come from one generator, and no photograph was ever shown. The
    weakest kind is "{kind}" ({percent:.1f} %). Pairs of colour and shape that training never showed are answered less
    well (table)."""


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def training_record(family: Family, run: Path, note: str = "") -> dict[str, Any]:
    """What is known about a training run, from its state and log; `note` is what they do not say."""
    meta = checkpoint.meta_of(run / checkpoint.STATE)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [
        {"step": row["step"], "images": row["images"], "cpu_s": row["cpu_s"], "mean": row["evaluation"]["mean"]}
        for row in rows
        if "evaluation" in row
    ]
    return {
        "family": family,
        "seed": meta["seed"],
        "steps": meta["step"],
        "vision_steps": meta["vision_steps"],
        "batch": BATCH,
        "images": meta["step"] * BATCH,
        "cpu_s": round(meta["cpu_s"]),
        "peak_rate": PEAK_RATE,
        "warm_up_steps": WARM_UP_STEPS,
        "decay_steps": meta["decay_steps"],
        "conversation_share": CONVERSATION_SHARE,
        "kind_weights": KIND_WEIGHTS,
        "precision": meta["precision"],
        "parameters": sum(p.numel() for p in DemoModel(family).parameters()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "token_from": meta.get("token_from"),
        "note": note,
        "curve": curve,
    }


def write_card(directory: Path) -> None:
    """`README.md` of a released model from its training.json and evaluation.json."""
    training = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    evaluation = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))
    family: Family = training["family"]
    kinds = evaluation["natural"]["kinds"]
    weakest = min(kinds, key=lambda kind: kinds[kind]["percent"])
    parts = [
        f"# {family}",
        _paragraph(ABOUT[family] + f" {training['parameters']:,} parameters, fp16."),
        _paragraph(PURPOSE),
        PROMPT[family],
        "## Data",
        _data(training),
        "## Recipe",
        _recipe(training, family),
        "## Scores",
        _scores(evaluation),
        "## Limits",
        _paragraph(LIMITS.format(kind=weakest, percent=kinds[weakest]["percent"])),
    ]
    (directory / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _data(training: dict[str, Any]) -> str:
    return _paragraph(
        f"""{training["images"]:,} rendered scenes (`runtime/sources/scenes.py`, `scene_render.py`), each seen
        once: 0 to 4 figures of 6 colours x 4 shapes x 2 sizes on a textured background, sensor noise, exposure,
        white balance; then JPEG 30-95, blur, motion, light, noise and mild occlusion (at most 20 % of a figure)
        on two pictures of three. Ten kinds of questions, about five per picture;
        {training["conversation_share"]:.0%} of the pictures carry one conversation of several turns. Two pairs,
        green star and purple triangle, are never shown, so the natural distribution of the evaluation has 22 of
        the 24 pairs and those two are scored apart. Training and evaluation draw from random streams that are
        disjoint by construction (the first word of the seed is the purpose)."""
    )


def _recipe(training: dict[str, Any], family: Family) -> str:
    text = _paragraph(
        f"""From scratch, seed {training["seed"]}, {training["steps"]:,} steps of {training["batch"]} pictures,
        of which {training["vision_steps"]:,} train the tower alone on dense targets of each patch (dropped at
        export); {training["cpu_s"] / 60:.0f} minutes of one CPU core ({training["precision"]}). Muon for hidden
        matrices, AdamW for the rest, peak rate {training["peak_rate"]}, {training["warm_up_steps"]} steps of
        warm-up, linear decay over the last {training["decay_steps"]:,} steps. The curve is in `training.json`."""
    )
    command = f"python scripts/train_demo.py {family} --out runs/{family}"
    if training["token_from"]:
        text += "\n\n" + _paragraph(TOKEN_PHASE.format(step=training["token_from"]))
    if training["note"]:
        text += "\n\n" + _paragraph(training["note"])
    names = ("steps", "vision_steps", "decay_steps")
    steps = " ".join(f"--{name.replace('_', '-')} {training[name]}" for name in names)
    return f"{text}\n\nTo retrain:\n\n```\n{command} {steps}\n{command} --release models/demo/{family}\n```"


def _row(name: str, score: dict[str, Any]) -> str:
    low, high = score["interval"]
    count = f"{score['questions']:,}" if "questions" in score else f"{score['scenes']:,} scenes"
    return f"| {name} | {score['percent']:.2f} | {low:.1f} to {high:.1f} | {count} |"


def _scores(evaluation: dict[str, Any]) -> str:
    natural = evaluation["natural"]
    lines = [
        _paragraph(
            f"""Greedy exact match in percent with 95 % intervals, fp16 weights computed in fp32,
            {evaluation["scenes"]:,} unseen scenes of the natural distribution (seed {evaluation["seed"]},
            SHA-256 of pictures, questions and answers `{evaluation["sha256"][:16]}…`); everything is in
            `evaluation.json`."""
        ),
        "",
        "| kind | percent | interval | questions |",
        "|---|---|---|---|",
        _row("**mean of the ten kinds**", natural["mean"]),
        *(_row(kind, natural["kinds"][kind]) for kind in KINDS),
        *(_row(f"describe, {n} figures", score) for n, score in evaluation["describe_by_count"].items()),
        "",
        "| mean of the ten kinds under | percent | interval | scenes |",
        "|---|---|---|---|",
        _row("pairs never shown in training (in every scene)", evaluation["held_out"]["mean"]),
        _row("JPEG quality 50", evaluation["jpeg50"]["mean"]),
        _row("blur, sigma 1 pixel", evaluation["blur"]["mean"]),
        _row("a grey patch over the edge of a figure", evaluation["occluded"]["mean"]),
    ]
    if "grids" in evaluation:
        lines += ["", "| grid (rows x columns) | percent | interval | scenes |", "|---|---|---|---|"]
        lines += [_row(grid, score["mean"]) for grid, score in evaluation["grids"].items()]
        lines += ["", f"Mean over the nine grids: {evaluation['mean_over_grids']:.2f}."]
    return "\n".join(lines)
