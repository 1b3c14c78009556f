"""Quantised checkpoints of every stored layout: their integers are used as they are, and faults are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlavaForConditionalGeneration, Qwen2ForCausalLM

from export.decoder import open_decoder_checkpoint, write_decoder
from kernels import packing
from models.checkpoint import load_checkpoint
from models.int4 import Int4Linear, quantized_decoder
from models.packed import read_quantization
from runtime.errors import ExportError
from tests.models import tiny
from tests.models.quantized import CONFIGS, edit_json, quantized_copy

LAYOUTS = tuple(CONFIGS)
IDS = torch.tensor([[3, 4, 5, 9, 40]])


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nvila_with_packed_linears_equals_transformers_on_the_floats_they_stand_for(
    layout: str, checkpoints: Any, tmp_path: Path
) -> None:
    packed, floats = quantized_copy(checkpoints("nvila"), tmp_path, layout)
    model, family = load_checkpoint(packed)
    assert family == "nvila"
    assert model.quantization == CONFIGS[layout]["quant_method"]
    judge = Qwen2ForCausalLM.from_pretrained(floats / "llm", dtype=torch.float32)
    assert torch.equal(logits_of(model.decoder(False)), logits_of(judge))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_llava_with_packed_linears_equals_transformers_and_answers(
    layout: str, checkpoints: Any, tmp_path: Path
) -> None:
    packed, floats = quantized_copy(checkpoints("llava"), tmp_path, layout)
    model, _ = load_checkpoint(packed)
    assert model.quantization == CONFIGS[layout]["quant_method"]
    judge = LlavaForConditionalGeneration.from_pretrained(floats, dtype=torch.float32)
    torch.testing.assert_close(logits_of(model), logits_of(judge), atol=1e-5, rtol=1e-5)
    prompt, short = [tiny.picture(40, 40), "q"], GenerationConfig(max_new_tokens=6)
    assert model.generate_content(prompt, short) == load_checkpoint(floats)[0].generate_content(prompt, short)


def test_gemm_integers_equal_an_unpacker_written_out_in_float64(checkpoints: Any, tmp_path: Path) -> None:
    packed, _ = quantized_copy(checkpoints("nvila"), tmp_path, "autoawq-gemm")
    tensors = load_file(packed / "llm" / "model.safetensors")
    model, _ = load_checkpoint(packed)
    for name, module in model.llm.named_modules():
        if not isinstance(module, Int4Linear):
            continue
        words, zeros, scales = (tensors[f"{name}.{part}"].numpy() for part in ("qweight", "qzeros", "scales"))
        inputs, outputs = words.shape[0], words.shape[1] * 8
        expected = np.empty((outputs, inputs))
        for k in range(inputs):
            for column in range(words.shape[1]):
                for nibble, place in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                    n = 8 * column + place
                    q = (int(words[k, column]) >> 4 * nibble) & 15
                    z = (int(zeros[k // 32, column]) >> 4 * nibble) & 15
                    expected[n, k] = (q - z) * float(scales[k // 32, n])
        assert np.array_equal(module.weight.double().numpy(), expected)


def test_llm_awqs_files_say_nothing_of_themselves_and_load_all_the_same(checkpoints: Any, tmp_path: Path) -> None:
    packed, floats = quantized_copy(checkpoints("nvila"), tmp_path, "llm-awq-v2", group_size=64, mark=False)
    model, _ = load_checkpoint(packed)
    assert model.quantization == "awq"
    assert torch.equal(logits_of(model.llm), logits_of(load_checkpoint(floats)[0].llm))


def test_settings_beside_config_json_are_read_too(checkpoints: Any, tmp_path: Path) -> None:
    packed, _ = quantized_copy(checkpoints("nvila"), tmp_path, "autoawq-gemm", mark=False)
    older = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (packed / "llm" / "quant_config.json").write_text(json.dumps(older))
    assert load_checkpoint(packed)[0].quantization == "awq"


@pytest.mark.parametrize("layout", ["autoawq-gemm", "compressed-tensors"])
def test_whole_rows_are_groups_too(layout: str, checkpoints: Any, tmp_path: Path) -> None:
    packed, floats = quantized_copy(checkpoints("nvila"), tmp_path, layout, group_size=-1)
    model, _ = load_checkpoint(packed)
    assert model.llm.model.layers[0].mlp.down_proj.group_size == 128
    assert torch.equal(logits_of(model.llm), logits_of(load_checkpoint(floats)[0].llm))


def _config(packed: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((packed / "llm" / "config.json").read_text())["quantization_config"]
    return config


# ---- the two paths


def test_behaviour_23_a_quantised_checkpoint_runs_on_its_own_integers_on_both_paths(
    checkpoints: Any, tmp_path: Path, caplog: Any
) -> None:
    packed, _ = quantized_copy(checkpoints("nvila"), tmp_path, "autoawq-gemm", head_bits=8)
    model, _ = load_checkpoint(packed)
    twin = model.decoder(True)
    assert "round to nearest" not in "".join(record.message for record in caplog.records if "layer" in record.message)
    assert twin.model.layers[0] is model.llm.model.layers[0]
    assert (model.quantization, twin.lm_head.bits) == ("awq", 8)
    assert model.decoder(False) is model.llm
    assert model.decoder(False).lm_head.weight.dtype == torch.float32
    warnings = [record.message for record in caplog.records if "dequantised" in record.message]
    assert len(warnings) == 1
    assert "integer weights alone" in warnings[0]
    assert not torch.equal(logits_of(twin), logits_of(model.llm))


@pytest.mark.parametrize("bits", [3, "8"])
def test_head_bits_that_nobody_writes_are_named(bits: Any, checkpoints: Any, tmp_path: Path) -> None:
    packed, _ = quantized_copy(checkpoints("nvila"), tmp_path, "autoawq-gemm")
    (packed / "quantization.json").write_text(json.dumps({"head_bits": bits}))
    with pytest.raises(ExportError, match=f"head_bits is {bits!r}"):
        read_quantization(packed / "llm", packed)


def digest_in_torch(llm: Any) -> str:
    """The digest of a decoder's integers: layer by layer q, k, v, o, gate, up, down, then the head."""
    digest = packing.WeightDigest()
    for index, layer in enumerate(llm.model.layers):
        for name in ("q", "k", "v", "o"):
            digest.add(f"layers.{index}.self_attn.{name}_proj", getattr(layer.self_attn, f"{name}_proj").integers())
        for name in ("gate", "up", "down"):
            digest.add(f"layers.{index}.mlp.{name}_proj", getattr(layer.mlp, f"{name}_proj").integers())
    if isinstance(llm.lm_head, Int4Linear):
        digest.add("lm_head", llm.lm_head.integers())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", ["nvila", "llava"])
