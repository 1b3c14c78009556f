"""Loading takes the memory of the weights and little more, and initialises nothing."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from models.checkpoint import load_checkpoint
from models.int4 import Int4Linear
from models.projector import MultimodalProjector
from tests.models import loading_memory
from tests.models.quantized import edit_json, quantized_copy

ROOT = Path(__file__).parents[2]
WIDTH, INNER = 384, 1024
# What unpacking one linear takes beside it: its integers a byte each, transposed once, and words.
PER_VALUE = 12


@pytest.fixture(scope="module")
def large(checkpoints: Any, tmp_path_factory: Any) -> Path:
    """An NVILA whose weights are much larger than what a process takes for itself: 50 MB in f16."""
    directory: Path = tmp_path_factory.mktemp("large") / "nvila"
    shutil.copytree(checkpoints("nvila"), directory)
    small = Qwen2Config.from_pretrained(directory / "llm")
    config = Qwen2Config(
        vocab_size=small.vocab_size,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=16,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=small.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).half().save_pretrained(directory / "llm")
    sizes = type("Sizes", (), {"mm_hidden_size": 36, "hidden_size": WIDTH})
    save_file(MultimodalProjector("mlp_downsample", sizes).state_dict(), directory / "mm_projector/model.safetensors")
    edit_json(directory / "config.json", hidden_size=WIDTH, model_dtype="torch.float16")
    return directory


def measured(warm: Path, directory: Path) -> dict[str, int]:
    command = [sys.executable, str(loading_memory.__file__), str(warm), str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_behaviour_34_loading_takes_the_weights_and_at_most_15_percent(checkpoints: Any, large: Path) -> None:
    found = measured(checkpoints("nvila"), large)
    assert found["weights"] > 49_000_000
    assert found["peak"] <= 1.15 * found["weights"]


def test_behaviour_34_packed_weights_are_never_there_in_full(checkpoints: Any, large: Path, tmp_path: Path) -> None:
    packed, _ = quantized_copy(large, tmp_path, "autoawq-gemm", 128)
    found = measured(checkpoints("nvila"), packed)
    assert found["weights"] < 15_000_000
    assert found["peak"] <= 1.15 * found["weights"] + PER_VALUE * WIDTH * INNER


@pytest.mark.parametrize("kind", ["llava", "nvila", "packed"])
def test_behaviour_34_loading_initialises_no_parameter(
    kind: str, checkpoints: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    source = checkpoints("llava" if kind == "llava" else "nvila")  # writing it does initialise
    directory = quantized_copy(source, tmp_path, "autoawq-gemm")[0] if kind == "packed" else source
    drawn: list[str] = []

    def count(owner: Any, name: str) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (drawn.append(name), original(*a, **k))[1])

    for name in ("normal_", "kaiming_uniform_", "uniform_", "trunc_normal_", "xavier_uniform_"):
        count(torch.nn.init, name)
    for name in ("normal_", "uniform_", "random_", "erfinv_"):  # what all of them end in
        count(torch.Tensor, name)
    load_checkpoint(directory)
    assert drawn == []
    torch.nn.Linear(2, 2)
    assert drawn  # they are seen where they happen


def test_behaviour_23_released_full_weights_are_gone(checkpoints: Any, caplog: Any) -> None:
    model, _ = load_checkpoint(checkpoints("nvila"))
    with caplog.at_level(logging.INFO):
        twin = model.decoder(True)
    assert [record.message for record in caplog.records if "layer" in record.message] == [
        "int4 weights of layer 1 of 2 made by round to nearest",
        "int4 weights of layer 2 of 2 made by round to nearest",
    ]
    model.stream_gen(torch.tensor([[3, 4, 5]]), None, None, 0, False, False)  # its cache belongs to the full decoder
    full = {
        name: weakref.ref(module.weight)
        for name, module in model.llm.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    table = model.llm.model.embed_tokens.weight
    assert len(full) == 15
    model.release_full_weights()
    gc.collect()
    assert [name for name, weight in full.items() if weight() is not None] == []
    assert model.get_llm() is twin
    assert model.get_llm().model.embed_tokens.weight is table
    assert sum(isinstance(module, Int4Linear) for module in model.modules()) == 15
