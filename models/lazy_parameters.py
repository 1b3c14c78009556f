"""Modules whose parameters get their memory when it is known which of them are needed.

with WithoutMemory():
    model = LlamaForCausalLM(config)
give_memory(model, {"model.layers.0.mlp.up_proj.weight"})     # all but this one
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class WithoutMemory(TorchFunctionMode):
    """Parameters made inside it lie on meta: shape and dtype without values. Buffers are made as ever."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty:  # what torch's modules make their parameters with
            options["device"] = "meta"
        return func(*args, **options)


def give_memory(module: nn.Module, but: Collection[str] = ()) -> None:
    """Put uninitialised parameters on the CPU in the place of those on meta, except the named ones. Ties stay."""
    made: dict[int, nn.Parameter] = {}
    for prefix, owner in module.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            full = f"{prefix}.{name}" if prefix else name
            if parameter.is_meta and full not in but:
                values = torch.empty_like(parameter, device="cpu")
                made.setdefault(id(parameter), nn.Parameter(values, parameter.requires_grad))
                setattr(owner, name, made[id(parameter)])
