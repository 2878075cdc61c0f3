"""One server as the stores see it: a budget for everything, a second try, a breaker.

No test measures time. A budget is long where something must succeed, and short where
something must time out: what it waits for would take a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from handstamp.errors import SessionsUnavailable
from handstamp.stores import connection as connection_module
from handstamp.stores.connection import READ_POOL_SIZE, Database
from tests.support.tcp_proxy import TcpProxy, tcp_proxy
from tests.support.waiting import until

LONG = 30.0
SHORT = 0.2
MINUTE = "select pg_sleep(60)"
# What a server sends on a connection that an administrator terminates.
FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
FATAL = b"E" + (len(FIELDS) + 4).to_bytes(4, "big") + FIELDS


@pytest.fixture
async def wire(dsn: str) -> AsyncIterator[TcpProxy]:
    """A proxy in front of an empty database."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with tcp_proxy(dsn) as wire:
        yield wire


@pytest.fixture
async def database(wire: TcpProxy) -> AsyncIterator[Database]:
    """A database behind a proxy, with a long budget."""
    database = Database(wire.dsn, pool_size=2, budget=timedelta(seconds=LONG))
    yield database
    wire.thaw()
    database._budget = SHORT  # for handshakes that a test has left
    await database.close()


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A breaker that stays open for the length of a test."""
    monkeypatch.setattr(connection_module, "FIRST_PAUSE", 60.0)


async def refused(database: Database, sql: str = "select 1") -> str:
    """Read without an answer; returns the cause."""
    with pytest.raises(SessionsUnavailable) as caught:
        await database.read(sql)
    return caught.value.cause


# The budget.


async def test_p16_c123_a_slow_query_ends_with_the_budget(
    database: Database, no_probe: None
) -> None:
    """It is no answer, and the breaker opens: the next query is not sent."""
    database._budget = SHORT
    assert await refused(database, MINUTE) == "TimeoutError"
    assert database.breaker.is_open
    sent = database.queries
    await refused(database)
    assert database.queries == sent


async def test_p16_connecting_is_inside_the_budget(
    database: Database, wire: TcpProxy, no_probe: None
) -> None:
    """A server that accepts and sends nothing times out like a slow query."""
    database._budget = SHORT
    wire.freeze()
    assert await refused(database) == "TimeoutError"
    assert (database.queries, database.breaker.is_open) == (0, True)


async def test_p16_handshakes_that_hang_are_a_few(
    database: Database, wire: TcpProxy
) -> None:
    """However many callers ask while a server accepts and sends nothing: a handshake whose
    caller was cancelled goes on for a while, and the next one takes its place."""
    database._budget = SHORT
    wire.freeze()
    most = 0

    async def ask(number: int) -> None:
        nonlocal most
        with pytest.raises((SessionsUnavailable, TimeoutError)):
            async with asyncio.timeout(0.001 * number):  # they leave one after the other
                await database.fetch("select 1")
        most = max(most, len(database._connecting))

    await asyncio.gather(*(ask(number) for number in range(200)))
    assert 0 < most <= 2 * (READ_POOL_SIZE + database._pool_size)


async def test_c122_waiting_for_a_connection_is_inside_the_budget(
    database: Database, no_probe: None
) -> None:
    """When all connections are in use, a caller that waits for one gets an error."""
    async with database.acquire_write(), database.acquire_write():
        database._budget = SHORT
        with pytest.raises(SessionsUnavailable):
            async with database.acquire_write():
                pytest.fail("there were two connections")  # pragma: no cover


async def test_c123_a_frozen_connection_is_dropped_at_once(
    database: Database, wire: TcpProxy
) -> None:
    """Nothing waits for it: the proxy thaws only after the error, and a new connection is
    made."""
    await database.read("select 1")
    connections = wire.connections
    wire.freeze()
    database._budget = SHORT
    await refused(database)
    database._budget = LONG
    assert database._reads is not None
    assert len(database._reads._all) == 0
    wire.thaw()
    await until(lambda: not database.breaker.is_open)
    await database.read("select 1")
    assert wire.connections > connections


async def test_c122_slow_writes_do_not_starve_reads(database: Database) -> None:
    """With every connection for writes in use, a read has its own."""
    async with database.acquire_write(), database.acquire_write():
        assert await database.read("select 1 as one") == [(1,)]


async def test_a_write_has_a_longer_budget(
    database: Database, no_probe: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes longer than the budget of a read, for a lock, does not time out."""
    monkeypatch.setattr(connection_module, "WRITE_BUDGETS", LONG / SHORT)
    await database.read("select 1")
    database._budget = SHORT
    assert len(await database.fetch("select pg_sleep(0.5)")) == 1
    assert not database.breaker.is_open
    assert await refused(database, "select pg_sleep(0.5)") == "TimeoutError"


async def test_a_write_that_times_out_opens_no_breaker(database: Database) -> None:
    """It may only have waited for a lock; reads go on."""
    database._budget = SHORT
    with pytest.raises(SessionsUnavailable):
        await database.fetch(MINUTE)
    database._budget = LONG
    assert not database.breaker.is_open
    await database.read("select 1")


# The breaker.


async def test_a_refused_connection_opens_the_breaker(
    database: Database, wire: TcpProxy, no_probe: None
) -> None:
    """By a write as by a read: no time is needed to know it."""
    await wire.stop()
    with pytest.raises(SessionsUnavailable):
        await database.fetch("select 1")
    assert database.breaker.is_open


