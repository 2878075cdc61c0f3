"""The rules of the house, read from the source itself."""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "handstamp"
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

# From the bottom up. A module may import what stands below it, or beside it in its room.
LAYERS = [
    {"errors", "types", "clock", "forking"},
    {"config"},
    {"core"},
    {"events"},
    {"stores"},
    {"engine"},
    {"door", "blocking", "sockets", "streams", "lifespan", "supabase"},
    {"handles", "pallets"},
    {"asgi", "wsgi", "flask_commands"},
    {"litestar_guards"},
    {"starlette", "litestar", "quart", "falcon", "flask", "pyramid", "bottle", "django"},
    {"fastapi"},
    {"cli", "testing", ""},
    {"__main__"},
]
RANKS = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

IMPURE = {
    *("_thread", "asyncio", "concurrent", "contextvars", "datetime.now", "getpass", "http"),
    *("io", "logging", "multiprocessing", "os", "pathlib", "platform", "queue", "random"),
    *("secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess"),
    *("sys", "tempfile", "threading", "time", "urllib.request", "uuid", "weakref"),
}
CLOCKS = {"now", "utcnow", "today", "monotonic", "perf_counter", "urandom", "token_bytes"}
SQL = re.compile(
    r"\b(select\b.+\bfrom|insert\s+into|update\s+\S+\s+(\w+\s+)?set|delete\s+from"
    r"|(create|alter|drop)\s+(table|index|trigger|function|role|database))\b",
    re.IGNORECASE | re.DOTALL,
)
SECRETIVE = re.compile(r"token|secret|password|signature", re.IGNORECASE)
RANDOMNESS = {
    *("random", "uuid", "numpy", "secrets", "Crypto", "cryptography"),
    *("os.urandom", "os.getrandom", "ssl.RAND_bytes"),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    """A file as a dotted module below the package, such as `core.tokens`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(module: str) -> str:
    """The first part of a module's name: the room it is in."""
    return module.partition(".")[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted name of everything that is imported, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> Iterator[str]:
    """The rooms of handstamp that are imported; `from handstamp import x` is the top."""
    known = {name_of(path) for path in FILES}
    for name in imports(tree):
        if name.partition(".")[0] == "handstamp":
            inner = name.partition(".")[2]
            yield room_of(inner) if room_of(inner) in {room_of(k) for k in known} else ""


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function, however deep."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """The lines of a body, from its first statement after the docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def code_lines(path: Path, tree: ast.Module) -> int:
    """The lines of a file that are neither blank, nor comment, nor docstring."""
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return sum(
        1
        for n, line in lines
        if line.strip() and not line.strip().startswith("#") and n not in prose
    )


def docstrings(tree: ast.AST) -> set[int]:
    """The constants that are prose: docstrings, and strings below attributes."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string in the code, joined from its pieces, that is no prose."""
    prose = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in prose:
                yield node.value
        elif isinstance(node, ast.JoinedStr):
            pieces = [p.value if isinstance(p, ast.Constant) else "x" for p in node.values]
            yield "".join(map(str, pieces))


def dotted(node: ast.AST) -> str:
    """The text of `a.b.c`, or nothing for anything else."""
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: name_of(p) or "handstamp")
core_file = pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(name_of(p)) == "core"], ids=name_of
)


def test_every_room_has_its_floor() -> None:
    """A new module must say where in the house it stands."""
    assert {room_of(name_of(path)) for path in FILES} <= set(RANKS)


@every_file
def test_imports_only_go_down(path: Path) -> None:
    """No module imports from a floor above its own."""
    own = RANKS[room_of(name_of(path))]
    above = [room for room in own_imports(TREES[path]) if RANKS[room] > own]
    assert above == []


@every_file
def test_rooms_beside_each_other_are_closed(path: Path) -> None:
    """Two rooms on one floor know nothing of each other."""
    room = room_of(name_of(path))
    beside = LAYERS[RANKS[room]] - {room, ""}
    if room not in {"", "cli"}:  # the command may start what the tests start
        assert set() == beside & set(own_imports(TREES[path]))


@every_file
def test_only_the_command_and_the_doctor_know_the_doctor(path: Path) -> None:
    """What looks at tables for a person serves no request; nor does any single table
    know of Supabase's."""
    module = name_of(path)
    known = {name for name in imports(TREES[path]) if name.startswith("handstamp.stores.")}
    if not module.startswith(("stores.doctor", "cli")):
        assert [name for name in known if ".stores.doctor" in name] == []
    if module.startswith("stores.") and module.count(".") == 1:
        assert [name for name in known if ".stores.supabase" in name] == []


@core_file
def test_the_core_imports_the_standard_library_and_two_packages(path: Path) -> None:
    """Nothing else is needed to decide."""
    allowed = {*sys.stdlib_module_names, "itsdangerous", "ulid", "handstamp"}
    assert set() == {name.partition(".")[0] for name in imports(TREES[path])} - allowed
    assert set(own_imports(TREES[path])) <= {"core", "config", "errors"}


