"""Rotary settings, frequencies and tables against transformers' own rotary embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from export.decoder.rope import Rope, read_rope, rope_tables
from runtime.errors import ExportError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CASES = {
    "plain": (16, 10000.0, {"rope_type": "default"}, 4096),
    "plain, Qwen2": (64, 1e6, {"rope_type": "default"}, 32768),
    "linear": (128, 5e5, {"rope_type": "linear", "factor": 4.0}, 16384),
    "linear, VILA": (128, 10000.0, {"rope_type": "linear", "factor": 2.0}, 8192),
    "llama3": (128, 5e5, LLAMA3, 131072),
    "llama3, small head": (64, 5e5, {**LLAMA3, "factor": 32.0}, 131072),
    "llama3, other bands": (32, 1e4, {**LLAMA3, "low_freq_factor": 2.0, "original_max_position_embeddings": 512}, 4096),
    "dynamic": (128, 10000.0, {"rope_type": "dynamic", "factor": 4.0}, 4096),
}


def transformers_rotary(head_dim: int, parameters: dict[str, Any], context: int) -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=context,
        rope_parameters=dict(parameters),
    )
    return LlamaRotaryEmbedding(config)


@pytest.mark.torch
@pytest.mark.parametrize(("head_dim", "theta", "kind", "context"), CASES.values(), ids=CASES.keys())
def test_tables_equal_transformers_over_the_whole_context(
    head_dim: int, theta: float, kind: dict[str, Any], context: int
) -> None:
    parameters = {"rope_theta": theta, **kind}
    rotary = transformers_rotary(head_dim, parameters, context)
    rope = read_rope({"rope_parameters": parameters}, "config.json")
    frequencies, theirs = rope.frequencies(head_dim), rotary.inv_freq.numpy()
    # Units in the last place: the power is rounded once here and in steps there; llama3 then passes over in steps.
    ulps = 4 if rope.kind == "llama3" else 2
    np.testing.assert_allclose(frequencies, theirs, rtol=ulps * 2.0**-23, atol=0)
    import torch

    tables = rope_tables(frequencies, context)
    for begin in range(0, context, 16384):
        positions = torch.arange(begin, min(begin + 16384, context))[None]
        expected = rotary(torch.zeros(1, 1, 1), positions)
        # What those units make of the angle, and what the product's own rounding does.
        limit = (ulps + 2) * 2.0**-23 * positions[0, :, None].numpy() * frequencies[None] + 1e-6
        for table, one in zip(tables, expected, strict=True):
            assert table.dtype == np.float32
            half = one[0, :, : head_dim // 2].numpy()
            assert (np.abs(table[begin : begin + len(half)] - half) <= limit).all()


@pytest.mark.torch
def test_dynamic_differs_from_plain_only_beyond_the_context() -> None:
    """Why it is exported up to the context: there transformers' tables are the plain ones, and one further not."""
    torch = pytest.importorskip("torch")
    rotary = transformers_rotary(32, {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0}, 256)
    plain = Rope(theta=1e4).frequencies(32)
    rotary(torch.zeros(1, 1, 1), torch.arange(256)[None])
    np.testing.assert_allclose(rotary.inv_freq.numpy(), plain, rtol=2.0**-22)
    rotary(torch.zeros(1, 1, 1), torch.arange(257)[None])
    assert np.abs(rotary.inv_freq.numpy() / plain - 1).max() > 1e-3


def test_old_and_new_spellings_agree() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    assert read_rope(old, "a") == read_rope(new, "a") == Rope("linear", 5e5, 2.0)
    assert read_rope({}, "a") == Rope()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "yarn", "factor": 8.0}, "RoPE of the type yarn"),
        ({"rope_type": "longrope", "factor": 8.0}, "RoPE of the type longrope"),
        ({"type": "su"}, "RoPE of the type su"),
        ({"rope_type": ["linear"]}, "RoPE of the type"),
        ({"rope_type": "linear", "factor": 0}, "factor of RoPE is 0, expected at least 1"),
        ({"rope_type": "linear"}, "factor of RoPE is None"),
        ({"rope_type": "dynamic", "factor": "2"}, "factor of RoPE is '2'"),
        ({**LLAMA3, "low_freq_factor": None}, "low_freq_factor of RoPE is None"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor of RoPE is 1, not above low_freq_factor 1"),
        ({**LLAMA3, "original_max_position_embeddings": 0}, "original_max_position_embeddings of RoPE is 0"),
        ({"rope_theta": float("inf")}, "rope_theta of RoPE is inf"),
        ({"rope_theta": True}, "rope_theta of RoPE is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (3, "RoPE parameters are 3, expected a table"),
    ],
)
def test_what_is_not_known_is_named(parameters: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        read_rope({"rope_parameters": parameters}, "some/config.json")
    assert caught.value.message.startswith("some/config.json: ")
    assert "llama3" in str(caught.value.hint)


def test_context_is_stretched_by_linear_scaling_alone() -> None:
    assert Rope("linear", factor=4.0).context(4096) == 16384
    for kind in ("default", "llama3", "dynamic"):
        assert Rope(kind, factor=8.0).context(4096) == 4096
