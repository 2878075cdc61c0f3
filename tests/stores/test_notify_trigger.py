"""The trigger: which changes fire it, and which never do."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest
from ulid import ULID

from handstamp.config import Policy
from handstamp.core.models import Record, Touch
from handstamp.stores.install import install
from handstamp.stores.notify.sql import SKIP_TRIGGER
from handstamp.stores.postgres import digest_of
from handstamp.stores.shapes import UUID_PLAIN
from handstamp.stores.table import TableStore
from tests.support.tables import DAY, POLICY, new_session, successor
from tests.support.waiting import until

TTL = POLICY.session_ttl


class Database:
    """A table with the trigger, a listening connection, and one for plain SQL."""

    def __init__(self, store: TableStore, psql: asyncpg.Connection) -> None:
        self.store = store
        self.psql = psql
        self._received: list[str] = []

    async def listen(self) -> None:
        self._connection = await self.store.channel.listen(
            self._received.append, lambda: None
        )

    async def received(self) -> list[str]:
        """The payloads since the last call."""
        await self._connection.prove()
        payloads = list(self._received)
        self._received.clear()
        return payloads

    async def run(self, sql: str, *values: object) -> list[str]:
        """Run one statement as an administrator; returns the payloads of it."""
        await self.received()
        await self.psql.execute(sql, *values)
        return await self.received()

    async def all_writers_notify(self) -> bool:
        await self._connection.all_writers_notify()  # False once after each change
        return await self._connection.all_writers_notify()

    async def add_user(self, user: str | None = None) -> str:
        user = user or str(ULID())
        await self.psql.execute(
            "insert into users (id, username, password_hash, email_hash,"
            " last_password_change) values ($1, $2::text, 'x', $2::text, null)",
            user,
            user,
        )
        return user

    async def login(self, user: str) -> Record:
        return (await self.store.create(new_session(user), POLICY)).record

    def close(self) -> None:
        self._connection.drop()


@asynccontextmanager
async def prepared(dsn: str, *, trigger: bool = True) -> AsyncIterator[Database]:
    psql = await asyncpg.connect(dsn)
    await install(psql, "ulid", trigger=trigger)
    store = TableStore(dsn, budget=timedelta(seconds=20))
    database = Database(store, psql)
    await database.listen()
    try:
        yield database
    finally:
        database.close()
        await store.close()
        await psql.close()


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """A table with the trigger."""
    async with prepared(dsn) as database:
        yield database


@pytest.fixture
async def user(database: Database) -> str:
    """A user who may sign in."""
    return await database.add_user()


# It fires.


@pytest.mark.parametrize(
    "change",
    [
        "is_active = false",
        "is_active = null",
        "revoked_at = now()",
        "expires_at = expires_at - interval '1 second'",
        "refresh_expires_at = refresh_expires_at - interval '1 second'",
        "created_at = created_at - interval '1 second'",
        "session_token_hash = md5(id) || md5(random()::text)",
        "refresh_expires_at = null",
        "created_at = null",
    ],
)
async def test_a_change_that_ends_a_session_early_is_notified(
    database: Database, user: str, change: str
) -> None:
    """Once for each row that is changed, and for no other."""
    one, two, _ = [await database.login(user) for _ in range(3)]
    payloads = await database.run(
        f"update user_sessions set {change} where id = any($1)", [one.id, two.id]
    )
    assert sorted(payloads) == sorted([f"s:{one.id}", f"s:{two.id}"])


async def test_a_session_with_another_user_is_notified(
    database: Database, user: str
) -> None:
    """The caches have it under the wrong user."""
    record, other = await database.login(user), await database.add_user()
    payloads = await database.run(
        "update user_sessions set user_id = $2 where id = $1", record.id, other
    )
    assert payloads == [f"s:{record.id}"]


async def test_a_session_with_another_id_is_notified(database: Database, user: str) -> None:
    """Otherwise its end would be notified with an id that no cache has."""
    record = await database.login(user)
    payloads = await database.run(
        "update user_sessions set id = $2 where id = $1", record.id, str(ULID())
    )
    assert payloads == [f"s:{record.id}"]


async def test_a_user_with_another_id_is_notified(database: Database, user: str) -> None:
    """Without a foreign key that cascades, the user's sessions belong to no user then."""
    await database.login(user)
    await database.psql.execute(
        "alter table user_sessions drop constraint user_sessions_user_id_fkey"
    )
    new = str(ULID())
    payloads = await database.run("update users set id = $2 where id = $1", user, new)
    assert sorted(payloads) == sorted([f"u:{user}", f"u:{new}"])


