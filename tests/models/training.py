"""One training step of a small LLaVA: alone, or as one of several FSDP ranks.

python -m tests.models.training <rank> <ranks> <meeting file> <tower folder> <result.safetensors>
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from models.fusion import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from models.llava import LlavaLlamaConfig, LlavaLlamaForCausalLM
from tests.models.tiny import VICUNA, VICUNA_SPECIALS, byte_tokenizer

RATE = 0.5


def small_model(**fields: Any) -> LlavaLlamaForCausalLM:
    torch.manual_seed(0)
    config = LlavaLlamaConfig(
        vocab_size=264, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, **fields,
    )  # fmt: skip
    return LlavaLlamaForCausalLM(config)


def arguments(tower: Path, **fields: Any) -> SimpleNamespace:
    """What LLaVA's training hands in."""
    defaults = {
        "vision_tower": str(tower),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "pretrain_mm_mlp_adapter": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": True,
        "tune_mm_mlp_adapter": True,
    }
    return SimpleNamespace(**defaults | fields)


def first_stage(tower: Path, fsdp: list[str] | None = None) -> LlavaLlamaForCausalLM:
    """A model in LLaVA's first stage: projector and input embeddings learn, decoder and output embeddings do not."""
    model, chosen = small_model(), arguments(tower)
    model.requires_grad_(False)
    model.get_model().initialize_vision_modules(chosen, fsdp=fsdp)
    model.model.mm_projector.requires_grad_(True)
    model.initialize_vision_tokenizer(chosen, byte_tokenizer(VICUNA, VICUNA_SPECIALS))
    return model.train()


def batch() -> dict[str, Tensor]:
    """Four rows of unequal length, one of them without a picture; as many labels in each half of the batch."""
    pad, image, none = 0, IMAGE_TOKEN_INDEX, IGNORE_INDEX
    ids = [[1, image, 20, 21, 22], [1, 30, 31, 32, pad], [1, 40, image, 41, 42], [1, image, 50, pad, pad]]
    labels = [
        [none, none, 20, 21, 22], [none, none, 31, none, none],
        [none, 40, none, 41, 42], [none, none, 50, none, none],
    ]  # fmt: skip
    mask = [[token != pad for token in row] for row in ids]
    pixels = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    return {
        "input_ids": torch.tensor(ids), "labels": torch.tensor(labels),
        "attention_mask": torch.tensor(mask), "images": pixels,
    }  # fmt: skip


def step(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The loss of one step of gradient descent, which is taken."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    loss: Tensor = model(**inputs).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


def _rank(rank: int, ranks: int, meeting: str, tower: Path, result: Path) -> None:
    from torch import distributed
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    model = first_stage(tower, fsdp=["full_shard"])
    sharded = FullyShardedDataParallel(
        model,
        device_id=torch.device("cpu"),
        use_orig_params=True,
        auto_wrap_policy=partial(transformer_auto_wrap_policy, transformer_layer_cls={LlamaDecoderLayer}),
    )
    whole = batch()
    rows = len(whole["input_ids"]) // ranks
    loss = step(sharded, {name: tensor[rank * rows : (rank + 1) * rows] for name, tensor in whole.items()})
    found = {"loss": loss}
    with FullyShardedDataParallel.summon_full_params(sharded, with_grads=False):
        found |= {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tower_state = model.get_vision_tower().state_dict()  # type: ignore[union-attr]
    found |= {f"tower.{name}": tensor.clone() for name, tensor in tower_state.items()}
    save_file(
        {name.replace("_fsdp_wrapped_module.", ""): tensor.contiguous() for name, tensor in found.items()}, result
    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    _rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
