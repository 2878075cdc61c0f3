"""A server of their own for the fault tests, which stop it, freeze it and fill it up, and
the fleets that several tests share: every fault here is one that the workers get over.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from anyio import to_thread

from handstamp.stores.install import install
from handstamp.testing.postgres import EmbeddedPostgres, ephemeral
from tests.faults.fleet import Fleet, fleet
from tests.faults.proxy import Proxy, proxy

SETTINGS = {
    "max_connections": "300",
    "max_notify_queue_pages": "64",
    "synchronous_commit": "on",  # a crash on purpose must not undo what was committed
}
STALENESS = 2
Launch = Callable[..., Fleet]


@pytest.fixture(scope="session")
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server that a test may do anything to, if it runs again in the end."""
    with ephemeral(settings=SETTINGS) as server:
        yield server


@contextmanager
def tables(server: EmbeddedPostgres, *, trigger: bool) -> Iterator[str]:
    """A database with empty tables, dropped at the end."""
    name = f"faults_{secrets.token_hex(6)}"
    asyncio.run(_execute(server.dsn(), f"create database {name} template template0"))
    try:
        asyncio.run(_install(server.dsn(name), trigger))
        yield server.dsn(name)
    finally:
        asyncio.run(_execute(server.dsn(), f"drop database {name} with (force)"))


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def _install(dsn: str, trigger: bool) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await install(connection, "ulid", trigger=trigger)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def launch(
    own_postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launch]:
    """Start workers on a database of their own; they run to the end of the session."""
    with ExitStack() as stack:

        def launch(*, trigger: bool = True, **options: Any) -> Fleet:
            dsn = stack.enter_context(tables(own_postgres, trigger=trigger))
            folder = tmp_path_factory.mktemp("fleet")
            return stack.enter_context(fleet(dsn, folder, **options))

        yield launch


@pytest.fixture(scope="session")
def prompt_workers(launch: Launch) -> Fleet:
    """Four workers with a long `max_staleness`: only a notification makes them refuse."""
    return launch(count=4, max_staleness=60)


@pytest.fixture
async def prompt(prompt_workers: Fleet) -> AsyncIterator[Fleet]:
    """The same, listening."""
    async with prompt_workers.ready() as fleet:
        yield fleet


@dataclass
class Wires:
    """The two connections of the workers to the server: for queries, and for LISTEN."""

    queries: Proxy
    listener: Proxy


@dataclass
class Wired:
    """A fleet behind proxies."""

    fleet: Fleet
    wires: Wires


@pytest.fixture(scope="session")
def wired_workers(
    own_postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Wired]:
    """Four workers behind proxies, with ``max_staleness`` of ``STALENESS`` seconds, which
    write activity within moments."""
    with ExitStack() as stack:
        dsn = stack.enter_context(tables(own_postgres, trigger=True))
        wires = Wires(*(stack.enter_context(proxy(dsn)) for _ in range(2)))
        workers = fleet(
            dsn,
            tmp_path_factory.mktemp("fleet"),
            count=4,
            by_way_of=wires.queries.before(dsn),
            listen_dsn=wires.listener.before(dsn),
            max_staleness=STALENESS,
            touch_every=0.2,
            flush_every=0.5,
        )
        yield Wired(stack.enter_context(workers), wires)


@pytest.fixture
async def wired(
    wired_workers: Wired, own_postgres: EmbeddedPostgres
) -> AsyncIterator[Fleet]:
    """The same, listening; the server runs again after a test that failed half-way."""
    async with wired_workers.fleet.ready() as fleet:
        yield fleet
    if not own_postgres.is_running:
        await to_thread.run_sync(own_postgres.start)


@pytest.fixture
def wires(wired_workers: Wired) -> Iterator[Wires]:
    """The proxies in front of them; they forward again at the end."""
    yield wired_workers.wires
    wired_workers.wires.queries.heal()
    wired_workers.wires.listener.heal()
