"""The page on testing is true: each of its blocks is a test file, and all of them pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from handstamp.testing.databases import SERVER_VARIABLE, database_like

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.md"
CONFTEST = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
Outcomes = tuple[dict[str, Counter[str]], str]
INI = """
[pytest]
addopts = -p handstamp_pytest -p anyio --import-mode=importlib
filterwarnings = error:::handstamp
"""


def blocks(page: str) -> dict[str, str]:
    """The Python blocks of a page, by the heading they stand under and their number."""
    found: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    for section in re.split(r"^#+ ", page, flags=re.MULTILINE)[1:]:
        heading = re.sub(r"\W+", "_", section.partition("\n")[0].lower()).strip("_")
        for block in re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S):
            numbers[heading] += 1
            found[f"{heading}_{numbers[heading]}"] = block
    return found


BLOCKS = blocks(PAGE.read_text(encoding="utf-8"))


def wanted(block: str) -> set[str]:
    """The packages that a block imports."""
    names = re.findall(r"^(?:from|import) (\w+)", block, re.MULTILINE)
    return {*names} - {"handstamp"}


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
    supabase_template_dsn: str,
    handstamp_postgres: str,
) -> Outcomes:
    """How often each block's tests passed and failed, run as a project of their own, and
    what pytest printed."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text(INI)
    for name, block in BLOCKS.items():
        if all(map(find_spec, wanted(block))):
            (folder / f"test_{name}.py").write_text(block, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml=outcome.xml"]
    path = os.pathsep.join(filter(None, sys.path))
    with database_like(supabase_template_dsn) as dsn:
        environ = {
            **os.environ,
            "PYTHONPATH": path,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "SUPABASE_DB_URL": dsn,
            SERVER_VARIABLE: handstamp_postgres,
        }
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env=environ
        )
    return _read(folder / "outcome.xml"), done.stdout + done.stderr


def _read(report: Path) -> dict[str, Counter[str]]:
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in BLOCKS}
    for case in ElementTree.parse(report).iter("testcase"):
        name = re.sub(r".*test_(?=\w+$)", "", case.get("classname") or "", count=1)
        name = next((n for n in BLOCKS if f"test_{n}" in str(case.get("classname"))), name)
        result = next((child.tag for child in case), "passed")
        outcomes.setdefault(name, Counter())[result] += 1
    return outcomes


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_a_test_that_passes(name: str, outcomes: Outcomes) -> None:
    """All of it, and there is at least one test in it."""
    missing = sorted(p for p in wanted(BLOCKS[name]) if not find_spec(p))
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    outcome, output = outcomes[0][name], outcomes[1]
    assert outcome["passed"] == sum(outcome.values()) > 0, output


def test_every_framework_has_a_block() -> None:
    """And each of them signs a client in."""
    frameworks = ("starlette", "fastapi", "litestar", "quart", "flask")
    frameworks += ("django", "falcon", "pyramid", "bottle", "wsgi")
    for framework in frameworks:
        assert any(
            f"handstamp.{framework}" in block and "login_as(client" in block
            for block in BLOCKS.values()
        ), framework


def test_every_helper_is_on_the_page() -> None:
    """What is exported is documented."""
    import handstamp.testing

    page = PAGE.read_text(encoding="utf-8")
    unnamed = {"SignedIn", "Stolen"}  # what a function returns
    assert [n for n in handstamp.testing.__all__ if n not in page] == sorted(unnamed)


def test_every_page_that_signs_in_names_the_engine() -> None:
    """Without `sessions=` the line raises; only Django's settings name the engine."""
    calls = []
    for page in (ROOT / "docs").glob("*.md"):
        for heading, block in blocks(page.read_text(encoding="utf-8")).items():
            if "django" not in heading:
                found = re.findall(r"\b(?:login_as|steal)\(\w.*\)", block)
                calls += [f"{page.name}: {call}" for call in found]
    assert len(calls) > 15
    assert [call for call in calls if "sessions=" not in call] == []
