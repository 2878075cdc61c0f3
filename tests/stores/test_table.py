"""What only a real PostgreSQL shows: locks, grants, padding, plans, time zones, errors."""

from __future__ import annotations

import asyncio
import gc
import secrets
import traceback
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from handstamp.config import Policy
from handstamp.core.models import Client, Record, Touch
from handstamp.core.rotation import was_seen
from handstamp.errors import ConfigError, LoginRefused, SessionsUnavailable
from handstamp.stores.shapes import TableShape, UsersTable
from handstamp.stores.table import TableStore
from tests.support.frozen_postgres import SEARCH_PATH
from tests.support.tables import (
    DAY,
    POLICY,
    ULID_TABLE,
    PostgresTable,
    new_session,
    postgres_table,
    some_digest,
    successor,
)

TTL = POLICY.session_ttl
WAITING = """
    select count(*) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'"""

# Everything a role needs. The grants on users but the first are for the trigger of the
# table itself, which resets failed attempts with the rights of the role that inserts.
GRANTS = (
    "select (id, is_active, locked_until, last_password_change) on users",
    "select (failed_login_attempts) on users",
    "update (failed_login_attempts, locked_until) on users",
    "select on user_sessions",
    "insert on user_sessions",
    "update on user_sessions",
    "delete on user_sessions",
)


@pytest.fixture
async def table(dsn: str) -> AsyncIterator[PostgresTable]:
    """An empty table on a PostgreSQL whose clock stands still."""
    async with postgres_table(dsn) as table:
        yield table


async def created(table: PostgresTable, user: str, **changes: object) -> Record:
    return (await table.store.create(new_session(user, **changes), POLICY)).record


async def waiters(table: PostgresTable, number: int) -> None:
    """Wait until so many connections wait for a lock."""
    while await table.frozen.connection.fetchval(WAITING) < number:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@asynccontextmanager
async def second_connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_padded_id_is_returned_as_it_was_written(table: PostgresTable) -> None:
    """character(26) pads with spaces; only the table sees them."""
    user = await table.add_user("alice")
    record = await created(table, user, id="one")
    assert (record.id, record.user_id) == ("one", "alice")
    found = await table.store.find_by_id("one")
    assert found == record
    assert [r.id for r in await table.store.list_for_user("alice")] == ["one"]
    rotated = await table.store.rotate(successor("one", record.refresh_digest))
    assert rotated is not None
    ended = await table.store.revoke("one", reason="x", user_id="alice")
    assert ended is not None
    assert (ended.id, ended.user_id) == ("one", "alice")


async def test_a_padded_id_can_be_kept(table: PostgresTable) -> None:
    """`keep` and `replaces` compare ids and not their padding."""
    user = await table.add_user("alice")
    for session_id in ("one", "two"):
        await created(table, user, id=session_id)
    ended = await table.store.revoke_user(user, reason="x", keep="one")
    assert [e.id for e in ended] == ["two"]
    answer = await table.store.create(new_session(user, replaces=("one",), limit=1), POLICY)
    assert [e.id for e in answer.ended] == ["one"]


async def test_an_unknown_user_gets_no_session(table: PostgresTable) -> None:
    """The refusal says so, and the foreign key is never asked."""
    with pytest.raises(LoginRefused) as refusal:
        await created(table, "01J00000000000000000000000")
    assert refusal.value.reason == "unknown_user"


async def test_a_user_neither_active_nor_not_gets_no_session(table: PostgresTable) -> None:
    """NULL in the user's is_active is not active, at the login and in every read."""
    user = await table.add_user()
    record = await created(table, user)
    await table.write_user(user, is_active=None)
    with pytest.raises(LoginRefused) as refusal:
        await created(table, user)
    assert refusal.value.reason == "user_disabled"
    found = await table.store.find_by_id(record.id)
    assert found is not None
    assert found.user_is_active is False


async def test_our_insert_fires_the_trigger(table: PostgresTable) -> None:
    """A login resets the failed attempts and a lock that has ended."""
    user = await table.add_user()
    await table.frozen.connection.execute(
        "update users set failed_login_attempts = 3, locked_until = $1",
        table.now - timedelta(seconds=1),
    )
    await created(table, user)
    row = await table.frozen.connection.fetchrow(
        "select failed_login_attempts, locked_until from users"
    )
    assert tuple(row) == (0, None)