@core_file
def test_the_core_imports_nothing_impure(path: Path) -> None:
    """No I/O, no clock, no entropy, no event loop and no threads."""
    names = set(imports(TREES[path]))
    prefixes = {".".join(name.split(".")[:n]) for name in names for n in (1, 2)}
    assert set() == prefixes & IMPURE


@core_file
def test_the_core_reads_no_clock_and_draws_no_entropy(path: Path) -> None:
    """Nor opens a file, nor prints, nor waits."""
    calls = [node.func for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]
    named = {node.attr for node in calls if isinstance(node, ast.Attribute)}
    plain = {node.id for node in calls if isinstance(node, ast.Name)}
    assert set() == named & CLOCKS
    assert set() == plain & {"open", "print", "input", "exec", "eval", "hash", "id"}
    waits = ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith
    assert not any(isinstance(node, waits) for node in ast.walk(TREES[path]))


@every_file
def test_sql_lives_in_stores_only(path: Path) -> None:
    """No other room holds a statement."""
    if room_of(name_of(path)) not in {"stores", "testing"}:
        assert [text for text in strings(TREES[path]) if SQL.search(text)] == []


def test_the_eye_for_sql_sees_sql() -> None:
    """The check above would find the statements that are in stores."""
    text = "\n".join(strings(TREES[ROOT / "stores" / "statements.py"]))
    assert SQL.search(text)
    for statement in (
        "select a from b",
        "UPDATE t set x = 1",
        "insert into t",
        "delete from t",
    ):
        assert SQL.search(statement)


@every_file
def test_no_function_is_over_50_lines(path: Path) -> None:
    """A body fits a screen."""
    assert [f.name for f in functions(TREES[path]) if length(f) > 50] == []


def test_the_median_function_is_short() -> None:
    """Half of all functions have eight lines or fewer."""
    assert statistics.median(length(f) for t in TREES.values() for f in functions(t)) <= 8


@every_file
def test_no_file_is_over_350_lines(path: Path) -> None:
    """One concept a file, counted in lines of code."""
    assert code_lines(path, TREES[path]) <= 350


@every_file
def test_everything_public_has_a_docstring(path: Path) -> None:
    """Modules, classes, functions and methods without a leading underscore."""

    def missing(node: ast.AST, inside: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, Function | ast.ClassDef) or child.name.startswith("_"):
                continue
            if not ast.get_docstring(child):
                yield f"{inside}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from missing(child, f"{inside}{child.name}.")

    assert path.stat().st_size == 0 or ast.get_docstring(TREES[path])
    assert list(missing(TREES[path], "")) == []


@every_file
def test_names_are_the_design_s_words(path: Path) -> None:
    """No `Manager`, no `utils`, no `helpers`, no `handle_`."""
    nodes = [n for n in ast.walk(TREES[path]) if isinstance(n, Function | ast.ClassDef)]
    names = [node.name for node in nodes] + list(path.relative_to(ROOT).parts)
    names = [name for name in names if name != "handle_exit"]  # uvicorn's word
    bad = re.compile(r"Manager|utils?\b|helpers?\b|^_?handle_", re.IGNORECASE)
    assert [name for name in names if bad.search(name.removesuffix(".py"))] == []


@every_file
def test_no_token_or_secret_is_compared_as_text(path: Path) -> None:
    """Tokens are found by their digest; an `==` on one would tell time about it."""

    def is_secret(node: ast.expr) -> bool:
        name = dotted(node).rpartition(".")[2]
        return bool(SECRETIVE.search(name)) and not re.search("digest|hash|name", name)

    compared = [
        ast.unparse(node)
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Compare)
        and any(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops)
        and any(map(is_secret, [node.left, *node.comparators]))
    ]
    if room_of(name_of(path)) != "cli":  # the demo plays a browser, and has its cookies
        assert compared == []


@every_file
def test_c48_the_system_is_the_only_source_of_randomness(path: Path) -> None:
    """`os.urandom` in the engine, and `secrets` where no token is made."""
    names = {dotted(n) for n in ast.walk(TREES[path]) if isinstance(n, ast.Attribute)}
    roots = {name.partition(".")[0] for name in imports(TREES[path])}
    used = (names | roots | set(imports(TREES[path]))) & RANDOMNESS
    allowed = {
        "engine": {"os.urandom", "random"},
        "supabase": {"os.urandom"},
        "stores": {"cryptography"},  # AES-GCM, whose nonce comes from the engine
        "testing": {"secrets"},
        "cli": {"secrets"},
    }
    assert used <= allowed.get(room_of(name_of(path)), set())


@every_file
def test_nothing_builds_python_from_text(path: Path) -> None:
    """No eval, no exec, no pickle, no marshal."""
    names = {
        dotted(node.func) for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)
    }
    assert set() == names & {"eval", "exec", "compile"}
    roots = {name.partition(".")[0] for name in imports(TREES[path])}
    assert set() == roots & {"pickle", "marshal", "shelve"}


def test_no_source_names_a_home() -> None:
    """The source holds no path of the machine it was written on."""
    for path in FILES:
        assert not re.search(
            r"(^|[\s\"'])/(work|home|root)/", path.read_text(encoding="utf-8")
        )
