"""NVILA: parts, image encoding, embedding of media, and generation through every door."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from models.fusion import IGNORE_INDEX
from models.mosaic import MosaicProjector
from models.nvila import LlavaConfig, NVILAQwen2
from runtime.errors import ExportError, InputError
from runtime.tiling import layout_for, s2_matrices
from tests.models.tiny import picture

DYNAMIC: dict[str, Any] = {"scales": None}
THREE: dict[str, Any] = {"scales": (28, 56, 84)}
MOSAICS: list[dict[str, Any]] = [
    {},
    THREE,
    THREE | {"resize_output_to_scale_idx": 0},
    THREE | {"projector": "mlp_downsample_3x3_fix"},
    {"tile_px": 35, "scales": (35, 70)},
]


def tiles(count: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(seed)))


def text_ids(model: Any, text: str) -> list[int]:
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


# ---- image encoding


@pytest.mark.parametrize("options", MOSAICS, ids=str)
@pytest.mark.parametrize("size", [(300, 300), (640, 200), (200, 640)])
def test_behaviour_06_tokens_are_row_major_over_the_mosaic_and_equal_the_graph_module(options, size, loaded) -> None:
    model = loaded("nvila", **options)
    _, media, config = model.prepare_prompt([picture(*size), "q"])
    spec = model.tiling_spec()
    layout = layout_for(size[1], size[0], spec)
    stack = torch.stack(media["image"])
    tokens = model.encode_images(stack, config["image"]["block_sizes"])[0]
    assert tokens.shape == (layout.num_image_tokens, 64)
    matrices = [torch.from_numpy(m) for pair in s2_matrices(layout, spec) for m in pair]
    graph = MosaicProjector(model.mm_projector, spec.patches_per_side)
    torch.testing.assert_close(tokens, graph(model.vision_tower(stack), *matrices), atol=1e-5, rtol=1e-5)


def test_behaviour_06_the_projector_sees_one_block_at_a_time(loaded) -> None:
    model = loaded("nvila", **THREE, projector="mlp_downsample_3x3_fix")  # 4x4 patches: each block is padded to 6x6
    stack = torch.stack(tiles(1 + 4 + 6))
    features = model.vision_tower(stack)
    rows, cols = 2, 3
    last = torch.zeros(18, rows * 4, cols * 4)
    for index in range(rows * cols):
        row, col = divmod(index, cols)
        tile = features[5 + index].T.reshape(18, 4, 4)
        last[:, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = tile
    maps, _ = model.merge_features_for_dynamic_s2(features, [(rows, cols)])
    assert torch.equal(maps[0][0, -18:], last)  # channels of the last scale come last, at their own size
    expected = torch.zeros(rows * 2, cols * 2, 64)
    for row in range(rows):
        for col in range(cols):
            block = maps[0][0, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4].flatten(1).T
            alone = model.mm_projector(block[None])[0].reshape(2, 2, 64)
            expected[2 * row : 2 * row + 2, 2 * col : 2 * col + 2] = alone
    found = model.encode_images(stack, [(rows, cols)])[0]
    torch.testing.assert_close(found, expected.reshape(-1, 64), atol=1e-5, rtol=1e-5)


def test_behaviour_06_a_changed_corner_tile_changes_the_corner_of_the_mosaic(loaded) -> None:
    model = loaded("nvila")
    stack = torch.stack(tiles(1 + 6))
    before = model.encode_images(stack, [(2, 3)])[0].reshape(4, 6, -1)
    stack[-1] += 1.0
    changed = (model.encode_images(stack, [(2, 3)])[0].reshape(4, 6, -1) != before).any(dim=-1)
    assert changed[2:, 4:].all()
    assert not changed[:2].any()
    assert not changed[:, :4].any()


def test_behaviour_05_images_of_different_block_counts_come_as_a_list(loaded) -> None:
    model = loaded("nvila")
    features = model.encode_images(torch.stack(tiles(1 + 4 + 1 + 6 + 1)), [(2, 2), (2, 3), None])
    assert isinstance(features, list)
    assert [len(f) for f in features] == [16, 24, 4]
    alike = model.encode_images(torch.stack(tiles(10)), [(2, 2), (2, 2)])
    assert isinstance(alike, torch.Tensor)
    assert alike.shape == (2, 16, 64)


def test_behaviour_04_without_block_sizes_every_tile_is_a_block_of_its_own(loaded) -> None:
    model = loaded("nvila")
    stack = torch.stack(tiles(2))
    features = model.vision_tower(stack)
    expected = model.mm_projector(torch.cat([features, features], dim=-1))
    torch.testing.assert_close(model.encode_images(stack), expected)


def test_without_dynamic_s2_block_sizes_are_ignored(loaded) -> None:
    model = loaded("nvila", **DYNAMIC)
    stack = torch.stack(tiles(1))
    assert torch.equal(model.encode_images(stack, [(2, 2)]), model.mm_projector(model.vision_tower(stack)))


# ---- _embed


def prompt_ids(model: Any, *parts: str) -> torch.Tensor:
    """Ids of texts and of "image" / "video" tokens."""
    named = model.tokenizer.media_token_ids
    return torch.tensor([i for part in parts for i in ([named[part]] if part in named else text_ids(model, part))])


def test_behaviour_13_order_labels_and_the_line_break_after_each_image(loaded) -> None:
    model = loaded("nvila", **DYNAMIC)
    ids, media = prompt_ids(model, "ab", "image", "c", "image"), tiles(2)
    labels = torch.arange(1, 6)
    embeds, found, mask = model._embed(ids[None], {"image": media}, None, labels[None], None)
    table, features = model.llm.model.embed_tokens, model.encode_images(torch.stack(media))
    newline = table(torch.tensor(text_ids(model, "\n")))
    rows = [table(ids[:2]), features[0], newline, table(ids[3:4]), features[1], newline]
    assert torch.equal(embeds[0], torch.cat(rows))
    block = [IGNORE_INDEX] * 5
    assert found[0].tolist() == [1, 2, *block, 4, *block]
    assert mask.all()


def test_behaviour_13_queues_are_per_type_and_run_across_the_batch(loaded) -> None:
    model = loaded("nvila", **DYNAMIC)
    images, videos = tiles(2, 1), [torch.stack(tiles(2, 2))]
    first = prompt_ids(model, "image", "a", "video")
    second = prompt_ids(model, "b", "image", "c")
    embeds, _, mask = model._embed(torch.stack([first, second]), {"image": images, "video": videos}, {}, None, None)
    features = model.encode_images(torch.stack(images))
    frames = model.encode_images(videos[0])
    assert torch.equal(embeds[0, :4], features[0])
    assert torch.equal(embeds[0, 6:10], frames[0])
    assert torch.equal(embeds[0, 11:15], frames[1])
    assert torch.equal(embeds[1, 1:5], features[1])
    assert mask.sum(dim=1).tolist() == [16, 7]


def test_behaviour_14_left_over_and_missing_media(loaded) -> None:
    model = loaded("nvila", **DYNAMIC)
    ids = prompt_ids(model, "a", "image")[None]
    with pytest.raises(ValueError, match=r"^Not all image embeddings are consumed!$"):
        model._embed(ids, {"image": tiles(2)}, None, None, None)
    with pytest.raises(ValueError, match=r"^Not all video embeddings are consumed!$"):
        model._embed(ids, {"image": tiles(1), "video": [torch.stack(tiles(1))]}, None, None, None)
    with pytest.raises(IndexError, match="no image embeddings left"):
        model._embed(ids, {}, None, None, None)
    with pytest.raises(KeyError, match="sound"):
        model._embed(ids, {"image": tiles(1), "sound": tiles(1)}, None, None, None)


@pytest.mark.parametrize("side", ["left", "right"])
def test_behaviour_14_output_padding_on_both_sides(side, loaded, monkeypatch) -> None:
    model = loaded("nvila", **DYNAMIC)
    monkeypatch.setattr(model.tokenizer, "padding_side", side)
    long, short = prompt_ids(model, "abc", "image"), prompt_ids(model, "abcd")
    embeds, labels, mask = model._embed(
        torch.stack([long, short]), {"image": tiles(1)}, None, torch.ones(2, 4).long(), None
    )
    real = slice(0, 4) if side == "right" else slice(4, 8)
    assert mask[1].tolist() == [index in range(*real.indices(8)) for index in range(8)]
    assert torch.equal(embeds[1, real], model.embed_tokens(short))
    assert not embeds[1][~mask[1]].any()
    assert (labels[1][~mask[1]] == IGNORE_INDEX).all()


def test_behaviour_15_left_padded_input_equals_right_padded_input(loaded) -> None:
    model = loaded("nvila", **DYNAMIC)
    rows = [prompt_ids(model, "abcd", "image", "e"), prompt_ids(model, "x", "image")]
    pad, longest = model.tokenizer.pad_token_id, 6
    found = []
    for side in ("right", "left"):
        ids, mask = [], []
        for row in rows:
            filler = torch.full((longest - len(row),), pad)
            ids.append(torch.cat([row, filler] if side == "right" else [filler, row]))
            ones, zeros = torch.ones(len(row)), torch.zeros(len(filler))
            mask.append(torch.cat([ones, zeros] if side == "right" else [zeros, ones]).long())
        labels = torch.where(torch.stack(mask).bool(), torch.stack(ids), IGNORE_INDEX)
        found.append(model._embed(torch.stack(ids), {"image": tiles(2)}, None, labels, torch.stack(mask)))
    for right, left in zip(*found, strict=True):
        assert torch.equal(right, left)


def test_behaviour_39_media_config_forms_are_the_same_and_dummies_add_nothing(loaded) -> None:
    model = loaded("nvila")
    ids, media = prompt_ids(model, "a", "image")[None], tiles(1)
    results = [
        model._embed(ids, {"image": media} | extra, config, None, None)[0]
        for config in (None, {}, defaultdict(dict))
        for extra in ({}, {"dummy": [torch.ones(3)]})
    ]
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize("training", [True, False])
def test_behaviour_40_truncation_warns_with_both_lengths(training, loaded, monkeypatch, caplog) -> None:
    model = loaded("nvila", **DYNAMIC)
    monkeypatch.setattr(model.tokenizer, "model_max_length", 4)
    monkeypatch.setattr(model, "training", training)
    with caplog.at_level(logging.WARNING):
        embeds, labels, mask = model._embed(
            prompt_ids(model, "ab", "image")[None], {"image": tiles(1)}, None, None, None
        )
    assert embeds.shape[1] == labels.shape[1] == mask.shape[1] == 4
    assert "7 positions" in caplog.text
    assert "(4)" in caplog.text


def test_behaviour_40_a_row_without_media_is_fine_and_an_empty_one_refused(loaded) -> None:
    model = loaded("nvila", **DYNAMIC)
    ids = torch.stack([prompt_ids(model, "ab"), prompt_ids(model, "a", "image")])
    embeds, _, mask = model._embed(ids, {"image": tiles(1)}, None, None, None)
    assert mask.sum(dim=1).tolist() == [2, 6]
    assert torch.equal(embeds[0, :2], model.embed_tokens(ids[0]))
    with pytest.raises(InputError, match="empty"):
        model._embed(ids, {"image": tiles(1)}, None, None, torch.tensor([[0, 0], [1, 1]]))


def test_description_example_needs_all_tiles_of_its_block(loaded) -> None:
    model = loaded("nvila", **THREE)
    ids = prompt_ids(model, "a", "image")[None]
    config = {"image": {"block_sizes": [(2, 2)]}}
    embeds, _, _ = model._embed(ids, {"image": [torch.stack(tiles(9))]}, config, None, None)
    assert embeds.shape[1] == 1 + 16 + 1
    with pytest.raises(InputError, match=r"needs 9 tiles \(1 \+ 4 \+ 4\), got 1"):
        model._embed(ids, {"image": tiles(1)}, config, None, None)


# ---- parts


@pytest.mark.parametrize("tied", [False, True])
def test_behaviour_36_parts_are_reachable(tied: bool, loaded) -> None:
    model = loaded("nvila", tied=tied)
    assert isinstance(model.get_llm(), Qwen2ForCausalLM)
    assert isinstance(model.get_lm_head(), nn.Linear)
    shared = model.get_lm_head().weight is model.get_llm().get_input_embeddings().weight
    assert shared is tied
    assert model.get_vision_tower() is model.vision_tower
    assert model.get_mm_projector() is model.mm_projector


def test_behaviour_36_post_config_fills_what_is_missing(checkpoints) -> None:
    model = NVILAQwen2.load_pretrained(checkpoints("nvila"))
    for key in ("llm_cfg", "vision_tower_cfg", "mm_projector_cfg"):
        setattr(model.config, key, None)
    model.post_config()
    assert model.config.vision_tower_cfg is model.vision_tower.config
    assert model.config.mm_projector_cfg["mm_projector_type"] == "mlp_downsample"
    assert model.config.llm_cfg is model.llm.config


def test_behaviour_33_init_vlm_twice_changes_nothing(checkpoints) -> None:
    model = NVILAQwen2.load_pretrained(checkpoints("nvila"))
    before = (model.tokenizer, model.vision_tower, model.mm_projector, model.encoders)
    model.init_vlm(LlavaConfig(), "ignored", keyword="ignored")
    assert before == (model.tokenizer, model.vision_tower, model.mm_projector, model.encoders)
    assert model.is_loaded


@pytest.mark.parametrize(
    ("value", "dtype"), [("torch.bfloat16", torch.bfloat16), ("float16", torch.float16), (None, torch.float16)]
)
def test_behaviour_33_model_dtype_is_parsed_through_a_table(value, dtype, checkpoints, caplog) -> None:
    config = LlavaConfig.from_directory(checkpoints("nvila"))
    config.model_dtype = value
    with caplog.at_level(logging.WARNING):
        model = NVILAQwen2(config)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert ("model_dtype" in caplog.text) is (value is None)
    assert config.model_dtype == (value or "torch.float16")


def test_behaviour_33_code_in_model_dtype_and_unknown_encoders_are_refused(checkpoints) -> None:
    config = LlavaConfig.from_directory(checkpoints("nvila"))
    config.model_dtype = "__import__('os').getcwd()"
    with pytest.raises(ExportError, match="model_dtype is"):
        NVILAQwen2(config)
    config = LlavaConfig.from_directory(checkpoints("nvila"))
    config.image_encoder = '{"_target_": "subprocess.run"}'
    with pytest.raises(ExportError, match=r"subprocess\.run"):
        NVILAQwen2(config)
