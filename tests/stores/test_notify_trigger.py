"""The trigger: who makes it notify, and who never does."""

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


class Town:
    """A table with the trigger, somebody who listens, and somebody at psql."""

    def __init__(self, store: TableStore, psql: asyncpg.Connection) -> None:
        self.store = store
        self.psql = psql
        self._said: list[str] = []

    async def listen(self) -> None:
        self._link = await self.store.channel.listen(self._said.append, lambda: None)

    async def heard(self) -> list[str]:
        """What was said since the last call."""
        await self._link.prove()
        said = list(self._said)
        self._said.clear()
        return said

    async def run(self, sql: str, *values: object) -> list[str]:
        """Run what an administrator types; what was heard of it."""
        await self.heard()
        await self.psql.execute(sql, *values)
        return await self.heard()

    async def covers(self) -> bool:
        await self._link.all_writers_notify()  # False once after each change
        return await self._link.all_writers_notify()

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

    def leave(self) -> None:
        self._link.drop()


@asynccontextmanager
async def settled(dsn: str, *, trigger: bool = True) -> AsyncIterator[Town]:
    psql = await asyncpg.connect(dsn)
    await install(psql, "ulid", trigger=trigger)
    store = TableStore(dsn, budget=timedelta(seconds=20))
    town = Town(store, psql)
    await town.listen()
    try:
        yield town
    finally:
        town.leave()
        await store.close()
        await psql.close()


@pytest.fixture
async def town(dsn: str) -> AsyncIterator[Town]:
    """A table with the trigger."""
    async with settled(dsn) as town:
        yield town


@pytest.fixture
async def user(town: Town) -> str:
    """A user who may sign in."""
    return await town.add_user()


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
async def test_whoever_ends_a_session_early_is_heard(
    town: Town, user: str, change: str
) -> None:
    """Once for each row that is changed, and for no other."""
    one, two, _ = [await town.login(user) for _ in range(3)]
    said = await town.run(
        f"update user_sessions set {change} where id = any($1)", [one.id, two.id]
    )
    assert sorted(said) == sorted([f"s:{one.id}", f"s:{two.id}"])


async def test_a_session_that_changes_hands_is_heard(town: Town, user: str) -> None:
    """Whoever has it in a cache has it under the wrong user."""
    record, other = await town.login(user), await town.add_user()
    said = await town.run(
        "update user_sessions set user_id = $2 where id = $1", record.id, other
    )
    assert said == [f"s:{record.id}"]


async def test_a_session_with_another_id_is_heard(town: Town, user: str) -> None:
    """Whoever has it in a cache would be told of the end of an id that it does not know."""
    record = await town.login(user)
    said = await town.run(
        "update user_sessions set id = $2 where id = $1", record.id, str(ULID())
    )
    assert said == [f"s:{record.id}"]


async def test_a_user_with_another_id_is_heard(town: Town, user: str) -> None:
    """Without a foreign key that follows, the user's sessions are nobody's from then on."""
    await town.login(user)
    await town.psql.execute(
        "alter table user_sessions drop constraint user_sessions_user_id_fkey"
    )
    new = str(ULID())
    said = await town.run("update users set id = $2 where id = $1", user, new)
    assert sorted(said) == sorted([f"u:{user}", f"u:{new}"])


