"""Rotary tables against transformers' own rotary embedding."""

from __future__ import annotations

import numpy as np
import pytest

from export.decoder.rope import rope_caches


@pytest.mark.torch
@pytest.mark.parametrize(("head_dim", "theta", "factor"), [(16, 10000.0, 1.0), (64, 1e6, 1.0), (128, 5e5, 4.0)])
def test_tables_equal_transformers(head_dim: int, theta: float, factor: float) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    kind = {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": theta, **kind},
    )
    positions = torch.arange(4096)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, 1, 1), positions)
    found = rope_caches(head_dim, theta, factor, 4096)
    for table, expected in zip(found, (cos, sin), strict=True):
        assert table.dtype == np.float32
        # One unit in the last place of a frequency moves the angle by 2.4e-4 at position 4096.
        np.testing.assert_allclose(table, expected[0, :, : head_dim // 2].numpy(), atol=3e-4, rtol=0)
