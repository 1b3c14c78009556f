"""Projectors of both families: shapes, keys, order of channels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import torch_child, torch_files
from models.projector import (
    IdentityMap,
    MultimodalProjector,
    RangeClip,
    SimpleResBlock,
    build_mm_projector,
    build_vision_projector,
)
from runtime.errors import ExportError


def config(kind: str | None = None, **fields: Any) -> SimpleNamespace:
    chosen = {} if kind is None else {"mm_projector_type": kind}
    return SimpleNamespace(mm_hidden_size=12, hidden_size=8, **chosen, **fields)


# kind, tokens from an 5x5 grid (odd: padded), linear layers as (key, in, out)
VILA = [
    ("identity", 25, []),
    ("linear", 25, [(0, 12, 8)]),
    ("mlp1x_gelu", 25, [(0, 12, 8)]),
    ("mlp2x_gelu", 25, [(0, 12, 8), (2, 8, 8)]),
    ("mlp_downsample", 9, [(2, 48, 8), (4, 8, 8)]),
    ("mlp_downsample_2x2_fix", 9, [(2, 48, 8), (4, 8, 8)]),
    ("mlp_downsample_3x3_fix", 4, [(2, 108, 36), (5, 36, 8), (7, 8, 8)]),
    ("mlp_downsample_3x3_s2", 4, [(2, 108, 36), (5, 36, 12), (8, 12, 4), (11, 4, 8), (13, 8, 8)]),
    ("mlp_downsample_3x3_s2_new", 4, [(2, 108, 48), (5, 48, 24), (8, 24, 12), (11, 12, 4), (14, 4, 8), (16, 8, 8)]),
]


@pytest.mark.parametrize(("kind", "tokens", "linears"), VILA, ids=[row[0] for row in VILA])
def test_behaviour_07_vila_projector_shapes_and_keys(kind, tokens, linears) -> None:
    projector = MultimodalProjector(kind, config())
    state = projector.state_dict()
    weights = {k: tuple(v.shape) for k, v in state.items() if k.endswith("weight") and v.ndim == 2}
    assert weights == {f"layers.{index}.weight": (out, into) for index, into, out in linears}
    assert all(key.startswith("layers.") for key in state)
    out = projector(torch.randn(2, 25, 12))
    assert out.shape == (2, tokens, 12 if kind == "identity" else 8)


def test_behaviour_07_downsample_keys_are_the_published_ones() -> None:
    keys = set(MultimodalProjector("mlp_downsample_3x3_fix", config()).state_dict())
    assert keys == {f"layers.{i}.{part}" for i in (1, 2, 4, 5, 7) for part in ("weight", "bias")}


@pytest.mark.parametrize("grid", [4, 5])
def test_behaviour_07_space_to_depth_order_and_padding_reach_the_first_norm(grid: int) -> None:
    projector = MultimodalProjector("mlp_downsample", config()).layers[0]
    x = torch.randn(1, grid * grid, 12)
    square = torch.zeros(6, 6, 12)
    square[:grid, :grid] = x.reshape(grid, grid, 12)
    folded = projector(x)
    for token in range(folded.shape[1]):
        r, c = divmod(token, -(-grid // 2))
        patches = [square[2 * r + dr, 2 * c + dc] for dr in (0, 1) for dc in (0, 1)]
        assert torch.equal(folded[0, token], torch.cat(patches))


@pytest.mark.parametrize("grid", [4, 7])
def test_behaviour_07_2x2_fix_equals_mlp_downsample(grid: int) -> None:
    first, second = (
        MultimodalProjector("mlp_downsample", config()),
        MultimodalProjector("mlp_downsample_2x2_fix", config()),
    )
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, grid * grid, 12)
    assert torch.equal(first(x), second(x))


def folded(x: torch.Tensor, side: int) -> torch.Tensor:
    """Squares of patches as one token each, by slices; zeros at the bottom and on the right."""
    grid = int(x.shape[1] ** 0.5)
    padded = -(-grid // side) * side
    square = torch.zeros(x.shape[0], padded, padded, x.shape[2], dtype=x.dtype)
    square[:, :grid, :grid] = x.reshape(x.shape[0], grid, grid, -1)
    parts = [square[:, dr::side, dc::side] for dr in range(side) for dc in range(side)]
    return torch.cat(parts, dim=-1).flatten(1, 2)


# side of the squares, then N a norm, L a linear layer, G an exact GELU, in order (reference, section 2.7)
RECIPES = {
    "identity": (1, ""),
    "linear": (1, "L"),
    "mlp3x_gelu": (1, "LGLGL"),
    "mlp_downsample": (2, "NLGL"),
    "mlp_downsample_2x2_fix": (2, "NLGL"),
    "mlp_downsample_3x3_fix": (3, "NLGNLGL"),
    "mlp_downsample_3x3_s2": (3, "NLGNLGNLGNLGL"),
    "mlp_downsample_3x3_s2_new": (3, "NLGNLGNLGNLGNLGL"),
}


@pytest.mark.parametrize("grid", [6, 5])
@pytest.mark.parametrize("kind", RECIPES)
def test_behaviour_07_values_of_every_type_are_those_of_its_recipe(kind: str, grid: int) -> None:
    torch.manual_seed(2)
    projector = MultimodalProjector(kind, config()).double()
    for parameter in projector.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    side, recipe = RECIPES[kind]
    x = torch.randn(2, grid * grid, 12, dtype=torch.float64)
    expected = folded(x, side)
    tensors = iter(projector.state_dict().values())
    for step in recipe:
        if step == "G":
            expected = 0.5 * expected * (1 + torch.erf(expected / 2**0.5))
            continue
        weight, bias = next(tensors), next(tensors)
        if step == "N":
            centred = expected - expected.mean(-1, keepdim=True)
            expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
        else:
            expected = expected @ weight.T + bias
    assert next(tensors, None) is None
    torch.testing.assert_close(projector(x), expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("kind", ["", "mlpx_gelu", "mlp2x_gelux", "mlp_downsample_4x4"])
def test_behaviour_07_unknown_vila_type_is_a_value_error(kind: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown projector type: {kind}$"):
        MultimodalProjector(kind, config())


def test_behaviour_08_linear_is_the_default() -> None:
    projector = build_vision_projector(config())
    assert isinstance(projector, nn.Linear)
    assert set(projector.state_dict()) == {"weight", "bias"}
    assert projector(torch.zeros(2, 3, 12)).shape == (2, 3, 8)


@pytest.mark.parametrize(("depth", "keys"), [(0, {"0"}), (1, {"0"}), (2, {"0", "2"}), (4, {"0", "2", "4", "6"})])
def test_behaviour_08_mlp_depths_and_keys(depth: int, keys: set[str]) -> None:
    projector = build_vision_projector(config(f"mlp{depth}x_gelu"))
    assert {key.split(".")[0] for key in projector.state_dict()} == keys
    x = torch.randn(2, 12)
    expected = x
    for index, layer in enumerate(layer for layer in projector if isinstance(layer, nn.Linear)):
        expected = layer(torch.nn.functional.gelu(expected, approximate="none") if index else expected)
    assert torch.equal(projector(x), expected)


def test_behaviour_08_identity_returns_the_same_object() -> None:
    projector = build_vision_projector(SimpleNamespace(mm_projector_type="identity"), delay_load=True, other=1)
    x = torch.zeros(1)
    assert isinstance(projector, IdentityMap)
    assert projector(x, "ignored", key="ignored") is x
    assert projector.config == {"mm_projector_type": "identity"}


@pytest.fixture
def without_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of torch's format are read in this process: a child takes a second, and tests/models/test_torch_files.py
    tests it.
    """

    def run(source: Path, target: Path, limits: Any) -> None:
        torch_child.convert(source, target, limits.result_bytes)

    monkeypatch.setattr(torch_files, "_run_child", run)


