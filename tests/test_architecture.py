"""The rules of the architecture, checked in the source: layers, a pure core, public names.

CONTRIBUTING.md shows the same layers; tests/test_contributing_page.py compares them.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "handstamp"
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

# Seven layers, from the bottom up. A module imports from its own layer or from below.
LAYERS = [
    {"config", "options", "errors", "_fork"},
    {"core", "events"},
    {"stores"},
    {"engine"},
    {
        *("_connections", "_handle", "_request", "asgi", "wsgi", "blocking"),
        *("supabase", "doctor"),
    },
    {
        *("_pallets", "bottle", "django", "falcon", "fastapi", "flask", "litestar"),
        *("pyramid", "quart", "starlette"),
    },
    {"cli", "testing", "", "__main__"},
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


def test_every_module_has_a_layer() -> None:
    """A new module at the top of the package must say in which layer it is."""
    assert {room_of(name_of(path)) for path in FILES} <= set(RANKS)


@every_file
def test_imports_only_go_down(path: Path) -> None:
    """No module imports from a layer above its own."""
    own = RANKS[room_of(name_of(path))]
    above = [room for room in own_imports(TREES[path]) if RANKS[room] > own]
    assert above == []


@every_file
def test_supabase_and_the_doctor_are_imported_by_commands_and_test_helpers_only(
    path: Path,
) -> None:
    """Supabase Auth is one folder, on which the other code does not depend. The doctor
    serves a person at a terminal, and no request. (Supabase has a doctor of its own.)"""
    room = room_of(name_of(path))
    known = set(own_imports(TREES[path])) & ({"supabase", "doctor"} - {room})
    assert known == set() or room in {"cli", "testing", "supabase"}


@every_file
def test_frameworks_do_not_import_each_other(path: Path) -> None:
    """Two exceptions: FastAPI is built on Starlette, and Flask and Quart share a module."""
    frameworks = LAYERS[5]
    room = room_of(name_of(path))
    allowed = {"fastapi": {"starlette"}, "flask": {"_pallets"}, "quart": {"_pallets"}}
    if room in frameworks:
        others = set(own_imports(TREES[path])) & frameworks - {room}
        assert others <= allowed.get(room, set())


@core_file
def test_the_core_imports_the_standard_library_and_two_packages(path: Path) -> None:
    """The rules need no other package."""
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
    """It does not open a file, print or await, either."""
    calls = [node.func for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]
    named = {node.attr for node in calls if isinstance(node, ast.Attribute)}
    plain = {node.id for node in calls if isinstance(node, ast.Name)}
    assert set() == named & CLOCKS
    assert set() == plain & {"open", "print", "input", "exec", "eval", "hash", "id"}
    waits = ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith
    assert not any(isinstance(node, waits) for node in ast.walk(TREES[path]))


@every_file
def test_sql_is_in_few_rooms(path: Path) -> None:
    """Only what works on tables has SQL: stores, Supabase, the doctor, test databases."""
    if room_of(name_of(path)) not in {"stores", "supabase", "doctor", "testing"}:
        assert [text for text in strings(TREES[path]) if SQL.search(text)] == []


@every_file
def test_only_one_package_writes_notifications(path: Path) -> None:
    """The name of the channel, the payload and NOTIFY are in `stores.notify` alone."""
    if not name_of(path).startswith("stores.notify"):
        sql = re.compile(r"\bpg_notify\b|\blisten\s+handstamp\b|^[sduc]:")
        assert [text for text in strings(TREES[path]) if sql.search(text)] == []


def test_the_expression_for_sql_finds_statements() -> None:
    """The check above can fail: it finds the statements of the stores."""
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
def test_no_function_is_over_80_lines(path: Path) -> None:
    """A function can be read as a whole."""
    assert [f.name for f in functions(TREES[path]) if length(f) > 80] == []


@every_file
def test_no_file_is_over_500_lines(path: Path) -> None:
    """A file can be read as a whole. There is no lower limit, and no limit of imports."""
    assert path.read_text(encoding="utf-8").count("\n") <= 500


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
def test_no_token_or_secret_is_compared_as_text(path: Path) -> None:
    """Tokens are found by their digest. The time of an `==` would depend on the token."""

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
    if room_of(name_of(path)) != "cli":  # the demo simulates a browser and has its cookies
        assert compared == []


@every_file
def test_c48_the_system_is_the_only_source_of_randomness(path: Path) -> None:
    """`os.urandom` in the engine, and `secrets` where no token is made."""
    names = {dotted(n) for n in ast.walk(TREES[path]) if isinstance(n, ast.Attribute)}
    roots = {name.partition(".")[0] for name in imports(TREES[path])}
    used = (names | roots | set(imports(TREES[path]))) & RANDOMNESS
    allowed = {
        "engine": {"os.urandom", "random"},
        "supabase": {"os.urandom", "cryptography"},  # AES-GCM; the engine gives its nonce
        "testing": {"secrets"},
        "doctor": {"secrets"},
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


def test_no_source_has_a_path_of_this_machine() -> None:
    """No path of the machine on which it was written."""
    for path in FILES:
        assert not re.search(
            r"(^|[\s\"'])/(work|home|root)/", path.read_text(encoding="utf-8")
        )


PUBLIC = {
    "handstamp": {"Cookies", "Policy", "Sessions", "TableShape", "TrustedProxies"},
    "handstamp.asgi": {"SessionAuthMiddleware"},
    "handstamp.wsgi": {"SessionAuthMiddleware"},
    "handstamp.blocking": {"call"},
    "handstamp.config": {"Cookies", "Policy", "TrustedProxies"},
    "handstamp.errors": {
        *("AuthenticationRequired", "ConfigError", "CrossSiteRequest", "StepUpRequired"),
        *("FreshLoginRequired", "HandstampError", "LoginRefused", "SessionsUnavailable"),
    },
    "handstamp.events": {
        *("BindingChanged", "CookieOverridden", "CrossSiteRefused", "DuplicateCookies"),
        *("Event", "LateRefresh", "LoggedIn", "LoginWasRefused", "Refreshed", "Reissued"),
        *("Replayed", "Revoked", "SessionEvent", "TokenSwapped"),
    },
    "handstamp.starlette": {"SessionAuthMiddleware", "session_auth", "wrap"},
    "handstamp.fastapi": {"CurrentSession", "SessionAuth", "current_session", "wrap"},
    "handstamp.litestar": {"SessionAuthPlugin", "requires_session", "wrap"},
    "handstamp.quart": {"SessionAuth", "current_session", "login_required"},
    "handstamp.flask": {"SessionAuth", "current_session", "login_required"},
    "handstamp.django": {"SessionAuthMiddleware", "login", "logout", "wrap"},
    "handstamp.falcon": {"requires_session", "session_auth", "wrap"},
    "handstamp.pyramid": {"includeme", "session_auth"},
    "handstamp.bottle": {"SessionAuthPlugin", "session_auth", "wrap"},
    "handstamp.supabase": {"SupabaseRules", "SupabaseSessions"},
    "handstamp.testing": {"assert_revoked", "login_as", "memory_sessions", "outage"},
}
PAGES = [ROOT.parents[1] / "README.md", *(ROOT.parents[1] / "docs").glob("*.md")]
DOCUMENTED = {
    (module, name.strip())
    for page in PAGES
    for module, names in re.findall(
        r"^ *from (handstamp[\w.]*) import (\([^)]*\)|[^#\n(]+)",
        page.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    for name in names.strip("() \n").split(",")
    if name.strip()
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_import_paths_stay(module: str) -> None:
    """The names that applications import from each public module."""
    found = importlib.import_module(module)
    assert {name for name in PUBLIC[module] if not hasattr(found, name)} == set()


def test_the_pages_import_names() -> None:
    """The expression above finds them."""
    assert len(DOCUMENTED) > 30


@pytest.mark.parametrize(("module", "name"), sorted(DOCUMENTED))
def test_what_a_page_imports_is_defined(module: str, name: str) -> None:
    """The name is an assignment, a definition or an import of the module, or a module."""
    parts = module.split(".")[1:]
    file = next(
        path
        for path in (
            ROOT.joinpath(*parts, "__init__.py"),
            ROOT.joinpath(*parts).with_suffix(".py"),
        )
        if path.exists()
    )
    tree = TREES[file]
    names = {node.name for node in tree.body if isinstance(node, Function | ast.ClassDef)}
    names |= {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names |= {
        n.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    assert name in names or ROOT.joinpath(*parts, f"{name}.py").exists()
