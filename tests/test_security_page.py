"""Every test that docs/security.md names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(test_\w+)`", PAGE)))
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
THERE = {
    node.name
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, FUNCTIONS)
}


def test_the_page_names_tests() -> None:
    """The expression above finds them."""
    assert len(NAMED) > 60


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name: str) -> None:
    """A reader finds the test that shows what a row says."""
    assert name in THERE
