"""``quantization_config`` as published checkpoints have it, and ours as transformers' own parser reads it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kernels.packing import CHECKPOINT_FORMATS, QuantizedForm, quantization_config, read_quantization_config

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "damp_percent": 0.01}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 128}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None}},
    "ignore": ["lm_head", "re:vision_tower.*"],
}


def changed(config: dict[str, Any], at: str, value: Any) -> dict[str, Any]:
    """A copy with one value changed; ``at`` is a path of keys."""
    config = copy.deepcopy(config)
    *path, last = at.split("/")
    inner = config
    for key in path:
        inner = inner[key]
    inner[last] = value
    return config


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AWQ, QuantizedForm("autoawq-gemm", "awq", 128)),
        ({**AWQ, "version": "GEMV"}, QuantizedForm("autoawq-gemv", "awq", 128)),
        ({**AWQ, "version": "gemv_fast"}, QuantizedForm("llm-awq-v2", "awq", 128)),
        ({**AWQ, "version": "gemv", "backend": "llm-awq"}, QuantizedForm("llm-awq-v2", "awq", 128)),
        ({**AWQ, "version": None, "format": "gemv"}, QuantizedForm("autoawq-gemv", "awq", 128)),
        ({**AWQ, "group_size": -1}, QuantizedForm("autoawq-gemm", "awq", None)),
        (
            {**AWQ, "modules_to_not_convert": ["vision_tower"]},
            QuantizedForm("autoawq-gemm", "awq", 128, ("vision_tower",)),
        ),
        ({**AWQ, "modules_to_not_convert": None}, QuantizedForm("autoawq-gemm", "awq", 128)),
        (
            {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"},
            QuantizedForm("autoawq-gemm", "awq", 64),
        ),
        (GPTQ, QuantizedForm("gptq", "gptq", 128)),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, QuantizedForm("gptq-v2", "gptq", 128)),
        ({**GPTQ, "group_size": -1, "desc_act": None}, QuantizedForm("gptq", "gptq", None)),
        ({"bits": 4, "group_size": 32, "desc_act": False}, QuantizedForm("gptq", "gptq", 32)),
        (COMPRESSED, QuantizedForm("compressed-tensors", "compressed-tensors", 128, ("lm_head", "re:vision_tower.*"))),
        (
            changed(COMPRESSED, "config_groups/group_0/weights/strategy", "channel"),
            QuantizedForm("compressed-tensors", "compressed-tensors", None, ("lm_head", "re:vision_tower.*")),
        ),
        (
            changed(changed(COMPRESSED, "ignore", []), "config_groups/group_0/weights/actorder", "weight"),
            QuantizedForm("compressed-tensors", "compressed-tensors", 128),
        ),
    ],
)
def test_published_forms_are_read(config: dict[str, Any], expected: QuantizedForm) -> None:
    assert read_quantization_config(config) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "quant_method is 'bitsandbytes'; awq, gptq, compressed",
        ),
        ({}, "quant_method is None"),
        ({"quant_method": ["awq"]}, r"quant_method is \['awq'\]"),
        ({**AWQ, "bits": 3}, "bits is 3; only 4 can be read"),
        ({**AWQ, "bits": "4"}, "bits is '4'; only 4"),
        ({**AWQ, "zero_point": False}, "zero_point is False"),
        ({**AWQ, "version": "marlin"}, "version is 'marlin'; gemm, gemv, gemv_fast, llm-awq can be read"),
        ({**AWQ, "version": 2}, "version is 2"),
        ({**AWQ, "group_size": 0}, "group_size is 0; expected a positive number or -1"),
        ({**AWQ, "group_size": True}, "group_size is True"),
        ({**AWQ, "modules_to_not_convert": "lm_head"}, "modules_to_not_convert is 'lm_head'"),
        ({**GPTQ, "bits": 8}, "bits is 8"),
        ({**GPTQ, "desc_act": True}, "desc_act is True"),
        ({**GPTQ, "dynamic": {"-:.*down": {}}}, "dynamic gives modules settings of their own"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({**GPTQ, "is_marlin_format": True}, "marlin cannot"),
        (changed(COMPRESSED, "config_groups", {}), "config_groups is {}"),
        (changed(COMPRESSED, "config_groups/group_0/weights", None), "weights is None"),
        (changed(COMPRESSED, "config_groups/group_0/weights/num_bits", 8), "num_bits is 8"),
        (changed(COMPRESSED, "config_groups/group_0/weights/type", "float"), "type is 'float'"),
        (changed(COMPRESSED, "config_groups/group_0/weights/actorder", "group"), "actorder is 'group'"),
        (changed(COMPRESSED, "config_groups/group_0/weights/strategy", "tensor"), "strategy is 'tensor'"),
        (changed(COMPRESSED, "config_groups/group_0/input_activations", {"num_bits": 8}), "input_activations is"),
        (changed(COMPRESSED, "kv_cache_scheme", {"num_bits": 8}), "kv_cache_scheme is"),
        (changed(COMPRESSED, "format", "nvfp4-pack-quantized"), "format is 'nvfp4-pack-quantized'"),
        (
            changed(COMPRESSED, "config_groups/group_1", {"weights": {**WEIGHTS, "group_size": 64}}),
            r"several group sizes \(64, 128\)",
        ),
    ],
)
def test_what_cannot_be_read_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_quantization_config(config)


@pytest.mark.parametrize("format", CHECKPOINT_FORMATS)
def test_what_is_written_is_read_back(format: str) -> None:
    form = read_quantization_config(quantization_config(format, 64, ["lm_head"]))
    assert (form.format, form.group_size) == (format, 64)
    assert form.kept == (() if form.method == "gptq" else ("lm_head",))


def test_a_layout_of_an_engine_has_no_configuration() -> None:
    with pytest.raises(ValueError, match="no checkpoint is stored in the layout 'matmulnbits'"):
        quantization_config("matmulnbits", 128, [])


@pytest.mark.torch
@pytest.mark.parametrize("format", CHECKPOINT_FORMATS)
def test_transformers_accepts_what_is_written(format: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    auto = pytest.importorskip("transformers.quantizers.auto")
    config = quantization_config(format, 64, ["lm_head"])
    parsed = auto.AutoQuantizationConfig.from_dict(copy.deepcopy(config))
    assert parsed.quant_method == config["quant_method"]
    if format != "compressed-tensors":
        assert (parsed.bits, parsed.group_size, parsed.desc_act) == (4, 64, False)
        name = {"autoawq-gemm": "gemm", "autoawq-gemv": "gemv", "llm-awq-v2": "gemv_fast", "gptq-v2": "gptq_v2"}
        assert parsed.format == name.get(format, format)
    if parsed.quant_method == "awq":
        assert parsed.modules_to_not_convert == ["lm_head"]
