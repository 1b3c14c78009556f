"""What the library was asked to be: the examples run as they were written, and signatures are the described ones."""

from __future__ import annotations

import inspect
import shutil
import socket
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import nn
from transformers import GenerationConfig

from models import llava, nvila, projector, vision_tower
from runtime.errors import InputError
from tests.models.tiny import VICUNA, VICUNA_SPECIALS, byte_tokenizer
from tests.models.training import arguments, small_model


def run(example: str, **names: Any) -> dict[str, Any]:
    """The names that an example leaves behind."""
    exec(compile(textwrap.dedent(example), "example", "exec"), names)
    return names


@pytest.fixture
def cached_clip(checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny CLIP under the published name in a local Hugging Face cache; a connection raises."""
    name, revision = "openai/clip-vit-large-patch14-336", "0" * 40
    repository = tmp_path / "hub" / "models--openai--clip-vit-large-patch14-336"
    shutil.copytree(checkpoints("nvila", clip=True) / "vision_tower", repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def refuse(*_: Any) -> None:
        raise AssertionError("a test opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return name


# ---- projector


def test_example_building_a_linear_projector() -> None:
    example = """
    from models.projector import build_vision_projector

    class Config:
        mm_projector_type = "linear"
        mm_hidden_size = 1024
        hidden_size = 4096

    projector = build_vision_projector(Config())
    # projector is nn.Linear(1024, 4096)
    """
    found = run(example)["projector"]
    assert type(found) is nn.Linear
    assert (found.in_features, found.out_features) == (1024, 4096)


def test_example_building_a_2_layer_mlp_projector() -> None:
    example = """
    class Config:
        mm_projector_type = "mlp2x_gelu"
        mm_hidden_size = 1024
        hidden_size = 4096

    projector = build_vision_projector(Config())
    # projector is nn.Sequential(Linear(1024, 4096), GELU(), Linear(4096, 4096))
    """
    found = run(example, build_vision_projector=projector.build_vision_projector)["projector"]
    assert type(found) is nn.Sequential
    assert [type(layer) for layer in found] == [nn.Linear, nn.GELU, nn.Linear]
    assert [tuple(found[index].weight.shape) for index in (0, 2)] == [(4096, 1024), (4096, 4096)]
    assert found[1].approximate == "none"


# ---- vision tower


def test_example_building_and_using_the_vision_tower(cached_clip: str) -> None:
    example = """
    from models.vision_tower import CLIPVisionTower

    tower = CLIPVisionTower(
        "openai/clip-vit-large-patch14-336",
        args=config,
        delay_load=True,
    )
    tower.load_model()

    # Encode a batch of images
    image_features = tower(images)  # (B, num_patches, hidden_size)
    """
    config = SimpleNamespace(mm_vision_select_layer=-2, mm_vision_select_feature="patch")
    found = run(example, config=config, images=torch.zeros(3, 3, 28, 28))
    tower = found["tower"]
    assert found["image_features"].shape == (3, tower.num_patches, tower.hidden_size) == (3, 16, 18)


# ---- LLaVA


def test_examples_of_llava(cached_clip: str) -> None:
    set_up = """
    # During model setup
    model.get_model().initialize_vision_modules(model_args, fsdp=fsdp_config)
    model.initialize_vision_tokenizer(model_args, tokenizer)
    """
    model, tokenizer = small_model(), byte_tokenizer(VICUNA, VICUNA_SPECIALS)
    model_args = arguments(Path(cached_clip), mm_use_im_start_end=False, mm_use_im_patch_token=True)
    run(set_up, model=model, model_args=model_args, fsdp_config=None, tokenizer=tokenizer)
    assert model.config.mm_vision_tower == cached_clip
    assert tokenizer.convert_tokens_to_ids("<im_patch>") == len(tokenizer) - 1
    preparing = """
    # Within a model that inherits LlavaMetaForCausalLM
    image_features = self.encode_images(images)

    (
        input_ids, position_ids, attention_mask,
        past_key_values, inputs_embeds, labels
    ) = self.prepare_inputs_labels_for_multimodal(
        input_ids, position_ids, attention_mask,
        past_key_values, labels, images
    )
    # Pass inputs_embeds to the language model decoder
    """
    ids = torch.tensor([[1, llava.IMAGE_TOKEN_INDEX, 2]])
    given = {"position_ids": torch.arange(3)[None], "attention_mask": torch.ones(1, 3), "past_key_values": None}
    found = run(preparing, self=model, input_ids=ids, labels=ids.clone(), images=torch.zeros(1, 3, 28, 28), **given)
    assert found["input_ids"] is found["past_key_values"] is None
    assert found["inputs_embeds"].shape == (1, 18, 16)
    assert torch.equal(found["inputs_embeds"][0, 1:17], found["image_features"][0])
    assert found["labels"].tolist() == [[1, *[llava.IGNORE_INDEX] * 16, 2]]
    assert found["position_ids"].tolist() == [list(range(18))]
    assert found["attention_mask"].sum() == 18


# ---- NVILA

EMBEDDING = """
# Within a model inheriting LlavaMetaForCausalLM
inputs_embeds, labels, attention_mask = self._embed(
    input_ids=input_ids,
    media={"image": [img_tensor]},
    media_config={"image": {"block_sizes": [(2, 2)]}},
    labels=labels,
    attention_mask=attention_mask,
)
"""


@pytest.mark.parametrize(("tiles", "scales"), [(9, (28, 56, 84)), (1, None)], ids=["dynamic_s2", "one tile without it"])
def test_example_embedding_multimodal_inputs(tiles: int, scales: Any, loaded: Any) -> None:
    model = loaded("nvila", scales=scales)
    picture = torch.randn(tiles, 3, 28, 28) if tiles > 1 else torch.randn(3, 28, 28)
    ids = torch.tensor([[5, model.tokenizer.media_token_ids["image"], 6]])
    found = run(EMBEDDING, self=model, input_ids=ids, img_tensor=picture, labels=None, attention_mask=torch.ones(1, 3))
    rows = 16 if scales else 4
    assert found["inputs_embeds"].shape == (1, 1 + rows + 1 + 1, 64)  # 2x2 blocks of 4 tokens, or one; a line break
    assert found["labels"].shape == found["attention_mask"].shape == (1, rows + 3)
    blocks = [(2, 2)] if scales else None
    block = model.encode_images(picture.reshape(-1, 3, 28, 28), blocks)[0]
    assert torch.equal(found["inputs_embeds"][0, 1 : 1 + rows], block)


def test_example_embedding_with_one_tile_for_a_block_of_2_by_2_is_refused(loaded: Any) -> None:
    model = loaded("nvila", scales=(28, 56, 84))
    ids = torch.tensor([[5, model.tokenizer.media_token_ids["image"], 6]])
    with pytest.raises(InputError) as refused:
        run(EMBEDDING, self=model, input_ids=ids, img_tensor=torch.zeros(3, 28, 28), labels=None, attention_mask=None)
    assert "needs 9 tiles (1 + 4 + 4), got 1" in refused.value.message


def test_example_generating_content_from_a_prompt(loaded: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example = """
    response = model.generate_content(
        prompt="<image>\\nDescribe this image in detail.",
        generation_config=GenerationConfig(max_new_tokens=256),
        quant_llm=True,
    )
    print(response)
    """
    found = run(example, model=loaded("nvila"), GenerationConfig=GenerationConfig)["response"]
    assert isinstance(found, str)
    assert capsys.readouterr().out == found + "\n"


def test_example_streaming_generation(loaded: Any) -> None:
    example = """
    output, length = model.stream_gen(
        input_ids=input_ids,
        media=media,
        media_cfg=media_config,
        start_pos=0,
        chunk_prefilling=True,
        quant_llm=True,
    )
    """
    model = loaded("nvila")
    ids, media, media_config = model.prepare_prompt("hello")
    found = run(example, model=model, input_ids=ids, media=media, media_config=media_config)
    assert found["length"] == ids.shape[1]
    assert found["output"].shape == (1, 1, model.llm.config.vocab_size)


# ---- signatures


class Described:
    """The signatures as they were given; a nested class's name says where they belong."""

    class IdentityMap:
        def forward(self, x, *args, **kwargs): ...

    class SimpleResBlock:
        def __init__(self, channels): ...
        def forward(self, x): ...

    class CLIPVisionTower:
        def __init__(self, vision_tower, args, delay_load=False): ...
        def load_model(self): ...
        def feature_select(self, image_forward_outs): ...
        def forward(self, images): ...

    class LlavaMetaModel:
        def __init__(self, config): ...
        def get_vision_tower(self): ...
        def initialize_vision_modules(self, model_args, fsdp=None): ...

    class LlavaMetaForCausalLM:
        def get_model(self): ...
        def get_vision_tower(self): ...
        def encode_images(self, images): ...
        def prepare_inputs_labels_for_multimodal(
            self, input_ids, position_ids, attention_mask, past_key_values, labels, images
        ): ...
        def initialize_vision_tokenizer(self, model_args, tokenizer): ...

    class NvilaMetaModel:
        def init_vlm(self, config, *args, **kwargs): ...
        def save_pretrained(self, output_dir, state_dict=None): ...
        def get_llm(self): ...
        def get_lm_head(self): ...
        def get_vision_tower(self): ...
        def get_mm_projector(self): ...
        def post_config(self): ...
        def merge_features_for_dynamic_s2(self, image_features, block_sizes): ...
        def encode_images(self, images, block_sizes=None): ...

        @classmethod
        def load_pretrained(cls, model_path_or_config, *args, **kwargs): ...

        @staticmethod
        def split_chessboard(x, num_split_h, num_split_w): ...

        @staticmethod
        def merge_chessboard(x, num_split_h, num_split_w): ...

    class NvilaMetaForCausalLM:
        def _embed(self, input_ids, media, media_config, labels, attention_mask): ...
        def generate(
            self,
            input_ids=None,
            media=None,
            media_config=None,
            attention_mask=None,
            quant_llm=True,
            **generation_kwargs,
        ): ...
        def generate_content(self, prompt, generation_config=None, quant_llm=True): ...
        def benchmark(self, prompt, quant_llm): ...
        def prepare_media(self, conversation): ...
        def stream_gen(
            self, input_ids, media, media_cfg, start_pos, chunk_prefilling, quant_llm, attention_mask=None
        ): ...


OURS: dict[str, Any] = {
    "IdentityMap": projector.IdentityMap,
    "SimpleResBlock": projector.SimpleResBlock,
    "CLIPVisionTower": vision_tower.CLIPVisionTower,
    "LlavaMetaModel": llava.LlavaMetaModel,
    "LlavaMetaForCausalLM": llava.LlavaMetaForCausalLM,
    "NvilaMetaModel": nvila.LlavaMetaModel,
    "NvilaMetaForCausalLM": nvila.LlavaMetaForCausalLM,
}
METHODS = [
    (owner, name)
    for owner, described in vars(Described).items()
    if inspect.isclass(described)
    for name, value in vars(described).items()
    if inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod))
]


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """(name, kind, default) of each parameter; settings of our own can be named alone, so no described call differs."""
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in found if p.kind is not inspect.Parameter.KEYWORD_ONLY]


