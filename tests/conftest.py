"""What every test may ask for: a real PostgreSQL, and a database of its own.

The server is an embedded one, started once for a run and all of its workers, or the one in
DATABASE_URL, whose role must be a superuser. A template database is made once for each
worker; each test gets a copy of it.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import pytest

from handstamp.config import Policy
from handstamp.stores.install import install
from handstamp.stores.table import TableStore
from handstamp.supabase.store import SupabaseStore
from handstamp.testing.binaries import bundled_bin_dir
from handstamp.testing.postgres import ephemeral
from tests.support.shared_postgres import folder_of_run, shared_postgres
from tests.support.supabase import make_tables

with suppress(ImportError):  # a framework alone is tested without hypothesis
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("any machine")

# Dozens of examples run beside each other, with a few connections each.
SERVER_SETTINGS = {"max_connections": "1000"}
GENEROUS = timedelta(seconds=30)
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""What an object is called that has no name: another in each process."""
SLOW_AS_WELL = ("browser", "multiprocess", "npm")
MEMORY = Path("/dev/shm")
ROOM = 4 * 2**30
"""What the servers of a whole run may fill, in bytes."""

# Four times as fast without fsync, which is how our own servers run; on a server
# that is careful with its data it would wait for checkpoints.
STRATEGY = "" if os.environ.get("DATABASE_URL") else "strategy file_copy"


def be_generous() -> None:
    """Have half a minute for a time budget in place of a second: how fast the machine is
    proves nothing. A test of the budget gives its own."""
    Policy.__init__.__kwdefaults__["time_budget"] = GENEROUS
    for store in (TableStore, SupabaseStore):
        store.__init__.__kwdefaults__["budget"] = GENEROUS


be_generous()  # before a test is imported that has its policy from then on


class Server(Protocol):
    """A PostgreSQL server that says how to reach its databases."""

    def dsn(self, database: str = "postgres") -> str:
        """Give the address of a database, for a superuser."""
        ...


class GivenServer:
    """A server that was started elsewhere."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    def dsn(self, database: str = "postgres") -> str:
        """Give the address of another database of the same server."""
        return urlunsplit(self._url._replace(path="/" + quote(database, safe="")))


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: Any) -> None:
    """Run every `async def test_*` with anyio, without a mark on each of them."""
    if not name.startswith("test"):
        return  # a proxy, such as Flask's request, may not even be looked at
    hypothesis = getattr(obj, "hypothesis", None)
    function = getattr(hypothesis, "inner_test", obj)
    if iscoroutinefunction(function):
        pytest.mark.anyio(obj)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs other programs takes seconds. Workers must agree about names."""
    named = [item.nodeid for item in items if ADDRESS.search(item.nodeid)]
    if named:
        raise pytest.UsageError(f"give the parameters a fixed id: {named[0]}")
    for item in items:
        if any(item.get_closest_marker(name) for name in SLOW_AS_WELL):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadscope``: one worker for all tests that share what is costly."""
    if config.getoption("dist") != "loadscope":
        return None
    from tests.support.xdist_scheduler import Scheduling  # needs pytest-xdist

    return Scheduling(config, log)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is in the background of some shells, and every server started here would
    # inherit that; some are ended by this signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncpg needs asyncio: no test runs on anything else."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The server of the run, shared by all tests: stop it in none of them."""
    url = os.environ.get("DATABASE_URL")
    if url:
        yield GivenServer(url)
        return
    with _server() as server:
        yield server


@contextmanager
def _server(bin_dir: Path | None = None) -> Iterator[Server]:
    folder = folder_of_run()
    options: dict[str, Any] = {
        "settings": SERVER_SETTINGS,
        "bin_dir": bin_dir,
        "inside": _in_memory(),
    }
    if folder is None:
        with ephemeral(**options) as server:
            yield server
        return
    with shared_postgres(folder, **options) as url:
        yield GivenServer(url)


@pytest.fixture(scope="session")
def system_bin_dir() -> Path:
    """The programs of an installed PostgreSQL of another major version."""
    bundled = _major(bundled_bin_dir())
    for bin_dir in _system_bin_dirs():
        if (bin_dir / "postgres").exists() and _major(bin_dir) != bundled:
            return bin_dir
    pytest.skip("no PostgreSQL of another major version is installed")


@pytest.fixture(scope="session")
def system_postgres(system_bin_dir: Path) -> Iterator[Server]:
    """A second server, of the system's own PostgreSQL; skips when there is none."""
    with _server(system_bin_dir) as server:
        yield server


