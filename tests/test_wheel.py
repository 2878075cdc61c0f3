"""What a user installs: the contents of the wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EXAMPLES = "handstamp/_bundled/examples/"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files in a wheel that is built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_the_wheel_holds_every_module_and_every_data_file(names: set[str]) -> None:
    """The package, its type marker, the SQL of `init` and the page of the demo."""
    source = ROOT / "src"
    expected = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.suffix in {".py", ".sql", ".html", ".typed"}
    }
    packed = {n for n in names if not n.startswith(EXAMPLES) and ".dist-info/" not in n}
    assert packed == expected
    assert "handstamp/py.typed" in packed


def test_the_wheel_holds_the_examples_that_the_demo_runs(names: set[str]) -> None:
    """`handstamp demo` runs the example of the documentation, from a wheel too."""
    assert f"{EXAMPLES}starlette/app.py" in names
    assert f"{EXAMPLES}seed.py" in names


def test_the_wheel_holds_nothing_else(names: set[str]) -> None:
    """No tests, no benchmarks, no caches."""
    own = ("handstamp/", "handstamp-", "handstamp_pytest.py")
    assert [name for name in names if not name.startswith(own)] == []
    assert [name for name in names if "__pycache__" in name or "/tests/" in name] == []
