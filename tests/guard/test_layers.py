"""The layers hold: the import contracts of pyproject.toml, and a runtime that never meets the build-time libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.imports import PACKAGES, ROOT, names

REFUSE = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise AssertionError(f"the runtime imported {{name}}")
        return None

sys.meta_path.insert(0, Refuse())
"""
BUILD_TIME = ("torch", "transformers", "einops", "onnx", "onnxscript", "jinja2", "models", "export")


# Which of the other packages' modules each package may name; everything below a named module is meant too.
ALLOWED = {
    "runtime": {"kernels"},
    "kernels": set(),
    "models": {"kernels", "runtime.tiling", "runtime.errors", "runtime.bundle.write"},
    "export": {"kernels", "models"}
    | {
        f"runtime.{part}"
        for part in ("bundle", "tiling", "prompt", "errors", "strict_json", "vision", "decoder", "budget", "version")
    },
    "jetson": {f"runtime.{part}" for part in ("sources", "types", "errors", "budget", "bundle")},
}
# Where one library may be loaded, at once or lazily.
HOMES = {
    "cv2": ("runtime/sources/", "runtime/captiond/capture/", "runtime/captiond/pictures/", "models/video_file"),
    "aiohttp": (
        "runtime/captiond/http/",
        "runtime/captiond/openai/",
        "runtime/captiond/addresses",
        "runtime/captiond/outputs/",
    ),
    "paho": ("runtime/captiond/outputs/",),
    "prometheus_client": ("runtime/captiond/exposition",),
    "rosbags": ("runtime/sources/",),
    "gi": ("runtime/captiond/capture/gst_",),
    "PIL": ("runtime/images/", "runtime/sources/", "export/", "models/"),
    "llguidance": ("runtime/constraints/",),
    "onnxruntime": ("runtime/vision/", "runtime/decoder/", "export/"),
    "cuda": ("kernels/driver/",),
    "pycuda": ("kernels/driver/",),
    "torch": ("export/", "models/"),
    "transformers": ("export/", "models/"),
    "einops": ("export/", "models/"),
    "onnx": ("export/",),
    "onnxscript": ("export/",),
    "jinja2": ("export/", "models/"),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_names_only_the_modules_that_the_design_allows(package: str) -> None:
    strangers = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for name in sorted(names(path, everywhere=True)):
            top = name.split(".")[0]
            # `from runtime import version` is `runtime` and `runtime.version`: the package alone says nothing yet.
            if top not in PACKAGES or top == package or name in PACKAGES:
                continue
            if not any(f"{name}.".startswith(f"{allowed}.") for allowed in ALLOWED[package]):
                strangers.append(f"{path.relative_to(ROOT)}: {name}")
    assert strangers == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_library_is_loaded_in_its_home_alone(library: str) -> None:
    strangers = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            place = str(path.relative_to(ROOT))
            used = any(name.split(".")[0] == library for name in names(path, everywhere=True))
            if used and not place.startswith(HOMES[library]):
                strangers.append(place)
    assert strangers == []


def python(code: str, refused: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process where importing one of ``refused`` raises."""
    program = REFUSE.format(refused=set(refused)) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


def test_import_contracts_hold() -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([str(tool), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_runtime_meets_no_build_time_library_and_no_opencv() -> None:
    done = python(
        "import runtime; [getattr(runtime, name) for name in runtime.__all__]", (*BUILD_TIME, "cv2", "jetson")
    )
    assert done.returncode == 0, done.stderr


def test_every_module_of_runtime_and_kernels_loads_without_the_build_time_libraries() -> None:
    code = """
    import importlib, pkgutil
    for package in ("runtime", "kernels"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    """
    done = python(code, (*BUILD_TIME, "jetson"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["runtime.caption", "runtime.doctor"])
def test_help_of_a_runtime_command_needs_neither_build_time_libraries_nor_an_engine(module: str) -> None:
    code = f"import runpy; sys.argv = ['x', '--help']; runpy.run_module('{module}', run_name='__main__')"
    done = python(code, (*BUILD_TIME, "cv2", "jetson", "onnxruntime"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("jetson_first", [True, False], ids=["ours-first", "theirs-first"])
def test_jetson_inference_keeps_working_beside_the_namespace(tmp_path: Path, jetson_first: bool) -> None:
    """jetson-inference installs ``jetson/utils`` and ``jetson/inference`` into the same namespace, without __init__."""
    theirs = tmp_path / "jetson" / "utils"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text("NAME = 'jetson-utils'\n")
    paths = [str(ROOT), str(tmp_path)] if jetson_first else [str(tmp_path), str(ROOT)]
    code = "import jetson.utils, jetson.board; print(jetson.utils.NAME, jetson.board.detect.__name__)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path.parent, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "jetson-utils detect\n", done.stderr