@pytest.fixture(scope="session")
def template_dsn(postgres: Server) -> Iterator[str]:
    """The database with empty tables that each test's own is copied from."""
    with template(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def system_template_dsn(system_postgres: Server) -> Iterator[str]:
    """The same on the system's own PostgreSQL."""
    with template(system_postgres) as dsn:
        yield dsn


@pytest.fixture
def dsn(template_dsn: str) -> Iterator[str]:
    """A database for one test, with empty tables."""
    with copied(template_dsn) as copy:
        yield copy


@pytest.fixture
def system_dsn(system_template_dsn: str) -> Iterator[str]:
    """Like `dsn`, on the system's own PostgreSQL; skips when there is none."""
    with copied(system_template_dsn) as copy:
        yield copy


@pytest.fixture(scope="session")
def supabase_template_dsn(postgres: Server) -> Iterator[str]:
    """The database with empty tables of Supabase Auth."""
    with supabase_template(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def system_supabase_template_dsn(system_postgres: Server) -> Iterator[str]:
    """The same on the system's own PostgreSQL."""
    with supabase_template(system_postgres) as dsn:
        yield dsn


@pytest.fixture
def supabase_dsn(supabase_template_dsn: str) -> Iterator[str]:
    """A database for one test, with empty tables of Supabase Auth."""
    with copied(supabase_template_dsn) as copy:
        yield copy


@pytest.fixture(
    params=[
        "supabase_template_dsn",
        pytest.param("system_supabase_template_dsn", marks=pytest.mark.postgres15),
    ],
    ids=["postgres", "system-postgres"],
)
def each_supabase_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """Like `supabase_dsn`, once on each version of PostgreSQL there is."""
    with copied(request.getfixturevalue(request.param)) as copy:
        yield copy


@pytest.fixture(scope="session")
def uuid_template_dsn(postgres: Server) -> Iterator[str]:
    """The database with an empty table of the shape with UUIDs."""
    with template(postgres, "uuid") as dsn:
        yield dsn


@pytest.fixture
def uuid_dsn(uuid_template_dsn: str) -> Iterator[str]:
    """A database for one test, with an empty table of the shape with UUIDs."""
    with copied(uuid_template_dsn) as copy:
        yield copy


@pytest.fixture
def empty_dsn(postgres: Server) -> Iterator[str]:
    """A database for one test, without tables."""
    with created(postgres.dsn(), "handstamp_test") as dsn:
        yield dsn


@pytest.fixture(
    params=[
        "template_dsn",
        pytest.param("system_template_dsn", marks=pytest.mark.postgres15),
    ],
    ids=["postgres", "system-postgres"],
)
def each_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """Like `dsn`, once on each version of PostgreSQL there is."""
    with copied(request.getfixturevalue(request.param)) as copy:
        yield copy


@contextmanager
def template(server: Server, shape: str = "ulid") -> Iterator[str]:
    """Make a template database with the tables; drop it at the end."""
    with created(server.dsn(), "handstamp_template") as dsn:
        asyncio.run(_install(dsn, shape))
        yield dsn


@contextmanager
def supabase_template(server: Server) -> Iterator[str]:
    """Make a template database with the tables of Supabase Auth; drop it at the end.

    The role that owns them stays: other databases of the server may need it.
    """
    with created(server.dsn(), "handstamp_supabase") as dsn:
        asyncio.run(make_tables(dsn))
        yield dsn


@contextmanager
def copied(template_dsn: str) -> Iterator[str]:
    """Copy a database without connections; drop the copy at the end."""
    name = urlsplit(template_dsn).path.removeprefix("/")
    with created(_beside(template_dsn, "postgres"), "handstamp_test", name) as dsn:
        yield dsn


@contextmanager
def created(admin_dsn: str, prefix: str, copy_of: str = "template0") -> Iterator[str]:
    """Create a database with a unique name; drop it at the end, also while it is in use."""
    name = f"{prefix}_{secrets.token_hex(6)}"
    sql = f"create database {name} template {copy_of} {STRATEGY}"
    asyncio.run(execute(admin_dsn, sql))
    try:
        yield _beside(admin_dsn, name)
    finally:
        asyncio.run(execute(admin_dsn, f"drop database if exists {name} with (force)"))


async def execute(dsn: str, sql: str) -> None:
    """Run SQL on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def _install(dsn: str, shape: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await install(connection, shape)
    finally:
        await connection.close()


def _beside(dsn: str, database: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


def _system_bin_dirs() -> Iterator[Path]:
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    try:
        yield Path(subprocess.check_output(["pg_config", "--bindir"], text=True).strip())
    except (OSError, subprocess.CalledProcessError):
        return


def _in_memory() -> Path | None:
    """Where there is room in memory: thousands of databases are copied and dropped."""
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM:
        return None
    return MEMORY


def _major(bin_dir: Path) -> str:
    version = subprocess.check_output([bin_dir / "postgres", "--version"], text=True)
    return version.split()[2].partition(".")[0]
