"""House rules that a machine can check, on every file of the packages."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.imports import PACKAGES, ROOT, parsed

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FORBIDDEN_STEMS = {"utils", "helpers", "manager", "misc", "common"}
FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prints(module: ast.Module) -> Iterator[ast.AST]:
    """``print`` anywhere but in a module that is a command."""
    if any(isinstance(node, Function) and node.name == "main" for node in module.body):
        return
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node


def silent_excepts(module: ast.Module) -> Iterator[ast.AST]:
    """``except:`` without a type, and handlers of any error that do nothing with it."""
    for node in ast.walk(module):
        if isinstance(node, ast.ExceptHandler):
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            empty = all(isinstance(statement, ast.Pass) for statement in node.body)
            if node.type is None or empty or (broad and node.name is None and not _tells(node)):
                yield node


def _tells(handler: ast.ExceptHandler) -> bool:
    """Say whether the handler raises, or logs with the traceback."""
    logs = [node.attr for node in ast.walk(handler) if isinstance(node, ast.Attribute)]
    return "exception" in logs or any(isinstance(node, ast.Raise) for node in ast.walk(handler))


def global_statements(module: ast.Module) -> Iterator[ast.AST]:
    """Module state that functions change."""
    return (node for node in ast.walk(module) if isinstance(node, ast.Global))


def passed_on_keywords(module: ast.Module) -> Iterator[ast.AST]:
    """A public function whose ``**kwargs`` travel on to another call: nobody can read what it accepts."""
    for function in ast.walk(module):
        if not isinstance(function, Function) or function.args.kwarg is None or function.name.startswith("_"):
            continue
        name = function.args.kwarg.arg
        for node in ast.walk(function):
            passed = isinstance(node, ast.keyword) and node.arg is None and isinstance(node.value, ast.Name)
            if passed and node.value.id == name:
                yield function


def long_functions(module: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(module):
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES:
            yield node


def stubs(module: ast.Module) -> Iterator[ast.AST]:
    """A function that only says that it is not there; a refused combination of settings is something else."""
    for function in ast.walk(module):
        if isinstance(function, Function) and function.body:
            last = function.body[-1]
            if isinstance(last, ast.Raise) and "NotImplementedError" in ast.dump(last):
                yield function


def undocumented(module: ast.Module) -> Iterator[ast.AST]:
    """A file that does not say what it is for."""
    if ast.get_docstring(module) is None and module.body:
        yield module.body[0]


RULES = [prints, silent_excepts, global_statements, passed_on_keywords, long_functions, stubs, undocumented]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_packages_keep_the_rule(rule: Callable[[ast.Module], Iterator[ast.AST]]) -> None:
    # Classes of `models` keep the signatures of transformers, open keywords included.
    files = [path for path in FILES if rule is not passed_on_keywords or path.relative_to(ROOT).parts[0] != "models"]
    broken = [f"{relative(path)}:{getattr(node, 'lineno', 1)}" for path in files for node in rule(parsed(path))]
    assert broken == []


@pytest.mark.parametrize("rule", [silent_excepts, long_functions, undocumented], ids=lambda rule: rule.__name__)
def test_scripts_keep_the_rule(rule: Callable[[ast.Module], Iterator[ast.AST]]) -> None:
    broken = [f"{relative(path)}:{getattr(node, 'lineno', 1)}" for path in SCRIPTS for node in rule(parsed(path))]
    assert broken == []


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (prints, "def f():\n    print(1)"),
        (silent_excepts, "try:\n    f()\nexcept:\n    raise"),
        (silent_excepts, "try:\n    f()\nexcept ValueError:\n    pass"),
        (silent_excepts, "try:\n    f()\nexcept Exception:\n    x = 1"),
        (global_statements, "def f():\n    global x\n    x = 1"),
        (passed_on_keywords, "def f(**kwargs):\n    g(**kwargs)"),
        (long_functions, "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
        (stubs, "def f():\n    raise NotImplementedError('later')"),
        (undocumented, "x = 1"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_rule_finds_what_it_forbids(rule: Callable[[ast.Module], Iterator[ast.AST]], code: str) -> None:
    assert list(rule(ast.parse(code)))


def test_files_stay_short() -> None:
    long = [relative(path) for path in FILES + SCRIPTS if len(path.read_text().splitlines()) > MAX_FILE_LINES]
    assert long == []


def test_files_are_named_for_what_they_hold() -> None:
    assert [relative(path) for path in FILES + SCRIPTS if path.stem in FORBIDDEN_STEMS] == []


def test_functions_of_the_typed_packages_are_fully_annotated() -> None:
    """mypy proves it in scripts/check; this covers Pythons where only the tests run."""
    bare = []
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, Function):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                missing = [
                    item.arg for item in arguments if item.annotation is None and item.arg not in ("self", "cls")
                ]
                if missing or node.returns is None:
                    bare.append(f"{relative(path)}:{node.lineno} {node.name}({', '.join(missing)})")
    assert bare == []


def test_jetson_has_no_init_file_of_its_own() -> None:
    """One would hide jetson-inference's packages of the same namespace."""
    assert not (ROOT / "jetson" / "__init__.py").exists()
