"""Quantised checkpoints that cannot be read, or not as they are asked for: each refusal names what it is about."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from kernels.packing import quantization_config
from runtime.errors import ExportError
from tests.decoder_models import (
    Arrays,
    Shape,
    decoder_record,
    packed_weights,
    save_checkpoint,
    save_packed,
)

Q = "model.layers.0.self_attn.q_proj"


def reconfigured(folder: Path, layout: str = "autoawq-gemm", **changes: Any) -> Path:
    """A quantised checkpoint whose quantization_config is changed."""
    save_packed(folder, Shape(), layout)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(folder: Path, message: str, **settings: Any) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        decoder_record(folder, **settings)
    assert caught.value.hint


def test_biases_of_zeros_that_autogptq_adds_change_nothing(tmp_path: Path) -> None:
    def add(stored: Arrays) -> None:
        stored["model.layers.0.self_attn.o_proj.bias"] = np.zeros(128, np.float16)

    save_packed(tmp_path / "zeros", Shape(), "gptq", change=add)
    decoder_record(tmp_path / "zeros")

    def add_more(stored: Arrays) -> None:
        stored["model.layers.0.self_attn.o_proj.bias"] = np.ones(128, np.float16)

    save_packed(tmp_path / "ones", Shape(), "gptq", change=add_more)
    refused(tmp_path / "ones", r"o_proj\.bias' does not belong to a llama decoder")


def test_a_group_size_that_differs_from_the_integers_is_refused(tmp_path: Path) -> None:
    save_packed(tmp_path, Shape(), "autoawq-gemm")
    refused(tmp_path, "--group-size 64: the checkpoint's integers are in groups of 32", group_size=64)
    assert decoder_record(tmp_path, group_size=32)["quantization"]["group_size"] == 32


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("autoawq-gemm", {"bits": 3}, "config.json: quantization_config: bits is 3; only 4 can be read"),
        ("autoawq-gemm", {"version": "marlin"}, "version is 'marlin'"),
        ("autoawq-gemm", {"group_size": -1}, "integers in whole rows; groups of 128, 64, 32 can be exported"),
        ("autoawq-gemm", {"group_size": 16}, "integers in groups of 16; groups of 128"),
        ("autoawq-gemm", {"group_size": 64}, r"q_proj.qzeros is I32 \[4, 16\], expected int32 \[2, 16\]"),
        ("autoawq-gemm", {"version": "gemv"}, r"q_proj.qzeros is I32 \[4, 16\], expected int32 \[128, 4\]"),
        ("gptq", {"desc_act": True}, "desc_act is True"),
        ("gptq", {"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'"),
    ],
)
def test_a_form_that_cannot_be_read_is_named(
    tmp_path: Path, layout: str, changes: dict[str, Any], message: str
) -> None:
    refused(reconfigured(tmp_path, layout, **changes), message)


def drop(name: str) -> Callable[[Arrays], None]:
    def change(stored: Arrays) -> None:
        del stored[name]

    return change


def put(name: str, array: np.ndarray) -> Callable[[Arrays], None]:
    def change(stored: Arrays) -> None:
        stored[name] = array

    return change


def zero_scale(stored: Arrays) -> None:
    stored[f"{Q}.scales"][1, 2] = 0


def wide_scale(stored: Arrays) -> None:
    stored[f"{Q}.scales"] = stored[f"{Q}.scales"].astype(np.float32)
    stored[f"{Q}.scales"][1, 2] = 1e-9


def reorder(stored: Arrays) -> None:
    stored[f"{Q}.g_idx"] = stored[f"{Q}.g_idx"][::-1].copy()


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("autoawq-gemm", drop(f"{Q}.qzeros"), "q_proj: 'qzeros' is missing, which the layout autoawq-gemm has"),
        ("autoawq-gemm", put(f"{Q}.g_idx", np.zeros(128, np.int32)), "q_proj.g_idx: does not belong to the layout"),
        ("autoawq-gemm", put(f"{Q}.scales", np.ones((4, 128), np.int32)), "scales is I32 .*, expected float"),
        ("autoawq-gemm", put(f"{Q}.weight", np.ones((128, 128), np.float16)), "q_proj.weight' does not belong"),
        ("autoawq-gemm", zero_scale, "q_proj: scales has the value 0, expected positive"),
        ("autoawq-gemm", wide_scale, r"q_proj: scales has the value 9.99999972e-10, which float16"),
        ("gptq", reorder, "q_proj: g_idx reorders the inputs"),
        (
            "compressed-tensors",
            put(f"{Q}.weight_g_idx", np.zeros(128, np.int32)),
            "weight_g_idx: the inputs are reordered",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_layout_are_named(
    tmp_path: Path, layout: str, change: Callable[[Arrays], None], message: str
) -> None:
    save_packed(tmp_path, Shape(), layout, change=change)
    refused(tmp_path, message)


def test_a_linear_that_was_kept_in_floats_is_named_with_the_reason(tmp_path: Path) -> None:
    def keep(stored: Arrays) -> None:
        for part in ("qweight", "qzeros", "scales"):
            del stored[f"model.layers.1.mlp.down_proj.{part}"]
        stored["model.layers.1.mlp.down_proj.weight"] = Shape().weights()["model.layers.1.mlp.down_proj.weight"]

    save_packed(tmp_path, Shape(), "autoawq-gemm", change=keep)
    refused(
        tmp_path, r"layers\.1\.mlp\.down_proj is stored in floats, with 1 of the 14 linears in the layers; the others"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["lm_head", "layers.1.mlp.down_proj"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, r"in floats \(modules_to_not_convert has 'layers\.1\.mlp\.down_proj'\)")


def test_a_configuration_without_integers_and_integers_without_one_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", Shape())
    described = {"quantization_config": quantization_config("autoawq-gemm", 32, [])}
    (tmp_path / "a" / "config.json").write_text(json.dumps(Shape().config() | described))
    refused(tmp_path / "a", "quantization_config says awq, but '.*q_proj' has no integers")
    stored, _ = packed_weights(Shape().weights(), "gptq")
    save_checkpoint(tmp_path / "b", Shape(), weights=stored)
    refused(tmp_path / "b", "is stored as integers, and no quantization_config says how")
