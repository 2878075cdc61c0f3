"""Behind PgBouncer in transaction mode: what works, what does not, what is logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import asyncpg
import pytest
from ulid import ULID

from handstamp.config import Policy
from handstamp.core.models import Authenticated, Touch
from handstamp.engine.sessions import Sessions
from handstamp.errors import LoginRefused
from handstamp.stores.install import install
from handstamp.stores.table import TableStore
from tests.faults.pooler import pooled, program
from tests.support.engines import LAPTOP, SECRET, credentials_of, seconds
from tests.support.tables import POLICY, new_session, successor
from tests.support.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="pgbouncer is not installed"),
]

CONNECT = {"statement_cache_size": 0}
"""What the driver has to do without behind a pooler in transaction mode."""


@pytest.fixture
def pooled_dsn(dsn: str) -> Iterator[str]:
    """The database of the test, through a pooler."""
    with pooled(dsn) as address:
        yield address


@pytest.fixture
async def user(dsn: str) -> str:
    """A user who may sign in, on tables with the trigger."""
    connection = await asyncpg.connect(dsn)
    await install(connection, "ulid", trigger=True)
    user = str(ULID())
    await connection.execute(
        "insert into users (id, username, password_hash, email_hash, last_password_change)"
        " values ($1, 'alice', 'x', 'x', null)",
        user,
    )
    await connection.close()
    return user


@pytest.fixture
async def store(pooled_dsn: str) -> AsyncIterator[TableStore]:
    """A store behind the pooler."""
    store = TableStore(pooled_dsn, connect=CONNECT, budget=timedelta(seconds=20))
    yield store
    await store.close()


async def test_c130_a_whole_life_behind_a_pooler(store: TableStore, user: str) -> None:
    """Login, reading, rotation, activity, revocation and pruning work."""
    record = (await store.create(new_session(user, limit=3), POLICY)).record
    (found,) = await store.find([record.token_digest])
    assert found.id == record.id
    after = await store.rotate(successor(record.id, record.refresh_digest))
    assert after is not None
    at = after.read_at + timedelta(minutes=1)
    touch = Touch(session_id=after.id, token_digest=after.token_digest, at=at)
    assert await store.touch([touch], POLICY) == 1
    other = (await store.create(new_session(user), POLICY)).record
    assert await store.revoke(record.id, reason="x") is not None
    assert [e.id for e in await store.revoke_user(user, reason="x")] == [other.id]
    assert await store.prune(POLICY, batch=10) == 0


async def test_c130_many_connections_share_few_behind_a_pooler(
    store: TableStore, user: str
) -> None:
    """More clients than server connections, and no answer is another one's."""
    rows = [(await store.create(new_session(user), POLICY)).record for _ in range(10)]

    async def ask(number: int) -> None:
        row = rows[number % 10]
        (found,) = await store.find([row.token_digest])
        assert found.id == row.id
        await store.list_for_user(user)

    await asyncio.gather(*(ask(number) for number in range(200)))


async def test_a_lock_of_a_login_ends_with_it_behind_a_pooler(
    store: TableStore, user: str
) -> None:
    """Logins at once keep to the limit, and none leaves a lock on a shared connection."""
    logins = [
        store.create(new_session(user, limit=3, evict=False), POLICY) for _ in range(12)
    ]
    ends = await asyncio.gather(*logins, return_exceptions=True)
    assert [type(end) for end in ends].count(LoginRefused) == 9
    assert len(await store.list_for_user(user)) == 3


def sessions(address: str, listen_dsn: str | None = None) -> Sessions:
    return Sessions(
        address,
        secret=SECRET,
        connect=CONNECT,
        listen_dsn=listen_dsn,
        policy=Policy(max_staleness=seconds(2)),
    )


async def test_c56_listening_through_a_pooler_is_no_delivery(
    pooled_dsn: str, user: str
) -> None:
    """LISTEN succeeds there and nothing arrives: the state shows it, no trust."""
    async with sessions(pooled_dsn) as engine:
        await until(lambda: engine.stats().listener == "no_delivery")
        issued = await engine.create(user, client=LAPTOP)
        assert engine.hit(issued.session_token.encode()) is not None
        assert engine._listener.trusted_until < engine.clock()
        assert engine.stats().all_writers_notify is False


async def test_with_an_address_of_the_server_it_hears(
    pooled_dsn: str, dsn: str, user: str
) -> None:
    """With `listen_dsn` past the pooler, what is revoked through it is notified."""
    async with sessions(pooled_dsn, dsn) as here, sessions(pooled_dsn, dsn) as there:
        for engine in (here, there):
            await until(lambda engine=engine: engine.stats().listener == "listening")
            assert engine.stats().all_writers_notify is True
        issued = await there.create(user, client=LAPTOP)
        token = issued.session_token
        answer = await here.authenticate(credentials_of([token]), LAPTOP)
        assert isinstance(answer, Authenticated)
        await there.revoke(issued.session.id)
        await until(lambda: here.stats().cached == 0)
        assert here.hit(token.encode()) is None
