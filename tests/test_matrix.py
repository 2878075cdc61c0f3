"""The matrix of tox.ini: what is in it, and what its table says."""

from __future__ import annotations

import re
import tomllib
from configparser import ConfigParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.examples.servers import EXAMPLES
from tests.matrix import ROOT, Environment, chosen, counted, line, row, summary

FRAMEWORKS = {example.framework for example in EXAMPLES}
PYTHONS = ("py311", "py312", "py313")
ENVIRONMENTS = [
    Environment(f"{python}-{framework}{age}")
    for python in PYTHONS
    for framework in sorted(FRAMEWORKS)
    for age in ("", "-oldest")
]
CASES = """
<testsuites><testsuite>
  <testcase classname="tests.test_flask" name="test_one"/>
  <testcase classname="tests.test_flask" name="test_two"><skipped/></testcase>
  <testcase classname="tests.examples" name="test_a[flask-wsgi-ulid]"><failure/></testcase>
  <testcase classname="tests.examples" name="test_b[flask-wsgi-ulid-x]"><error/></testcase>
  <testcase classname="tests.examples" name="test_b[flask-wsgi-ulid-y]"/>
</testsuite></testsuites>
"""


@pytest.fixture(scope="module")
def tox() -> ConfigParser:
    """What stands in tox.ini."""
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    return parser


@pytest.fixture(scope="module")
def section(tox: ConfigParser) -> str:
    """The head of the section of one framework."""
    return next(name for name in tox.sections() if "flask" in name)


def test_every_framework_is_in_the_matrix(tox: ConfigParser, section: str) -> None:
    """Each that has an example: in the list, as an extra, with its own tests."""
    assert (
        set(re.search(r"\{(\w[\w,]+)\}\{,-oldest\}", section)[1].split(",")) == FRAMEWORKS
    )
    listed = re.findall(r"\{(\w[\w,]+)\}\{,-oldest\}", tox["tox"]["env_list"])
    assert [set(names.split(",")) for names in listed] == [FRAMEWORKS]
    extras = re.findall(r"^(\w+): (\w+)$", tox[section]["extras"], re.MULTILINE)
    assert extras == [(framework, framework) for framework, _ in extras]
    assert {framework for framework, _ in extras} == FRAMEWORKS
    for framework in FRAMEWORKS:
        (command,) = re.findall(
            rf"^{framework}: (.*)", tox[section]["commands"], re.MULTILINE
        )
        assert f"tests/test_{framework}.py" in command
        assert f'-k "{framework} and not' in command
        assert Path(ROOT, "tests", f"test_{framework}.py").exists()


def test_every_framework_has_a_floor() -> None:
    """What the environment of the oldest version installs is written in its extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for framework in FRAMEWORKS:
        (requirement,) = project["optional-dependencies"][framework]
        assert re.fullmatch(rf"{framework}>=[\d.]+", requirement)


def test_the_matrix_has_every_python_that_we_say_we_support(
    tox: ConfigParser, section: str
) -> None:
    """The classifiers of the package and tox.ini name the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    minors = re.findall(r"Python :: 3\.(\d+)", " ".join(project["classifiers"]))
    assert tuple(f"py3{minor}" for minor in minors) == PYTHONS
    assert section.startswith("testenv:{py311-,py312-,py313-,}")
    listed = [names.split("}")[0] for names in tox["tox"]["env_list"].split()]
    assert listed == ["py{311,312,313"] * 2


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([], 6 * len(FRAMEWORKS)),
        (["oldest"], 3 * len(FRAMEWORKS)),
        (["py311", "flask"], 2),
        (["flask", "quart", "newest", "py311", "py313"], 4),
    ],
)
def test_words_choose_environments(words: list[str], count: int) -> None:
    """One of each kind that is named must fit; a kind that is not named does not matter."""
    found = chosen(ENVIRONMENTS, words)
    assert len(found) == count
    for kind in ({*PYTHONS}, FRAMEWORKS, {"oldest", "newest"}):
        asked = kind & set(words)
        assert all(one.words & asked for one in found) or not asked


def test_a_row_counts_each_transport_apart() -> None:
    """And an error while a test is set up or torn down is a failure."""
    counts = counted(ElementTree.fromstring(CASES).iter("testcase"), "flask")
    cells = [summary(counts[kind]) for kind in ("own", "asgi", "wsgi")]
    assert cells == ["1 passed, 1 skipped", "-", "2 FAILED, 1 passed"]


def test_an_environment_that_ran_no_test_is_a_failure() -> None:
    """As when its packages could not be installed."""
    cells = row(Environment("py311-nothing-oldest"))
    assert cells[:4] == ["nothing", "oldest", "3.11", "FAILED before any test"]
    assert line(cells).count("|") == 7
