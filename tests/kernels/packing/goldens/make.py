"""Makes the goldens of this folder by running the packers of the projects that the layouts come from.

python tests/kernels/packing/goldens/make.py <clones>

<clones> holds git clones AutoAWQ, llm-awq and AutoGPTQ at the commits that README.md names; compressed-tensors is the
installed package. Needs torch. Only the packers run: the projects' CUDA extensions are replaced by empty modules.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

HERE = Path(__file__).parent
CASES = {"groups_of_32": (32, 128, 32), "groups_of_64": (32, 192, 64), "groups_of_128": (32, 256, 128)}


def integers(n: int, k: int, group: int) -> dict[str, np.ndarray]:
    """Random q and scales; zero points of 1..15, because GPTQ's packer corrupts its neighbours at 0."""
    rng = np.random.default_rng(n * k + group)
    return {
        "q": rng.integers(0, 16, (n, k), dtype=np.uint8),
        "zeros": rng.integers(1, 16, (n, k // group), dtype=np.uint8),
        "scales": rng.uniform(1e-3, 0.1, (n, k // group)).astype(np.float16),
    }


def module_of(path: Path, *missing: str) -> Any:
    """Runs one source file as a module, with empty modules in place of those that are not there."""
    for name in missing:
        sys.modules.setdefault(name, types.ModuleType(name))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def linear_of(weight: dict[str, np.ndarray], group: int) -> torch.nn.Linear:
    """A linear that holds what the integers stand for, in f32."""
    n, k = weight["q"].shape
    wide = weight["q"].reshape(n, -1, group).astype(np.float32) - weight["zeros"][:, :, None]
    linear = torch.nn.Linear(k, n, bias=False)
    values = (wide * weight["scales"].astype(np.float32)[:, :, None]).reshape(n, k)
    linear.weight = torch.nn.Parameter(torch.from_numpy(values), requires_grad=False)
    return linear


def awq(kind: Any, weight: dict[str, np.ndarray], group: int, transposed: bool = False) -> dict[str, torch.Tensor]:
    """What AutoAWQ's and llm-awq's ``from_linear`` leave in their buffers; scales in f16 as their quantisers' are."""
    scales, zeros = torch.from_numpy(weight["scales"]), torch.from_numpy(weight["zeros"].astype(np.float32))
    if transposed:
        scales, zeros = scales.t().contiguous(), zeros.t().contiguous()
    packed = kind.from_linear(linear_of(weight, group), 4, group, scales=scales, zeros=zeros)
    return dict(packed.named_buffers())


def gptq(kind: Any, weight: dict[str, np.ndarray], group: int) -> dict[str, torch.Tensor]:
    """What AutoGPTQ's ``pack`` leaves in its buffers; the scales in f16 as its checkpoints have them."""
    n, k = weight["q"].shape
    packed = kind(4, group, k, n, bias=False)
    scales, zeros = (torch.from_numpy(weight[name].astype(np.float32)) for name in ("scales", "zeros"))
    packed.pack(linear_of(weight, group), scales, zeros, g_idx=None)
    return {**dict(packed.named_buffers()), "scales": packed.scales.half()}


def compressed(weight: dict[str, np.ndarray], group: int) -> dict[str, torch.Tensor]:
    """What the compressed-tensors package makes of the linear."""
    args = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=group)
    state = {
        "weight": linear_of(weight, group).weight.data,
        "weight_scale": torch.from_numpy(weight["scales"]),
        "weight_zero_point": torch.from_numpy(weight["zeros"].astype(np.int8) - 8),
    }
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    return dict(PackedQuantizationCompressor.compress(state, scheme))


def main(clones: Path) -> None:
    """Writes one .npz for each case: the integers, and ``<layout>/<tensor>`` for each packer."""
    stubs = ("awq", "awq.utils", "awq.utils.module", "awq.utils.utils", "awq.utils.packing_utils")
    for name in stubs:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["awq.utils.module"].try_import = lambda name: (None, "")  # type: ignore[attr-defined]
    sys.modules["awq.utils.utils"].get_best_device = lambda: "cpu"  # type: ignore[attr-defined]
    sys.modules["awq.utils.packing_utils"].dequantize_gemm = None  # type: ignore[attr-defined]
    folder = clones / "AutoAWQ" / "awq" / "modules" / "linear"
    gemm = module_of(folder / "gemm.py").WQLinear_GEMM
    gemv = module_of(folder / "gemv.py").WQLinear_GEMV
    fast = module_of(folder / "gemv_fast.py").WQLinear_GEMVFast
    v2 = module_of(clones / "llm-awq" / "awq" / "quantize" / "qmodule.py", "awq_inference_engine").WQLinear
    old = clones / "AutoGPTQ" / "auto_gptq" / "nn_modules" / "qlinear" / "qlinear_cuda_old.py"
    quant_linear = module_of(old, "autogptq_cuda_64", "autogptq_cuda_256").QuantLinear
    for case, (n, k, group) in CASES.items():
        weight = integers(n, k, group)
        packed = {
            "autoawq-gemm": awq(gemm, weight, group, transposed=True),
            "autoawq-gemv": awq(gemv, weight, group),
            "autoawq-gemv-fast": awq(fast, weight, group),
            "llm-awq-v2": awq(v2, weight, group),
            "gptq": gptq(quant_linear, weight, group),
            "compressed-tensors": compressed(weight, group),
        }
        arrays = {f"{name}/{key}": value.numpy() for name, state in packed.items() for key, value in state.items()}
        np.savez_compressed(HERE / f"{case}.npz", **weight, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
