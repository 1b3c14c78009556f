"""The training loop: a vision-only phase on dense targets, then towers, projector and decoder together."""

from __future__ import annotations

import json
import logging
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.demo_model import checkpoint
from scripts.demo_model.architecture import DemoModel
from scripts.demo_model.batches import BATCH, Batch, Vision, training_batch
from scripts.demo_model.dense_head import DenseHead, dense_loss, token_center_loss
from scripts.demo_model.optimizer import CLIP_NORM, build_optimizers, initialize, learning_rate
from scripts.demo_model.packing import Packer
from scripts.demo_model.pictures import Family
from scripts.demo_model.vocabulary import build_tokenizer

log = logging.getLogger(__name__)
DENSE_WEIGHT = 0.3  # of the dense loss once the decoder trains


@dataclass
class Options:
    """One run. Of the `steps`, the first `vision_steps` are vision only and the last `decay_steps` lower the rate."""

    family: Family
    out: Path
    steps: int
    vision_steps: int
    decay_steps: int
    token_from: int | None = None  # from this step on, centres are also learned from image tokens
    seed: int = 0
    device: str = "cpu"
    half: bool = True  # bf16 matrix products, fp32 weights
    compile: bool = True
    log_every: int = 20
    save_every: int = 100
    evaluate_every: int = 500
    resume: bool = False


@dataclass
class Run:
    """The state of a run: modules, optimizers, counters."""

    options: Options
    model: DemoModel = field(init=False)
    step: int = 0
    cpu_s: float = 0.0

    def __post_init__(self) -> None:
        options = self.options
        torch.manual_seed(options.seed)
        self.model = DemoModel(options.family, attention="eager")  # twice as fast as sdpa here: rows are short
        initialize(self.model, torch.Generator().manual_seed(options.seed))
        token_width = self.model.llm.config.hidden_size if options.token_from is not None else None
        self.head = DenseHead(self.model.feature_width, token_width)
        self.packer = Packer(build_tokenizer(options.family), options.family)
        self.model.to(options.device)
        self.head.to(options.device)
        self.optimizers = build_optimizers(self.model, self.head)
        if options.resume:
            meta = checkpoint.load(options.out / checkpoint.STATE, self.model, self.head, self.optimizers)
            self.step, self.cpu_s = meta["step"], meta["cpu_s"]
            log.info("resumed at step %d", self.step)
        wrap = torch.compile if options.compile else lambda function: function
        self.features, self.decode = wrap(self.model.features), wrap(self.model.decode)

    def save(self) -> None:
        options = self.options
        precision = "bf16 matrix products, fp32 weights" if options.half else "fp32"
        meta = {"family": options.family, "seed": options.seed, "vision_steps": options.vision_steps}
        meta |= {"token_from": options.token_from}
        meta |= {"decay_steps": options.decay_steps, "step": self.step, "cpu_s": self.cpu_s, "precision": precision}
        checkpoint.save(self.options.out, self.model, self.head, self.optimizers, meta)


def train(options: Options) -> None:
    """Run (or resume) to `options.steps`; SIGTERM saves and stops."""
    run = Run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    means: dict[str, float] = {}
    while run.step < options.steps and not stopping:
        began = time.process_time()
        values = step(run)
        run.step += 1
        run.cpu_s += time.process_time() - began
        for name, value in values.items():
            means[name] = value if name not in means else 0.95 * means[name] + 0.05 * value
        if run.step % options.log_every == 0:
            _record(run, means)
        if run.step % options.save_every == 0 or run.step == options.steps:
            run.save()
        if run.step % options.evaluate_every == 0 and run.step > options.vision_steps:
            _quick_evaluation(run)
    run.save()


def step(run: Run) -> dict[str, float]:
    """One optimizer step; returns the losses and accuracies."""
    options = run.options
    joint = run.step >= options.vision_steps
    batch = training_batch(options.family, options.seed, run.step, run.packer if joint else None)
    rate = learning_rate(run.step, options.steps, options.decay_steps)
    for optimizer in run.optimizers:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
    with torch.autocast(options.device, torch.bfloat16, enabled=options.half):
        features = patch_features(run, batch.vision)
        loss, values = dense_loss(run.head(features), _on(batch.targets, options.device))
        values["dense"] = loss.detach()
        if batch.packed is not None:
            tokens = run.model.image_tokens(features)
            if options.token_from is not None and run.step >= options.token_from:
                center_loss = token_center_loss(run.head, tokens, _on(batch.targets, options.device))
                values["token_center"] = center_loss.detach()
                loss = loss + center_loss
            answer_loss = language_loss(run, tokens, batch)
            values["language"] = answer_loss.detach()
            loss = answer_loss + DENSE_WEIGHT * loss
    loss.backward()
    params = [p for optimizer in run.optimizers for p in optimizer.param_groups[0]["params"]]
    torch.nn.utils.clip_grad_norm_(params, CLIP_NORM)
    for optimizer in run.optimizers:
        optimizer.step()
    return {name: float(value) for name, value in values.items()} | {"rate": rate}


def patch_features(run: Run, vision: Vision) -> Tensor:
    """Features of the real patches [P, C] (the compiled call has a fixed shape, padding is cut off here)."""
    device = run.options.device
    if vision.index is None:
        return run.features(vision.tiles.to(device))
    all_of_it = run.features(vision.tiles.to(device), vision.index.fine.to(device), vision.index.coarse.to(device))
    return all_of_it[: vision.num_tokens * 4]


def language_loss(run: Run, tokens: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of the answer tokens."""
    packed, device = batch.packed, run.options.device
    assert packed is not None
    embeds = run.model.embed(packed.ids.to(device), packed.is_image.to(device), tokens)
    hidden = run.decode(embeds, packed.visible.to(device), packed.positions.to(device))
    labels = packed.labels.to(device)
    chosen = labels >= 0
    return F.cross_entropy(run.model.llm.lm_head(hidden[chosen]).float(), labels[chosen])


def _on(targets: Any, device: str) -> Any:
    return type(targets)(*(getattr(targets, name).to(device) for name in targets.__dataclass_fields__))


def _record(run: Run, means: dict[str, float]) -> None:
    row = {"step": run.step, "images": run.step * BATCH, "cpu_s": round(run.cpu_s, 1), "time": round(time.time(), 1)}
    row |= {name: round(value, 5) for name, value in means.items()}
    _append(run, row)


def _quick_evaluation(run: Run) -> None:
    from scripts.demo_model.evaluation import quick_scores

    scores = quick_scores(run.model, run.packer)
    _append(run, {"step": run.step, "images": run.step * BATCH, "cpu_s": round(run.cpu_s, 1), "evaluation": scores})


def _append(run: Run, row: dict[str, Any]) -> None:
    line = json.dumps(row)
    log.info("%s", line)
    with open(run.options.out / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")
