"""Decoder shapes from configurations, silent ones included, and what cannot be exported."""

from __future__ import annotations

from typing import Any

import pytest

from export.decoder.config import decoder_config
from runtime.errors import ExportError
from tests.decoder_models import Shape


def changed(**changes: Any) -> dict[str, Any]:
    return {**Shape().config(), **changes}


def test_a_causal_lm_is_read_as_it_says() -> None:
    config = decoder_config(Shape(family="qwen2", tied=True).config(), "config.json")
    assert (config.family, config.hidden, config.layers, config.heads, config.kv_heads) == ("qwen2", 128, 2, 4, 2)
    assert (config.head_dim, config.ffn, config.vocab, config.tied, config.qkv_bias) == (32, 256, 96, True, True)
    assert not config.o_bias


@pytest.mark.torch
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_silent_configuration_means_what_transformers_assumes(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    theirs = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[model_type]()
    ours = decoder_config({"text_config": {"model_type": model_type}}, "config.json")
    assert ours.hidden == theirs.hidden_size
    assert ours.ffn == theirs.intermediate_size
    assert ours.layers == theirs.num_hidden_layers
    assert (ours.heads, ours.kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.rms_eps == theirs.rms_norm_eps
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.tied == theirs.tie_word_embeddings


def test_text_config_of_a_multimodal_checkpoint_is_used() -> None:
    config = decoder_config({"model_type": "llava", "text_config": Shape().config()}, "config.json")
    assert config.hidden == 128


def test_linear_scaling_stretches_the_context() -> None:
    config = decoder_config(changed(rope_parameters={"rope_type": "linear", "factor": 2.0}), "config.json")
    assert (config.rope.kind, config.max_context) == ("linear", 320)


@pytest.mark.parametrize(
    ("length", "kind", "context"), [(300, "linear", 320), (160, "default", 160), (90, "default", 160)]
)
def test_more_positions_than_the_decoder_was_made_for_scale_rope(length: int, kind: str, context: int) -> None:
    """As VILA's code does when model_max_length is above max_position_embeddings: linear, rounded up to a whole."""
    config = decoder_config(changed(model_max_length=length), "config.json")
    assert (config.rope.kind, config.max_context) == (kind, context)
    given = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    assert decoder_config(changed(model_max_length=length, rope_parameters=given), "config.json").rope.factor == 4


def test_llavas_own_layout_has_the_decoder_at_the_top() -> None:
    for model_type in ("llava", "llava_llama"):
        assert decoder_config(changed(model_type=model_type), "config.json").family == "llama"
    assert decoder_config(changed(model_type="llava_qwen"), "config.json").family == "qwen2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 40}, "head_dim is 40, expected a multiple of 16"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}, "RoPE of the type yarn"),
        ({"rope_parameters": None, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_key_value_heads": 3}, "4 heads do not divide among 3"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 1e3}, "hidden_size is 1000.0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding window of 64"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        decoder_config(changed(**changes), "some/config.json")
    assert "some/config.json" in caught.value.message
    assert caught.value.hint is not None


def test_a_sliding_window_that_is_off_or_long_enough_changes_nothing() -> None:
    decoder_config(changed(use_sliding_window=False, sliding_window=64), "config.json")
    decoder_config(changed(use_sliding_window=True, sliding_window=4096), "config.json")


def test_a_configuration_that_is_no_table_is_refused() -> None:
    with pytest.raises(ExportError, match="is not a table"):
        decoder_config([], "config.json")