async def test_p4_what_a_before_trigger_changes_is_heard(town: Town, user: str) -> None:
    """The statement names another column than the one that ends the session."""
    await town.psql.execute(
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
    record = await town.login(user)
    said = await town.run("update users set failed_login_attempts = 10 where id = $1", user)
    assert said == [f"u:{user}"]
    said = await town.run("update user_sessions set device_fingerprint = 'stolen'")
    assert said == [f"s:{record.id}"]


async def test_what_on_conflict_and_merge_change_is_heard(town: Town, user: str) -> None:
    """An INSERT that becomes an UPDATE is one."""
    record = await town.login(user)
    upsert = (
        "insert into user_sessions select * from user_sessions where id = $1"
        " on conflict (id) do update set is_active = false"
    )
    assert await town.run(upsert, record.id) == [f"s:{record.id}"]
    merge = (
        "merge into user_sessions s using (select $1::text as id) o on s.id = o.id"
        " when matched then update set is_active = true"
    )
    assert await town.run(merge, record.id) == [f"s:{record.id}"]


async def test_a_row_that_goes_is_heard_while_its_session_token_lives(
    town: Town, user: str
) -> None:
    """Though its refresh token is over already."""
    record = await town.login(user)
    await town.run("update user_sessions set refresh_expires_at = now() - interval '1 s'")
    said = await town.run("delete from user_sessions where id = $1", record.id)
    assert said == [f"s:{record.id}"]


async def test_a_session_that_comes_back_is_heard(town: Town, user: str) -> None:
    """Reactivation is a change of validity like any other."""
    record = await town.login(user)
    await town.store.revoke(record.id, reason="x")
    said = await town.run(
        "update user_sessions set is_active = true where id = $1", record.id
    )
    assert said == [f"s:{record.id}"]


async def test_the_deletion_of_a_live_row_is_heard(town: Town, user: str) -> None:
    """Each row that was alive, once."""
    records = [await town.login(user) for _ in range(3)]
    said = await town.run("delete from user_sessions")
    assert sorted(said) == sorted(f"s:{record.id}" for record in records)


async def test_c69_the_deletion_of_a_user_is_heard(town: Town, user: str) -> None:
    """The user, and each session that the cascade took along."""
    records = [await town.login(user) for _ in range(2)]
    said = await town.run("delete from users where id = $1", user)
    assert sorted(said) == sorted([f"u:{user}", *(f"s:{record.id}" for record in records)])


@pytest.mark.parametrize("change", ["is_active = false", "last_password_change = now()"])
async def test_c69_a_change_of_a_user_is_heard(town: Town, user: str, change: str) -> None:
    """One message, however many sessions the user has."""
    for _ in range(3):
        await town.login(user)
    said = await town.run(f"update users set {change} where id = $1", user)
    assert said == [f"u:{user}"]


@pytest.mark.parametrize("sql", ["truncate user_sessions", "truncate users cascade"])
async def test_c69_emptied_tables_are_heard(town: Town, user: str, sql: str) -> None:
    """No row of a TRUNCATE has a name: anything may be over."""
    await town.login(user)
    assert set(await town.run(sql)) == {"all"}


async def test_nothing_is_heard_of_what_was_rolled_back(town: Town, user: str) -> None:
    """A notice comes with its commit, or not at all."""
    record = await town.login(user)
    transaction = town.psql.transaction()
    await transaction.start()
    sql = "update user_sessions set is_active = false where id = $1"
    assert await town.run(sql, record.id) == []
    await transaction.rollback()
    assert await town.heard() == []


# It does not fire.


async def test_c129_a_living_session_never_fires_it(town: Town, user: str) -> None:
    """Login, activity, rotation and re-dating are silent, each of them really written."""
    store, record = town.store, await town.login(user)
    at = record.read_at + timedelta(minutes=1)
    touch = Touch(session_id=record.id, token_digest=record.token_digest, at=at)
    assert await store.touch([touch], POLICY) == 1
    rotated = await store.rotate(successor(record.id, record.refresh_digest))
    assert rotated is not None
    redated = await store.redate(successor(record.id, rotated.refresh_digest))
    assert redated is not None
    assert await town.heard() == []


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
async def test_what_ends_nothing_is_not_heard(town: Town, user: str, change: str) -> None:
    """Neither a column that judges nothing, nor a limit that moves away."""
    await town.login(user)
    assert await town.run(f"update user_sessions set {change}") == []


@pytest.mark.parametrize(
    "change", ["failed_login_attempts = 3", "locked_until = now()", "username = 'other'"]
)
async def test_what_ends_no_session_of_a_user_is_not_heard(
    town: Town, user: str, change: str
) -> None:
    """A lock refuses logins only; a name judges nothing."""
    await town.login(user)
    assert await town.run(f"update users set {change} where id = $1", user) == []


async def test_pruning_and_deleting_the_dead_is_not_heard(town: Town, user: str) -> None:
    """Rows that were over are in nobody's cache, whoever deletes them."""
    revoked, expired, old = [await town.login(user) for _ in range(3)]
    await town.store.revoke(revoked.id, reason="x")
    await town.psql.execute(
        "update user_sessions set created_at = now() - interval '200 days',"
        " expires_at = now() - interval '100 days',"
        " refresh_expires_at = now() - interval '100 days' where id = any($1)",
        [expired.id, old.id],
    )
    await town.heard()
    assert await town.store.prune(POLICY, batch=1) == 1
    assert await town.store.prune(Policy(retention=DAY), batch=10) == 1
    assert await town.heard() == []
    assert await town.run("delete from user_sessions") == []


# It says nothing twice.


async def test_a_revocation_with_the_trigger_is_one_message(town: Town, user: str) -> None:
    """What the store says and what the trigger says is the same, once."""
    record = await town.login(user)
    await town.store.revoke(record.id, reason="x")
    assert await town.heard() == [f"s:{record.id}"]


async def test_c66_all_sessions_of_a_user_are_one_message(town: Town, user: str) -> None:
    """Though the trigger fires for each of two thousand rows."""
    await town.psql.execute(
        "insert into user_sessions (id, user_id, session_token_hash, refresh_token_hash,"
        " device_fingerprint, ip_address, user_agent_hash, expires_at,"
        " refresh_expires_at, is_active)"
        " select lpad(n::text, 26, '0'), $1, lpad(n::text, 64, '0'),"
        " lpad(n::text, 64, '1'),"
        " 'x', '192.0.2.1', 'x', now() + interval '1 hour', now() + interval '1 day', true"
        " from generate_series(1, 2000) n",
        user,
    )
    await town.heard()
    assert len(await town.store.revoke_user(user, reason="x")) == 2000
    assert await town.heard() == [f"u:{user}"]


async def test_quietly_is_for_one_transaction(town: Town, user: str) -> None:
    """On the same connection the trigger speaks before it and after it."""
    one, two, three = [await town.login(user) for _ in range(3)]
    sql = "update user_sessions set is_active = false where id = $1"
    assert await town.run(sql, one.id) == [f"s:{one.id}"]
    async with town.psql.transaction():
        await town.psql.execute(SKIP_TRIGGER)
        await town.psql.execute(sql, two.id)
    assert await town.heard() == []
    assert await town.run(sql, three.id) == [f"s:{three.id}"]


async def test_quietly_ends_with_a_rollback_too(town: Town, user: str) -> None:
    """A call that failed leaves no silence behind."""
    record = await town.login(user)
    transaction = town.psql.transaction()
    await transaction.start()
    await town.psql.execute(SKIP_TRIGGER)
    await transaction.rollback()
    sql = "update user_sessions set is_active = false where id = $1"
    assert await town.run(sql, record.id) == [f"s:{record.id}"]


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
async def test_p4_no_setting_but_the_transaction_s_own_number_silences(
    town: Town, user: str, how: str
) -> None:
    """Whatever a writer, a pooler or a role's settings left behind."""
    record = await town.login(user)
    async with town.psql.transaction():
        await town.psql.execute(LOUD[how])
        await town.psql.execute("update user_sessions set is_active = false")
    assert await town.heard() == [f"s:{record.id}"]
    await town.psql.execute("reset handstamp.skip_notify")


async def test_p4_a_number_that_stays_behind_silences_no_later_transaction(
    town: Town, user: str
) -> None:
    """Set for the whole connection it was true for one transaction only."""
    one, two = [await town.login(user) for _ in range(2)]
    end = "update user_sessions set is_active = false where id = $1"
    async with town.psql.transaction():
        await town.psql.execute(SKIP_TRIGGER.replace("true", "false"))
        await town.psql.execute(end, one.id)
    assert await town.heard() == []
    assert await town.run(end, two.id) == [f"s:{two.id}"]


async def test_quietly_holds_within_a_savepoint(town: Town, user: str) -> None:
    """The number is that of the whole transaction."""
    await town.login(user)
    async with town.psql.transaction():
        await town.psql.execute(SKIP_TRIGGER)
        async with town.psql.transaction():
            await town.psql.execute("update user_sessions set is_active = false")
    assert await town.heard() == []


async def test_a_user_is_never_kept_quiet(town: Town, user: str) -> None:
    """What is said of sessions says nothing of those who are disabled meanwhile."""
    await town.login(user)
    async with town.psql.transaction():
        await town.psql.execute(SKIP_TRIGGER)
        await town.psql.execute("update users set is_active = false")
    assert await town.heard() == [f"u:{user}"]


async def test_an_id_that_no_payload_takes_fails_nobody(dsn: str) -> None:
    """The application may delete its rows, whatever stands in them."""
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


async def test_without_the_trigger_foreign_writers_are_not_covered(dsn: str) -> None:
    """And nothing is heard of them."""
    async with settled(dsn, trigger=False) as town:
        user = await town.add_user()
        await town.login(user)
        assert await town.covers() is False
        assert await town.run("update user_sessions set is_active = false") == []


async def test_with_the_trigger_foreign_writers_are_covered(town: Town) -> None:
    """On both tables, as `init --trigger` makes it."""
    assert await town.covers() is True


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
async def test_half_a_trigger_covers_nobody(town: Town, sql: str) -> None:
    """One that is missing or switched off means that somebody is not heard."""
    await town.psql.execute(sql)
    assert await town.covers() is False


async def test_c67_a_full_queue_stops_no_revocation(town: Town, user: str) -> None:
    """While nothing can be said the change is made without a word, trigger or not."""
    one, two, three = [await town.login(user) for _ in range(3)]
    # What a full queue is to a statement: 54000 at the first attempts, whoever speaks.
    await town.psql.execute(
        """create schema jammed; create function jammed.pg_notify(text, text) returns void
        language plpgsql as $$ begin
        raise exception 'too many notifications' using errcode = '54000'; end $$"""
    )
    name = await town.psql.fetchval("select current_database()")
    path = "jammed, pg_catalog, public"
    await town.psql.execute(f'alter database "{name}" set search_path to {path}')
    await town.store.close()
    assert (await town.store.revoke(one.id, reason="x")) is not None
    assert len(await town.store.revoke_user(user, reason="x")) == 2
    records = await town.store.find_many([one.id, two.id, three.id])
    assert [record.is_active for record in records] == [False] * 3
    assert await town.heard() == []


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


class Hamlet(Town):
    """The same around a table with UUIDs, which refers to no users."""

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
async def hamlet(uuid_dsn: str) -> AsyncIterator[Hamlet]:
    """A table with UUIDs and the trigger."""
    psql = await asyncpg.connect(uuid_dsn)
    await install(psql, "uuid", trigger=True)
    store = TableStore(uuid_dsn, shape=UUID_PLAIN, budget=timedelta(seconds=20))
    hamlet = Hamlet(store, psql)
    await hamlet.listen()
    yield hamlet
    hamlet.leave()
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
async def test_whoever_ends_or_lowers_a_uuid_session_is_heard(
    hamlet: Hamlet, change: str
) -> None:
    """Once for each row that is changed, and for no other."""
    one, two, _ = [await hamlet.login(await hamlet.add_user()) for _ in range(3)]
    said = await hamlet.run(
        f"update user_sessions set {change} where id::text = any($1)", [one.id, two.id]
    )
    assert sorted(said) == sorted([f"s:{one.id}", f"s:{two.id}"])


async def test_the_deletion_of_a_live_uuid_row_is_heard(hamlet: Hamlet) -> None:
    """And of one that was over it is not."""
    record, other = [await hamlet.login(await hamlet.add_user()) for _ in range(2)]
    await hamlet.store.revoke(other.id, reason="x")
    assert await hamlet.heard() == [f"s:{other.id}"]
    assert await hamlet.run("delete from user_sessions") == [f"s:{record.id}"]


async def test_an_emptied_uuid_table_is_heard(hamlet: Hamlet) -> None:
    """No row of a TRUNCATE has a name."""
    await hamlet.login(await hamlet.add_user())
    assert set(await hamlet.run("truncate user_sessions")) == {"all"}


async def test_c129_a_living_uuid_session_never_fires_it(hamlet: Hamlet) -> None:
    """Login, activity that moves the expiry, and a token that is hashed are silent."""
    record = await hamlet.login(await hamlet.add_user())
    later = Policy(refresh_ttl=POLICY.refresh_ttl + DAY)
    touch = Touch(session_id=record.id, token_digest=record.token_digest, at=record.read_at)
    await hamlet.psql.execute("update user_sessions set updated_at = null")
    assert await hamlet.store.touch([touch], later) == 1
    after = await hamlet.store.find_by_id(record.id)
    assert after is not None
    assert after.expires_at > record.expires_at
    assert await hamlet.heard() == []
    clear = "update user_sessions set session_token = 'in clear'"
    assert await hamlet.run(clear) == [f"s:{record.id}"]
    await hamlet.store.find_plaintext([digest_of("in clear")], ["in clear"])
    await until(lambda: not hamlet.store._upgrader)
    row = await hamlet.psql.fetchrow("select session_token from user_sessions")
    assert (row[0], await hamlet.heard()) == (f"sha256:{digest_of('in clear')}", [])


async def test_a_uuid_revocation_with_the_trigger_is_one_message(hamlet: Hamlet) -> None:
    """One by one, or all of a user: never twice."""
    user = await hamlet.add_user()
    one, _, _ = [await hamlet.login(user) for _ in range(3)]
    await hamlet.store.revoke(one.id, reason="x")
    assert await hamlet.heard() == [f"s:{one.id}"]
    await hamlet.store.revoke_user(user, reason="x")
    assert await hamlet.heard() == [f"u:{user}"]


async def test_pruning_uuid_rows_is_not_heard(hamlet: Hamlet) -> None:
    """They were over long ago."""
    await hamlet.login(await hamlet.add_user())
    await hamlet.psql.execute(
        "update user_sessions set created_at = now() - interval '400 days',"
        " updated_at = now() - interval '390 days',"
        " expires_at = now() - interval '380 days'"
    )
    await hamlet.heard()
    assert await hamlet.store.prune(POLICY, batch=10) == 1
    assert await hamlet.heard() == []


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
async def test_the_uuid_trigger_covers_everybody_or_nobody(
    hamlet: Hamlet, sql: str, covered: bool
) -> None:
    """Where there is no table of users, the one of sessions is all there is to watch."""
    await hamlet.psql.execute(sql)
    assert await hamlet.covers() is covered
