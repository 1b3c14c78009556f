"""The environment of scripts/demo and scripts/test: made once, reused, repaired; nothing of the user's is removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import environment
import pytest
import run_demo

ROOT = Path(__file__).resolve().parents[2]
LOCK = """\
# Written by scripts/lock.py; do not edit.

# for: demo test
alpha==1 \\
    --hash=sha256:aa
# for: test
beta==2 ; python_full_version < '3.11' \\
    --hash=sha256:bb
"""


class Recorder:
    """Stands in for running commands: keeps them, makes the interpreter that ``-m venv`` would, fails on demand."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fail_on: str | None = None

    def __call__(self, command: Sequence[str]) -> None:
        self.commands.append(list(command))
        if self.fail_on is not None and self.fail_on in command:
            raise environment.SetupError(f"failed: {self.fail_on}")
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            # A link would let the tests' own interpreter answer, with pip, like a fresh environment's does.
            python.symlink_to(sys.executable)

    def verbs(self) -> list[str]:
        return [command[2] if command[2] == "venv" else command[3] for command in self.commands]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    lock = tmp_path / "requirements.lock"
    lock.write_text(LOCK)
    monkeypatch.setattr(environment, "LOCK", lock)
    monkeypatch.delenv("VLM_TORCH_INDEX", raising=False)
    return Recorder()


def test_selected_sets_keep_markers_and_hashes_and_leave_the_rest() -> None:
    assert environment.select(LOCK, ["demo"]) == "alpha==1 \\\n    --hash=sha256:aa\n"
    both = environment.select(LOCK, ["test"])
    assert "alpha==1" in both
    assert "beta==2 ; python_full_version < '3.11' \\\n    --hash=sha256:bb" in both


def test_every_set_of_the_real_lock_is_filled_and_the_demo_is_the_smallest() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    sizes = {name: environment.select(lock, [name]).count("==") for name in environment.SETS}
    assert all(size > 0 for size in sizes.values())
    demo = environment.select(lock, ["demo"])
    assert "onnxruntime==" in demo
    assert "transformers==" not in demo
    assert "pytest==" not in demo


def test_first_run_makes_and_fills_the_environment_and_the_second_runs_nothing(tmp_path: Path, run: Recorder) -> None:
    venv = tmp_path / "venv"
    environment.ensure(venv, ["demo"], torch=False, run=run)
    assert run.verbs() == ["venv", "install"]
    assert "--require-hashes" in run.commands[1]
    assert (venv / "requirements.txt").read_text() == environment.select(LOCK, ["demo"])
    environment.ensure(venv, ["demo"], torch=False, run=run)
    assert len(run.commands) == 2


def test_another_set_is_added_and_what_was_there_stays_recorded(tmp_path: Path, run: Recorder) -> None:
    venv = tmp_path / "venv"
    environment.ensure(venv, ["demo"], torch=False, run=run)
    environment.ensure(venv, ["test"], torch=False, run=run)
    assert run.verbs() == ["venv", "install", "install"]
    environment.ensure(venv, ["demo"], torch=False, run=run)
    assert len(run.commands) == 3


def test_changed_lock_installs_again_all_that_was_there(tmp_path: Path, run: Recorder) -> None:
    venv = tmp_path / "venv"
    environment.ensure(venv, ["test"], torch=True, run=run)
    environment.LOCK.write_text(LOCK.replace("alpha==1", "alpha==3"))
    environment.ensure(venv, ["demo"], torch=False, run=run)
    assert run.verbs() == ["venv", "install", "install", "install", "install"]
    assert run.commands[-1][-1] == environment.TORCH
    assert "beta==2" in (venv / "requirements.txt").read_text()


def test_interrupted_installation_is_taken_up_again(tmp_path: Path, run: Recorder) -> None:
    venv = tmp_path / "venv"
    run.fail_on = "install"
    with pytest.raises(environment.SetupError):
        environment.ensure(venv, ["demo"], torch=False, run=run)
    run.fail_on = None
    environment.ensure(venv, ["demo"], torch=False, run=run)
    assert run.verbs() == ["venv", "install", "install"]
    assert json.loads((venv / environment.STATE).read_text())["complete"] is True


def test_environment_that_was_never_finished_is_made_anew(tmp_path: Path, run: Recorder) -> None:
    venv = tmp_path / "venv"
    run.fail_on = "venv"
    with pytest.raises(environment.SetupError):
        environment.ensure(venv, ["demo"], torch=False, run=run)
    (venv / "half").write_text("of it")
    run.fail_on = None
    environment.ensure(venv, ["demo"], torch=False, run=run)
    assert not (venv / "half").exists()


