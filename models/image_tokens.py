"""LLaVA's optional image tokens: <im_patch>, <im_start>, <im_end> and their embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.adapter import read_adapter

IM_PATCH, IM_START, IM_END = "<im_patch>", "<im_start>", "<im_end>"


def initialize_vision_tokenizer(model: Any, model_args: Any, tokenizer: Any) -> None:
    """Add the image tokens that ``model_args`` asks for and give them embeddings.

    ``mm_use_im_patch_token`` adds <im_patch>; ``mm_use_im_start_end`` adds <im_start> and <im_end>, whose input and
    output rows become the mean of all older rows, or come from ``pretrain_mm_mlp_adapter`` (input rows alone). With
    ``tune_mm_mlp_adapter`` input embeddings are trained and output embeddings frozen; with patch tokens alone both
    are frozen. A second call changes nothing. Raises ValueError when the adapter's embeddings have another shape.
    """
    if model_args.mm_use_im_patch_token:
        _add(model, tokenizer, [IM_PATCH])
    if model_args.mm_use_im_start_end:
        first = len(tokenizer)
        if _add(model, tokenizer, [IM_START, IM_END]):
            _set_mean_rows(model, first)
        if model_args.tune_mm_mlp_adapter:
            model.get_input_embeddings().requires_grad_(True)
            model.get_output_embeddings().requires_grad_(False)
        if model_args.pretrain_mm_mlp_adapter:
            ids = tokenizer.convert_tokens_to_ids([IM_START, IM_END])
            _copy_rows(model, ids, read_adapter(model_args.pretrain_mm_mlp_adapter)["model.embed_tokens.weight"])
    elif model_args.mm_use_im_patch_token and model_args.tune_mm_mlp_adapter:
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)


def _add(model: Any, tokenizer: Any, tokens: list[str]) -> int:
    """Number of tokens that were new. The table only grows: checkpoints pad it beyond the tokenizer."""
    added = int(tokenizer.add_tokens(tokens, special_tokens=True))
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return added


@torch.no_grad()
def _set_mean_rows(model: Any, first: int) -> None:
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = embeddings.weight
        weight[first : first + 2] = weight[:first].mean(dim=0, keepdim=True)


@torch.no_grad()
def _copy_rows(model: Any, ids: list[int], stored: Tensor) -> None:
    weight = model.get_input_embeddings().weight
    if stored.shape == weight.shape:
        weight[ids] = stored[ids].to(weight)
    elif stored.shape == (len(ids), weight.shape[1]):
        weight[ids] = stored.to(weight)
    else:
        raise ValueError(
            f"Unexpected embed_tokens_weight shape {tuple(stored.shape)}: {tuple(weight.shape)} or "
            f"{(len(ids), weight.shape[1])} is needed"
        )
