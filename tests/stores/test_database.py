"""One server as the stores see it: a budget for everything, a second try, a breaker.

No test here measures time: where something must end, it ends long before a minute, which is
what the thing it waits for would take.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from handstamp.errors import SessionsUnavailable
from handstamp.stores import connection as breaker_module
from handstamp.stores.connection import READ_POOL_SIZE, Database
from tests.support.tcp_proxy import TcpProxy, tcp_proxy
from tests.support.waiting import until

BUDGET = timedelta(seconds=0.2)
MINUTE = "select pg_sleep(60)"


@pytest.fixture
async def wire(dsn: str) -> AsyncIterator[TcpProxy]:
    """A wire to an empty database."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with tcp_proxy(dsn) as wire:
        yield wire


@pytest.fixture
async def database(wire: TcpProxy) -> AsyncIterator[Database]:
    """A database at the end of a wire, with little patience."""
    database = Database(wire.dsn, pool_size=2, budget=BUDGET)
    yield database
    wire.thaw()
    await database.close()


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A breaker that, once open, stays so for the length of a test."""
    monkeypatch.setattr(breaker_module, "FIRST_PAUSE", 60.0)


async def refused(database: Database, sql: str = "select 1") -> str:
    """Look up in vain; the cause."""
    with pytest.raises(SessionsUnavailable) as caught:
        async with asyncio.timeout(30):
            await database.read(sql)
    return caught.value.cause


# The budget.


async def test_p16_c123_a_slow_query_ends_with_the_budget(
    database: Database, no_probe: None
) -> None:
    """It is no answer, and the breaker opens: the next question is not even asked."""
    assert await refused(database, MINUTE) == "TimeoutError"
    assert database.breaker.is_open
    asked = database.queries
    await refused(database)
    assert database.queries == asked


async def test_p16_connecting_is_inside_the_budget(
    database: Database, wire: TcpProxy, no_probe: None
) -> None:
    """A server that accepts and says nothing is given up like a slow query."""
    wire.freeze()
    assert await refused(database) == "TimeoutError"
    assert (database.queries, database.breaker.is_open) == (0, True)


async def test_p16_handshakes_that_hang_are_a_few(
    database: Database, wire: TcpProxy
) -> None:
    """However many ask while a server accepts and says nothing: a handshake that was given
    up goes on for a while, and its lane is taken by the next one."""
    wire.freeze()
    most = 0

    async def ask(number: int) -> None:
        nonlocal most
        with pytest.raises((SessionsUnavailable, TimeoutError)):
            async with asyncio.timeout(0.001 * number):  # they give up one after the other
                await database.fetch("select 1")
        most = max(most, len(database._connecting))

    await asyncio.gather(*(ask(number) for number in range(200)))
    assert 0 < most <= 2 * (READ_POOL_SIZE + database._pool_size)


async def test_c122_waiting_for_a_lane_is_inside_the_budget(
    wire: TcpProxy, no_probe: None
) -> None:
    """When all lanes are taken, whoever waits for one is told in time."""
    database = Database(wire.dsn, pool_size=1, budget=timedelta(seconds=1))
    async with database.acquire_write():
        database._budget = 0.05
        with pytest.raises(SessionsUnavailable):
            async with asyncio.timeout(30), database.acquire_write():
                pytest.fail("there was one lane")  # pragma: no cover
    await database.close()


async def test_c123_a_frozen_connection_is_dropped_without_a_word(
    database: Database, wire: TcpProxy
) -> None:
    """Not waited for: the wire thaws only after the answer, and a new one is made."""
    await database.read("select 1")
    connections = wire.connections
    wire.freeze()
    await refused(database)
    assert database._reads is not None
    assert len(database._reads._all) == 0
    wire.thaw()
    await until(lambda: not database.breaker.is_open)
    await database.read("select 1")
    assert wire.connections > connections


async def test_c122_slow_writes_do_not_starve_look_ups(database: Database) -> None:
    """With every write lane waiting for a lock, a look-up has its own."""
    async with database.acquire_write(), database.acquire_write():
        assert await database.read("select 1 as one") == [(1,)]


async def test_a_write_has_more_patience(database: Database) -> None:
    """One that takes longer than the budget of a look-up, for a lock, is not given up."""
    assert len(await database.fetch("select pg_sleep(0.3)")) == 1
    assert not database.breaker.is_open


async def test_a_write_that_is_given_up_opens_no_breaker(database: Database) -> None:
    """It may only have waited for somebody's lock; look-ups go on."""
    with pytest.raises(SessionsUnavailable):
        await database.fetch(MINUTE)
    assert not database.breaker.is_open
    await database.read("select 1")


