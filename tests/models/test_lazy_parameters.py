"""Parameters without memory become ordinary ones, except those that are left out."""

from __future__ import annotations

import torch
from torch import nn

from models.lazy_parameters import WithoutMemory, give_memory


def test_only_parameters_are_without_memory_and_get_it_once_each() -> None:
    with WithoutMemory():
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.LayerNorm(3))
        module.register_buffer("positions", torch.arange(3))
        module[0].weight.requires_grad_(False)
    module[1].weight = module[0].weight
    assert all(parameter.is_meta for parameter in module.parameters())
    assert module.positions.tolist() == [0, 1, 2]
    give_memory(module, {"2.bias"})
    assert [name for name, parameter in module.named_parameters() if parameter.is_meta] == ["2.bias"]
    assert module[1].weight is module[0].weight
    assert not module[0].weight.requires_grad
    assert module[0].bias.requires_grad
    assert torch.empty(1).device.type == "cpu"
