"""Budgets of the code: files, functions, constructors, inheritance. They keep it possible to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_FILE, MAX_FUNCTION, MAX_FIELDS = 400, 60, 10
PACKAGES = ("sciml", "pretrain", "finetune", "tests", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OURS = [path for path in FILES if path.relative_to(ROOT).parts[0] in ("sciml", "pretrain", "finetune")]
ROOTS = {"Module", "Protocol", "Exception", "RuntimeError", "ValueError", "Section", "BaseModel", "Optimizer", "Group",
         "Dataset", "Sequence", "Mapping", "object"}
"""Classes of other libraries, and our one base of validated sections: depth 1 is counted below them."""
WAIST = {"Axis": 11, "TokenBatch": 11, "TokenSpec": 13}
"""The types that every domain and the operator meet in are flat: nesting would hide what the waist is made of."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_dataclass(node: ast.ClassDef) -> bool:
    names = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(isinstance(d, ast.Name) and d.id == "dataclass" for d in names)


def num_fields(node: ast.ClassDef) -> int:
    """Parameters of the constructor: fields of a dataclass, or arguments of ``__init__``."""
    if is_dataclass(node):
        return sum(isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation)
                   for item in node.body)
    made = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
    return max((len(f.args.args) + len(f.args.kwonlyargs) - 1 for f in made), default=0)


def test_there_is_something_to_check() -> None:
    assert len(OURS) > 50


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(ast.parse(text))
            if f.end_lineno and f.end_lineno - f.lineno >= MAX_FUNCTION}
    assert long == {}


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_constructors_are_small(path: Path) -> None:
    classes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]
    large = {c.name: num_fields(c) for c in classes if num_fields(c) > WAIST.get(c.name, MAX_FIELDS)}
    assert large == {}


def test_inheritance_is_one_deep() -> None:
    """A class derives from a root or from a class that derives from roots alone; ours are abstract or final."""
    bases: dict[str, set[str]] = {}
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found = {ast.unparse(b).split("[")[0].split(".")[-1] for b in node.bases}
                bases.setdefault(node.name, set()).update(found - ROOTS)
    deep = {name: sorted(own) for name, own in bases.items() if any(bases.get(base) for base in own)}
    assert deep == {}