# The breaker.


async def test_a_refused_connection_opens_the_breaker(
    database: Database, wire: TcpProxy, no_probe: None
) -> None:
    """By a write as by a look-up: nobody needs to wait to know it."""
    await wire.stop()
    with pytest.raises(SessionsUnavailable):
        await database.fetch("select 1")
    assert database.breaker.is_open


async def test_an_error_of_the_server_opens_no_breaker(database: Database) -> None:
    """A server that refuses a statement is there."""
    for sql in ("select 1 / 0", "select nonsense", "selekt"):
        await refused(database, sql)
        assert not database.breaker.is_open


async def test_p16_the_breaker_closes_by_its_own_probe(
    database: Database, wire: TcpProxy
) -> None:
    """When the server is back nobody has to try it: the probe has."""
    await wire.stop()
    await refused(database)
    connections = wire.connections
    await wire.start()
    await until(lambda: not database.breaker.is_open)
    assert wire.connections == connections + 1
    await database.read("select 1")


async def test_a_probe_of_a_frozen_server_is_given_up(
    database: Database, wire: TcpProxy
) -> None:
    """Each within the budget, so that recovery is seen soon after it."""
    wire.freeze()
    await refused(database)
    connections = wire.connections
    await until(lambda: wire.connections >= connections + 2)
    assert database.breaker.is_open
    wire.thaw()
    await until(lambda: not database.breaker.is_open)


# Asking twice.


async def test_c125_a_lost_connection_is_asked_for_once_more(
    database: Database, wire: TcpProxy
) -> None:
    """Every held connection is dead, and every look-up still has its answer."""
    await asyncio.gather(*(database.read("select 1") for _ in range(READ_POOL_SIZE)))
    wire.cut()
    for _ in range(2 * READ_POOL_SIZE):
        assert await database.read("select 1 as one") == [(1,)]
    assert not database.breaker.is_open


async def test_c125_whoever_is_terminated_in_a_query_asks_again(dsn: str) -> None:
    """`pg_terminate_backend` of a backend that is asking costs no answer."""
    database = Database(dsn, pool_size=2, budget=timedelta(seconds=20))
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


async def test_an_answer_is_not_asked_for_twice(database: Database) -> None:
    """An error of the server is an answer, and so is the end of the budget."""
    await database.read("select 1")
    for sql in ("select 1 / 0", MINUTE):
        asked = database.queries
        await refused(database, sql)
        assert database.queries == asked + 1


async def test_work_of_several_statements_is_never_repeated(
    database: Database, wire: TcpProxy
) -> None:
    """A connection that is lost within it is no answer, at once."""
    begun = 0

    async def work() -> None:
        nonlocal begun
        async with database.acquire_write() as connection:
            begun += 1
            wire.cut()
            await connection.execute("select 1")

    with pytest.raises(SessionsUnavailable):
        await work()
    assert begun == 1


async def test_c130_a_changed_table_is_no_lasting_fault(dsn: str) -> None:
    """Prepared statements of a connection that was held over a migration go on working."""
    connection = await asyncpg.connect(dsn)
    database = Database(dsn, pool_size=1, budget=timedelta(seconds=20))
    try:
        await connection.execute("create table changing (a int)")
        await connection.execute("insert into changing values (1)")
        assert await database.read("select * from changing") == [(1,)]
        await connection.execute("alter table changing add b int default 2")
        assert await database.read("select * from changing") == [(1, 2)]
    finally:
        await connection.close()
        await database.close()


# Loops.


def test_c141_a_database_serves_one_loop_after_another(dsn: str) -> None:
    """Also when the last one was left with an open breaker."""
    database = Database(dsn, pool_size=1, budget=timedelta(seconds=20))

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