async def test_what_returned_is_committed(table: PostgresTable, dsn: str) -> None:
    """Rule 7: another connection sees each change as soon as the method is back."""
    user = await table.add_user()
    sql = "select is_active, session_token_hash from user_sessions"
    async with second_connection(dsn) as other:
        record = await created(table, user, limit=5)
        assert tuple(await other.fetchrow(sql)) == (True, record.token_digest)
        step = successor(record.id, record.refresh_digest)
        await table.store.rotate(step)
        assert tuple(await other.fetchrow(sql)) == (True, step.token_digest)
        await table.store.revoke(record.id, reason="x")
        assert tuple(await other.fetchrow(sql)) == (False, step.token_digest)


@pytest.mark.parametrize("evict", [True, False], ids=["evict", "refuse"])
async def test_fifty_logins_at_once_never_exceed_the_limit(dsn: str, evict: bool) -> None:
    """Logins of one user come one by one, whatever the number of connections."""
    async with postgres_table(dsn, pool_size=50) as table:
        user = await table.add_user()
        news = [new_session(user, limit=3, evict=evict) for _ in range(50)]
        answers = await asyncio.gather(
            *(table.store.create(new, POLICY) for new in news), return_exceptions=True
        )
        live = await table.store.list_for_user(user)
        refused = [a for a in answers if isinstance(a, LoginRefused)]
        assert len(live) == 3
        assert len(refused) == (0 if evict else 47)
        assert await table.count() == 50 - len(refused)


async def test_logins_of_different_users_do_not_wait(
    table: PostgresTable, dsn: str
) -> None:
    """The lock that serialises logins is one user's own."""
    one, two = await table.add_user(), await table.add_user()
    async with second_connection(dsn) as other, other.transaction():
        sql = (await table.store.statements()).lock_user
        await other.execute(sql, "user_sessions:", one)
        waiting = asyncio.create_task(created(table, one, limit=1))
        await waiters(table, 1)
        assert (await created(table, two, limit=1)).is_active
        assert not waiting.done()
    assert (await waiting).is_active


async def test_rows_are_locked_in_the_order_of_their_ids(
    table: PostgresTable, dsn: str
) -> None:
    """Rule 6: a flush and a revocation that meet wait for each other, never in a ring.

    The rows lie in the table in the opposite order. With the one in the middle locked by
    somebody else, both must have got no further than it: the last one is free.
    """
    user = await table.add_user()
    records = [await created(table, user, id=session_id) for session_id in ("c", "b", "a")]
    at = table.now + timedelta(seconds=90, milliseconds=1)
    batch = [Touch(session_id=r.id, token_digest=r.token_digest, at=at) for r in records]
    lock = "select 1 from user_sessions where id = 'b' for update"
    free = "select id from user_sessions for update skip locked"
    async with second_connection(dsn) as other:
        async with other.transaction():
            await other.execute(lock)
            touching = asyncio.create_task(table.store.touch(batch, POLICY))
            await waiters(table, 1)
            revoking = asyncio.create_task(table.store.revoke_user(user, reason="x"))
            await waiters(table, 2)
            async with second_connection(dsn) as third:
                rows = await third.fetch(free)
            assert [row["id"].rstrip() for row in rows] == ["c"]
        assert await touching == 3
        assert len(await revoking) == 3


async def test_a_touch_that_waited_for_a_rotation_does_nothing(
    table: PostgresTable, dsn: str
) -> None:
    """Rule 5 holds when the rotation commits while the touch waits for the row."""
    record = await created(table, await table.add_user())
    at = table.now + timedelta(seconds=90, milliseconds=1)
    touch = Touch(session_id=record.id, token_digest=record.token_digest, at=at)
    digest = some_digest()
    async with second_connection(dsn) as other, other.transaction():
        await other.execute("update user_sessions set session_token_hash = $1", digest)
        touching = asyncio.create_task(table.store.touch([touch], POLICY))
        await waiters(table, 1)
    assert await touching == 0
    found = await table.store.find_by_id(record.id)
    assert found is not None
    assert (found.token_digest, found.last_activity_at) == (digest, table.now)


async def test_c84_a_rotation_that_waited_for_a_revocation_is_none(
    table: PostgresTable, dsn: str
) -> None:
    """The condition of the write is judged on the row as it is then."""
    record = await created(table, await table.add_user())
    async with second_connection(dsn) as other, other.transaction():
        await other.execute("update user_sessions set is_active = false")
        step = successor(record.id, record.refresh_digest)
        rotating = asyncio.create_task(table.store.rotate(step))
        await waiters(table, 1)
    assert await rotating is None


