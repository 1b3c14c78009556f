"""Decoders of the ``llm`` folder and inside LLaVA against transformers' own, on odd configurations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from models.checkpoint import load_checkpoint
from models.nvila_decoder import decoder_kind, load_decoder
from runtime.errors import ExportError
from tests.models import tiny

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 16, "rope_theta": 500000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
}
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
CASES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "qwen2 grouped": (Qwen2Config, {}),
    "qwen2 tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2 one key head": (Qwen2Config, {"num_key_value_heads": 1}),
    "llama plain": (LlamaConfig, {"num_key_value_heads": 6}),
    "llama tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama head width": (LlamaConfig, {"head_dim": 16}),
    **{f"llama {name}": (LlamaConfig, {"rope_parameters": rope}) for name, rope in ROPES.items()},
    **{f"qwen2 {name}": (Qwen2Config, {"rope_parameters": rope}) for name, rope in ROPES.items()},
}
# More positions than the configuration's 32, so that dynamic scaling sets in.
IDS = torch.arange(40)[None] % 50


@torch.no_grad()
def spread(model: Any) -> None:
    """Weights large enough that everything in the configuration changes the result."""
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.2)


def written(directory: Path, kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(3)
    config, changes = CASES[kind]
    model = (LlamaForCausalLM if config is LlamaConfig else Qwen2ForCausalLM)(config(**SHAPE | changes))
    spread(model)
    model.to(dtype).save_pretrained(directory)
    return model.eval()


@pytest.mark.parametrize("kind", CASES)
def test_decoder_equals_transformers(kind: str, tmp_path: Path) -> None:
    judge = written(tmp_path / "llm", kind)
    llm, found = load_decoder(tmp_path / "llm", torch.float32)
    assert found.method == "none"
    assert decoder_kind(tmp_path / "llm") == kind.split()[0]
    assert (llm.lm_head.weight is llm.model.embed_tokens.weight) is kind.endswith("tied")
    with torch.no_grad():
        assert torch.equal(llm(IDS).logits, judge(IDS).logits)


@pytest.mark.parametrize("rope", [None, *ROPES])
@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_llava_equals_transformers(rope: str | None, changes: dict[str, Any], checkpoints: Any, tmp_path: Path) -> None:
    source = LlavaConfig.from_pretrained(checkpoints("llava"))
    text = source.text_config.to_dict() | changes | {"num_attention_heads": 4, "num_key_value_heads": 2}
    if rope is not None:
        text |= {"rope_parameters": ROPES[rope], "max_position_embeddings": 16}
    for key in ("model_type", "head_dim"):
        text.pop(key, None)
    torch.manual_seed(1)
    tied = bool(changes.get("tie_word_embeddings"))
    config = LlavaConfig(
        vision_config=source.vision_config,
        text_config=LlamaConfig(**text),
        image_token_id=source.image_token_id,
        image_seq_length=source.image_seq_length,
        tie_word_embeddings=tied,
    )
    judge = LlavaForConditionalGeneration(config).eval()
    spread(judge)
    judge.save_pretrained(tmp_path)
    tokenizer = tiny.byte_tokenizer(tiny.VICUNA, tiny.VICUNA_SPECIALS)
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(checkpoints("llava") / "preprocessor_config.json", tmp_path)
    model, _ = load_checkpoint(tmp_path)
    ids, pixels = model.prepare_prompt([tiny.picture(30, 30), "what"])
    theirs = torch.tensor([[x for i in ids[0].tolist() for x in ([config.image_token_id] * 16 if i == -200 else [i])]])
    with torch.no_grad():
        expected = judge(input_ids=theirs, pixel_values=pixels).logits
        torch.testing.assert_close(model(ids, images=pixels).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_longer_context_than_the_decoders_scales_rope_once(tmp_path: Path) -> None:
    judge = written(tmp_path / "llm", "llama plain")
    path = tmp_path / "llm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 100}))
    llm, _ = load_decoder(tmp_path / "llm", torch.float32)
    assert llm.config.rope_parameters["rope_type"] == "linear"
    assert llm.config.rope_parameters["factor"] == 4.0  # ceil(100 / 32)
    judge.config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    scaled = LlamaForCausalLM(judge.config).eval()
    scaled.load_state_dict(judge.state_dict())
    with torch.no_grad():
        assert torch.equal(llm(IDS).logits, scaled(IDS).logits)
        assert not torch.equal(llm(IDS).logits, judge(IDS).logits)
    llm.save_pretrained(tmp_path / "again")
    assert load_decoder(tmp_path / "again", torch.float32)[0].config.rope_parameters == llm.config.rope_parameters


def test_other_decoders_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    with pytest.raises(ExportError, match="a decoder of type 'gemma2'"):
        decoder_kind(tmp_path)
