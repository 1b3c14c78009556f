"""Settings of all tests: a cache of their own, no network, and what is left out where torch is not installed."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.imports import reached

BUILD_TIME = ("torch", "transformers", "einops", "onnxscript")
MISSING = tuple(name for name in BUILD_TIME if importlib.util.find_spec(name) is None)
LEFT_OUT = pytest.StashKey[list[str]]()

# A loaded machine is slow, not wrong.
hypothesis.settings.register_profile("jetson-vlm", deadline=None, print_blob=True)
hypothesis.settings.load_profile("jetson-vlm")

# Nothing is fetched: what a test needs, it makes.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Kernels compiled for the CPU are found by their content: the next run, also of another Python, need not do it again.
os.environ.setdefault("VLM_EMULATOR_CACHE", str(Path(__file__).resolve().parents[1] / "build" / "emulator"))


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests() -> Iterator[None]:
    """Keep the user's own cache out of the tests, and the tests out of it."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = []


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what imports a library that is not installed, a folder by its conftest; the summary names it."""
    if not MISSING:
        return None
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    source = collection_path if is_test else collection_path / "conftest.py"
    if source == config.rootpath / "tests" / "conftest.py" or not source.is_file():
        return None
    needs = {name.split(".")[0] for name in reached(source)} & set(MISSING)
    if not needs:
        return None
    left_out = f"{collection_path.relative_to(config.rootpath)} needs {', '.join(sorted(needs))}"
    if left_out not in config.stash[LEFT_OUT]:
        config.stash[LEFT_OUT].append(left_out)
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``torch`` where the build-time libraries are missing."""
    if MISSING:
        skip = pytest.mark.skip(reason=f"not installed: {', '.join(MISSING)}")
        for item in items:
            if item.get_closest_marker("torch"):
                item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[LEFT_OUT]:
        terminalreporter.write_line(f"LEFT OUT {line}, which is not installed")
