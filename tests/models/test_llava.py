"""LLaVA: fusion rules, training-time set-up, and equality with transformers' own LLaVA."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig, LlavaForConditionalGeneration

from models.fusion import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from models.llava import LlavaMetaForCausalLM
from runtime.errors import ExportError
from tests.models import tiny
from tests.models.tiny import VICUNA, VICUNA_SPECIALS, byte_tokenizer
from tests.models.training import small_model

IMAGE = IMAGE_TOKEN_INDEX
WIDTH, PATCHES = 6, 3


class Fusing(LlavaMetaForCausalLM):
    """A model whose embedding of id n is a row of n, and whose image of value v gives PATCHES rows of v."""

    def __init__(self, **fields: Any) -> None:
        self.config = SimpleNamespace(**fields)
        table = nn.Embedding(100, WIDTH)
        table.weight.data = torch.arange(100.0)[:, None].repeat(1, WIDTH)
        self.body = SimpleNamespace(get_vision_tower=lambda: "a tower", embed_tokens=table)
        self.encoded: list[int] = []

    def get_model(self) -> Any:
        return self.body

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded.append(len(images))
        return images[:, :1, 0, 0, None].expand(-1, PATCHES, WIDTH)


def images(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 2, 2)


def fuse(
    ids: list[list[int]], pictures: Any, mask: Any = None, labels: Any = None, positions: Any = None, **fields: Any
) -> Any:
    return Fusing(**fields).prepare_inputs_labels_for_multimodal(
        torch.tensor(ids), positions, mask, None, labels, pictures
    )


def values(embeds: torch.Tensor) -> list[list[float]]:
    return [row[:, 0].tolist() for row in embeds]


def test_behaviour_10_each_image_token_becomes_the_features_of_the_next_image() -> None:
    none, _, _, _, embeds, _ = fuse([[1, IMAGE, 2, IMAGE, 3], [4, IMAGE, 5, 6, 7]], images(50, 60, 70))
    assert none is None
    assert values(embeds) == [[1, 50, 50, 50, 2, 60, 60, 60, 3], [4, 70, 70, 70, 5, 6, 7, 0, 0]]


def test_behaviour_10_a_row_without_images_takes_a_slot() -> None:
    _, _, _, _, embeds, _ = fuse([[1, 2], [3, IMAGE]], images(50, 60))
    assert values(embeds) == [[1, 2, 0, 0], [3, 60, 60, 60]]
    with pytest.raises(IndexError, match="0 image tokens"):
        fuse([[3, IMAGE], [1, 2]], images(50))


def test_behaviour_10_left_over_images_are_ignored_and_missing_ones_raise() -> None:
    _, _, _, _, embeds, _ = fuse([[1, IMAGE]], images(50, 60, 70))
    assert values(embeds) == [[1, 50, 50, 50]]
    with pytest.raises(IndexError, match="2 image tokens"):
        fuse([[IMAGE, IMAGE]], images(50))


def test_behaviour_10_five_dimensions_and_lists_flatten_the_images_of_one_token() -> None:
    stack = torch.stack([images(10, 20), images(30, 40)])
    for pictures in (stack, list(stack), [images(10, 20), images(30, 40)]):
        _, _, _, _, embeds, _ = fuse([[IMAGE, 1], [IMAGE, 2]], pictures)
        assert values(embeds) == [[10] * 3 + [20] * 3 + [1], [30] * 3 + [40] * 3 + [2]]
    uneven = [images(10), images(30, 40)]
    _, _, _, _, embeds, _ = fuse([[IMAGE, 1], [IMAGE, 2]], uneven)
    assert values(embeds)[0] == [10] * 3 + [1] + [0] * 3


def test_behaviour_10_labels_of_images_and_padding_are_ignored() -> None:
    labels = torch.tensor([[1, IMAGE, 2], [3, 4, 5]])
    _, _, _, _, _, found = fuse([[1, IMAGE, 2], [3, 4, 5]], images(50, 60), labels=labels)
    assert found.tolist() == [[1, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 2], [3, 4, 5, IGNORE_INDEX, IGNORE_INDEX]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_behaviour_10_both_padding_sides_count_positions_from_the_first_token(side: str) -> None:
    ids = [[1, IMAGE, 2], [3, 4, 9]]
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    _, positions, new_mask, _, embeds, _ = fuse(
        ids, images(50, 60), mask, positions=torch.zeros(2, 3), tokenizer_padding_side=side
    )
    long, short = [1, 50, 50, 50, 2], [3, 4]
    assert new_mask.dtype == mask.dtype
    assert positions[0].tolist() == [0, 1, 2, 3, 4]
    if side == "right":
        assert values(embeds) == [long, [*short, 0, 0, 0]]
        assert (new_mask[1].tolist(), positions[1].tolist()) == ([1, 1, 0, 0, 0], [0, 1, 0, 0, 0])
    else:
        assert values(embeds) == [long, [0, 0, 0, *short]]
        assert (new_mask[1].tolist(), positions[1].tolist()) == ([0, 0, 0, 1, 1], [0, 0, 0, 0, 1])


def test_behaviour_10_masked_tokens_are_removed_on_either_side_of_the_input() -> None:
    ids = [[9, 9, 1, IMAGE], [2, IMAGE, 9, 9]]
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]]).bool()
    _, _, _, _, embeds, _ = fuse(ids, images(50, 60), mask)
    assert values(embeds) == [[1, 50, 50, 50], [2, 60, 60, 60]]


def test_behaviour_10_long_rows_are_cut_on_the_right() -> None:
    _, _, _, _, embeds, labels = fuse(
        [[1, IMAGE, 2, 3]], images(50), labels=torch.tensor([[1, 1, 2, 3]]), tokenizer_model_max_length=5
    )
    assert values(embeds) == [[1, 50, 50, 50, 2]]
    assert labels.tolist() == [[1, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 2]]


def test_behaviour_10_what_came_as_none_stays_none_and_the_cache_is_the_same_object() -> None:
    cache = object()
    found = Fusing().prepare_inputs_labels_for_multimodal(
        torch.tensor([[1, IMAGE]]), None, None, cache, None, images(5)
    )
    assert found[:3] == (None, None, None)
    assert found[3] is cache
    assert found[5] is None


@pytest.mark.parametrize("tower", [None, "a tower"])
def test_behaviour_10_without_tower_or_images_everything_is_passed_through(tower: Any) -> None:
    model = Fusing()
    model.body.get_vision_tower = lambda: tower
    ids, mask = torch.tensor([[1, 2]]), torch.ones(1, 2)
    found = model.prepare_inputs_labels_for_multimodal(ids, None, mask, None, None, None if tower else images(1))
    assert found[0] is ids
    assert found[2] is mask
    assert found[4] is None


def test_behaviour_10_a_decode_step_gets_its_mask_and_position() -> None:
    past = [[torch.zeros(1, 2, 9, 4), torch.zeros(1, 2, 9, 4)]]
    ids, mask = torch.tensor([[7]]), torch.tensor([[1, 1, 1, 1]])
    found = Fusing().prepare_inputs_labels_for_multimodal(ids, None, mask, past, None, images(1))
    assert found[0] is ids
    assert (found[2].tolist(), found[1].tolist()) == ([[1] * 10], [[9]])
    assert found[4] is None


def test_behaviour_10_a_prompt_of_one_image_token_is_fused() -> None:
    _, _, _, _, embeds, _ = fuse([[IMAGE]], images(50))
    assert values(embeds) == [[50, 50, 50]]


def test_behaviour_31_tuned_adapter_with_start_and_end_tokens_is_refused_after_encoding() -> None:
    model = Fusing(tune_mm_mlp_adapter=True, mm_use_im_start_end=True)
    with pytest.raises(NotImplementedError):
        model.prepare_inputs_labels_for_multimodal(torch.tensor([[1, IMAGE]]), None, None, None, None, images(50))
    assert model.encoded == [1]


def test_behaviour_28_the_causal_mixin_is_abstract_and_unwraps_the_fsdp_list() -> None:
    with pytest.raises(TypeError, match="get_model"):
        LlavaMetaForCausalLM()  # type: ignore[abstract]
    model = small_model()
    tower = object()
    model.model.__dict__["vision_tower"] = [tower]
    assert model.get_vision_tower() is tower


@pytest.fixture
def model_args(checkpoints: Any) -> SimpleNamespace:
    return SimpleNamespace(
        vision_tower=str(checkpoints("nvila", clip=True) / "vision_tower"),
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        pretrain_mm_mlp_adapter=None,
        mm_projector_type="mlp2x_gelu",
    )


def test_behaviour_11_set_up_writes_the_configuration_and_loads_the_tower(model_args: SimpleNamespace) -> None:
    model = small_model()
    assert model.get_vision_tower() is None
    assert not hasattr(model.model, "mm_projector")
    model.get_model().initialize_vision_modules(model_args)
    keys = ("mm_vision_tower", "use_mm_proj", "mm_projector_type", "mm_hidden_size")
    assert [getattr(model.config, key) for key in keys] == [model_args.vision_tower, True, "mlp2x_gelu", 18]
    assert (model.config.mm_vision_select_layer, model.config.mm_vision_select_feature) == (-2, "patch")
    assert model.get_vision_tower().is_loaded  # type: ignore[union-attr]
    assert model.encode_images(torch.zeros(2, 3, 28, 28)).shape == (2, 16, 16)


def test_behaviour_11_a_configured_model_has_an_unread_tower_that_set_up_loads(model_args: SimpleNamespace) -> None:
    model = small_model(
        mm_vision_tower=model_args.vision_tower,
        mm_hidden_size=18,
        mm_projector_type="linear",
        mm_vision_select_layer=-2,
    )
    assert not model.get_vision_tower().is_loaded  # type: ignore[union-attr]
    model.model.mm_projector.requires_grad_(False)
    model.model.initialize_vision_modules(model_args)
    assert model.get_vision_tower().is_loaded  # type: ignore[union-attr]
    assert all(parameter.requires_grad for parameter in model.model.mm_projector.parameters())


def test_behaviour_29_fsdp_hides_the_tower_also_in_a_second_call(model_args: SimpleNamespace) -> None:
    model = small_model()
    for fsdp in (["full_shard"], None, ["full_shard"]):
        model.model.initialize_vision_modules(model_args, fsdp=fsdp)
        seen = any("vision_tower" in name for name in model.state_dict())
        assert seen is (fsdp is None)
        assert any("vision_tower" in name for name, _ in model.named_parameters()) is (fsdp is None)
        assert model.get_vision_tower().num_patches == 16  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_behaviour_29_adapter_is_loaded_without_its_prefix(
    suffix: str, model_args: SimpleNamespace, tmp_path: Path
) -> None:
    source = small_model()
    source.model.initialize_vision_modules(model_args)
    wanted = {k: v + 1 for k, v in source.model.mm_projector.state_dict().items()}
    stored = {f"base_model.model.mm_projector.{k}": v for k, v in wanted.items()} | {"other": torch.zeros(1)}
    path = tmp_path / f"mm_projector.{suffix}"
    save_file(stored, path) if suffix == "safetensors" else torch.save(stored, path)
    model_args.pretrain_mm_mlp_adapter = path
    model = small_model()
    model.model.initialize_vision_modules(model_args)
    for key, value in model.model.mm_projector.state_dict().items():
        assert torch.equal(value, wanted[key])


def test_behaviour_29_an_adapter_that_holds_code_is_refused_and_runs_nothing(
    model_args: SimpleNamespace, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"mm_projector.0.weight": Evil()}, tmp_path / "mm_projector.bin")
    model_args.pretrain_mm_mlp_adapter = tmp_path / "mm_projector.bin"
    with pytest.raises(ExportError, match=r"mm_projector\.bin holds more than tensors"):
        small_model().model.initialize_vision_modules(model_args)
    assert not (tmp_path / "ran").exists()


def test_behaviour_29_a_second_call_loads_its_adapter_into_the_same_modules(
    model_args: SimpleNamespace, tmp_path: Path
) -> None:
    model = small_model()
    model.model.initialize_vision_modules(model_args)
    projector, tower = model.model.mm_projector, model.get_vision_tower()
    wanted = {name: torch.randn_like(tensor) for name, tensor in projector.state_dict().items()}
    save_file({f"mm_projector.{name}": tensor for name, tensor in wanted.items()}, tmp_path / "a.safetensors")
    model_args.pretrain_mm_mlp_adapter = tmp_path / "a.safetensors"
    for _ in range(2):
        model.model.initialize_vision_modules(model_args)
        assert model.model.mm_projector is projector
        assert model.get_vision_tower() is tower
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in projector.state_dict().items())


def test_behaviour_29_missing_and_unknown_adapter_weights_are_named(
    model_args: SimpleNamespace, tmp_path: Path
) -> None:
    model_args.pretrain_mm_mlp_adapter = tmp_path / "a.safetensors"
    save_file(
        {"mm_projector.0.weight": torch.zeros(16, 18), "mm_projector.9.x": torch.zeros(1)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(RuntimeError, match=r"(?s)2\.weight.*9\.x") as found:
        small_model().model.initialize_vision_modules(model_args)
    assert "0.bias" in str(found.value)


def token_args(**fields: Any) -> SimpleNamespace:
    defaults = {"mm_use_im_patch_token": False, "mm_use_im_start_end": False, "tune_mm_mlp_adapter": False}
    return SimpleNamespace(**defaults | {"pretrain_mm_mlp_adapter": None} | fields)


def test_behaviour_11_start_and_end_rows_are_the_mean_of_the_older_ones() -> None:
    model, tokenizer = small_model(), byte_tokenizer(VICUNA, VICUNA_SPECIALS)
    before = len(tokenizer)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    means = [table[:before].mean(dim=0) for table in tables]
    for _ in range(2):  # the second call is harmless
        model.initialize_vision_tokenizer(token_args(mm_use_im_start_end=True, tune_mm_mlp_adapter=True), tokenizer)
        for table, mean in zip((model.get_input_embeddings(), model.get_output_embeddings()), means, strict=True):
            torch.testing.assert_close(table.weight[before : before + 2], mean.expand(2, -1))
    assert model.get_input_embeddings().weight.requires_grad
    assert not model.get_output_embeddings().weight.requires_grad
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [before, before + 1]
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)


def test_behaviour_31_patch_token_alone_and_no_token_at_all() -> None:
    model, tokenizer = small_model(), byte_tokenizer(VICUNA, VICUNA_SPECIALS)
    before = len(tokenizer)
    model.initialize_vision_tokenizer(token_args(), tokenizer)
    assert len(tokenizer) == before
    model.initialize_vision_tokenizer(token_args(mm_use_im_patch_token=True, tune_mm_mlp_adapter=True), tokenizer)
    assert tokenizer.convert_tokens_to_ids("<im_patch>") == before
    assert not model.get_input_embeddings().weight.requires_grad
    assert not model.get_output_embeddings().weight.requires_grad


def test_behaviour_31_patch_start_and_end_tokens_together_and_again() -> None:
    model, tokenizer = small_model(), byte_tokenizer(VICUNA, VICUNA_SPECIALS)
    before = len(tokenizer)
    both = token_args(mm_use_im_patch_token=True, mm_use_im_start_end=True)
    model.initialize_vision_tokenizer(both, tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>"]) == [before, before + 1, before + 2]
    tables = [table.weight.clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    for table in tables:
        mean = table[: before + 1].mean(dim=0)
        torch.testing.assert_close(table[before + 1 : before + 3], mean.expand(2, -1))
    model.initialize_vision_tokenizer(both, tokenizer)
    assert len(tokenizer) == before + 3
    assert torch.equal(model.get_input_embeddings().weight, tables[0])
    assert torch.equal(model.get_output_embeddings().weight, tables[1])


@pytest.mark.parametrize("whole", [True, False])
def test_behaviour_31_pretrained_rows_of_either_shape_are_copied(whole: bool, tmp_path: Path) -> None:
    model, tokenizer = small_model(), byte_tokenizer(VICUNA, VICUNA_SPECIALS)
    rows = torch.randn(264 if whole else 2, 16)
    save_file({"model.embed_tokens.weight": rows}, tmp_path / "a.safetensors")
    arguments = token_args(mm_use_im_start_end=True, pretrain_mm_mlp_adapter=tmp_path / "a.safetensors")
    first = len(tokenizer)
    model.initialize_vision_tokenizer(arguments, tokenizer)
    found = model.get_input_embeddings().weight[first : first + 2]
    assert torch.equal(found, rows[first : first + 2] if whole else rows)
    save_file({"model.embed_tokens.weight": torch.zeros(3, 16)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"Unexpected embed_tokens_weight shape \(3, 16\)"):
        model.initialize_vision_tokenizer(arguments, tokenizer)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"select_strategy": "full", "select_layer": -1},
    {"siglip": True, "select_strategy": "full", "tied": True},
    {"select_layer": [-2, 1], "kv_heads": 2},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(options) or "plain")
def test_logits_and_greedy_ids_equal_transformers_llava(options: dict[str, Any], loaded: Any, checkpoints: Any) -> None:
    model = loaded("llava", **options)
    reference = LlavaForConditionalGeneration.from_pretrained(
        checkpoints("llava", **options), dtype=torch.float32
    ).eval()
    ids, pixels = model.prepare_prompt([tiny.picture(40, 28), "what", tiny.picture(28, 60, 1), " is it?"])
    per_image = model.encode_images(pixels).shape[1]
    token = model.tokenizer.convert_tokens_to_ids("<image>")
    expanded = [t for i in ids[0].tolist() for t in ([token] * per_image if i == IMAGE else [i])]
    with torch.no_grad():
        ours = model(ids, images=pixels).logits
        theirs = reference(input_ids=torch.tensor([expanded]), pixel_values=pixels).logits
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    new = model.generate(ids, images=pixels, max_new_tokens=12, do_sample=False)
    whole = reference.generate(torch.tensor([expanded]), pixel_values=pixels, max_new_tokens=12, do_sample=False)
    assert new[0].tolist() == whole[0, len(expanded) :].tolist()


def test_text_without_pictures_equals_plain_generation(loaded: Any) -> None:
    model = loaded("llava")
    ids, pixels = model.prepare_prompt("hello")
    assert pixels is None
    new = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    config = GenerationConfig(max_new_tokens=5)
    assert model.generate_content("hello", config) == model.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_encode_images_leaves_the_tower_in_its_dtype(loaded: Any) -> None:
    model = loaded("llava")
    features = model.encode_images(torch.zeros(1, 3, 28, 28, dtype=torch.float64))
    assert model.get_vision_tower().dtype == torch.float32
    assert features.dtype == torch.float32
