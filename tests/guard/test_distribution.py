"""What is installed: packages, data, commands and no more; dependencies few and named once."""

from __future__ import annotations

import email
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runtime.version import __version__

ROOT = Path(__file__).resolve().parents[2]
SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="test")
MAX_DIRECT_DEPENDENCIES = 10
MAX_PACKAGE_DATA_BYTES = 10_000_000  # two models, each with both forms of its decoder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the files that git tracks, so that no build folder appears in the tree."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the files of the distribution cannot be listed")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "tree" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(folder / "tree")], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def contents(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"jetson_vlm-{__version__}.dist-info/{name}").decode()


def test_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"runtime", "kernels", "export", "models", "jetson", f"jetson_vlm-{__version__}.dist-info"}
    assert not [
        name
        for name in wheel.namelist()
        if Path(name).name.startswith("test") or name.startswith(("models/demo", "scripts"))
    ]


def test_wheel_holds_every_module_of_the_packages(wheel: zipfile.ZipFile) -> None:
    listed = {
        str(path.relative_to(ROOT))
        for top in ("runtime", "kernels", "export", "models", "jetson")
        for path in (ROOT / top).rglob("*.py")
    }
    assert listed == {name for name in wheel.namelist() if name.endswith(".py")}


def test_wheel_holds_the_sources_of_the_kernels_and_the_emulators_headers(wheel: zipfile.ZipFile) -> None:
    """A board compiles them when no finished code fits it; a developer without a GPU runs them on the CPU."""
    folders = (ROOT / "kernels" / "csrc", ROOT / "kernels" / "emulator" / "include")
    sources = {str(path.relative_to(ROOT)) for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert sources
    assert sources <= set(wheel.namelist())


def test_wheel_is_pure_python_and_leaves_the_namespace_open(wheel: zipfile.ZipFile) -> None:
    assert "Root-Is-Purelib: true" in contents(wheel, "WHEEL")
    assert "jetson/__init__.py" not in wheel.namelist()
    assert not [name for name in wheel.namelist() if name.endswith((".so", ".pyc"))]


def test_wheel_says_that_the_runtime_is_typed(wheel: zipfile.ZipFile) -> None:
    assert "runtime/py.typed" in wheel.namelist()


def test_wheel_carries_the_demo_bundles_within_their_size(wheel: zipfile.ZipFile) -> None:
    demo = [item for item in wheel.infolist() if item.filename.startswith("runtime/demo/")]
    bundles = [item for item in demo if item.filename.count("/") > 2]
    assert {Path(item.filename).parts[2] for item in bundles if item.filename.endswith("manifest.json")} == {
        "demo-llava",
        "demo-nvila",
    }
    assert sum(item.file_size for item in bundles) <= MAX_PACKAGE_DATA_BYTES
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "runtime/demo").rglob("*") if path.is_file()}
    assert {item.filename for item in demo} == {name for name in tracked if "/device/" not in name}


def test_wheel_names_the_version_the_licence_and_the_pythons(wheel: zipfile.ZipFile) -> None:
    fields = email.message_from_string(contents(wheel, "METADATA"))
    assert (fields["Name"], fields["Version"], fields["License-Expression"]) == (
        "jetson-vlm",
        __version__,
        "Apache-2.0",
    )
    assert set(str(fields["Requires-Python"]).split(",")) == {">=3.10", "<3.14"}
    assert "Apache License" in contents(wheel, "licenses/LICENSE")


def test_commands_are_thin_names_of_the_modules(wheel: zipfile.ZipFile) -> None:
    text = contents(wheel, "entry_points.txt")
    commands = dict(re.findall(r"^(vlm-\w+) *= *(\S+)$", text, re.MULTILINE))
    assert commands == {
        "vlm-build": "export.build_engines:main",
        "vlm-quantize": "export.quantize:main",
        "vlm-convert": "export.convert:main",
        "vlm-caption": "runtime.caption:main",
        "vlm-captiond": "runtime.captiond.__main__:main",
        "vlm-doctor": "runtime.doctor:main",
        "vlm-selftest": "kernels.selftest.__main__:main",
    }


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs, away from the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    wheel.extractall(folder)
    return folder


def run_installed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True)


def test_installed_package_captions_its_embedded_video(installed: Path) -> None:
    done = run_installed(installed, "-m", "runtime.caption", "--demo", "llava", "--max-frames", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if json.loads(line)]) >= 2


def test_installed_daemon_has_its_page_and_its_unit(installed: Path) -> None:
    daemon = installed / "runtime" / "captiond"
    tracked = {path.name for path in (ROOT / "runtime" / "captiond" / "page").iterdir()}
    assert {path.name for path in (daemon / "page").iterdir()} == tracked >= {"index.html", "app.js"}
    assert (daemon / "service" / "vlm-captiond.service").is_file()
    done = run_installed(installed, "-m", "runtime.captiond", "--demo", "--check-config")
    assert done.returncode == 0, done.stderr


def test_installed_package_finds_the_board_through_its_entry_point(installed: Path) -> None:
    done = run_installed(installed, "-m", "runtime.doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["board"]["what"] != "not looked for"


@pytest.mark.parametrize("module", ["export.build_engines", "runtime.caption", "runtime.doctor"])
def test_command_exists_and_explains_itself_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {module} as m; sys.exit(m.main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:6]) == (0, "usage:"), done.stderr


def test_direct_dependencies_at_run_time_are_few() -> None:
    widest = len(SETUP["REQUIRES"]) + max(len(SETUP["EXTRAS"][name]) for name in ("cpu", "ort-gpu", "cuda12", "cuda13"))
    # The daemon's extra has that of videos in it; tomli is in the standard library from Python 3.11 on.
    daemon = [item for item in SETUP["EXTRAS"]["captiond"] if not item.startswith("tomli")]
    assert set(SETUP["EXTRAS"]["video"]) < set(daemon)
    assert widest + len(daemon) <= MAX_DIRECT_DEPENDENCIES


def test_run_time_dependencies_hold_no_build_time_library() -> None:
    named = {re.split(r"[^\w-]", item)[0] for item in SETUP["REQUIRES"]}
    assert named == {"numpy", "tokenizers", "safetensors", "pillow"}


def test_gpu_build_of_onnxruntime_is_offered_on_x86_alone_and_never_with_the_cpu_build() -> None:
    assert all("platform_machine == 'x86_64'" in item for item in SETUP["EXTRAS"]["ort-gpu"])
    for name, items in SETUP["EXTRAS"].items():
        both = [item for item in items if item.startswith("onnxruntime")]
        assert len(both) <= 1, name


def test_lock_names_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pins = re.findall(r"^([\w.-]+)==\S+.*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^# for: [a-z ]+\n\S", lock, re.MULTILINE))
    assert not {name for name, _ in pins} & {"torch", "triton"}


@pytest.mark.parametrize("name", ["cpu", "video", "test", "dev"])
def test_lock_satisfies_what_setup_declares(name: str) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    lock = (ROOT / "requirements.lock").read_text()
    for item in [*SETUP["REQUIRES"], *SETUP["EXTRAS"][name]]:
        wanted = requirements.Requirement(item)
        pinned = re.findall(rf"^{re.escape(wanted.name)}==([^\s;]+)", lock, re.MULTILINE)
        assert pinned, item
        assert all(wanted.specifier.contains(version) for version in pinned), item