@pytest.mark.parametrize("head_bits", [None, 8, 16])
def test_torch_runs_on_the_integers_of_the_bundle(
    kind: str, head_bits: int | None, checkpoints: Any, tmp_path: Path
) -> None:
    packed, _ = quantized_copy(checkpoints(kind, hidden=64), tmp_path, "gptq", head_bits=head_bits)
    model, _ = load_checkpoint(packed)
    if kind == "nvila":
        llm = model.decoder(True)
    else:
        llm = quantized_decoder(model, 32, model.head_bits)
        ids, pixels = model.prepare_prompt([tiny.picture(40, 40), "q"])
        assert llm.generate(ids, images=pixels, max_new_tokens=3).shape == (1, 3)
    with open_decoder_checkpoint(packed) as opened:
        record = write_decoder(opened, tmp_path, max_seq_len=256, accuracy_level=0)
    assert record["quantization"]["head_bits"] == model.head_bits == (head_bits or 4)
    assert record["quantization"]["method"] == model.quantization
    assert record["quantization"]["digest"] == digest_in_torch(llm)


def test_full_weights_become_the_integers_of_the_bundle(checkpoints: Any, tmp_path: Path) -> None:
    directory = checkpoints("nvila", hidden=128)
    model, _ = load_checkpoint(directory)
    twin = model.decoder(True)
    with open_decoder_checkpoint(directory) as opened:
        record = write_decoder(opened, tmp_path, max_seq_len=256, accuracy_level=0)
    assert record["quantization"]["method"] == model.quantization == "rtn"
    assert record["quantization"]["digest"] == digest_in_torch(twin)


