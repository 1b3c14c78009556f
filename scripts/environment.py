"""The virtual environment of the repository's own commands: make it, fill it from requirements.lock, reuse it.

scripts/demo, scripts/test and scripts/check call this with the Python that they were started with; it uses the standard
library alone. A state file inside the environment says what is installed; it is written last, so that an interrupted
installation is taken up again by the next command.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
TORCH = "torch==2.13.0"
SETS = ("demo", "captiond", "trace", "test", "check", "compile")
STATE = "jetson-vlm.json"

Run = Callable[[Sequence[str]], None]


class SetupError(Exception):
    """The environment cannot be made or filled; the text says what to do about it."""


def run_command(command: Sequence[str]) -> None:
    """Run ``command`` with its output on stderr, which leaves stdout to the data of the command that follows."""
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if done.returncode != 0:
        raise SetupError(f"exit status {done.returncode} from: {' '.join(command)}")


def select(lock: str, sets: Sequence[str]) -> str:
    """Return the part of a lock that ``sets`` need, in pip's requirements format."""
    blocks = re.split(r"^# for: ", lock, flags=re.MULTILINE)[1:]
    chosen = []
    for block in blocks:
        labels, _, entry = block.partition("\n")
        if set(labels.split()) & set(sets):
            chosen.append(entry)
    return "".join(chosen)


def read_state(venv: Path) -> dict[str, object]:
    """Return what was recorded in ``venv``; an empty record where there is none or it is not whole."""
    try:
        state = json.loads((venv / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(venv: Path, state: dict[str, object]) -> None:
    """Record what ``venv`` holds, replacing the old record in one step."""
    temporary = venv / (STATE + ".tmp")
    temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    temporary.replace(venv / STATE)


def require_venv_module() -> None:
    """Refuse a Python that lacks the means to make an environment, naming the package that brings them."""
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"{sys.executable} has no module {' and '.join(missing)}, so no virtual environment can be made.\n"
            f"Install it: apt-get install python3-venv (or python{version}-venv), then run this again."
        )


def python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


def works(venv: Path) -> bool:
    """Say whether the environment's own interpreter starts and has pip."""
    if not python_of(venv).exists():
        return False
    probe = [str(python_of(venv)), "-c", "import pip, sys; print(*sys.version_info[:2])"]
    done = subprocess.run(probe, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode == 0 and done.stdout.split() == [str(part) for part in sys.version_info[:2]]


def make(venv: Path, run: Run) -> None:
    """Create ``venv`` unless a working one is there; only an environment that this script made is ever replaced."""
    if (venv / STATE).exists():
        if works(venv):
            return
        shutil.rmtree(venv)
    elif venv.exists() and any(venv.iterdir()):
        if works(venv):
            return
        version = ".".join(str(part) for part in sys.version_info[:2])
        raise SetupError(
            f"{venv} exists, was not made by these scripts and has no pip for Python {version}.\n"
            "Move it away, or name another place: VLM_VENV=<folder> (scripts/demo: --venv <folder>)."
        )
    require_venv_module()
    venv.mkdir(parents=True, exist_ok=True)
    write_state(venv, {"complete": False})
    print(f"Making {venv} with Python {sys.version.split()[0]}", file=sys.stderr, flush=True)
    run([sys.executable, "-m", "venv", str(venv)])


def install(venv: Path, sets: Sequence[str], torch: bool, run: Run) -> None:
    """Install what ``sets`` pin, and torch where it is asked for, into ``venv``."""
    wanted = venv / "requirements.txt"
    wanted.write_text(select(LOCK.read_text(encoding="utf-8"), sets), encoding="utf-8")
    pip = [str(python_of(venv)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if not sys.stderr.isatty():
        pip.append("-qq")
    print(f"Installing {', '.join(sets)}{' and ' + TORCH if torch else ''}", file=sys.stderr, flush=True)
    # The lock is closed under dependencies: --no-deps leaves pip nothing to choose.
    run([*pip, "--no-compile", "--no-deps", "--require-hashes", "--requirement", str(wanted)])
    if torch:
        index = os.environ.get("VLM_TORCH_INDEX")
        run([*pip, *(["--index-url", index] if index else []), TORCH])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time change environments; the others wait."""
    with path.open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure(venv: Path, sets: Sequence[str], torch: bool, run: Run = run_command) -> Path:
    """Bring ``venv`` to hold at least ``sets`` (and torch) of today's lock, and return its Python.

    Nothing is run when the record says that it already does. What was installed before is brought along.
    """
    unknown = sorted(set(sets) - set(SETS))
    if unknown:
        raise SetupError(f"unknown set {', '.join(unknown)}; there are {', '.join(SETS)}")
    digest = hashlib.sha256(LOCK.read_bytes() + TORCH.encode()).hexdigest()
    with locked(LOCK):
        state = read_state(venv)
        held = state.get("sets")
        held_sets = [name for name in held if name in SETS] if isinstance(held, list) else []
        fresh = state.get("complete") is True and state.get("lock") == digest
        if not (fresh and set(sets) <= set(held_sets) and (not torch or state.get("torch") is True) and works(venv)):
            make(venv, run)
            union = [name for name in SETS if name in held_sets or name in sets]
            torch = torch or state.get("torch") is True
            write_state(venv, {"complete": False, "sets": held_sets, "torch": state.get("torch") is True})
            install(venv, union, torch, run)
            write_state(venv, {"complete": True, "lock": digest, "sets": union, "torch": torch})
    return python_of(venv)


def venv_path(option: str | None) -> Path:
    """Choose the environment's folder: the option, VLM_VENV, or ``.venv`` at the root of the repository."""
    return Path(option or os.environ.get("VLM_VENV") or ROOT / ".venv").absolute()


def main(argv: Sequence[str] | None = None) -> int:
    """Make the environment ready and replace this process by a command in it."""
    parser = argparse.ArgumentParser(description="Run a command in the repository's environment.")
    parser.add_argument("--sets", default="demo", help=f"comma-separated, of {', '.join(SETS)}")
    parser.add_argument("--torch", action="store_true", help=f"install {TORCH} too")
    parser.add_argument("--venv", help="folder of the environment (default: VLM_VENV, else .venv)")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="arguments of python after --; none: make it ready only"
    )
    options = parser.parse_args(argv)
    try:
        python = ensure(venv_path(options.venv), options.sets.split(","), options.torch)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        print(python)
        return 0
    os.chdir(ROOT)
    os.execv(python, [str(python), *command])


if __name__ == "__main__":
    raise SystemExit(main())