async def test_p4_what_a_before_trigger_changes_is_notified(
    database: Database, user: str
) -> None:
    """The statement names another column than the one that ends the session."""
    await database.psql.execute(
        "create function lock_out() returns trigger language plpgsql as $$ begin"
        " if new.failed_login_attempts > 9 then new.is_active := false; end if;"
        " return new; end $$;"
        "create trigger lock_out before update on users"
        " for each row execute function lock_out();"
        "create function unplug() returns trigger language plpgsql as $$ begin"
        " if new.device_fingerprint = 'stolen' then new.is_active := false; end if;"
        " return new; end $$;"
        "create trigger unplug before update on user_sessions"
        " for each row execute function unplug()"
    )
    record = await database.login(user)
    payloads = await database.run(
        "update users set failed_login_attempts = 10 where id = $1", user
    )
    assert payloads == [f"u:{user}"]
    payloads = await database.run("update user_sessions set device_fingerprint = 'stolen'")
    assert payloads == [f"s:{record.id}"]


async def test_what_on_conflict_and_merge_change_is_notified(
    database: Database, user: str
) -> None:
    """An INSERT that becomes an UPDATE is one."""
    record = await database.login(user)
    upsert = (
        "insert into user_sessions select * from user_sessions where id = $1"
        " on conflict (id) do update set is_active = false"
    )
    assert await database.run(upsert, record.id) == [f"s:{record.id}"]
    merge = (
        "merge into user_sessions s using (select $1::text as id) o on s.id = o.id"
        " when matched then update set is_active = true"
    )
    assert await database.run(merge, record.id) == [f"s:{record.id}"]


async def test_a_deleted_row_is_notified_while_its_session_token_is_valid(
    database: Database, user: str
) -> None:
    """Though its refresh token has expired."""
    record = await database.login(user)
    await database.run(
        "update user_sessions set refresh_expires_at = now() - interval '1 s'"
    )
    payloads = await database.run("delete from user_sessions where id = $1", record.id)
    assert payloads == [f"s:{record.id}"]


async def test_a_reactivated_session_is_notified(database: Database, user: str) -> None:
    """It is a change of validity too."""
    record = await database.login(user)
    await database.store.revoke(record.id, reason="x")
    payloads = await database.run(
        "update user_sessions set is_active = true where id = $1", record.id
    )
    assert payloads == [f"s:{record.id}"]


async def test_the_deletion_of_a_live_row_is_notified(
    database: Database, user: str
) -> None:
    """Each live row, once."""
    records = [await database.login(user) for _ in range(3)]
    payloads = await database.run("delete from user_sessions")
    assert sorted(payloads) == sorted(f"s:{record.id}" for record in records)


async def test_c69_the_deletion_of_a_user_is_notified(
    database: Database, user: str
) -> None:
    """The user, and each session that the cascade deleted."""
    records = [await database.login(user) for _ in range(2)]
    payloads = await database.run("delete from users where id = $1", user)
    assert sorted(payloads) == sorted(
        [f"u:{user}", *(f"s:{record.id}" for record in records)]
    )


@pytest.mark.parametrize("change", ["is_active = false", "last_password_change = now()"])
async def test_c69_a_change_of_a_user_is_notified(
    database: Database, user: str, change: str
) -> None:
    """One notification, however many sessions the user has."""
    for _ in range(3):
        await database.login(user)
    payloads = await database.run(f"update users set {change} where id = $1", user)
    assert payloads == [f"u:{user}"]


@pytest.mark.parametrize("sql", ["truncate user_sessions", "truncate users cascade"])
async def test_c69_truncated_tables_are_notified(
    database: Database, user: str, sql: str
) -> None:
    """A TRUNCATE names no row: any session may have ended."""
    await database.login(user)
    assert set(await database.run(sql)) == {"all"}


