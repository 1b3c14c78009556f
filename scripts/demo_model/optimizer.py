"""Initialisation, Muon + AdamW, and the warm-up / constant / linear-decay schedule."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from scripts.demo_model.architecture import PATCH_PX, DemoModel

WARM_UP_STEPS = 60
PEAK_RATE = 2.5e-3
CLIP_NORM = 1.0


def learning_rate(step: int, steps: int, decay_steps: int, peak: float = PEAK_RATE) -> float:
    """Warm-up, constant, then linear to 1 % over the last `decay_steps` of `steps`."""
    return peak * min(1.0, (step + 1) / WARM_UP_STEPS) * min(1.0, max(0.01, (steps - step) / decay_steps))


def initialize(model: DemoModel, generator: torch.Generator) -> None:
    """Patch filters = low-frequency DCT in opponent colours; positions = 2-D sines: both needed at this budget."""
    embeddings = model.vision.embeddings
    weight = embeddings.patch_embedding.weight
    basis = torch.from_numpy(dct_filters(len(weight), PATCH_PX))
    with torch.no_grad():
        weight.copy_(basis + 0.002 * torch.randn(weight.shape, generator=generator))
        table = embeddings.position_embedding.weight
        side = int(len(table) ** 0.5)
        waves = torch.from_numpy(sine_positions(side, table.shape[1] // 4))
        table[len(table) - side * side :, : waves.shape[1]] = waves


def dct_filters(count: int, side: int) -> np.ndarray:
    """f32 [count, 3, side, side]: lowest frequencies first; half see luminance, a quarter each R-G and B-Y."""
    at = np.arange(side) + 0.5
    order = sorted(((i, j) for i in range(side) for j in range(side)), key=lambda ij: (ij[0] + ij[1], ij))
    axes = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])
    shares = (count // 2, count // 4, count - count // 2 - count // 4)
    filters = []
    for axis, share in zip(axes, shares, strict=True):
        for i, j in order[:share]:
            wave = np.outer(np.cos(np.pi * i * at / side), np.cos(np.pi * j * at / side))
            wave *= 0.12 * (1 + 0.35 * (i + j)) / np.linalg.norm(wave)
            filters.append(axis[:, None, None] * wave)
    return np.array(filters, np.float32)


def sine_positions(side: int, waves: int, amplitude: float = 0.3) -> np.ndarray:
    """f32 [side * side, 4 * waves]: sines and cosines of x and y, from half a period over the picture."""
    y, x = np.divmod(np.arange(side * side), side) + np.array([[0.5], [0.5]])
    frequency = np.pi / side * 2.0 ** np.linspace(0, np.log2(side), waves)
    angles = (np.outer(x, frequency), np.outer(y, frequency))
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1).astype(np.float32) * np.float32(
        amplitude
    )


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz steps (Jordan et al. 2024), for the matrices of hidden layers."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(param)
                buffer = state["momentum"].mul_(group["momentum"]).add_(param.grad)
                by_shape.setdefault(param.shape, []).append((param, param.grad + group["momentum"] * buffer))
            for shape, pairs in by_shape.items():
                updates = orthogonalized(torch.stack([update for _, update in pairs])).float()
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for (param, _), update in zip(pairs, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def orthogonalized(matrices: Tensor) -> Tensor:
    """[n, a, b] -> roughly the nearest (semi-)orthogonal matrices, bf16."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def build_optimizers(model: DemoModel, head: nn.Module) -> list[torch.optim.Optimizer]:
    """[Muon for hidden matrices, AdamW for embeddings, norms, biases, patch filters and heads]."""
    hidden = [p for name, p in model.named_parameters() if _is_hidden(name, p)]
    taken = {id(p) for p in hidden}
    others = [p for p in (*model.parameters(), *head.parameters()) if id(p) not in taken]
    return [
        Muon(hidden, PEAK_RATE),
        torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def _is_hidden(name: str, param: Tensor) -> bool:
    return param.ndim == 2 and (".layers." in name or name.startswith("projector."))
