"""Every file and every name that CONTRIBUTING.md mentions exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_architecture import LAYERS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "handstamp"
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MENTIONED = sorted(set(re.findall(r"`([\w/]+\.py)(?:: ([\w.]+))?`", PAGE)))
INTERNAL = {"", "__main__"}  # the package itself, and its entry point


def find_file(name: str) -> Path | None:
    """The file that the page means: a module of the package, or a path in the project."""
    candidates = [PACKAGE / name, ROOT / name]
    return next((path for path in candidates if path.is_file()), None)


def defined_in(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Each name that these statements define, with the statement that defines it."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Assign):
            yield from ((target.id, node) for target in node.targets if named(target))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node


def named(target: ast.expr) -> bool:
    """Whether an assignment's target is a plain name."""
    return isinstance(target, ast.Name)


def set_on_self(node: ast.ClassDef) -> set[str]:
    """The attributes that the methods of a class assign to `self`."""
    stores = (n for n in ast.walk(node) if isinstance(n, ast.Attribute))
    return {
        n.attr
        for n in stores
        if isinstance(n.ctx, ast.Store) and isinstance(n.value, ast.Name)
    }


def is_defined(path: Path, name: str) -> bool:
    """Whether `Name` or `Class.attribute` is defined in this file itself."""
    outer, _, inner = name.partition(".")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = dict(defined_in(tree.body)).get(outer)
    if found is None or not inner:
        return found is not None
    if not isinstance(found, ast.ClassDef):
        return False
    return inner in dict(defined_in(found.body)) or inner in set_on_self(found)


def test_the_page_mentions_names() -> None:
    """The expression above finds them."""
    assert len([name for _, name in MENTIONED if name]) > 40


@pytest.mark.parametrize(("file", "name"), MENTIONED)
def test_what_the_page_mentions_exists(file: str, name: str) -> None:
    """A reader finds the file, and in it the class, function, method or attribute."""
    path = find_file(file)
    assert path is not None, f"{file} is gone"
    assert not name or is_defined(path, name), f"{file} defines no {name}"


@pytest.mark.parametrize("name", ["Cache.gone", "Cache.ticket.gone", "gone", "RECENCY.x"])
def test_a_name_that_is_gone_is_noticed(name: str) -> None:
    """The check above can fail."""
    assert not is_defined(PACKAGE / "engine" / "cache.py", name)


def test_the_page_lists_the_layers_of_the_architecture_test() -> None:
    """Every room of the package is in the row of its layer."""
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", PAGE, re.MULTILINE)
    listed = {int(number): set(re.findall(r"`(\w+)`", rooms)) for number, rooms in rows}
    kept = {number: rooms - INTERNAL for number, rooms in enumerate(LAYERS, 1)}
    assert kept == listed
