"""Activity beside prune and revocation on a real PostgreSQL: nobody deadlocks, forced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta

import asyncpg
import pytest

from handstamp.core.models import Record, Session, Touch
from handstamp.engine.activity import ActivityBuffer
from handstamp.engine.cache import NEVER, CacheEntry
from handstamp.errors import SessionsUnavailable
from handstamp.stores.table import TableStore
from tests.support.tables import (
    DAY,
    POLICY,
    STEP,
    PostgresTable,
    new_session,
    postgres_table,
)

TTL = POLICY.session_ttl
ROW_BY_ROW = {"enable_hashjoin": "off", "enable_mergejoin": "off", "enable_seqscan": "off"}
"""As a large table is read: each row of a batch looked up by its id."""
HOLD = "select from user_sessions where id = any($1) for update"
WAITING = """
    select count(*) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'"""


@pytest.fixture
async def table(dsn: str) -> AsyncIterator[PostgresTable]:
    """An empty table."""
    async with postgres_table(dsn) as table:
        yield table


async def made(table: PostgresTable, number: int) -> list[Record]:
    """Sessions of one user, in the order of their ids."""
    user = await table.add_user()
    created = [await table.store.create(new_session(user), POLICY) for _ in range(number)]
    return sorted((c.record for c in created), key=lambda row: row.id)


def touches(rows: list[Record], at: datetime) -> list[Touch]:
    return [Touch(session_id=r.id, token_digest=r.token_digest, at=at) for r in rows]


class Held:
    """Somebody holds rows, until they let go."""

    def __init__(self, dsn: str, rows: list[Record]) -> None:
        self._dsn = dsn
        self._ids = [row.id for row in rows]

    async def __aenter__(self) -> Held:
        self.psql = await asyncpg.connect(self._dsn)
        await self.psql.execute("begin")
        await self.psql.execute(HOLD, self._ids)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.psql.execute("rollback")
        await self.psql.close()

    async def waiting(self, number: int) -> None:
        """Return when so many others wait for a lock."""
        async with asyncio.timeout(15):
            while await self.psql.fetchval(WAITING) < number:
                await asyncio.sleep(0.01)
                await self.psql.execute("select pg_stat_clear_snapshot()")


Work = Callable[[TableStore, list[Record]], Awaitable[object]]


async def flush(store: TableStore, rows: list[Record]) -> int:
    """Another process's batch of the same sessions, in another order."""
    return await store.touch(touches(rows, rows[0].read_at + timedelta(seconds=70)), POLICY)


async def revoke_user(store: TableStore, rows: list[Record]) -> object:
    """All of them end."""
    return await store.revoke_user(rows[0].user_id, reason="x")


async def prune(store: TableStore, rows: list[Record]) -> object:
    """Everything that is dead goes, and that is everything."""
    return await store.prune(POLICY, batch=100)


@pytest.mark.parametrize("work", [flush, revoke_user, prune], ids=lambda w: w.__name__)
@pytest.mark.parametrize("held", [0, 9], ids=["first", "last"])
async def test_c126_a_flush_deadlocks_with_nobody(
    table: PostgresTable, dsn: str, work: Work, held: int
) -> None:
    """Both wait for a row that a third holds, then go on, whichever row that was.

    Had one of them taken its rows in another order, each would hold what the other wants.
    """
    rows = await made(table, 10)
    at = rows[0].read_at + timedelta(seconds=60)
    if work is prune:
        await table.advance(POLICY.absolute_ttl + POLICY.retention + DAY)
    settings = table.frozen.connect["server_settings"] | ROW_BY_ROW
    patient = TableStore(
        dsn, budget=timedelta(seconds=20), connect={"server_settings": settings}
    )
    async with Held(dsn, [rows[held]]) as held_row:
        one = asyncio.ensure_future(patient.touch(touches(rows[::-1], at), POLICY))
        await held_row.waiting(1)
        two = asyncio.ensure_future(work(patient, rows))
        if work is not prune:  # it skips what others hold
            await held_row.waiting(2)
    await asyncio.gather(one, two)
    await patient.close()


async def test_c126_overlapping_batches_at_full_speed_never_deadlock(
    table: PostgresTable,
) -> None:
    """Hundreds of batches of the same rows in every order, beside pruning: no error."""
    rows = await made(table, 30)
    store = table.store

    async def keep_flushing(shift: int) -> None:
        for n in range(30):
            at = rows[0].read_at + timedelta(seconds=100 + n, microseconds=shift)
            mixed = rows[shift:] + rows[:shift]
            await store.touch(touches(mixed[:: 1 if n % 2 else -1], at), POLICY)

    async def keep_pruning() -> None:
        for _ in range(30):
            await store.prune(POLICY, batch=10)

    await asyncio.gather(*(keep_flushing(s) for s in range(0, 30, 5)), keep_pruning())


async def test_p10_a_batch_that_met_a_lock_is_kept(table: PostgresTable, dsn: str) -> None:
    """It is given up with the budget, loses nothing, and goes out with the next flush."""
    rows = await made(table, 3)
    hasty = TableStore(dsn, budget=timedelta(seconds=0.05), connect=table.frozen.connect)
    activity = ActivityBuffer()
    for row in rows:
        activity.touch(entry_of(row), 60.0)
    async with Held(dsn, rows[1:2]):
        with pytest.raises(SessionsUnavailable):
            await activity.flush(hasty, POLICY)
        assert (len(activity), activity.written) == (3, 0)
    # The server may still have done what nobody waited for; then nothing is left to do.
    await activity.flush(table.store, POLICY)
    assert (len(activity), activity.dropped) == (0, 0)
    after = await table.store.find_many([row.id for row in rows])
    noted = rows[0].read_at + timedelta(seconds=60)
    assert {row.last_activity_at for row in after} == {noted + STEP}
    await hasty.close()


def entry_of(row: Record) -> CacheEntry:
    """The row in a cache that read it at 0.0."""
    return CacheEntry(
        key=bytes.fromhex(row.token_digest),
        digest=row.token_digest,
        session=Session.of(row),
        hard=900.0,
        deadline=900.0,
        confirmed=5.0,
        read=0.0,
        read_at=row.read_at,
        touched=NEVER,
        used=NEVER,
        seen=True,
    )