async def test_a_rollback_notifies_nothing(database: Database, user: str) -> None:
    """A notification is sent at the commit, or not at all."""
    record = await database.login(user)
    transaction = database.psql.transaction()
    await transaction.start()
    sql = "update user_sessions set is_active = false where id = $1"
    assert await database.run(sql, record.id) == []
    await transaction.rollback()
    assert await database.received() == []


# It does not fire.


async def test_c129_a_live_session_never_fires_it(database: Database, user: str) -> None:
    """Login, activity, rotation and re-dating notify nothing; each of them was written."""
    store, record = database.store, await database.login(user)
    at = record.read_at + timedelta(minutes=1)
    touch = Touch(session_id=record.id, token_digest=record.token_digest, at=at)
    assert await store.touch([touch], POLICY) == 1
    rotated = await store.rotate(successor(record.id, record.refresh_digest))
    assert rotated is not None
    redated = await store.redate(successor(record.id, rotated.refresh_digest))
    assert redated is not None
    assert await database.received() == []


@pytest.mark.parametrize(
    "change",
    [
        "last_activity_at = now() - interval '1 hour'",
        "expires_at = expires_at + interval '1 hour'",
        "refresh_expires_at = refresh_expires_at + interval '1 hour'",
        "ip_address = '192.0.2.1'",
        "is_active = is_active",
    ],
)
async def test_a_change_that_ends_nothing_is_not_notified(
    database: Database, user: str, change: str
) -> None:
    """Neither a column without a rule, nor a limit that moves ahead."""
    await database.login(user)
    assert await database.run(f"update user_sessions set {change}") == []


@pytest.mark.parametrize(
    "change", ["failed_login_attempts = 3", "locked_until = now()", "username = 'other'"]
)
async def test_a_user_change_that_ends_no_session_is_not_notified(
    database: Database, user: str, change: str
) -> None:
    """A lock refuses logins only; a name has no rule."""
    await database.login(user)
    assert await database.run(f"update users set {change} where id = $1", user) == []


async def test_pruning_and_deleting_dead_rows_is_not_notified(
    database: Database, user: str
) -> None:
    """Dead rows are in no cache, so their deletion concerns no process."""
    revoked, expired, old = [await database.login(user) for _ in range(3)]
    await database.store.revoke(revoked.id, reason="x")
    await database.psql.execute(
        "update user_sessions set created_at = now() - interval '200 days',"
        " expires_at = now() - interval '100 days',"
        " refresh_expires_at = now() - interval '100 days' where id = any($1)",
        [expired.id, old.id],
    )
    await database.received()
    assert await database.store.prune(POLICY, batch=1) == 1
    assert await database.store.prune(Policy(retention=DAY), batch=10) == 1
    assert await database.received() == []
    assert await database.run("delete from user_sessions") == []


# It says nothing twice.


async def test_a_revocation_with_the_trigger_is_one_message(
    database: Database, user: str
) -> None:
    """The store and the trigger send the same payload, which is delivered once."""
    record = await database.login(user)
    await database.store.revoke(record.id, reason="x")
    assert await database.received() == [f"s:{record.id}"]


async def test_c66_all_sessions_of_a_user_are_one_message(
    database: Database, user: str
) -> None:
    """Though the trigger fires for each of two thousand rows."""
    await database.psql.execute(
        "insert into user_sessions (id, user_id, session_token_hash, refresh_token_hash,"
        " device_fingerprint, ip_address, user_agent_hash, expires_at,"
        " refresh_expires_at, is_active)"
        " select lpad(n::text, 26, '0'), $1, lpad(n::text, 64, '0'),"
        " lpad(n::text, 64, '1'),"
        " 'x', '192.0.2.1', 'x', now() + interval '1 hour', now() + interval '1 day', true"
        " from generate_series(1, 2000) n",
        user,
    )
    await database.received()
    assert len(await database.store.revoke_user(user, reason="x")) == 2000
    assert await database.received() == [f"u:{user}"]


