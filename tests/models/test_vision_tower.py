"""Towers against transformers' own CLIP and SigLIP outputs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import CLIPVisionModel, SiglipVisionModel

from models.s2_tower import SiglipVisionTowerDynamicS2, SiglipVisionTowerS2, build_vila_vision_tower, parse_scales
from models.vision_tower import CLIPVisionTower, SiglipVisionTower, build_vision_tower
from runtime.errors import ExportError, UsageError


@pytest.fixture(scope="module")
def clip_directory(checkpoints: Any) -> Path:
    return checkpoints("nvila", clip=True) / "vision_tower"


@pytest.fixture(scope="module")
def siglip_directory(checkpoints: Any) -> Path:
    return checkpoints("nvila") / "vision_tower"


def arguments(layer: int | list[int] = -2, feature: str = "patch", **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(mm_vision_select_layer=layer, mm_vision_select_feature=feature, **fields)


def all_states(model_class: Any, directory: Path, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        states: tuple[torch.Tensor, ...] = model_class.from_pretrained(directory)(
            images, output_hidden_states=True
        ).hidden_states
    return states


@pytest.mark.parametrize("layer", [-1, -2, 0, 1, 3])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_behaviour_09_clip_features_equal_transformers(clip_directory: Path, layer: int, feature: str) -> None:
    images = torch.randn(3, 3, 28, 28)
    expected = all_states(CLIPVisionModel, clip_directory, images)[layer]
    tower = CLIPVisionTower(clip_directory, arguments(layer, feature))
    torch.testing.assert_close(tower(images), expected[:, 1:] if feature == "patch" else expected)


@pytest.mark.parametrize("layer", [-1, -2, 0, 2])
def test_siglip_features_equal_transformers(siglip_directory: Path, layer: int) -> None:
    images = torch.randn(2, 3, 28, 28)
    expected = all_states(SiglipVisionModel, siglip_directory, images)[layer]
    for feature in ("patch", "cls_patch"):
        torch.testing.assert_close(SiglipVisionTower(siglip_directory, arguments(layer, feature))(images), expected)


def test_several_layers_are_concatenated(clip_directory: Path) -> None:
    images = torch.randn(1, 3, 28, 28)
    states = all_states(CLIPVisionModel, clip_directory, images)
    tower = CLIPVisionTower(clip_directory, arguments([-2, 0]))
    torch.testing.assert_close(tower(images), torch.cat([states[-2], states[0]], dim=-1)[:, 1:])
    assert tower.feature_size == 2 * tower.hidden_size


def test_layers_after_the_selected_one_are_not_computed(clip_directory: Path) -> None:
    tower = CLIPVisionTower(clip_directory, arguments(-2))
    ran: list[int] = []
    for index, layer in enumerate(tower.vision_tower.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    tower(torch.randn(1, 3, 28, 28))
    assert ran == [0, 1]


def test_behaviour_09_a_list_gives_a_list_equal_to_the_batch(clip_directory: Path) -> None:
    tower = CLIPVisionTower(clip_directory, arguments())
    images = torch.randn(3, 3, 28, 28)
    batch, single = tower(images), tower(list(images))
    assert isinstance(single, list)
    assert [part.shape for part in single] == [(1, 16, 18)] * 3
    torch.testing.assert_close(torch.cat(single), batch)
    torch.testing.assert_close(torch.cat(tower(tuple(images))), batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_behaviour_09_features_come_back_in_the_dtype_of_the_images(clip_directory: Path, dtype: torch.dtype) -> None:
    tower = CLIPVisionTower(clip_directory, arguments())
    assert tower(torch.zeros(1, 3, 28, 28, dtype=dtype)).dtype == dtype
    assert tower.dtype == torch.float32


def test_behaviour_09_select_feature_is_checked_when_it_is_used(clip_directory: Path) -> None:
    tower = CLIPVisionTower(clip_directory, arguments(feature="cls"))
    with pytest.raises(ValueError, match="Unexpected select feature: cls"):
        tower(torch.zeros(1, 3, 28, 28))
    assert CLIPVisionTower(clip_directory, SimpleNamespace(mm_vision_select_layer=-2)).select_feature == "patch"
    with pytest.raises(AttributeError):
        CLIPVisionTower(clip_directory, SimpleNamespace())
    with pytest.raises(IndexError, match="mm_vision_select_layer -9"):
        CLIPVisionTower(clip_directory, arguments(-9))(torch.zeros(1, 3, 28, 28))


def test_behaviour_09_feature_select_reads_any_output_with_hidden_states(clip_directory: Path) -> None:
    tower = CLIPVisionTower(clip_directory, arguments(1))
    states = (torch.zeros(1, 5, 2), torch.ones(1, 5, 2))
    assert torch.equal(tower.feature_select(SimpleNamespace(hidden_states=states)), torch.ones(1, 4, 2))


def test_behaviour_26_before_load_model_only_the_configuration_is_read(clip_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((clip_directory / "config.json").read_text())  # and no weights at all
    tower = CLIPVisionTower(tmp_path, arguments(), delay_load=True)
    assert not tower.is_loaded
    assert tower.config is tower.cfg_only
    assert (tower.hidden_size, tower.num_patches, tower.num_patches_per_side) == (18, 16, 4)
    for read in (lambda: tower.dtype, lambda: tower.device, lambda: tower.dummy_feature):
        with pytest.raises(UsageError, match=r"is not loaded.*load_model"):
            read()
    with pytest.raises(UsageError, match="load_model"):
        tower(torch.zeros(1, 3, 28, 28))


def test_behaviour_26_dummy_feature_is_zeros_of_the_towers_dtype(clip_directory: Path) -> None:
    tower = CLIPVisionTower(clip_directory, arguments()).to(torch.float16)
    assert not hasattr(tower, "cfg_only")
    dummy = tower.dummy_feature
    assert (dummy.shape, dummy.dtype, dummy.device) == ((1, 18), torch.float16, torch.device("cpu"))
    assert not dummy.any()


def test_behaviour_27_load_model_freezes_and_a_second_call_changes_nothing(clip_directory: Path) -> None:
    tower = CLIPVisionTower(clip_directory, arguments(), delay_load=True)
    tower.load_model()
    first, processor = tower.vision_tower, tower.image_processor
    tower.load_model()
    assert tower.vision_tower is first
    assert processor.size["height"] == 28
    tower.train()
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not tower.vision_tower.training
    images = torch.zeros(1, 3, 28, 28, requires_grad=True)
    assert tower(images).grad_fn is None


def test_old_and_full_checkpoints_of_the_tower_load(clip_directory: Path, tmp_path: Path) -> None:
    tensors = load_file(clip_directory / "model.safetensors")
    old = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    old |= {"vision_model.embeddings.position_ids": torch.arange(17)[None], "text_model.x": torch.zeros(1)}
    old |= {"logit_scale": torch.zeros(())}
    save_file(old, tmp_path / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((clip_directory / name).read_text())
    images = torch.randn(1, 3, 28, 28)
    expected = CLIPVisionTower(clip_directory, arguments())(images)
    assert torch.equal(CLIPVisionTower(tmp_path, arguments())(images), expected)
    del old["vision_model.pre_layrnorm.weight"]
    save_file(old, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=r"lack 'pre_layrnorm.weight'"):
        CLIPVisionTower(tmp_path, arguments())


def test_llava_tower_is_found_by_path_or_refused_by_name(clip_directory: Path) -> None:
    assert isinstance(build_vision_tower(arguments(mm_vision_tower=str(clip_directory))), CLIPVisionTower)
    assert isinstance(build_vision_tower(arguments(vision_tower=str(clip_directory)), delay_load=True), CLIPVisionTower)
    for name in ("google/siglip", None):
        with pytest.raises(ValueError, match=f"Unknown vision tower: {name}"):
            build_vision_tower(arguments(mm_vision_tower=name))
    with pytest.raises(ExportError, match="local Hugging Face cache"):
        build_vision_tower(arguments(mm_vision_tower="openai/clip-of-nobody"))


def vila(**fields: Any) -> SimpleNamespace:
    return arguments(-2, "cls_patch", resume_path="x", **fields)


def test_vila_tower_variant_and_width_follow_the_configuration(siglip_directory: Path, clip_directory: Path) -> None:
    plain, dynamic = vila(), vila(dynamic_s2=True, s2_scales="84,28,56", s2_max_split_size=28)
    assert type(build_vila_vision_tower(siglip_directory, plain)) is SiglipVisionTower
    assert plain.mm_hidden_size == 18
    tower = build_vila_vision_tower(siglip_directory, dynamic)
    assert type(tower) is SiglipVisionTowerDynamicS2
    assert (tower.scales, dynamic.mm_hidden_size, tower.hidden_size) == ([28, 56, 84], 54, 54)
    assert tower.image_processor.size["height"] == 28
    with pytest.raises(AssertionError, match="not a list"):
        tower([torch.zeros(3, 28, 28)])
    clip = build_vila_vision_tower(clip_directory, vila(dynamic_s2=True, s2_scales="28,56"))
    assert clip(torch.zeros(2, 3, 28, 28)).shape == (2, 16, 18)  # the class token has no place in a mosaic


def test_vila_tower_of_unknown_kind_or_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no vision tower at"):
        build_vila_vision_tower(tmp_path / "none", vila())
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["InternVisionModel"]}))
    with pytest.raises(ExportError, match="InternVisionModel"):
        build_vila_vision_tower(tmp_path, vila())


@pytest.mark.parametrize("index", [0, 1])
def test_static_s2_equals_its_definition(siglip_directory: Path, index: int) -> None:
    fields = {"s2_scales": "28,56", "s2_max_split_size": 28, "s2_resize_output_to_scale_idx": index}
    tower = build_vila_vision_tower(siglip_directory, vila(s2=True, **fields))
    assert type(tower) is SiglipVisionTowerS2
    assert tower.image_processor.size["height"] == 56
    pictures = torch.randn(2, 3, 56, 56)
    plain = SiglipVisionTower(siglip_directory, arguments(-2, "cls_patch"))
    small = plain(functional.interpolate(pictures, size=28, mode="bicubic")).transpose(1, 2).reshape(2, 18, 4, 4)
    large = torch.zeros(2, 18, 8, 8)
    for row in range(2):
        for col in range(2):
            tile = plain(pictures[:, :, 28 * row : 28 * row + 28, 28 * col : 28 * col + 28])
            large[:, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = tile.transpose(1, 2).reshape(2, 18, 4, 4)
    size = (4, 4) if index == 0 else (8, 8)
    maps = [functional.interpolate(m, size=size, mode="area") for m in (small, large)]
    torch.testing.assert_close(tower(pictures), torch.cat(maps, 1).flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dynamic_s2": True, "s2_scales": "56,112"}, "56 px is cut into pieces of 56 px, the tower takes 28"),
        ({"dynamic_s2": True, "s2_scales": "28,70"}, "70 px is cut into pieces of 70 px"),
        ({"s2": True, "s2_scales": "28,56", "s2_max_split_size": 20}, "28 px is cut into pieces of 14 px"),
        ({"s2": True, "s2_scales": "28,63", "s2_max_split_size": 28}, "63 px is cut into pieces of 21 px"),
        ({"s2": True, "s2_scales": "28,56", "s2_resize_output_to_scale_idx": 2}, "scale_idx is 2 for 2 scales"),
    ],
)
def test_scales_that_the_tower_cannot_see_are_refused(siglip_directory: Path, fields: Any, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        build_vila_vision_tower(siglip_directory, vila(**fields))


def test_static_s2_says_how_many_patches_it_gives(siglip_directory: Path, clip_directory: Path) -> None:
    for directory, index, side in ((siglip_directory, 0, 4), (clip_directory, 1, 8), (clip_directory, -1, 12)):
        fields = {"s2_scales": "28,56,84", "s2_max_split_size": 28, "s2_resize_output_to_scale_idx": index}
        tower = build_vila_vision_tower(directory, vila(s2=True, **fields))
        assert (tower.num_patches, tower.processed_side) == (side**2, 84)
        assert tower(torch.randn(2, 3, 84, 84)).shape == (2, side**2, 54), "without a class token"


def test_scales_are_parsed_and_sorted() -> None:
    assert parse_scales("1344,448,896") == [448, 896, 1344]
    assert parse_scales([2, 1]) == [1, 2]