# ---- faults


def broken(checkpoints: Any, tmp_path: Path, layout: str, change: Any) -> Path:
    packed, _ = quantized_copy(checkpoints("nvila"), tmp_path, layout)
    weights = packed / "llm" / "model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    return packed


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("layout", "change", "said"),
    [
        ("autoawq-gemm", lambda t: t.pop(f"{Q}.scales"), r"q_proj.*'scales' is missing"),
        ("autoawq-gemm", lambda t: t.update({f"{Q}.qzeros": t[f"{Q}.qzeros"][:1]}), r"q_proj.*qzeros"),
        ("autoawq-gemm", lambda t: t[f"{Q}.scales"].fill_(0), r"q_proj: scales has the value 0"),
        ("autoawq-gemm", lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].float() + 1e-9}), "float16 does not hold"),
        ("autoawq-gemm", lambda t: t.update({f"{Q}.g_idx": torch.arange(64)}), r"q_proj: 'g_idx' has no meaning"),
        ("autoawq-gemm", lambda t: t.update({"model.extra.qweight": torch.ones(1)}), r"'model.extra.qweight'"),
        ("autoawq-gemm", lambda t: t.update({f"{Q}.weight": torch.ones(64, 64)}), r"'.*q_proj.weight' and packed"),
        ("gptq", lambda t: t[f"{Q}.g_idx"].copy_(t[f"{Q}.g_idx"].flip(0)), r"q_proj: .*g_idx.*desc_act"),
        ("compressed-tensors", lambda t: t.update({f"{Q}.weight_g_idx": torch.ones(64)}), r"'weight_g_idx'"),
        (
            "autoawq-gemm",
            lambda t: [t.pop(name) for name in list(t) if name.startswith(f"{Q}.q") or name == f"{Q}.scales"],
            r"lack '.*q_proj.weight'",
        ),
    ],
)
def test_damaged_packed_tensors_are_named(
    layout: str, change: Any, said: str, checkpoints: Any, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=said):
        load_checkpoint(broken(checkpoints, tmp_path, layout, change))


@pytest.mark.parametrize(
    ("layout", "changes", "said"),
    [
        ("autoawq-gemm", {"bits": 3}, "bits is 3"),
        ("autoawq-gemm", {"zero_point": False}, "zero_point is False"),
        ("autoawq-gemm", {"version": "marlin"}, "version is 'marlin'"),
        ("autoawq-gemm", {"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'"),
        ("gptq", {"desc_act": True}, "desc_act is True"),
        ("gptq", {"bits": 8}, "bits is 8"),
        ("compressed-tensors", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ("compressed-tensors", {"format": "int-quantized"}, "format is 'int-quantized'"),
    ],
)
def test_settings_that_cannot_be_read_are_named(
    layout: str, changes: dict[str, Any], said: str, checkpoints: Any, tmp_path: Path
) -> None:
    packed, _ = quantized_copy(checkpoints("nvila"), tmp_path, layout)
    edit_json(packed / "llm" / "config.json", quantization_config=_config(packed) | changes)
    with pytest.raises(ExportError, match=said) as found:
        load_checkpoint(packed)
    assert found.value.hint


def test_static_activations_are_refused_by_name(checkpoints: Any, tmp_path: Path) -> None:
    packed, _ = quantized_copy(checkpoints("nvila"), tmp_path, "compressed-tensors")
    config = _config(packed)
    config["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "dynamic": False}
    edit_json(packed / "llm" / "config.json", quantization_config=config)
    with pytest.raises(ExportError, match="input_activations"):
        load_checkpoint(packed)


def test_a_configuration_without_packed_tensors_is_refused(checkpoints: Any, tmp_path: Path) -> None:
    directory = tmp_path / "full"
    shutil.copytree(checkpoints("llava"), directory)
    edit_json(directory / "config.json", quantization_config=CONFIGS["autoawq-gemm"])
    with pytest.raises(ExportError, match="says awq, but no linear is packed"):
        load_checkpoint(directory)
