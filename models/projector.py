"""Projectors: vision features to rows that the decoder reads as tokens.

``build_vision_projector`` makes LLaVA's, ``build_mm_projector`` VILA's. State-dict keys are those of the published
weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from models.mosaic import fold_squares
from models.torch_files import read_torch_file
from models.weights import load_strict, read_tensors
from runtime.errors import ExportError

_MLP = re.compile(r"^mlp(\d+)x_gelu$")


class IdentityMap(nn.Module):
    """A projector that returns its input unchanged, the same object."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x

    @property
    def config(self) -> dict[str, str]:
        return {"mm_projector_type": "identity"}


class SimpleResBlock(nn.Module):
    """Residual block [..., channels]: with y = LayerNorm(x) the output is y + MLP(y), as published (not x + MLP(y))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(channels)
        self.proj = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.pre_norm(x)
        return normalised + self.proj(normalised)


class RangeClip(nn.Module):
    """Clamps the last dimension to a range per channel; ``min`` and ``max`` are buffers [1, channels]."""

    min: Tensor
    max: Tensor

    def __init__(self, minimum: Tensor, maximum: Tensor) -> None:
        super().__init__()
        self.register_buffer("min", minimum.detach().reshape(1, -1))
        self.register_buffer("max", maximum.detach().reshape(1, -1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.min.to(x.dtype), self.max.to(x.dtype))


class DownSampleBlock(nn.Module):
    """Folds every ``side`` x ``side`` square of patches into one token: [B, g*g, C] -> [B, ceil(g/side)^2, side^2 * C].

    The grid is padded with zeros at the bottom and on the right to a multiple of ``side``.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return fold_squares(x, self.side)


def build_vision_projector(config: Any, delay_load: bool = False, **kwargs: Any) -> nn.Module:
    """LLaVA's projector for ``config.mm_projector_type``: linear (default), mlp{N}x_gelu, identity or linearclip.

    Reads ``mm_hidden_size`` and ``hidden_size`` (AttributeError without them; identity needs neither) and, for
    linearclip, ``min_max_range_path``: a file with the minimum and the maximum of each output channel, safetensors
    (tensors ``min`` and ``max``) or torch's format (two tensors, read by ``models.torch_files``). ``delay_load`` and
    further keywords are accepted and unused. Raises ValueError for an unknown type.
    """
    kind = getattr(config, "mm_projector_type", "linear")
    if kind == "identity":
        return IdentityMap()
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    if kind == "linearclip":
        minimum, maximum = read_range(config.min_max_range_path)
        return nn.Sequential(nn.Linear(config.mm_hidden_size, config.hidden_size), RangeClip(minimum, maximum))
    if match := _MLP.match(kind):
        return nn.Sequential(*_mlp(config.mm_hidden_size, config.hidden_size, int(match[1])))
    raise ValueError(f"Unknown projector type: {kind}")


def read_range(path: str | Path) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of linearclip's outputs from ``path`` (see ``build_vision_projector``).

    Raises AssertionError for a file that holds None, TypeError for anything but two items, AttributeError for a
    dictionary of a torch file, as the published loader does.
    """
    if Path(path).suffix == ".safetensors":
        tensors = read_tensors(Path(path))
        return tensors["min"], tensors["max"]
    content = read_torch_file(path)
    assert content.kind != "none", f"{path} holds None instead of a range"
    if content.length != 2:
        raise TypeError(f"{path} holds {content.length} items, a range has 2: minimum and maximum")
    if content.kind not in ("list", "tensor"):
        raise AttributeError(f"{path} holds {content.kind}, a range is two tensors or one of two rows")
    items = content.tensors["0"] if content.kind == "tensor" else content.tensors.values()
    minimum, maximum = items
    return minimum, maximum


class MultimodalProjector(nn.Module):
    """VILA's projector: patch features [B, g*g, C] -> [B, tokens, hidden]; weights under ``layers.<i>``.

    ``downsample`` is the side of the patch square that becomes one token (1, 2 or 3). ``config`` needs
    ``mm_hidden_size`` and ``hidden_size``. Raises ValueError for an unknown type.
    """

    def __init__(self, kind: str, config: Any) -> None:
        super().__init__()
        self.kind = kind
        layers = _vila_layers(kind, getattr(config, "mm_hidden_size", 0), getattr(config, "hidden_size", 0))
        self.layers = nn.Sequential(*layers)
        self.downsample = layers[0].side if isinstance(layers[0], DownSampleBlock) else 1

    @property
    def config(self) -> dict[str, str]:
        """What stands in the projector's config.json."""
        return {"model_type": "v2l_projector", "mm_projector_type": self.kind}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        projected: Tensor = self.layers(x)
        return projected