async def test_c83_of_many_rotations_at_once_one_writes(dsn: str) -> None:
    """Twenty connections present one digest; the row ends with the winner's tokens."""
    async with postgres_table(dsn, pool_size=20) as table:
        record = await created(table, await table.add_user())
        steps = [successor(record.id, record.refresh_digest) for _ in range(20)]
        answers = await asyncio.gather(*map(table.store.rotate, steps))
        won = [answer for answer in answers if answer is not None]
        assert len(won) == 1
        assert await table.store.find_by_id(record.id) == won[0]


async def test_pruning_waits_for_no_lock(table: PostgresTable, dsn: str) -> None:
    """A dead row that somebody holds is left for the next time."""
    user = await table.add_user()
    for session_id in ("a", "b"):
        await created(table, user, id=session_id)
    await table.advance(365 * DAY)
    async with second_connection(dsn) as other, other.transaction():
        await other.execute("select 1 from user_sessions where id = 'a' for update")
        async with asyncio.timeout(30):
            assert await table.store.prune(POLICY, batch=10) == 1
    assert await table.store.prune(POLICY, batch=10) == 1


@pytest.mark.parametrize(
    ("statement", "arguments", "index"),
    [
        ("find", [["a" * 64]], "session_token_hash|idx_sessions_token_hash"),
        ("find_by_id", ["one"], "user_sessions_pkey"),
        ("list_for_user", ["alice"], "idx_sessions_user_active"),
        ("revoke", [["one"], "x", True], "user_sessions_pkey"),
    ],
)
async def test_the_tables_own_indexes_serve(
    table: PostgresTable, statement: str, arguments: list[object], index: str
) -> None:
    """Bound values are cast so that no statement reads the whole table."""
    connection = table.frozen.connection
    await connection.execute("set enable_seqscan = off")
    sql = getattr(await table.store.statements(), statement)
    rows = await connection.fetch(f"explain {sql}", *arguments)
    plan = "\n".join(row[0] for row in rows)
    assert any(name in plan for name in index.split("|"))
    assert "Seq Scan on user_sessions" not in plan


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC"])
async def test_a_day_has_24_hours_in_every_time_zone(dsn: str, zone: str) -> None:
    """A lifetime that spans a change of clocks is neither an hour longer nor shorter."""
    settings = {"search_path": SEARCH_PATH, "timezone": zone}
    policy = Policy(session_ttl=2 * DAY, grace=timedelta(hours=1))
    async with postgres_table(dsn) as table:
        store = TableStore(dsn, connect={"server_settings": settings})
        user = await table.add_user()
        for change in (
            datetime(2026, 3, 7, 20, tzinfo=UTC),
            datetime(2026, 3, 28, 20, tzinfo=UTC),
        ):
            await table.frozen.set(change)
            new = new_session(user, session_ttl=policy.session_ttl)
            record = (await store.create(new, policy)).record
            assert record.expires_at == change + 2 * DAY
            assert record.refresh_expires_at == change + policy.refresh_ttl
            await store.touch(
                [Touch(session_id=new.id, token_digest=new.token_digest, at=None)],
                policy,
            )
            seen = await store.find_by_id(new.id)
            assert seen is not None
            assert was_seen(seen, policy.session_ttl)
        await store.close()


async def test_the_absolute_limit_is_the_same_on_both_sides(dsn: str) -> None:
    """In the hour that a change of clocks moves, a rotation is not lost in a loop."""
    settings = {"search_path": SEARCH_PATH, "timezone": "Europe/Berlin"}
    async with postgres_table(dsn) as table:
        store = TableStore(dsn, connect={"server_settings": settings})
        await table.frozen.set(datetime(2026, 1, 10, 12, tzinfo=UTC))
        user = await table.add_user()
        record = (
            await store.create(new_session(user, refresh_ttl=90 * DAY), POLICY)
        ).record
        await table.advance(POLICY.absolute_ttl - timedelta(minutes=1))
        assert await store.rotate(successor(record.id, record.refresh_digest)) is not None
        await store.close()


async def test_a_table_by_other_names_in_another_schema(dsn: str) -> None:
    """Every statement uses the names of the shape, quoted, and no search path."""
    users = UsersTable(table="app.People", id="Key", is_active="select")
    shape = TableShape(
        table="app.logins", id="order", user_id="user", expires_at="until", users=users
    )
    rename = """
        create schema app;
        alter table users set schema app;
        alter table user_sessions set schema app;
        alter table app.users rename to "People";
        alter table app.user_sessions rename to logins;
        alter table app."People" rename id to "Key";
        alter table app."People" rename is_active to "select";
        alter table app.logins rename id to "order";
        alter table app.logins rename user_id to "user";
        alter table app.logins rename expires_at to until;
        drop trigger trigger_reset_failed_attempts on app.logins;
        insert into app."People" ("Key", username, password_hash, email_hash)
            values ('alice', 'alice', 'x', 'x')"""
    async with postgres_table(dsn, definition=replace(ULID_TABLE, shape=shape)) as table:
        await table.frozen.connection.execute(rename)
        await whole_life(table.store, "alice")


