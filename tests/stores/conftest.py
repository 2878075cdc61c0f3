"""Databases with a table of any definition there is a contract for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from tests.conftest import Server, copied, created, execute, template
from tests.support.foreign_tables import FOREIGN, ddl


def _template(server: Server, name: str, stack: ExitStack) -> str:
    if name not in FOREIGN:
        return stack.enter_context(template(server, name))
    dsn = stack.enter_context(created(server.dsn(), "handstamp_template"))
    asyncio.run(execute(dsn, ddl(name)))
    return dsn


@pytest.fixture(scope="session")
def templates(request: pytest.FixtureRequest) -> Iterator[Callable[[str, str], str]]:
    """The database with empty tables of this name on this server, made when asked for."""
    with ExitStack() as stack:

        @cache
        def made(server: str, name: str) -> str:
            return _template(request.getfixturevalue(server), name, stack)

        yield made


@pytest.fixture
def foreign_dsn(
    templates: Callable[[str, str], str],
) -> Iterator[Callable[[str], str]]:
    """A database for one test, with the empty tables of one of the foreign definitions."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(copied(templates("postgres", name)))