@pytest.mark.parametrize(("owner", "name"), METHODS, ids=[f"{owner}.{name}" for owner, name in METHODS])
def test_signature_is_the_described_one(owner: str, name: str) -> None:
    ours, described = getattr(OURS[owner], name), getattr(getattr(Described, owner), name)
    wanted = parameters(described)
    found = parameters(ours)
    # True is the default of quant_llm in every method, also where the description gives none
    nothing = inspect.Parameter.empty
    wanted = [(n, kind, True if n == "quant_llm" and default is nothing else default) for n, kind, default in wanted]
    assert found == wanted
    for kind in (classmethod, staticmethod):
        raw = inspect.getattr_static(OURS[owner], name)
        assert isinstance(raw, kind) is isinstance(inspect.getattr_static(getattr(Described, owner), name), kind)


def test_signature_of_build_vision_projector_is_the_described_one() -> None:
    def build_vision_projector(config, delay_load=False, **kwargs): ...

    assert parameters(projector.build_vision_projector) == parameters(build_vision_projector)


@pytest.mark.parametrize("name", ["dummy_feature", "dtype", "device", "config", "hidden_size", "num_patches"])
def test_described_properties_are_properties(name: str) -> None:
    assert isinstance(inspect.getattr_static(vision_tower.CLIPVisionTower, name), property)
    assert isinstance(projector.IdentityMap.config, property)


def test_described_abstract_classes_are_abstract_base_classes() -> None:
    assert inspect.isabstract(llava.LlavaMetaForCausalLM)
    for described in (nvila.LlavaMetaModel, nvila.LlavaMetaForCausalLM):
        assert type(described).__name__ == "ABCMeta"