async def whole_life(store: TableStore, user: str) -> None:
    """Every method of a store once, each to some effect."""
    first = (await store.create(new_session(user), POLICY)).record
    new = new_session(user, limit=5, replaces=(first.id,))
    assert len((await store.create(new, POLICY)).ended) == 1
    assert [r.id for r in await store.find([new.token_digest])] == [new.id]
    assert await store.find_by_id(new.id) is not None
    assert await store.find_by_refresh(str(new.refresh_digest)) is not None
    step = successor(new.id, new.refresh_digest)
    assert await store.rotate(step) is not None
    assert await store.redate(replace(step, presented=step.refresh_digest)) is not None
    touch = Touch(session_id=new.id, token_digest=step.token_digest, at=None)
    assert await store.touch([touch], POLICY) == 1
    assert len(await store.list_for_user(user)) == 1
    assert await store.revoke(new.id, reason="x", user_id=user) is not None
    again = (await store.create(new_session(user), POLICY)).record
    assert len(await store.revoke_user(user, reason="x")) == 1
    assert await store.revoke(again.id, reason="x") is None
    with pytest.raises(LoginRefused):
        await store.create(new_session("nobody"), POLICY)
    await store.prune(POLICY, batch=1)
    await store.ping()


@asynccontextmanager
async def role(admin: asyncpg.Connection, dsn: str) -> AsyncIterator[tuple[str, str]]:
    """A role without rights, and the database's address for it."""
    name, password = f"handstamp_{secrets.token_hex(6)}", secrets.token_hex(8)
    await admin.execute(f"create role {name} login password '{password}'")
    url = urlsplit(dsn)
    place = f"{name}:{password}@{url.netloc.rpartition('@')[2]}"
    try:
        yield name, urlunsplit(url._replace(netloc=place))
    finally:
        await admin.execute(f"drop owned by {name}; drop role {name}")


async def test_p14_a_role_with_least_privileges_will_do(
    table: PostgresTable, dsn: str
) -> None:
    """All methods work with these grants, and the users' secrets are out of its reach."""
    admin = table.frozen.connection
    user = await table.add_user()
    async with role(admin, dsn) as (name, address):
        for grant in GRANTS:
            await admin.execute(f"grant {grant} to {name}")
        store = TableStore(address)
        await admin.execute("update users set failed_login_attempts = 2")
        await whole_life(store, user)
        assert await admin.fetchval("select failed_login_attempts from users") == 0
        await store.close()
        async with second_connection(address) as theirs:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await theirs.fetchval("select password_hash from users")


@pytest.mark.parametrize("missing", GRANTS)
async def test_p14_no_grant_is_too_many(
    table: PostgresTable, dsn: str, missing: str
) -> None:
    """Without any one of them some method fails."""
    admin = table.frozen.connection
    user = await table.add_user()
    async with role(admin, dsn) as (name, address):
        for grant in GRANTS:
            if grant != missing:
                await admin.execute(f"grant {grant} to {name}")
        store = TableStore(address)
        with pytest.raises(SessionsUnavailable) as failure:
            await whole_life(store, user)
        assert failure.value.cause == "InsufficientPrivilegeError"
        await store.close()


async def test_p12_a_violated_constraint_quotes_no_digest(table: PostgresTable) -> None:
    """PostgreSQL names the value in its DETAIL; our exception and its chain do not."""
    user = await table.add_user()
    record = await created(table, user)
    with pytest.raises(SessionsUnavailable) as failure:
        await created(table, user, token_digest=record.token_digest)
    text = "".join(traceback.format_exception(failure.value))
    assert failure.value.cause == "UniqueViolationError"
    assert record.token_digest not in text


async def test_p12_a_violated_check_quotes_no_row(table: PostgresTable) -> None:
    """A "failing row contains" is a whole row, with both digests and the address."""
    await table.frozen.connection.execute(
        "alter table user_sessions add check (ip_address <> '203.0.113.99')"
    )
    new = new_session(await table.add_user(), client=Client(address="203.0.113.99"))
    with pytest.raises(SessionsUnavailable) as failure:
        await table.store.create(new, POLICY)
    text = "".join(traceback.format_exception(failure.value))
    assert not any(s in text for s in (new.token_digest, "203.0.113.99"))


