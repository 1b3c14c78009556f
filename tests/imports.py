"""What a file of the repository imports when it is loaded, followed through the repository's own modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "kernels", "export", "models", "jetson")


def statements(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements that run when the module is loaded: none of functions or TYPE_CHECKING blocks."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += list(ast.iter_child_nodes(node))


@cache
def parsed(path: Path) -> ast.Module:
    """Parse a file once in a run of the tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def names(path: Path, everywhere: bool = False) -> frozenset[str]:
    """Name the modules that ``path`` imports, on loading or ``everywhere``; of ``from a import b`` both a and a.b."""
    found = set()
    tree = parsed(path)
    for node in ast.walk(tree) if everywhere else statements(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def own_files(name: str) -> list[Path]:
    """List the files of the repository that importing the module ``name`` runs: its packages and itself."""
    parts = name.split(".")
    if parts[0] not in (*PACKAGES, "tests", "scripts"):
        return []
    places = [ROOT.joinpath(*parts[: end + 1]) for end in range(len(parts))]
    candidates = [place / "__init__.py" for place in places] + [places[-1].with_suffix(".py")]
    return [path for path in candidates if path.is_file()]


@cache
def reached(path: Path) -> frozenset[str]:
    """Name every module that loading ``path`` imports, directly or through the repository's own modules."""
    seen: set[Path] = set()
    found: set[str] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        direct = names(current)
        found |= direct
        waiting += [file for name in direct for file in own_files(name)]
    return frozenset(found)