def build_mm_projector(model_type_or_path: str | Path, config: Any) -> MultimodalProjector:
    """VILA's projector, loaded from the directory ``model_type_or_path`` or made new for that type.

    As published, ``config.resume_path`` decides: set, the directory must exist; not set, the string is a type's name
    unless it is a directory. Raises ExportError for a missing or unreadable directory, ValueError for an unknown
    type.
    """
    path = Path(model_type_or_path)
    if path.is_dir():
        return _load_projector(path, config)
    if getattr(config, "resume_path", None):
        raise ExportError(f"no projector directory at {path}", hint="resume_path is set, so weights are expected there")
    return MultimodalProjector(str(model_type_or_path), config)


def projector_kind(directory: Path) -> str:
    """The projector type that ``directory``/config.json names."""
    config_file = directory / "config.json"
    try:
        kind = json.loads(config_file.read_text(encoding="utf-8"))["mm_projector_type"]
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(f"{config_file} does not name mm_projector_type: {error}") from error
    return str(kind)


def _load_projector(directory: Path, config: Any) -> MultimodalProjector:
    try:
        with no_init_weights():
            projector = MultimodalProjector(projector_kind(directory), config)
    except ValueError as error:
        raise ExportError(f"{directory}/config.json: {error}", hint="one of " + ", ".join(VILA_TYPES)) from error
    load_strict(projector, directory, named="projector")
    return projector


def _mlp(width: int, hidden: int, depth: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    for _ in range(1, depth):
        layers += [nn.GELU(), nn.Linear(hidden, hidden)]
    return layers


def _folded(side: int, width: int, hidden: int, middle: Iterable[int]) -> list[nn.Module]:
    """Space-to-depth and its norm, then linear, GELU and norm to each of ``middle``, then the two linears to
    ``hidden``.
    """
    folded = side * side * width
    layers: list[nn.Module] = [DownSampleBlock(side), nn.LayerNorm(folded)]
    last = folded
    for size in middle:
        layers += [nn.Linear(last, size), nn.GELU(), nn.LayerNorm(size)]
        last = size
    return [*layers, nn.Linear(last, hidden), nn.GELU(), nn.Linear(hidden, hidden)]


_FOLDED: dict[str, Callable[[int, int], list[nn.Module]]] = {
    "mlp_downsample": lambda width, hidden: _folded(2, width, hidden, ()),
    "mlp_downsample_2x2_fix": lambda width, hidden: _folded(2, width, hidden, ()),
    "mlp_downsample_3x3_fix": lambda width, hidden: _folded(3, width, hidden, (3 * width,)),
    "mlp_downsample_3x3_s2": lambda width, hidden: _folded(3, width, hidden, (3 * width, width, width // 3)),
    "mlp_downsample_3x3_s2_new": lambda width, hidden: _folded(
        3, width, hidden, (4 * width, 2 * width, width, width // 3)
    ),
}
VILA_TYPES = ("identity", "linear", "mlp<N>x_gelu", *_FOLDED)


def _vila_layers(kind: str, width: int, hidden: int) -> list[nn.Module]:
    if kind == "identity":
        return [IdentityMap()]
    if kind == "linear":
        return [nn.Linear(width, hidden)]
    if match := _MLP.match(kind):
        return _mlp(width, hidden, int(match[1]))
    if kind in _FOLDED:
        return _FOLDED[kind](width, hidden)
    raise ValueError(f"Unknown projector type: {kind}")