@pytest.mark.parametrize("form", ["tuple", "list", "stacked", "safetensors"])
def test_behaviour_08_linearclip_reads_every_file_form(form: str, tmp_path: Path, without_child: None) -> None:
    low, high = torch.linspace(-0.3, -0.1, 8), torch.linspace(0.1, 0.3, 8)
    path = tmp_path / ("range.safetensors" if form == "safetensors" else "emb_min_max.pt")
    if form == "safetensors":
        save_file({"min": low, "max": high}, path)
    else:
        torch.save({"tuple": (low, high), "list": [low, high], "stacked": torch.stack([low, high])}[form], path)
    projector = build_vision_projector(config("linearclip", min_max_range_path=str(path)))
    assert set(projector.state_dict()) == {"0.weight", "0.bias", "1.min", "1.max"}
    assert projector.state_dict()["1.min"].shape == (1, 8)
    out = projector(torch.randn(50, 12) * 10)
    assert ((out >= low) & (out <= high)).all()
    assert (out.max(dim=0).values == high).all()


@pytest.mark.parametrize(
    ("content", "error"), [(None, AssertionError), ([1, 2, 3], TypeError), ({"a": 1, "b": 2}, AttributeError)]
)
def test_behaviour_08_linearclip_error_classes(
    content: Any, error: type[Exception], tmp_path: Path, without_child: None
) -> None:
    path = tmp_path / "range.pt"
    torch.save([torch.zeros(8)] * 3 if isinstance(content, list) else content, path)
    with pytest.raises(error):
        build_vision_projector(config("linearclip", min_max_range_path=path))
    with pytest.raises(AttributeError):
        build_vision_projector(config("linearclip"))