async def test_skip_notify_is_for_one_transaction(database: Database, user: str) -> None:
    """On the same connection the trigger notifies before it and after it."""
    one, two, three = [await database.login(user) for _ in range(3)]
    sql = "update user_sessions set is_active = false where id = $1"
    assert await database.run(sql, one.id) == [f"s:{one.id}"]
    async with database.psql.transaction():
        await database.psql.execute(SKIP_TRIGGER)
        await database.psql.execute(sql, two.id)
    assert await database.received() == []
    assert await database.run(sql, three.id) == [f"s:{three.id}"]


async def test_skip_notify_ends_with_a_rollback_too(database: Database, user: str) -> None:
    """A transaction that failed leaves no setting behind."""
    record = await database.login(user)
    transaction = database.psql.transaction()
    await transaction.start()
    await database.psql.execute(SKIP_TRIGGER)
    await transaction.rollback()
    sql = "update user_sessions set is_active = false where id = $1"
    assert await database.run(sql, record.id) == [f"s:{record.id}"]


LOUD = {
    "on for the session": "set handstamp.skip_notify = 'on'",
    "on": "select set_config('handstamp.skip_notify', 'on', true)",
    "empty": "select set_config('handstamp.skip_notify', '', true)",
    "another transaction": (
        "select set_config('handstamp.skip_notify',"
        " (pg_current_xact_id()::text::bigint - 1)::text, true)"
    ),
    "for everybody": "set session characteristics as transaction read write;"
    " set handstamp.skip_notify = 'true'",
}


@pytest.mark.parametrize("how", LOUD)
async def test_p4_no_value_but_the_number_of_the_transaction_skips_the_trigger(
    database: Database, user: str, how: str
) -> None:
    """Whatever a writer, a pooler or a role's settings left behind."""
    record = await database.login(user)
    async with database.psql.transaction():
        await database.psql.execute(LOUD[how])
        await database.psql.execute("update user_sessions set is_active = false")
    assert await database.received() == [f"s:{record.id}"]
    await database.psql.execute("reset handstamp.skip_notify")


async def test_p4_an_old_number_skips_no_later_transaction(
    database: Database, user: str
) -> None:
    """Set for the whole connection it was true for one transaction only."""
    one, two = [await database.login(user) for _ in range(2)]
    end = "update user_sessions set is_active = false where id = $1"
    async with database.psql.transaction():
        await database.psql.execute(SKIP_TRIGGER.replace("true", "false"))
        await database.psql.execute(end, one.id)
    assert await database.received() == []
    assert await database.run(end, two.id) == [f"s:{two.id}"]


async def test_skip_notify_holds_within_a_savepoint(database: Database, user: str) -> None:
    """The number is that of the whole transaction."""
    await database.login(user)
    async with database.psql.transaction():
        await database.psql.execute(SKIP_TRIGGER)
        async with database.psql.transaction():
            await database.psql.execute("update user_sessions set is_active = false")
    assert await database.received() == []


async def test_skip_notify_does_not_apply_to_users(database: Database, user: str) -> None:
    """A notification about sessions does not replace one about a disabled user."""
    await database.login(user)
    async with database.psql.transaction():
        await database.psql.execute(SKIP_TRIGGER)
        await database.psql.execute("update users set is_active = false")
    assert await database.received() == [f"u:{user}"]


async def test_an_id_that_is_too_long_for_a_payload_fails_no_writer(dsn: str) -> None:
    """The application may delete its rows, whatever they hold."""
    psql = await asyncpg.connect(dsn)
    await psql.execute(
        "alter table user_sessions alter column id type text;"
        "alter table user_sessions drop constraint user_sessions_user_id_fkey"
    )
    await install(psql, "ulid", trigger=True)
    await psql.execute(
        "insert into user_sessions (id, user_id, session_token_hash, ip_address,"
        " user_agent_hash, expires_at) values (repeat('☃', 9000), 'u', 't',"
        " '127.0.0.1', '-', now() + interval '1 day')"
    )
    assert await psql.execute("delete from user_sessions") == "DELETE 1"
    await psql.close()


# Whether it is there.


async def test_without_the_trigger_not_all_writers_notify(dsn: str) -> None:
    """And their writes cause no notification."""
    async with prepared(dsn, trigger=False) as database:
        user = await database.add_user()
        await database.login(user)
        assert await database.all_writers_notify() is False
        assert await database.run("update user_sessions set is_active = false") == []


