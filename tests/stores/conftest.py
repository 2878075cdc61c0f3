"""Databases with a table of any definition there is a contract for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from tests.conftest import (
    Server,
    copied,
    created,
    execute,
    supabase_template,
    template,
)
from tests.support.foreign_tables import FOREIGN, ddl
from tests.support.tables import has

Templates = Callable[[str], str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out a rule of the contract with parameters that its table cannot have."""
    items[:] = [item for item in items if _is_possible(item)]


def _is_possible(item: pytest.Item) -> bool:
    words = [word for mark in item.iter_markers("needs") for word in mark.args]
    if not words:
        return True
    assert isinstance(item, pytest.Function)
    name = item.callspec.params["kind"].rpartition(" ")[2]
    return all(has(name, word) for word in words)


def _template(server: Server, name: str, stack: ExitStack) -> str:
    if name == "supabase":
        return stack.enter_context(supabase_template(server))
    if name not in FOREIGN:
        return stack.enter_context(template(server, name))
    dsn = stack.enter_context(created(server.dsn(), "handstamp_template"))
    asyncio.run(execute(dsn, ddl(name)))
    return dsn


@pytest.fixture(scope="session")
def templates(postgres: Server) -> Iterator[Templates]:
    """The database with empty tables of this name, made when it is first asked for."""
    with ExitStack() as stack:
        yield cache(lambda name: _template(postgres, name, stack))


@pytest.fixture(scope="session")
def system_templates(system_postgres: Server) -> Iterator[Templates]:
    """The same on the system's own PostgreSQL."""
    with ExitStack() as stack:
        yield cache(lambda name: _template(system_postgres, name, stack))


@pytest.fixture(scope="session")
def lasting(postgres: Server) -> Iterator[Templates]:
    """One database of this name for many tests, each of which empties it first."""
    with ExitStack() as stack:
        yield cache(lambda name: _template(postgres, name, stack))


@pytest.fixture(scope="session")
def system_lasting(system_postgres: Server) -> Iterator[Templates]:
    """The same on the system's own PostgreSQL."""
    with ExitStack() as stack:
        yield cache(lambda name: _template(system_postgres, name, stack))


@pytest.fixture
def foreign_dsn(
    templates: Templates,
) -> Iterator[Callable[[str], str]]:
    """A database for one test, with the empty tables of one of the foreign definitions."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(copied(templates(name)))


@pytest.fixture(
    params=["templates", pytest.param("system_templates", marks=pytest.mark.postgres15)],
    ids=["postgres", "system-postgres"],
)
def each_uuid_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with an empty table with UUIDs, on each version of PostgreSQL."""
    with copied(request.getfixturevalue(request.param)("uuid")) as dsn:
        yield dsn
