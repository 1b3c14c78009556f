"""Modules whose weights stay on disk compute what loaded ones do, and tracing them takes the memory of a tensor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.initialization import no_init_weights

from export.checkpoint import read_checkpoint
from export.vision.capture import capture
from export.vision.load import load_vision
from export.vision.streamed import StreamedWeights
from models.lazy_parameters import WithoutMemory
from models.weights import default_dtype
from runtime.errors import ExportError
from tests.models.tiny import write_llava, write_nvila

pytestmark = pytest.mark.torch
WIDTH = 1024
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", params=["nvila", "llava"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed") / request.param
    return write_nvila(folder) if request.param == "nvila" else write_llava(folder, dtype=torch.bfloat16)


def test_streamed_modules_compute_the_same_bits(root: Path) -> None:
    checkpoint = read_checkpoint(root)
    whole = load_vision(checkpoint)
    with WithoutMemory():
        lean = load_vision(checkpoint)
    tiles = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with StreamedWeights(lean.tower) as weights, weights.read_as_needed():
        features = lean.tower.features(tiles)
    assert torch.equal(features, whole.tower.features(tiles))


def test_no_large_parameter_is_in_memory_and_each_says_where_it_lies(root: Path) -> None:
    with WithoutMemory():
        modules = load_vision(read_checkpoint(root))
    for module in (modules.tower, modules.projector):
        held = [name for name, parameter in module.named_parameters() if not parameter.is_meta]
        assert held in ([], ["vision_tower.embeddings.class_embedding"])
        with StreamedWeights(module) as weights:
            names = {name for name, _ in module.named_parameters()}
            assert set(weights.stored) == names - set(held)
            shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
            assert all(weight.values().shape == shapes[name] for name, weight in weights.stored.items())


def test_a_parameter_without_values_is_refused_by_name() -> None:
    with WithoutMemory():
        module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    with pytest.raises(ExportError, match=r"no values for '0\.weight'"):
        StreamedWeights(module)


def test_a_module_that_cannot_be_traced_is_an_export_error() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="torch cannot trace y"):
        capture(Branches(), {}, (torch.ones(2),), ["x"], "y", {"x": {0: torch.export.Dim.DYNAMIC}})


PEAK = """
import json, sys
from pathlib import Path
from export.checkpoint import read_checkpoint
from export.vision.trace import trace_vision

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024

peaks = []
for checkpoint in sys.argv[1:]:  # a tiny one first, which loads all code
    out = Path(checkpoint) / "graphs"
    out.mkdir()
    trace_vision(read_checkpoint(Path(checkpoint)), out)
    peaks.append(peak())
data = (out / "vision_tower.onnx.data").stat().st_size
print(json.dumps({"increase": peaks[1] - peaks[0], "data": data}))
"""


def test_peak_memory_of_tracing_grows_with_a_tensor_not_with_the_tower(tmp_path: Path) -> None:
    tiny = write_nvila(tmp_path / "tiny", scales=None)
    large = write_nvila(tmp_path / "large", scales=None, tower_width=WIDTH)
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 5, "num_attention_heads": 8}
    config = SiglipVisionConfig(vision_use_head=False, image_size=28, patch_size=7, **shape)
    with no_init_weights(), default_dtype(torch.bfloat16):
        model = SiglipVisionModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    model.save_pretrained(large / "vision_tower")
    command = [sys.executable, "-c", PEAK, str(tiny), str(large)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    shutil.rmtree(large)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    computed = 4 * 4 * 12 * WIDTH**2  # f32 bytes of the four layers that are computed: 201 MB
    assert measured["data"] > 0.49 * computed
    # The engine maps the data file; mapped pages count as resident although the system may drop them at any time.
    private = measured["increase"] - measured["data"]
    assert private < 6 * (4 * 4 * WIDTH**2) == computed / 2, "a few of the largest tensors"
