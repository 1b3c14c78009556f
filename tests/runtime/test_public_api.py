"""What a user may rely on: the names of the package, their types, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import runtime

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import asyncio
import runtime


def describe(bundle: str, frame: object) -> str:
    with runtime.Session.open(bundle, decoder="auto", threads=2) as session:
        params = runtime.GenerationParams(temperature=0.2, seed=7, stop=("###",))
        stream: runtime.TextStream = session.stream("What?", images=[frame], color="bgr", params=params, deadline_s=5.0)
        for delta in stream:
            text: str = delta.text
            logprob: float = delta.logprob
        answer: runtime.Answer = stream.answer()
        reason: str = answer.finish_reason
        tokens: int = answer.usage.completion_tokens
        ms: float = answer.timings.ttft_ms
        with session.chat("Be brief.") as chat:
            chat.generate("And now?", max_new_tokens=8)
        with session.watch("synthetic://", "What?") as watch:
            for caption in watch:
                age: float | None = caption.age_first_ms
                for piece in caption:
                    print(piece.text)
        return answer.text


async def read(session: runtime.Session) -> None:
    async for delta in session.stream("What?", images=["photo.jpg"]):
        print(delta.text)


def guard(bundle: str) -> int:
    try:
        describe(bundle, b"")
    except runtime.BundleError as error:
        return error.exit_code
    except runtime.VlmError as error:
        hint: str | None = error.hint
    asyncio.run(read(runtime.Session.open(bundle)))
    return 0
"""
MISTAKES = [
    ('import runtime\nruntime.Session.open("b", decoder="gpu")\n', "arg-type"),
    ('import runtime\nruntime.Session.open("b").generate("x").txt\n', "attr-defined"),
    ('import runtime\nruntime.Session.open("b").stream("x", color="hsv")\n', "arg-type"),
    ("import runtime\nruntime.NoSuchName\n", "attr-defined"),
]


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert sorted(set(runtime.__all__)) == list(runtime.__all__)
    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
    assert set(runtime.__all__) <= set(dir(runtime))


def test_all_holds_every_name_that_type_checkers_see() -> None:
    tree = ast.parse(Path(runtime.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed | {"__version__"} == set(runtime.__all__)


def test_every_public_error_is_public() -> None:
    from runtime import errors

    assert {name for name in vars(errors) if name.endswith("Error")} <= set(runtime.__all__)


def test_names_outside_the_surface_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        runtime.nothing  # noqa: B018


def mypy(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"]
    cache = ["--cache-dir", str(folder / "cache"), "--config-file", "/dev/null"]
    return subprocess.run(
        [*command, *cache, "program.py"], cwd=folder, env={"MYPYPATH": str(ROOT)}, capture_output=True, text=True
    )


def test_a_users_program_passes_strict_mypy_and_mistakes_are_found(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    done = mypy(tmp_path, PROGRAM)
    assert done.returncode == 0, done.stdout + done.stderr
    for text, code in MISTAKES:
        done = mypy(tmp_path, text)
        assert f"[{code}]" in done.stdout, text + done.stdout


def test_package_says_that_it_is_typed() -> None:
    assert (Path(runtime.__file__).parent / "py.typed").is_file()


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_import_loads_neither_libraries_nor_engines() -> None:
    heavy = {"torch", "transformers", "onnx", "cv2", "onnxruntime", "tokenizers", "PIL", "numpy"}
    done = fresh(f"import sys, runtime; print(sorted({heavy!r} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_session_runs_where_build_time_libraries_and_opencv_cannot_be_imported(tmp_path: Path) -> None:
    """The engines are fakes: what they import is guarded by their own tests."""
    code = f"""
import sys
from pathlib import Path
for name in ("torch", "transformers", "onnx", "onnxscript", "cv2", "einops", "jinja2"):
    sys.modules[name] = None  # importing it raises ImportError
import numpy as np
from runtime import Session, startup
from tests.runtime.fakes import FakeDecoder, FakeVision, fake_bundle, saying
fake_bundle(Path({str(tmp_path / "b")!r}))
decoder = FakeDecoder(script=saying("fine"))
startup.open_decoder = lambda bundle, *, slots, **options: decoder.open(slots) or decoder
startup.open_vision = lambda bundle, **options: FakeVision()
with Session.open({str(tmp_path / "b")!r}) as session:
    print(session.generate("What?", [np.zeros((9, 9, 3), np.uint8)]).text)
    print([caption.text for caption in session.watch("synthetic://?frames=1", "What?", every_frame=True)])
"""
    done = fresh(code)
    assert done.stdout.splitlines() == ["fine", "['fine']"], done.stderr