def test_environment_whose_python_is_gone_is_made_anew(tmp_path: Path, run: Recorder) -> None:
    venv = tmp_path / "venv"
    environment.ensure(venv, ["demo"], torch=False, run=run)
    environment.python_of(venv).unlink()
    environment.python_of(venv).symlink_to(tmp_path / "removed")
    environment.ensure(venv, ["demo"], torch=False, run=run)
    assert run.verbs() == ["venv", "install", "venv", "install"]


def test_folder_that_is_not_ours_is_never_replaced(tmp_path: Path, run: Recorder) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "thesis.txt").write_text("three years")
    with pytest.raises(environment.SetupError, match="was not made by these scripts"):
        environment.ensure(venv, ["demo"], torch=False, run=run)
    assert (venv / "thesis.txt").read_text() == "three years"


def test_environment_that_the_user_made_is_used(tmp_path: Path, run: Recorder) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    environment.ensure(venv, ["demo"], torch=False, run=run)
    assert run.verbs() == ["install"]


def test_torch_comes_after_the_lock_from_the_index_that_is_named(
    tmp_path: Path, run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_TORCH_INDEX", "file:///mirror")
    environment.ensure(tmp_path / "venv", ["test"], torch=True, run=run)
    assert run.commands[-1][-3:] == ["--index-url", "file:///mirror", environment.TORCH]
    assert "--index-url" not in run.commands[-2]


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_missing_module_names_the_package_to_install(
    tmp_path: Path, run: Recorder, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    found: Callable[[str], object] = environment.importlib.util.find_spec
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(environment.SetupError, match=f"has no module {missing}.*\n.*python3-venv"):
        environment.ensure(tmp_path / "venv", ["demo"], torch=False, run=run)
    assert not (tmp_path / "venv").exists()


def test_unsupported_python_is_refused_with_the_variable_that_names_another(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "scripts" / "demo")], env={**os.environ, "VLM_PYTHON": str(old)}, capture_output=True, text=True
    )
    assert done.returncode == 3
    assert "no Python 3.10 to 3.13 found" in done.stderr
    assert "VLM_PYTHON=" in done.stderr


def plan(*arguments: str) -> list[str]:
    return [" ".join(command) for command in run_demo.plan(run_demo.parse(arguments))]


def test_demo_without_arguments_builds_and_scores_both_models(tmp_path: Path) -> None:
    commands = plan()
    assert commands[0] == "-m export.build_engines models/demo/demo-llava --out build/demo/demo-llava"
    assert commands[1].startswith("-m runtime.caption build/demo/demo-llava --source runtime/demo/demo.avi")
    assert "--truth runtime/demo/demo_truth.jsonl" in commands[1]
    assert commands[2] == "-m export.build_engines models/demo/demo-nvila --out build/demo/demo-nvila"
    assert len(commands) == 4


def test_demo_takes_a_checkpoint_a_source_and_a_prompt_of_the_user(tmp_path: Path) -> None:
    checkpoint = tmp_path / "mine"
    checkpoint.mkdir()
    build, caption = plan(str(checkpoint), "--source", "/dev/video0", "--prompt", "What is new?")
    assert build == f"-m export.build_engines {checkpoint} --out build/demo/mine"
    assert caption == "-m runtime.caption build/demo/mine --source /dev/video0 --prompt What is new?"


def test_demo_uses_a_bundle_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (caption,) = plan(str(tmp_path))
    assert caption.startswith(f"-m runtime.caption {tmp_path} ")
    with pytest.raises(environment.SetupError, match="--trace needs the checkpoint"):
        plan(str(tmp_path), "--trace")


def test_demo_refuses_a_model_that_is_not_there() -> None:
    with pytest.raises(environment.SetupError, match="no-such-model: no such folder"):
        plan("no-such-model")


def test_demo_resolves_paths_from_the_folder_that_the_user_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "street.avi").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    build, caption = plan("mine", "--source", "street.avi")
    assert build == f"-m export.build_engines {tmp_path}/mine --out build/demo/mine"
    assert f"--source {tmp_path}/street.avi " in caption
    assert plan("mine", "--source", "rtsp://camera/1")[1].count("--source rtsp://camera/1 ") == 1