async def test_an_error_of_the_server_opens_no_breaker(database: Database) -> None:
    """A server that refuses a statement is up."""
    for sql in ("select 1 / 0", "select nonsense", "selekt"):
        await refused(database, sql)
        assert not database.breaker.is_open


async def test_p16_the_breaker_closes_by_its_own_probe(
    database: Database, wire: TcpProxy
) -> None:
    """When the server is back, no request has to find out: the probe has."""
    await wire.stop()
    await refused(database)
    connections = wire.connections
    await wire.start()
    await until(lambda: not database.breaker.is_open)
    assert wire.connections == connections + 1
    await database.read("select 1")


async def test_a_probe_of_a_frozen_server_times_out(
    database: Database, wire: TcpProxy
) -> None:
    """Each within the budget, so that the recovery is noticed soon."""
    database._budget = SHORT
    wire.freeze()
    await refused(database)
    connections = wire.connections
    await until(lambda: wire.connections >= connections + 2)
    assert database.breaker.is_open
    database._budget = LONG
    wire.thaw()
    await until(lambda: not database.breaker.is_open)


# Statements that are sent twice.


async def test_c125_a_read_is_repeated_on_a_new_connection(
    database: Database, wire: TcpProxy
) -> None:
    """Every kept connection is dead, and every read still has its answer."""
    await asyncio.gather(*(database.read("select 1") for _ in range(READ_POOL_SIZE)))
    wire.cut()
    for _ in range(2 * READ_POOL_SIZE):
        assert await database.read("select 1 as one") == [(1,)]
    assert not database.breaker.is_open


async def test_c125_a_query_whose_backend_was_terminated_is_repeated(dsn: str) -> None:
    """Once, on a new connection: the second termination is an error."""
    database = Database(dsn, pool_size=2, budget=timedelta(seconds=LONG))
    killer = await asyncpg.connect(dsn)
    try:
        slow = asyncio.ensure_future(
            database.read("select pg_sleep(case when $1 then 60 else 0 end)", True)
        )
        other = """select pid from pg_stat_activity where pid <> pg_backend_pid()
            and datname = current_database() and wait_event = 'PgSleep'"""
        for expected in (1, 2):
            while (pid := await killer.fetchval(other)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert database.queries == expected
            await killer.execute("select pg_terminate_backend($1)", pid)
            while await killer.fetchval(  # noqa: ASYNC110
                "select count(*) from pg_stat_activity where pid = $1", pid
            ):
                await asyncio.sleep(0.01)
        with pytest.raises(SessionsUnavailable):
            await slow
        assert database.queries == 2
    finally:
        await killer.close()
        await database.close()


async def test_an_error_of_the_server_is_not_repeated(database: Database) -> None:
    """It is an answer. A statement that timed out is not repeated either."""
    await database.read("select 1")
    for sql, budget in (("select 1 / 0", LONG), (MINUTE, SHORT)):
        database._budget = budget
        sent = database.queries
        await refused(database, sql)
        assert database.queries == sent + 1


async def test_work_of_several_statements_is_never_repeated(
    database: Database, wire: TcpProxy
) -> None:
    """If its connection is lost, it fails at once."""
    started = 0

    async def work() -> None:
        nonlocal started
        async with database.acquire_write() as connection:
            started += 1
            wire.cut()
            await connection.execute("select 1")

    with pytest.raises(SessionsUnavailable):
        await work()
    assert started == 1


async def test_c130_a_changed_table_causes_no_lasting_fault(dsn: str) -> None:
    """Prepared statements of a connection that was kept during a migration go on
    working."""
    connection = await asyncpg.connect(dsn)
    database = Database(dsn, pool_size=1, budget=timedelta(seconds=LONG))
    try:
        await connection.execute("create table changing (a int)")
        await connection.execute("insert into changing values (1)")
        assert await database.read("select * from changing") == [(1,)]
        await connection.execute("alter table changing add b int default 2")
        assert await database.read("select * from changing") == [(1, 2)]
    finally:
        await connection.close()
        await database.close()


async def test_a_query_is_repeated_after_a_termination_message(dsn: str) -> None:
    """A FATAL that arrived while no query ran loses that connection, and no more.

    The driver then reports an error outside of its own hierarchy, because its connection is
    neither idle nor closed until the end of the stream has been read too.
    """
    database = Database(dsn, pool_size=1, budget=timedelta(seconds=LONG))
    try:
        await database.read("select 1")
        assert database._reads is not None
        (connection,) = database._reads._free
        connection._protocol.data_received(FATAL)
        with pytest.raises(asyncpg.InternalClientError):
            await connection.fetch("select 1")
        await database.read("select 1")
        assert database._reads._free[0] is not connection
    finally:
        await database.close()


# Loops.


def test_c141_a_database_serves_one_loop_after_another(dsn: str) -> None:
    """Also when the last loop ended with an open breaker."""
    database = Database(dsn, pool_size=1, budget=timedelta(seconds=LONG))

    async def trip() -> None:
        database.open()
        database.breaker.trip()

    async def ask() -> object:
        try:
            return (await database.read("select 1 as one"))[0]["one"]
        finally:
            await database.close()

    asyncio.run(trip())
    assert asyncio.run(ask()) == 1
    assert asyncio.run(ask()) == 1
