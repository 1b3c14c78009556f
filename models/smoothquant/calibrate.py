"""Measures the inputs of all linear layers on calibration tiles, layer by layer; chooses alpha by feature error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from models.smoothquant.smooth import column_maxima
from models.smoothquant.w8a8 import w8a8_layer
from models.vision_scales import DEFAULT_ALPHA, LINEARS, ActivationScales, linear_name
from models.vision_tower import VisionTower
from runtime.errors import InputError

ALPHAS = (0.15, DEFAULT_ALPHA, 0.5, 0.7)
_MEDIA = ("image", "video")


class ActivationMeter:
    """While entered, remembers the largest |x| of each input channel of modules: ``maxima``, name to f32 [C].

    Any number of calls with any leading shape; a module that is never called has no entry.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.maxima: dict[str, Tensor] = {}
        self._modules = modules
        self._handles: list[Any] = []

    def __enter__(self) -> ActivationMeter:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def measure(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            rows = arguments[0].detach().reshape(-1, arguments[0].shape[-1])
            if not len(rows):
                return
            seen = rows.abs().amax(0).float().cpu()
            before = self.maxima.get(name)
            self.maxima[name] = seen if before is None else torch.maximum(before, seen)

        return measure


@dataclass(frozen=True)
class Calibration:
    """``scales`` with the chosen alpha, and the relative feature error of the static int8 tower for each alpha."""

    scales: ActivationScales
    errors: Mapping[float, float]


def calibration_tiles(media: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """All tiles of ``media["image"]`` and ``media["video"]`` as one batch [T, 3, S, S].

    An item is one tile [3, S, S], the tiles of a picture or the frames of a video [n, 3, S, S], or tiled frames
    [f, n, 3, S, S]; either key may be missing. (The published code joins videos along their channels, which works for
    one alone, and takes no pictures.) Raises InputError for another shape, tiles of two sizes, or no tile at all.
    """
    tiles: list[Tensor] = []
    for kind in _MEDIA:
        for index, item in enumerate(media.get(kind, ())):
            if item.dim() not in (3, 4, 5) or item.shape[-3] != 3:
                raise InputError(f"{kind} {index} has shape {tuple(item.shape)}, expected tiles [..., 3, S, S]")
            tiles.append(item.reshape(-1, *item.shape[-3:]))
    if sum(len(part) for part in tiles) == 0:
        raise InputError("no calibration tiles", hint="give at least one picture or video")
    sizes = {tuple(part.shape[1:]) for part in tiles}
    if len(sizes) > 1:
        raise InputError(f"calibration tiles of different shapes: {sorted(sizes)}", hint="preprocess them alike")
    return torch.cat(tiles)


@torch.no_grad()
def measure_activations(tower: VisionTower, batches: Iterable[Tensor | list[Tensor]]) -> ActivationScales:
    """The maxima over everything that ``forward`` accepts, batch by batch; layers that are not computed are left out.

    Works for every tower: S² towers resize and cut the pictures themselves.
    """
    layers = tower.vision_tower.encoder.layers
    linears = {linear_name(i, name): layer.get_submodule(name) for i, layer in enumerate(layers) for name in LINEARS}
    tiles = 0
    with ActivationMeter(linears) as meter:
        for batch in batches:
            tower(batch)
            tiles += len(batch)
    if not tiles:
        raise InputError("no calibration tiles", hint="give at least one picture or video")
    return _scales(meter.maxima, {name: linears[name] for name in meter.maxima}, tiles)


@torch.no_grad()
def calibrate_tower(tower: VisionTower, tiles: Tensor, *, alphas: Sequence[float] = ALPHAS) -> Calibration:
    """``calibrate_layers`` for a tower in memory; tiles [T, 3, S, S] as its ``forward`` takes them."""
    layers = tower.vision_tower.encoder.layers[: layers_computed(tower)]
    hidden = list(first_states(tower, tiles).split(1))
    return calibrate_layers(hidden, layers, alphas=alphas, skip_tokens=dropped_tokens(tower))


class _Reached(Exception):
    """The first encoder layer was called; nothing behind it is wanted."""


@torch.no_grad()
def first_states(tower: VisionTower, tiles: Tensor) -> Tensor:
    """What enters the first encoder layer for tiles [T, 3, S, S], [P, N, D]: P is T, or for static S² all pieces.

    Needs the embeddings' weights alone. Raises InputError for a tower whose features need no encoder layer.
    """
    if not layers_computed(tower):
        raise InputError("the features of this vision tower are its embeddings: there is no layer to measure")
    seen: list[Tensor] = []

    def stop(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0])
        raise _Reached

    handle = tower.vision_tower.encoder.layers[0].register_forward_pre_hook(stop)
    try:
        tower.features(tiles)
    except _Reached:
        return seen[0]
    finally:
        handle.remove()
    raise AssertionError("the tower did not call its first encoder layer")


def layers_computed(tower: VisionTower) -> int:
    """How many encoder layers a tower's features need."""
    states = len(tower.vision_tower.encoder.layers) + 1
    selected = [tower.select_layer] if isinstance(tower.select_layer, int) else tower.select_layer
    return max(int(layer) % states for layer in selected)


def dropped_tokens(tower: VisionTower) -> int:
    """How many leading tokens do not reach the features."""
    return tower.class_tokens if tower.select_feature == "patch" else 0


@torch.no_grad()
def calibrate_layers(
    hidden: list[Tensor],
    layers: Iterable[nn.Module],
    *,
    alphas: Sequence[float] = ALPHAS,
    trials: int = 4,
    skip_tokens: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Calibration:
    """Runs embedded batches [B, N, D] through encoder layers, one at a time, and measures each layer's inputs.

    ``hidden`` is overwritten with the features, so that memory holds one layer and one state of every batch. With more
    than one of ``alphas`` the first ``trials`` batches also run through the static int8 form of each layer, once for
    each alpha; the one with the smallest ``feature_error`` at the end wins (the first of ``skip_tokens`` tokens are
    left out). ``progress`` is told the number of finished layers. ``layers`` may load a layer when it is asked for it.
    """
    if not hidden:
        raise InputError("no calibration tiles", hint="give at least one picture or video")
    runs = {alpha: [state.clone() for state in hidden[:trials]] for alpha in alphas} if len(alphas) > 1 else {}
    maxima: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    tiles = sum(len(batch) for batch in hidden)
    for index, layer in enumerate(layers):
        linears = {linear_name(index, name): layer.get_submodule(name) for name in LINEARS}
        with ActivationMeter(linears) as meter:
            for at, state in enumerate(hidden):
                hidden[at] = layer(state, attention_mask=None)
        maxima |= meter.maxima
        weights |= {name: column_maxima(linear.weight) for name, linear in linears.items()}
        measured = ActivationScales(_numpy(meter.maxima), {}, alphas[0], tiles)
        for alpha, states in runs.items():
            int8 = w8a8_layer(layer, index, measured, alpha=alpha, static=True)
            runs[alpha] = [int8(state, attention_mask=None) for state in states]
        progress(index + 1)
    errors = {
        alpha: feature_error([state[:, skip_tokens:] for state in states], [s[:, skip_tokens:] for s in hidden])
        for alpha, states in runs.items()
    }
    best = min(errors, key=lambda alpha: errors[alpha]) if errors else alphas[0]
    return Calibration(ActivationScales(_numpy(maxima), _numpy(weights), best, tiles), errors)


def feature_error(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """|found - expected| / |expected| over all batches, Euclidean; the shorter of the two ends the comparison."""
    off = size = 0.0
    for ours, theirs in zip(found, expected, strict=False):
        off += float((ours.double() - theirs.double()).square().sum())
        size += float(theirs.double().square().sum())
    return (off / size) ** 0.5


def _scales(maxima: Mapping[str, Tensor], linears: Mapping[str, Any], tiles: int) -> ActivationScales:
    weights = {name: column_maxima(linear.weight) for name, linear in linears.items()}
    return ActivationScales(_numpy(maxima), _numpy(weights), DEFAULT_ALPHA, tiles)


def _numpy(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in tensors.items()}