async def test_with_the_trigger_all_writers_notify(database: Database) -> None:
    """On both tables, as `init --trigger` makes it."""
    assert await database.all_writers_notify() is True


@pytest.mark.parametrize(
    "sql",
    [
        "drop trigger handstamp_session_changed on user_sessions",
        "drop trigger handstamp_session_deleted on user_sessions",
        "drop trigger handstamp_sessions_truncated on user_sessions",
        "drop trigger handstamp_user_changed on users",
        "drop trigger handstamp_user_deleted on users",
        "drop trigger handstamp_users_truncated on users",
        "alter table user_sessions disable trigger handstamp_session_changed",
        "alter table users disable trigger all",
        "alter table users enable replica trigger handstamp_user_changed",
        "drop function handstamp_notify_user() cascade",
    ],
)
async def test_with_half_a_trigger_not_all_writers_notify(
    database: Database, sql: str
) -> None:
    """If one is missing or disabled, some writes notify nothing."""
    await database.psql.execute(sql)
    assert await database.all_writers_notify() is False


async def test_c67_a_full_queue_stops_no_revocation(database: Database, user: str) -> None:
    """While nothing can be sent, the change is made without a notification."""
    one, two, three = [await database.login(user) for _ in range(3)]
    # A full queue, for a statement: 54000 at the first attempts of any sender.
    await database.psql.execute(
        """create schema jammed; create function jammed.pg_notify(text, text) returns void
        language plpgsql as $$ begin
        raise exception 'too many notifications' using errcode = '54000'; end $$"""
    )
    name = await database.psql.fetchval("select current_database()")
    path = "jammed, pg_catalog, public"
    await database.psql.execute(f'alter database "{name}" set search_path to {path}')
    await database.store.close()
    assert (await database.store.revoke(one.id, reason="x")) is not None
    assert len(await database.store.revoke_user(user, reason="x")) == 2
    records = await database.store.find_many([one.id, two.id, three.id])
    assert [record.is_active for record in records] == [False] * 3
    assert await database.received() == []


async def test_two_processes_may_install_it_at_once(dsn: str) -> None:
    """One creates, the other finds."""
    connections = [await asyncpg.connect(dsn) for _ in range(2)]
    try:
        outcomes = await asyncio.gather(
            *(install(c, "ulid", trigger=True) for c in connections)
        )
    finally:
        for connection in connections:
            await connection.close()
    states = [{o.state for o in some if "notify" in str(o.statement)} for some in outcomes]
    assert sorted(map(sorted, states)) == [["created"], ["found"]]


# The table with UUIDs.


class UuidDatabase(Database):
    """The same with a table with UUIDs, which refers to no users."""

    async def add_user(self, user: str | None = None) -> str:
        return user or str(uuid.uuid4())

    async def login(self, user: str) -> Record:
        new = new_session(
            user,
            id=str(uuid.uuid4()),
            refresh_digest=None,
            session_ttl=POLICY.refresh_ttl,
        )
        return (await self.store.create(new, POLICY)).record


@pytest.fixture
async def uuid_database(uuid_dsn: str) -> AsyncIterator[UuidDatabase]:
    """A table with UUIDs and the trigger."""
    psql = await asyncpg.connect(uuid_dsn)
    await install(psql, "uuid", trigger=True)
    store = TableStore(uuid_dsn, shape=UUID_PLAIN, budget=timedelta(seconds=20))
    uuid_database = UuidDatabase(store, psql)
    await uuid_database.listen()
    yield uuid_database
    uuid_database.close()
    await store.close()
    await psql.close()


@pytest.mark.parametrize(
    "change",
    [
        "is_active = false",
        "is_active = null",
        "deleted_at = now()",
        "expires_at = expires_at - interval '1 second'",
        "created_at = created_at - interval '1 second'",
        "user_id = gen_random_uuid()",
        "trust_level = -1",
        "session_token = gen_random_uuid()::text",
    ],
)
async def test_a_change_that_ends_or_lowers_a_uuid_session_is_notified(
    uuid_database: UuidDatabase, change: str
) -> None:
    """Once for each row that is changed, and for no other."""
    one, two, _ = [
        await uuid_database.login(await uuid_database.add_user()) for _ in range(3)
    ]
    payloads = await uuid_database.run(
        f"update user_sessions set {change} where id::text = any($1)", [one.id, two.id]
    )
    assert sorted(payloads) == sorted([f"s:{one.id}", f"s:{two.id}"])


