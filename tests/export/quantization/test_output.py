"""What is written: integers that others read, configurations that others parse, and everything else as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AwqConfig,
    CompressedTensorsConfig,
    LlavaForConditionalGeneration,
    Qwen2ForCausalLM,
)
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from export.progress import Progress
from export.quantization import output, run
from export.quantization.output import copied_files
from export.quantization.shards import plan_shards
from export.quantization.source import DecoderSource
from models.checkpoint import load_checkpoint
from runtime.errors import ExportError
from tests.export.quantization.quantized_runs import (
    LINEARS,
    Runs,
    config,
    decoder_folder,
    dequantised,
    rounded,
    tensors,
)

LAYOUTS = ("llava", "original", "nvila")
PREFIXES = {"llava": "language_model.model.", "original": "model.", "nvila": "model."}


def stems(layout: str, source: dict[str, Any]) -> list[str]:
    prefix = next(p for p in (PREFIXES[layout], "model.language_model.") if f"{p}layers.0.mlp.up_proj.weight" in source)
    return [f"{prefix}layers.{index}.{linear}" for index in range(2) for linear in LINEARS]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_rounding_is_read_back_by_an_unpacker_of_our_own(runs: Runs, layout: str) -> None:
    """With norms that 16 bits hold, the stored integers stand for the source's weights rounded to nearest."""
    source = tensors(decoder_folder(runs.checkpoint(layout)))
    stored = tensors(decoder_folder(runs.result(layout, method="rtn").out))
    for stem in stems(layout, source):
        if layout == "llava" or stem.endswith(("o_proj", "down_proj")):  # these read no norm
            wanted = rounded(source[f"{stem}.weight"])
            np.testing.assert_allclose(dequantised(stored, stem), wanted, rtol=1e-12, atol=0)
        assert f"{stem}.weight" not in stored


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_are_multiplied_by_what_norms_are_divided_by(runs: Runs, layout: str) -> None:
    out = runs.result(layout).out
    source, stored = tensors(decoder_folder(runs.checkpoint(layout))), tensors(decoder_folder(out))
    stem = stems(layout, source)[0].removesuffix("0.self_attn.q_proj")
    followed = 0
    for index, layer in enumerate(config(out / "quantization.json")["layers"]):
        for norm, linear in (("input_layernorm", "self_attn.k_proj"), ("post_attention_layernorm", "mlp.gate_proj")):
            if not any(linear in group["linears"] and group["ratio"] >= 0.1 for group in layer["search"]):
                continue
            at = f"{stem}{index}."
            gains = [table[f"{at}{norm}.weight"].astype(np.float64) for table in (source, stored)]
            full = source[f"{at}{linear}.weight"].astype(np.float64)
            moved = (dequantised(stored, f"{at}{linear}") * full).sum(0) / (full * full).sum(0)
            assert np.corrcoef(np.log(moved), np.log(gains[0] / gains[1]))[0, 1] > 0.8
            followed += 1
    assert followed, "no scale was chosen, so that nothing was seen here"


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_awq_leaves_the_function_and_beats_no_search_on_its_own_prompts(runs: Runs, layout: str) -> None:
    """Norms are divided by what columns are multiplied with: the dequantised model stays near the full one."""
    root, out = runs.checkpoint(layout), runs.result(layout).out
    record = config(out / "quantization.json")
    ratios = [group["ratio"] for layer in record["layers"] for group in layer["search"]]
    assert max(ratios) > 0, "no scale was chosen, so that nothing would be seen here"
    model, family = load_checkpoint(root)
    llm = model if family == "llava" else model.get_llm()
    ids = torch.arange(3, 60)[None]
    full = llm(input_ids=ids).logits.double().log_softmax(-1)
    stored = tensors(decoder_folder(out))
    prefix = stems(layout, tensors(decoder_folder(root)))[0].removesuffix("layers.0.self_attn.q_proj")
    for name, parameter in llm.model.named_parameters():
        if name.startswith("layers."):
            stem = prefix + name.removesuffix(".weight")
            values = dequantised(stored, stem) if f"{stem}.qweight" in stored else stored[prefix + name]
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
    moved = llm(input_ids=ids).logits.double().log_softmax(-1)
    divergence = (full.exp() * (full - moved)).sum(-1).mean()
    assert divergence < 0.3, "int4 moves these random models by 0.1; a norm that was not divided by far more"
    for layer in record["layers"]:
        assert all(group["loss"] <= group["rtn_loss"] for group in layer["search"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_else_is_the_source_in_sixteen_bits(runs: Runs, layout: str) -> None:
    root, out = runs.checkpoint(layout), runs.result(layout).out
    source, stored = tensors(decoder_folder(root)), tensors(decoder_folder(out))
    replaced = {f"{stem}.weight" for stem in stems(layout, source)}
    moved = {name for name in source if name.endswith("layernorm.weight") and "vision" not in name}
    moved |= {name for name in source if name.endswith(("v_proj.bias", "up_proj.bias")) and "vision" not in name}
    for name in sorted(set(source) - replaced):
        assert stored[name].dtype == np.float16, name
        if name not in moved:
            np.testing.assert_array_equal(stored[name], source[name].astype(np.float16))
    packed = {f"{name.removesuffix('.weight')}.{part}" for name in replaced for part in ("qweight", "qzeros", "scales")}
    assert set(stored) == set(source) - replaced | packed
    for folder in ("vision_tower", "mm_projector"):
        for path in (root / folder).glob("*"):
            if folder != "vision_tower" or layout != "llava":
                assert (out / folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["awq", "compressed-tensors"])
def test_transformers_parser_accepts_the_configuration(runs: Runs, layout: str, form: str) -> None:
    out = runs.result(layout, format=form).out
    table = config(decoder_folder(out) / "config.json")["quantization_config"]
    parsed = AutoQuantizationConfig.from_dict(dict(table))
    if form == "awq":
        assert isinstance(parsed, AwqConfig)
        assert (parsed.bits, parsed.group_size, parsed.zero_point) == (4, 32, True)
        assert parsed.format == "gemm"
    else:
        pytest.importorskip("compressed_tensors")
        assert isinstance(parsed, CompressedTensorsConfig)
    if layout != "original":  # transformers has no class for LLaVA's own layout
        assert AutoConfig.from_pretrained(decoder_folder(out)).quantization_config == table
    if layout == "nvila":
        assert config(out / "config.json")["llm_cfg"]["quantization_config"] == table


def modules(layout: str, out: Path) -> dict[str, torch.nn.Module]:
    """Modules of the model that a loader makes, by name."""
    with torch.device("meta"):
        if layout == "llava":
            return dict(LlavaForConditionalGeneration(AutoConfig.from_pretrained(out)).named_modules())
        return dict(Qwen2ForCausalLM(AutoConfig.from_pretrained(out / "llm")).named_modules())


@pytest.mark.parametrize("layout", ["llava", "nvila"])
def test_loaders_would_quantise_the_decoders_linears_alone(runs: Runs, layout: str) -> None:
    out = runs.result(layout).out
    kept = config(decoder_folder(out) / "config.json")["quantization_config"]["modules_to_not_convert"]
    linears = {name for name, module in modules(layout, out).items() if isinstance(module, torch.nn.Linear)}
    decoder = {name for name in linears if name.endswith(LINEARS) and "vision" not in name}
    assert len(decoder) == 14 and len(linears) > 14
    assert {name for name in linears if should_convert_module(name, kept)} == decoder
    # vLLM looks for the names anywhere in its own, which begin with the part
    assert {name for name in linears if not any(part in name for part in kept)} == decoder


@pytest.mark.parametrize("layout", ["llava", "nvila"])
def test_transformers_loads_the_compressed_form(runs: Runs, layout: str) -> None:
    """transformers and the compressed-tensors package dequantise to what AutoAWQ's form stands for."""
    pytest.importorskip("compressed_tensors")
    out, twin = runs.result(layout, format="compressed-tensors").out, runs.result(layout).out
    loader: Any = LlavaForConditionalGeneration if layout == "llava" else Qwen2ForCausalLM
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model, report = loader.from_pretrained(
            decoder_folder(out),
            quantization_config=CompressedTensorsConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
        )
    assert not any(report.values())
    stored = tensors(decoder_folder(twin))
    prefix = stems(layout, tensors(decoder_folder(runs.checkpoint(layout))))[0].partition("layers.")[0]
    body = model.model.language_model if layout == "llava" else model.model
    seen = 0
    for name, module in body.layers.named_modules():
        if name.endswith(LINEARS):
            wanted = dequantised(stored, f"{prefix}layers.{name}").astype(np.float16)  # the package computes in f16
            np.testing.assert_array_equal(module.weight.detach().numpy(), wanted)
            seen += 1
    assert seen == 14


def test_a_large_decoder_is_cut_into_shards_with_an_index(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "plan_shards", lambda entries: plan_shards(entries, 100_000))
    out = run.quantize(runs.request("nvila", str(tmp_path / "out"), method="rtn", head_bits="4"), Progress()).out
    files = sorted(path.name for path in (out / "llm").glob("*.safetensors*"))
    assert len(files) > 2 and files[-1] == "model.safetensors.index.json"
    whole = tensors(decoder_folder(runs.result("nvila", method="rtn").out))
    cut = tensors(out / "llm")
    assert set(cut) == set(whole)
    assert all(np.array_equal(cut[name], whole[name]) for name in whole)
    index = config(out / "llm" / files[-1])
    assert set(index["weight_map"]) == set(whole)


def test_files_of_the_checkpoint_are_copied_but_pickles_code_and_graphs(runs: Runs, tmp_path: Path) -> None:
    root = tmp_path / "c"
    shutil.copytree(runs.checkpoint("nvila"), root)
    blob = tmp_path / "blob"
    blob.write_text("# model card")
    (root / "README.md").symlink_to(blob)
    (root / "LICENSE").write_text("text")
    for name in ("pytorch_model.bin", "x.pt", "modeling.py", ".hidden.json", "quantization.json", "a.bin.index.json"):
        (root / name).write_text("{}")
    for name in ("onnx/traced.json", ".cache/a.json", "llm/model-00001-of-00002.safetensors", "llm/pytorch_model.bin"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("{}")
    (root / "llm" / "emb_min_max.safetensors").write_text("a range")
    (root / "vision_int8").mkdir()
    (root / "vision_int8" / "scales.safetensors").write_text("scales")
    with DecoderSource(root) as source:
        found = {str(path) for path in copied_files(source)}
    assert {"README.md", "LICENSE", "config.json", "vision_int8/scales.safetensors"} <= found
    assert "llm/emb_min_max.safetensors" in found
    assert {"llm/tokenizer.json", "llm/generation_config.json", "vision_tower/preprocessor_config.json"} <= found
    assert {"vision_tower/model.safetensors", "mm_projector/config.json", "llm/config.json"} <= found
    allowed = (".json", ".jinja", ".md", "LICENSE", ".safetensors")
    assert all(name.endswith(allowed) for name in found)
    assert not any("hidden" in name or "onnx" in name or ".cache" in name or "00001" in name for name in found)
    assert not {"quantization.json", "a.bin.index.json", "llm/model.safetensors"} & found


@pytest.mark.parametrize(
    ("form", "before", "after"),
    [("awq", "bfloat16", "float16"), ("awq", "float32", "float16"), ("compressed-tensors", "bfloat16", "bfloat16")],
)
def test_dtype_that_loaders_take_keeps_the_scales_exact(form: Any, before: str, after: str) -> None:
    fields = {"dtype": before, "text_config": {"torch_dtype": before}, "vocab_size": 3}
    assert output._with_half(fields, form) == {"dtype": after, "text_config": {"torch_dtype": after}, "vocab_size": 3}


def test_values_that_half_precision_does_not_hold_are_named(runs: Runs, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    root = tmp_path / "c"
    shutil.copytree(runs.checkpoint("nvila"), root)
    path = root / "llm" / "model.safetensors"
    loaded = tensors(root / "llm")
    loaded["model.embed_tokens.weight"][5, 5] = 1e5
    save_file(loaded, path, {"format": "pt"})
    request = runs.request("nvila", str(tmp_path / "out"), method="rtn", head_bits="4", calibration=None)
    changed = type(request)(**{name: getattr(request, name) for name in request.__slots__} | {"checkpoint": root})
    with pytest.raises(ExportError, match=r"model\.embed_tokens\.weight: has values that are not finite in f16"):
        run.quantize(changed, Progress())
    assert not (tmp_path / "out").exists()
    assert json.loads((tmp_path / "out.partial" / "layer-0001.json").read_text())["search"] == []
