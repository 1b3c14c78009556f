"""The decoder's tensors in each layout of a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.decoder import open_decoder_checkpoint
from runtime.errors import ExportError
from tests.decoder_models import Arrays, Shape, save_checkpoint, with_shape

LAYOUTS = {
    "transformers, new": ("model.language_model.", "lm_head.weight"),
    "transformers, old": ("language_model.model.", "language_model.lm_head.weight"),
    "causal lm": ("model.", "lm_head.weight"),
}


def renamed(weights: Arrays, prefix: str, head: str) -> Arrays:
    return {head if name == "lm_head.weight" else prefix + name[len("model.") :]: t for name, t in weights.items()}


@pytest.mark.parametrize(("prefix", "head"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_tensor_is_found_in_every_layout(tmp_path: Path, prefix: str, head: str) -> None:
    shape = with_shape(attention_bias=True)
    weights = shape.weights()
    save_checkpoint(tmp_path, shape, weights=renamed(weights, prefix, head))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": shape.config()}))
    with open_decoder_checkpoint(tmp_path) as checkpoint:
        for linear in checkpoint.linears():
            stored = weights["lm_head.weight" if linear.name == "lm_head" else f"model.{linear.name}.weight"]
            assert (linear.n, linear.k) == stored.shape
            assert np.array_equal(np.concatenate(list(checkpoint.rows(linear, 4096))), stored)
            if linear.bias:
                assert np.array_equal(checkpoint.bias(linear), weights[f"model.{linear.name}.bias"])
        table = np.concatenate(list(checkpoint.embed_blocks(1000)))
        assert np.array_equal(table, weights["model.embed_tokens.weight"])
        assert np.array_equal(checkpoint.norm("norm"), weights["model.norm.weight"])


def test_the_llm_folder_of_a_vila_checkpoint_is_used(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama"}')
    save_checkpoint(tmp_path / "llm", Shape())
    with open_decoder_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.files == (tmp_path / "llm" / "config.json", tmp_path / "llm" / "model.safetensors")


@pytest.mark.parametrize("vocab", [64, 67])
def test_llavas_own_layout_has_tower_and_projector_beside_the_decoder(tmp_path: Path, vocab: int) -> None:
    """One file, the decoder's configuration at the top, and as many rows as the authors stored."""
    shape = with_shape(vocab=vocab)
    extra = {
        "model.mm_projector.0.weight": np.ones((128, 16), np.float32),
        "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": np.ones((8, 8), np.float32),
    }
    save_checkpoint(tmp_path, shape, weights=shape.weights() | extra)
    (tmp_path / "config.json").write_text(json.dumps(shape.config() | {"model_type": "llava", "vocab_size": 64}))
    with open_decoder_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.config.family, checkpoint.vocab, checkpoint.embed_rows) == ("llama", vocab, vocab)
        first = checkpoint.layer(0)["q"]
        stored = shape.weights()["model.layers.0.self_attn.q_proj.weight"]
        assert np.array_equal(np.concatenate(list(checkpoint.rows(first, 4096))), stored)


def test_vila_on_llama_has_its_scaled_positions_in_the_llm_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama", "architectures": ["LlavaLlamaModel"]}')
    shape = with_shape(rope=(), context=160)
    save_checkpoint(tmp_path / "llm", shape)
    written = {**shape.config(), "rope_theta": 1e4, "rope_scaling": {"factor": 2.0, "type": "linear"}}
    del written["rope_parameters"]
    (tmp_path / "llm" / "config.json").write_text(json.dumps(written))
    with open_decoder_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.config.family, checkpoint.config.max_context) == ("llama", 320)


def test_a_tied_head_is_the_token_table(tmp_path: Path) -> None:
    shape = with_shape(family="qwen2", tied=True)
    with open_decoder_checkpoint(save_checkpoint(tmp_path, shape)) as checkpoint:
        assert checkpoint.tied
        head = np.concatenate(list(checkpoint.rows(checkpoint.head(), 1 << 20)))
    assert np.array_equal(head, shape.weights()["model.embed_tokens.weight"])


def test_tying_may_be_said_outside_of_text_config(tmp_path: Path) -> None:
    shape = with_shape(family="qwen2", tied=True)
    save_checkpoint(tmp_path, shape)
    inner = {**shape.config(), "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True, "text_config": inner}))
    with open_decoder_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tied


def test_a_stored_head_wins_over_tying(tmp_path: Path) -> None:
    shape = with_shape(tied=True)
    weights = {**shape.weights(), "lm_head.weight": np.ones((96, 128), np.float32)}
    with open_decoder_checkpoint(save_checkpoint(tmp_path, shape, weights=weights)) as checkpoint:
        assert not checkpoint.tied
        assert (next(iter(checkpoint.rows(checkpoint.head(), 1 << 20))) == 1).all()


def test_stored_rows_decide_the_vocabulary(tmp_path: Path) -> None:
    weights = Shape().weights()
    weights["model.embed_tokens.weight"] = np.zeros((100, 128), np.float32)
    with open_decoder_checkpoint(save_checkpoint(tmp_path, Shape(), weights=weights)) as checkpoint:
        assert (checkpoint.vocab, checkpoint.embed_rows) == (96, 100)


def broken(name: str, replacement: np.ndarray | None) -> Arrays:
    weights = Shape().weights()
    if replacement is None:
        del weights[name]
    else:
        weights[name] = replacement
    return weights


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("lm_head.weight", None, "tie_word_embeddings is not set"),
        ("model.embed_tokens.weight", None, "no token table"),
        ("model.layers.1.mlp.up_proj.weight", None, r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"),
        ("model.norm.weight", np.ones(64, np.float32), r"model.norm.weight has the shape \[64\], config.json makes it"),
        ("model.layers.0.self_attn.q_norm.weight", np.ones(32, np.float32), "does not belong to a llama decoder"),
        ("model.layers.0.self_attn.q_proj.bias", np.ones(128, np.float32), "does not belong to a llama decoder"),
        ("model.layers.2.input_layernorm.weight", np.ones(128, np.float32), "of 2 layers"),
        ("model.embed_tokens.weight", np.ones((90, 128), np.float32), "has 96 rows, the token table only 90"),
        ("lm_head.weight", np.ones((96, 64), np.float32), r"expected \[vocabulary, 128\]"),
    ],
)
def test_a_tensor_that_is_missing_odd_or_left_over_is_named(
    tmp_path: Path, name: str, replacement: np.ndarray | None, message: str
) -> None:
    save_checkpoint(tmp_path, Shape(), weights=broken(name, replacement))
    with pytest.raises(ExportError, match=message) as caught:
        open_decoder_checkpoint(tmp_path)
    assert caught.value.hint is not None


def test_stored_rotary_frequencies_are_ignored(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_checkpoint(tmp_path, Shape(), weights=broken(name, np.ones(16, np.float32)))
    open_decoder_checkpoint(tmp_path).close()


def test_tensors_of_other_parts_are_left_alone(tmp_path: Path) -> None:
    weights = renamed(Shape().weights(), "language_model.model.", "language_model.lm_head.weight")
    weights["vision_tower.layers.0.weight"] = np.ones(3, np.float32)
    save_checkpoint(tmp_path, Shape(), weights=weights)
    open_decoder_checkpoint(tmp_path).close()


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    save_file(Shape().weights(), tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=r"config\.json: cannot be read"):
        open_decoder_checkpoint(tmp_path)