def test_behaviour_08_range_file_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save((torch.zeros(8), Evil()), tmp_path / "range.pt")
    with pytest.raises(ExportError, match=r"range\.pt holds more than tensors"):
        build_vision_projector(config("linearclip", min_max_range_path=tmp_path / "range.pt"))
    assert not (tmp_path / "ran").exists()


def test_behaviour_08_missing_sizes_and_unknown_types() -> None:
    with pytest.raises(AttributeError, match="mm_hidden_size"):
        build_vision_projector(SimpleNamespace(hidden_size=8))
    for kind in ("", "mlpx_gelu", "mlp2x_gelux"):
        with pytest.raises(ValueError, match="Unknown projector type"):
            build_vision_projector(config(kind))


def test_range_clip_follows_the_dtype_of_its_input() -> None:
    clip = RangeClip(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.5]))
    out = clip(torch.tensor([[5.0, 5.0], [-5.0, -5.0]], dtype=torch.float16))
    assert out.dtype == torch.float16
    assert out.tolist() == [[1.0, 0.5], [-1.0, 0.0]]


def test_residual_block_adds_to_the_normalised_input() -> None:
    block = SimpleResBlock(6)
    x = torch.randn(3, 6)
    normed = nn.functional.layer_norm(x, (6,), block.pre_norm.weight, block.pre_norm.bias)
    assert torch.allclose(block(x), normed + block.proj(normed))
    assert {key.rsplit(".", 1)[0] for key in block.state_dict()} == {"pre_norm", "proj.0", "proj.2"}


def test_projector_directory_is_loaded_and_its_faults_are_named(tmp_path: Path) -> None:
    source = MultimodalProjector("mlp_downsample", config())
    (tmp_path / "config.json").write_text('{"mm_projector_type": "mlp_downsample"}')
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    loaded = build_mm_projector(tmp_path, config())
    x = torch.randn(1, 16, 12)
    assert torch.equal(loaded(x), source(x))
    assert loaded.downsample == 2
    (tmp_path / "config.json").write_text('{"mm_projector_type": "mlp_upsample"}')
    with pytest.raises(ExportError, match="mlp_upsample"):
        build_mm_projector(tmp_path, config())
    with pytest.raises(ExportError, match="no projector directory"):
        build_mm_projector(tmp_path / "none", config(resume_path="x"))
    assert build_mm_projector("linear", config()).kind == "linear"
