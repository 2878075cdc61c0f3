"""The pool on a real PostgreSQL: how many connections there are, and which are kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import asyncpg
import pytest

from handstamp.errors import LoginRefused, SessionsUnavailable
from handstamp.stores.connection import ConnectionPool
from handstamp.stores.table import TableStore
from tests.support.tables import POLICY, new_session, postgres_table
from tests.support.waiting import until

SLEEPING = """
    select count(*) from pg_stat_activity where query like 'select pg_sleep%'
    and state = 'active' and datname = current_database()"""


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[ConnectionPool]:
    """At most two connections to a database."""
    pool = ConnectionPool(lambda: asyncpg.connect(dsn), 2)
    yield pool
    await pool.close()


@pytest.fixture
async def watching(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def pid(pool: ConnectionPool, *, fresh: bool = False) -> int:
    async with pool.acquire(fresh=fresh) as connection:
        return connection.get_server_pid()


async def test_a_connection_is_kept(pool: ConnectionPool) -> None:
    """Pieces of work that follow each other use the same connection, as it was left."""
    assert len({await pid(pool) for _ in range(5)}) == 1


async def test_nothing_is_opened_before_it_is_needed(pool: ConnectionPool) -> None:
    """No connection at first, and one for one piece of work."""
    assert len(pool._all) == 0
    await pid(pool)
    assert len(pool._all) == 1


async def test_no_more_connections_than_the_size(pool: ConnectionPool) -> None:
    """Twenty pieces of work use two connections, two at a time, and all are done."""
    inside, most, pids = 0, 0, set()
    two = asyncio.Event()

    async def work() -> None:
        nonlocal inside, most
        async with pool.acquire() as connection:
            inside += 1
            most = max(most, inside)
            if inside == 2:
                two.set()
            await two.wait()  # the first does not end before the second begins
            pids.add(await connection.fetchval("select pg_backend_pid()"))
            inside -= 1

    await asyncio.gather(*(work() for _ in range(20)))
    assert (most, len(pids), len(pool._all)) == (2, 2, 2)


async def test_a_cancelled_wait_takes_no_connection(pool: ConnectionPool) -> None:
    """Both connections are free again, whatever became of the callers that waited."""
    async with pool.acquire(), pool.acquire():
        waiting = [asyncio.ensure_future(pid(pool)) for _ in range(10)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    await asyncio.gather(pid(pool), pid(pool))
    async with asyncio.timeout(15):
        async with pool.acquire(), pool.acquire():
            assert len(pool._all) == 2


async def test_c123_a_connection_abandoned_in_a_query_is_dropped(
    pool: ConnectionPool, watching: asyncpg.Connection
) -> None:
    """It is never used again."""

    async def sleep() -> None:
        async with pool.acquire() as connection:
            await connection.execute("select pg_sleep(600)")

    first = await pid(pool)
    task = asyncio.ensure_future(sleep())
    while not await watching.fetchval(SLEEPING):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert len(pool._all) == 0
    assert await pid(pool) != first


async def test_a_closed_connection_is_not_handed_out(
    pool: ConnectionPool, watching: asyncpg.Connection
) -> None:
    """One that the server ended while it was free is replaced."""
    first = await pid(pool)
    (connection,) = pool._free
    await watching.execute("select pg_terminate_backend($1)", first)
    await until(connection.is_closed)
    assert await pid(pool) != first
    assert len(pool._all) == 1


async def test_a_fresh_connection_is_a_new_one(pool: ConnectionPool) -> None:
    """Though a kept one is free."""
    first = await pid(pool)
    async with pool.acquire(fresh=True) as connection:
        assert connection.get_server_pid() != first


@pytest.mark.parametrize("fault", [ValueError, asyncio.CancelledError, KeyboardInterrupt])
async def test_any_other_error_drops_the_connection(
    pool: ConnectionPool, fault: type[BaseException]
) -> None:
    """The state of such a connection is unknown."""
    with pytest.raises(fault):
        async with pool.acquire():
            raise fault
    assert len(pool._all) == 0


async def test_a_refusal_keeps_the_connection(pool: ConnectionPool) -> None:
    """An error of ours or of the server's is an answer: the connection is good."""
    first = await pid(pool)
    for fault in (LoginRefused("too_many"), SessionsUnavailable("no")):
        with pytest.raises(type(fault)):
            async with pool.acquire():
                raise fault
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with pool.acquire() as connection:
            await connection.execute("select 1 / 0")
    assert await pid(pool) == first


async def test_an_open_transaction_is_not_kept(pool: ConnectionPool) -> None:
    """Its locks go with the connection."""
    first = await pid(pool)

    async def fail() -> None:
        async with pool.acquire() as connection:
            await connection.execute("begin")
            raise SessionsUnavailable("no")

    with pytest.raises(SessionsUnavailable):
        await fail()
    assert await pid(pool) != first


async def test_a_refused_login_keeps_its_connection(dsn: str) -> None:
    """A login beyond the limit costs no new connection."""
    async with postgres_table(dsn) as table:
        user = await table.add_user()
        one = new_session(user, limit=1, evict=False)
        await table.store.create(one, POLICY)
        (before,) = table.store._database._writes._free
        with pytest.raises(LoginRefused):
            await table.store.create(new_session(user, limit=1, evict=False), POLICY)
        assert table.store._database._writes._free == [before]


async def test_closing_leaves_no_connection(pool: ConnectionPool, dsn: str) -> None:
    """Neither a free one nor one that is being used."""
    async with pool.acquire() as used:
        await pid(pool)
        await pool.close()
        assert used.is_closed()
    assert (pool._all, [c for c in pool._free if not c.is_closed()]) == (set(), [])


async def test_c124_cancelled_queries_mix_up_no_rows(dsn: str) -> None:
    """Two thousand clients leave in the middle of a query: no answer is mixed up."""
    chance = random.Random(124)
    # asyncpg reports a connection whose making was cancelled, and no more.
    complaints: set[str] = set()
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: complaints.add(str(context.get("exception")))
    )
    async with postgres_table(dsn) as table:
        user = await table.add_user()
        rows = [new_session(user) for _ in range(20)]
        for row in rows:
            await table.store.create(row, POLICY)
        store: TableStore = table.store
        ends = {"right": 0, "left": 0}

        async def ask() -> None:
            row = chance.choice(rows)
            found = await store.find([row.token_digest])
            assert [(r.id, r.token_digest) for r in found] == [(row.id, row.token_digest)]
            ends["right"] += 1

        async def ask_and_leave() -> None:
            task = asyncio.ensure_future(ask())
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                ends["left"] += 1
            else:
                task.result()

        async def client() -> None:
            for _ in range(250):
                await ask_and_leave()
                await ask()

        await asyncio.gather(*(client() for _ in range(8)))
        assert sum(ends.values()) == 4000
        assert ends["left"] > 500
        assert len(store._database._reads._all) <= 4
    assert complaints <= {"unexpected connection_lost() call"}
