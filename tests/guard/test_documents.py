"""Documents tell the truth: links resolve, commands exist and accept what is shown, tables name what is supported."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models" / "demo").rglob("*.md")]
    if path.is_file()
]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(path), re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", read(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(read(file))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(path: Path) -> None:
    pattern = r"`((?:runtime|export|models|kernels|jetson|scripts|docs|tests)/[\w./-]*[\w/])`"
    assert [name for name in re.findall(pattern, read(path)) if not (ROOT / name).exists()] == []


def shown_commands() -> list[tuple[str, list[str]]]:
    """List the commands of all documents that run a module or a script of this repository, with their arguments."""
    found = []
    for path in DOCUMENTS:
        inline = re.findall(r"`((?:python -m|scripts/)[^`<\n]*)`", read(path))
        lines = [line for block in blocks(path, "sh") for line in block.splitlines()]
        for line in [*lines, *inline]:
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"]:
                found.append((words[2], words[3:]))
            elif words and words[0] == "python" and words[1:]:
                found.append((words[1], words[2:]))
            elif words and words[0].startswith("scripts/") and "*" not in words[0]:
                found.append((words[0], words[1:]))
    return found


def test_commands_that_documents_show_exist() -> None:
    missing = []
    for name, _ in shown_commands():
        file = ROOT / name if "/" in name else ROOT.joinpath(*name.split(".")).with_suffix(".py")
        package = ROOT.joinpath(*name.split(".")) / "__main__.py"
        outside = "/" not in name and name.split(".")[0] not in ("runtime", "export", "kernels", "models", "jetson")
        if not (file.exists() or package.exists() or outside):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize(
    "module", ["runtime.caption", "runtime.doctor", "export.build_engines", "export.quantize", "export.convert"]
)
def test_options_that_documents_show_are_options_of_the_command(module: str) -> None:
    shown = {word.partition("=")[0] for name, words in shown_commands() if name == module for word in words}
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    offered = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", done.stdout))
    assert {word for word in shown if word.startswith("-")} - offered == set()


def test_the_two_commands_come_first_and_can_be_executed() -> None:
    first = blocks(ROOT / "README.md", "sh")[0].splitlines()
    commands = [line.split()[0] for line in first]
    assert commands == ["scripts/demo", "scripts/test"]
    for command in [*commands, "scripts/check", ".ci/run"]:
        assert (ROOT / command).stat().st_mode & 0o111, command


def test_the_demo_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/run_demo.py"), "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"--source", "--prompt", "--trace", "--venv"} <= set(done.stdout.split())


def test_python_examples_use_only_the_public_surface() -> None:
    import runtime

    for path in DOCUMENTS:
        for block in blocks(path, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "runtime":
                    assert node.attr in runtime.__all__, f"{path.name}: runtime.{node.attr}"


def test_support_table_names_the_pythons_that_are_declared_and_that_ci_runs() -> None:
    rows = re.findall(r"^\| (3\.\d+) \|", read(ROOT / "README.md"), re.MULTILINE)
    declared = re.findall(r"Python :: (3\.\d+)", read(ROOT / "setup.py"))
    in_ci = re.search(r"^for version in (.+); do$", read(ROOT / ".ci" / "run"), re.MULTILINE)
    assert in_ci is not None
    assert tuple(rows) == tuple(declared) == tuple(in_ci[1].split()) == PYTHONS
    assert 'python_requires=">=3.10,<3.14"' in read(ROOT / "setup.py")


def test_every_extra_is_documented() -> None:
    extras = set(re.findall(r'^    "([\w-]+)": \[', read(ROOT / "setup.py"), re.MULTILINE))
    assert extras
    assert extras <= set(re.findall(r"`([\w-]+)`", read(ROOT / "docs" / "install.md")))


def test_changelog_has_an_entry_for_this_version_or_what_comes_next() -> None:
    from runtime.version import __version__

    headings = re.findall(r"^## \[([^\]]+)\]", read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert headings[0] in ("Unreleased", __version__)


def test_nothing_names_a_machine_or_a_package_host() -> None:
    """Addresses of registries and folders of somebody's machine belong into settings."""
    hosts = re.compile(
        "|".join([r"pypi\.org", r"files\.pythonhosted", r"download\.pytorch\.org", r"/ho" + r"me/\w", r"/ro" + "ot/"])
    )
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the files cannot be listed")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if name == "tests/guard/test_documents.py" or not path.is_file() or path.stat().st_size > 1 << 20:
            continue
        if hosts.search(path.read_bytes().decode("utf-8", errors="ignore")):
            found.append(name)
    assert found == []


def test_every_page_is_found_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", read(index))}
    pages = {path for path in (ROOT / "docs").rglob("*.md") if path != index}
    assert sorted(str(path.relative_to(ROOT)) for path in pages - linked) == []


def test_program_of_the_readme_runs_on_an_embedded_bundle(tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    images.new("RGB", (320, 240), (90, 120, 150)).save(tmp_path / "photo.jpg")
    (program,) = blocks(ROOT / "README.md", "python")
    # The video takes as long as it plays; one picture is a source too.
    for shown, here in (
        ("demo-nvila.bundle", ROOT / "runtime/demo/demo-nvila"),
        ("runtime/demo/demo.avi", "photo.jpg"),
    ):
        assert f'"{shown}"' in program
        program = program.replace(f'"{shown}"', repr(str(here)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
