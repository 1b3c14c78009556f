"""Bundles whose vision weights lie in files of their own: from tracing to an answer, damaged, killed, built again."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from export.build import BuildRequest, BuildResult, build
from export.progress import Progress
from export.vision import weights
from export.vision.names import GRAPH_FILES, PROJECTOR_FILE, TOWER_FILE
from export.vision.stored import FOLDER, RECORD
from runtime import Session
from runtime.budget import memory_budget
from runtime.bundle import MANIFEST_NAME, load_bundle
from runtime.errors import BundleError, ExportError
from tests.models.tiny import write_nvila

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[2]
PICTURE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
TOWER_DATA, PROJECTOR_DATA = f"{TOWER_FILE}.data", f"{PROJECTOR_FILE}.data"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nvila(tmp_path_factory.mktemp("checkpoints") / "tiny", hidden=64)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every model large enough for data files."""
    monkeypatch.setattr(weights, "EXTERNAL_FROM_BYTES", 0)


def make(root: Path, out: Path, **settings: Any) -> BuildResult:
    return build(BuildRequest(root, out, group_size=32, max_seq_len=512, **settings), Progress(io.StringIO()))


@pytest.fixture(scope="module")
def bundle(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with data files, which no test may change; the checkpoint keeps the graphs that were traced for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "EXTERNAL_FROM_BYTES", 0)
        out = tmp_path_factory.mktemp("bundles") / "apart"
        make(root, out, save_traced=True)
    return out


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(bundle), str(target)], check=True)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def answer(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    with Session.open(path, threads=1) as session:
        found = session.generate("What?", images=[PICTURE], max_new_tokens=8)
    return found.token_ids, found.logprobs


def test_bundle_with_data_files_answers_like_the_one_without(root: Path, bundle: Path, tmp_path: Path) -> None:
    make(root, tmp_path / "inside", trace=True)
    assert {TOWER_DATA, PROJECTOR_DATA} <= set(load_bundle(bundle, "full").manifest.files)
    assert not {TOWER_DATA, PROJECTOR_DATA} & set(load_bundle(tmp_path / "inside").manifest.files)
    (ids, logprobs), (expected_ids, expected) = answer(bundle), answer(tmp_path / "inside")
    assert ids == expected_ids
    np.testing.assert_allclose(logprobs, expected, atol=1e-4)


def test_two_builds_give_the_same_bytes(root: Path, bundle: Path, tmp_path: Path, apart: None) -> None:
    make(root, tmp_path / "again", trace=True)
    assert contents(tmp_path / "again") == contents(bundle)


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing", "unlisted"])
@pytest.mark.parametrize("name", [TOWER_DATA, PROJECTOR_DATA])
def test_damaged_data_file_is_refused_by_name(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    data = path.read_bytes()
    if damage == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "missing":
        path.unlink()
    else:
        manifest = copy / MANIFEST_NAME
        manifest.write_text(manifest.read_text().replace(f'"{name}"', '"tokenizer.json.old"'))
        path.rename(copy / "tokenizer.json.old")
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        Session.open(copy, verify="full")


def test_memory_budget_counts_the_data_files_once(bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert memory_budget(manifest).vision_bytes == sum(manifest.files[name].bytes for name in GRAPH_FILES)


def test_new_weights_stage_keeps_the_graphs_with_their_data(root: Path, copy: Path) -> None:
    before = contents(copy)
    result = build(BuildRequest(root, copy, group_size=64, max_seq_len=512), Progress(io.StringIO()))
    assert {report.stage: report.action for report in result.stages}["onnx"] == "unchanged"
    after = contents(copy)
    assert {name: after[name] for name in GRAPH_FILES} == {name: before[name] for name in GRAPH_FILES}
    assert load_bundle(copy, "full").manifest.quantization.group_size == 64


def test_stored_graphs_bring_their_data_files_and_a_lost_one_is_named(root: Path, bundle: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    subprocess.run(["cp", "-r", str(root), str(own)], check=True)
    assert sorted(path.name for path in (own / FOLDER).iterdir()) == sorted([*GRAPH_FILES, RECORD])
    result = make(own, tmp_path / "second")
    assert {report.stage: report.action for report in result.stages}["onnx"] == "stored graphs"
    first, second = contents(bundle), contents(tmp_path / "second")
    assert {name: first[name] for name in GRAPH_FILES} == {name: second[name] for name in GRAPH_FILES}
    (own / FOLDER / TOWER_DATA).unlink()
    with pytest.raises(ExportError, match=r"vision_tower\.onnx\.data: SHA-256 is missing"):
        make(own, tmp_path / "third")


def test_fp16_bundle_has_data_files_and_answers(root: Path, bundle: Path, tmp_path: Path) -> None:
    make(root, tmp_path / "half", vision_precision="fp16")
    assert set(GRAPH_FILES) <= set(load_bundle(tmp_path / "half", "full").manifest.files)
    assert len(answer(tmp_path / "half")[0]) > 0


KILL = """
import os, signal, sys
from export.decoder.external_data import DataFile
from export.vision import weights
from export.build_engines import main
weights.EXTERNAL_FROM_BYTES = 0
write, written = DataFile.write, []
def die_in_the_middle(self, array):
    write(self, array)
    written.append(self.path.name)
    if written.count("vision_tower.onnx.data") == 9:
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
DataFile.write = die_in_the_middle
sys.exit(main(sys.argv[1:]))
"""


def test_build_killed_while_it_writes_weights_leaves_the_old_bundle(root: Path, copy: Path) -> None:
    before = contents(copy)
    command = [sys.executable, "-c", KILL, str(root), "--out", str(copy), "--trace", "--force", "--group-size", "64"]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert contents(copy) == before
    left = [path for path in copy.parent.iterdir() if path != copy]
    assert [path for folder in left for path in folder.rglob(TOWER_DATA)], "it died with the file half written"
    make(root, copy, force=True)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name], "the next build clears what the dead one left"