@pytest.mark.parametrize(
    ("how", "cause"), [("", "RaiseError"), (" using errcode = ''MY001''", "Unknown")]
)
async def test_p12_a_trigger_of_the_application_quotes_no_digest(
    table: PostgresTable, how: str, cause: str
) -> None:
    """Whatever text an exception raised in SQL holds, it stays out of ours."""
    await table.frozen.connection.execute(
        "create function shout() returns trigger language plpgsql as"
        f" 'begin raise exception ''%'', new{how}; end';"
        "create trigger shout before insert on user_sessions"
        " for each row execute function shout()"
    )
    new = new_session(await table.add_user())
    with pytest.raises(SessionsUnavailable) as failure:
        await table.store.create(new, POLICY)
    text = "".join(traceback.format_exception(failure.value))
    assert new.token_digest not in text
    assert failure.value.cause.startswith(cause)


@pytest.mark.parametrize(
    "change",
    [
        "drop table user_sessions",
        "alter table user_sessions rename session_token_hash to gone",
        "alter table user_sessions alter created_at set default now(), add x int not null",
    ],
    ids=["table", "column", "insert"],
)
async def test_a_table_that_does_not_fit_is_a_config_error(
    table: PostgresTable, change: str
) -> None:
    """A missing table or column is neither a verdict nor an exception of the driver."""
    await table.store.ready()
    user = await table.add_user()
    await table.frozen.connection.execute(change)
    with pytest.raises(SessionsUnavailable):
        await created(table, user)


async def test_a_refused_connection_is_sessions_unavailable() -> None:
    """A refused connection is a SessionsUnavailable, and opening is no error."""
    store = TableStore("postgresql://nobody@127.0.0.1:1/nowhere")
    with pytest.raises(SessionsUnavailable) as failure:
        await store.ping()
    await store.open()
    assert failure.value.cause == "ConnectionRefusedError"
    await store.close()


async def test_no_suitable_server_is_sessions_unavailable(dsn: str) -> None:
    """During a failover no host may take writes: that is an outage and no crash."""
    store = TableStore(dsn, connect={"target_session_attrs": "standby"})
    with pytest.raises(SessionsUnavailable) as failure:
        await store.ping()
    assert failure.value.cause == "TargetServerAttributeNotMatched"
    await store.close()


async def test_c121_a_standby_reads_and_does_not_write(dsn: str) -> None:
    """On a database that is read-only, finds work and writes are no answer."""
    settings = {"default_transaction_read_only": "on"}
    store = TableStore(dsn, connect={"server_settings": settings})
    assert list(await store.find([some_digest()])) == []
    with pytest.raises(SessionsUnavailable) as failure:
        await store.revoke("one", reason="x")
    assert failure.value.cause == "ReadOnlySQLTransactionError"
    await store.close()


@pytest.mark.parametrize(
    "address", ["me:hunter2", "mysql://me:hunter2@h/x", "postgresql://me:hunter2@[bad/x"]
)
def test_an_invalid_dsn_is_refused_and_not_quoted(address: str) -> None:
    """The error comes at construction, and a password in it shows nowhere."""
    with pytest.raises(ConfigError) as refusal:
        TableStore(address)
    assert "hunter2" not in "".join(traceback.format_exception(refusal.value)[-1:])
    assert "hunter2" not in repr(TableStore("postgresql://me:hunter2@h/x"))


def test_c141_a_store_serves_one_loop_after_another(dsn: str) -> None:
    """A loop that was closed takes its connections with it; the next one gets new."""
    store = TableStore(dsn)

    async def use(close: bool) -> None:
        await store.ping()
        if close:
            await store.close()

    asyncio.run(use(close=True))
    asyncio.run(use(close=False))
    with warnings.catch_warnings():
        # The connections of that loop were not closed, and Python warns of it.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(use(close=True))
        gc.collect()


async def test_c63_activity_never_goes_back_with_the_databases_clock(
    table: PostgresTable,
) -> None:
    """A primary whose clock is behind records no earlier time than is there."""
    record = await created(table, await table.add_user("alice"))
    touch = Touch(
        session_id=record.id, token_digest=record.token_digest, at=table.now + TTL / 9
    )
    assert await table.store.touch([touch], POLICY) == 1
    (seen,) = await table.store.find([record.token_digest])
    await table.advance(timedelta(minutes=-10))
    late = replace(touch, at=table.now)
    assert await table.store.touch([late], POLICY) == 0
    (after,) = await table.store.find([record.token_digest])
    assert after.last_activity_at == seen.last_activity_at