async def test_the_deletion_of_a_live_uuid_row_is_notified(
    uuid_database: UuidDatabase,
) -> None:
    """And that of a dead row is not."""
    record, other = [
        await uuid_database.login(await uuid_database.add_user()) for _ in range(2)
    ]
    await uuid_database.store.revoke(other.id, reason="x")
    assert await uuid_database.received() == [f"s:{other.id}"]
    assert await uuid_database.run("delete from user_sessions") == [f"s:{record.id}"]


async def test_a_truncated_uuid_table_is_notified(uuid_database: UuidDatabase) -> None:
    """A TRUNCATE names no row."""
    await uuid_database.login(await uuid_database.add_user())
    assert set(await uuid_database.run("truncate user_sessions")) == {"all"}


async def test_c129_a_live_uuid_session_never_fires_it(uuid_database: UuidDatabase) -> None:
    """Login, activity that moves the expiry, and hashing a token notify nothing."""
    record = await uuid_database.login(await uuid_database.add_user())
    later = Policy(refresh_ttl=POLICY.refresh_ttl + DAY)
    touch = Touch(session_id=record.id, token_digest=record.token_digest, at=record.read_at)
    await uuid_database.psql.execute("update user_sessions set updated_at = null")
    assert await uuid_database.store.touch([touch], later) == 1
    after = await uuid_database.store.find_by_id(record.id)
    assert after is not None
    assert after.expires_at > record.expires_at
    assert await uuid_database.received() == []
    clear = "update user_sessions set session_token = 'in plaintext'"
    assert await uuid_database.run(clear) == [f"s:{record.id}"]
    await uuid_database.store.find_plaintext([digest_of("in plaintext")], ["in plaintext"])
    await until(lambda: not uuid_database.store._upgrader)
    row = await uuid_database.psql.fetchrow("select session_token from user_sessions")
    assert (row[0], await uuid_database.received()) == (
        f"sha256:{digest_of('in plaintext')}",
        [],
    )


async def test_a_uuid_revocation_with_the_trigger_is_one_message(
    uuid_database: UuidDatabase,
) -> None:
    """One by one, or all of a user: never twice."""
    user = await uuid_database.add_user()
    one, _, _ = [await uuid_database.login(user) for _ in range(3)]
    await uuid_database.store.revoke(one.id, reason="x")
    assert await uuid_database.received() == [f"s:{one.id}"]
    await uuid_database.store.revoke_user(user, reason="x")
    assert await uuid_database.received() == [f"u:{user}"]


async def test_pruning_uuid_rows_is_not_notified(uuid_database: UuidDatabase) -> None:
    """They were dead for long."""
    await uuid_database.login(await uuid_database.add_user())
    await uuid_database.psql.execute(
        "update user_sessions set created_at = now() - interval '400 days',"
        " updated_at = now() - interval '390 days',"
        " expires_at = now() - interval '380 days'"
    )
    await uuid_database.received()
    assert await uuid_database.store.prune(POLICY, batch=10) == 1
    assert await uuid_database.received() == []


@pytest.mark.parametrize(
    ("sql", "covered"),
    [
        ("select 1", True),
        ("drop trigger handstamp_session_changed on user_sessions", False),
        ("drop trigger handstamp_session_deleted on user_sessions", False),
        ("drop trigger handstamp_sessions_truncated on user_sessions", False),
        ("alter table user_sessions disable trigger handstamp_session_changed", False),
    ],
)
async def test_the_uuid_trigger_is_complete_or_not_relied_on(
    uuid_database: UuidDatabase, sql: str, covered: bool
) -> None:
    """Where there is no table of users, the trigger on the table of sessions is enough."""
    await uuid_database.psql.execute(sql)
    assert await uuid_database.all_writers_notify() is covered
