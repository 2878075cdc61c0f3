"""A step-up in a table: the level and new tokens, in one conditional write.

Over every kind of table that can be given a column for levels: with and without a refresh
token, tokens as digests and in plaintext, one column for id and token, partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache

import asyncpg
import pytest

from handstamp import Sessions
from handstamp.core.lifetime import is_remembered
from handstamp.core.models import Record
from handstamp.core.rotation import rotated_at, was_seen
from handstamp.errors import ConfigError
from handstamp.stores.base import Store
from handstamp.stores.install import install
from handstamp.stores.table import TableStore
from tests.conftest import Server, execute
from tests.conftest import created as new_database
from tests.conftest import template as installed
from tests.support.foreign_tables import LUCIA, PARTITIONED, ForeignTable, ddl
from tests.support.tables import (
    DAY,
    POLICY,
    SECOND,
    ULID_TABLE,
    UUID_TABLE,
    MemoryTable,
    PostgresTable,
    Table,
    fresh_session,
    postgres_table,
    some_digest,
    step_up,
    successor,
)

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Kind:
    """A definition with a level, and how its tables are made."""

    definition: ForeignTable
    sql: str
    installed: str | None = None

    @classmethod
    def of(cls, definition: ForeignTable, sql: str, installed: str | None = None) -> Kind:
        shape = replace(definition.shape, level="trust_level")
        return cls(replace(definition, shape=shape), sql, installed)


ADDED = "alter table {} add trust_level smallint"
KINDS = {
    "uuid": Kind(UUID_TABLE, "", "uuid"),
    "rotating": Kind.of(ULID_TABLE, ADDED.format("user_sessions"), "ulid"),
    "id is token": Kind.of(LUCIA, ddl("lucia") + ADDED.format("user_session")),
    "partitioned": Kind.of(PARTITIONED, ddl("partitioned") + ADDED.format("app_sessions")),
}


@pytest.fixture(scope="session")
def databases(postgres: Server) -> Iterator[Callable[[str], str]]:
    """One database of each kind for all tests, each of which empties it first."""
    with ExitStack() as stack:

        def make(name: str) -> str:
            kind = KINDS[name]
            dsn = stack.enter_context(
                new_database(postgres.dsn(), "handstamp_template")
                if kind.installed is None
                else installed(postgres, kind.installed)
            )
            if kind.sql:
                asyncio.run(execute(dsn, kind.sql))
            return dsn

        yield cache(make)


@pytest.fixture(params=["memory", *KINDS])
def made(request: pytest.FixtureRequest, databases: Callable[[str], str]) -> str | None:
    """The address of a database with a table of this kind; None for memory."""
    name = request.param
    return None if name == "memory" else f"{name} {databases(name)}"


@pytest.fixture
async def table(made: str | None) -> AsyncIterator[Table]:
    """An empty table of each kind, whose clock only the test moves."""
    if made is None:
        yield MemoryTable()
        return
    name, _, dsn = made.rpartition(" ")
    async with postgres_table(dsn, definition=KINDS[name].definition) as table:
        await table.frozen.empty()
        yield table


@pytest.fixture
async def user(table: Table) -> str:
    """A user who may sign in."""
    await table.store.ready()
    return await table.add_user()


async def created(table: Table, user: str, **changes: object) -> Record:
    new = await fresh_session(table, user, **changes)
    return (await table.create(new, POLICY)).record


def rotates(table: Table) -> bool:
    return table.store.capabilities.refresh


async def by_token(store: Store, digest: str) -> Record | None:
    found = await store.find([digest])
    return found[0] if found else None


async def test_a_level_comes_with_new_tokens(table: Table, user: str) -> None:
    """The old ones are found no more, in no column; nothing else of the session changes,
    but where it rotates it is dated like a rotation."""
    record = await created(table, user)
    await table.advance(MINUTE)
    step = step_up(record.id, 2)
    raised = await table.store.replace_tokens(step)
    assert raised is not None
    assert (raised.level, raised.token_digest) == (2, step.token_digest)
    assert raised.id == (step.token_digest if table.shape.id_is_token else record.id)
    assert await by_token(table.store, record.token_digest) is None
    assert await by_token(table.store, step.token_digest) == raised
    assert await table.store.find_by_id(raised.id) == raised
    if not rotates(table):
        same = replace(raised, id=record.id, level=record.level, read_at=record.read_at)
        assert same == replace(record, token_digest=step.token_digest)
        return
    assert raised.refresh_digest == step.refresh_digest
    assert raised.created_at == record.created_at
    assert rotated_at(raised, POLICY.session_ttl) == table.now
    assert not was_seen(raised, POLICY.session_ttl)
    assert raised.expires_at == table.now + POLICY.session_ttl
    assert raised.refresh_expires_at == table.now + POLICY.refresh_ttl
    old = successor(record.id, record.refresh_digest)
    assert await table.store.rotate(old) is None
    assert await table.store.redate(old) is None
    assert await table.store.rotate(successor(record.id, step.refresh_digest)) is not None


@pytest.mark.parametrize("level", [2, 1, 0, -1])
async def test_a_level_that_is_there_changes_nothing(
    table: Table, user: str, level: int
) -> None:
    """Neither the level nor the tokens."""
    record = await created(table, user)
    raised = await table.store.replace_tokens(step_up(record.id, 2))
    assert raised is not None
    assert await table.store.replace_tokens(step_up(raised.id, level)) is None
    assert await table.store.find_by_id(raised.id) == raised


async def test_a_level_of_null_is_the_lowest(table: Table, user: str) -> None:
    """NULL is no level, so 0 is there already and 1 is not."""
    record = await created(table, user)
    await table.write(record.id, level=None)
    assert await table.store.replace_tokens(step_up(record.id, 0)) is None
    raised = await table.store.replace_tokens(step_up(record.id, 1))
    assert raised is not None
    assert raised.level == 1


async def test_tokens_are_replaced_without_a_level(table: Table, user: str) -> None:
    """Again and again; whatever level there is stays."""
    record = await created(table, user)
    raised = await table.store.replace_tokens(step_up(record.id, 2))
    assert raised is not None
    for _ in range(2):
        await table.advance(MINUTE)
        step = step_up(raised.id, None)
        renewed = await table.store.replace_tokens(step)
        assert renewed is not None
        assert (renewed.level, renewed.token_digest) == (2, step.token_digest)
        assert renewed.created_at == record.created_at
        assert await by_token(table.store, raised.token_digest) is None
        assert await table.store.find_by_id(renewed.id) == renewed
        if rotates(table):
            assert renewed.refresh_digest == step.refresh_digest
        raised = renewed
    await table.store.revoke(raised.id, reason="x")
    assert await table.store.replace_tokens(step_up(raised.id, None)) is None


async def test_of_two_at_once_one_writes(table: Table, user: str) -> None:
    """The other waits for the row, and finds the level there."""
    record = await created(table, user)
    steps = [step_up(record.id, 2) for _ in range(5)]
    answers = await asyncio.gather(*(table.store.replace_tokens(step) for step in steps))
    (raised,) = [answer for answer in answers if answer is not None]
    assert raised.token_digest in {step.token_digest for step in steps}
    assert await table.store.find_by_id(raised.id) == raised


async def test_what_is_over_gets_no_level(table: Table, user: str) -> None:
    """Revoked, expired, or absent."""
    store = table.store
    revoked, expired = await created(table, user), await created(table, user)
    await store.revoke(revoked.id, reason="x")
    await table.advance(100 * DAY)
    for record in (revoked, expired):
        assert await store.replace_tokens(step_up(record.id, 2)) is None
    for absurd in ("", "x" * 300, "nobody's", "\x00", "💥"):
        assert await store.replace_tokens(step_up(absurd, 2)) is None


async def test_a_user_who_is_disabled_gets_no_level(table: Table, user: str) -> None:
    """In the write itself: whatever was read before."""
    if not table.store.capabilities.user_status:
        pytest.skip("no table of users")
    record = await created(table, user)
    await table.write_user(user, is_active=False)
    assert await table.store.replace_tokens(step_up(record.id, 2)) is None


async def test_a_session_keeps_its_limit(table: Table, user: str) -> None:
    """One that is not remembered gets no further than its browser's."""
    if not rotates(table):
        pytest.skip("a step-up moves no expiry here")
    longest = POLICY.browser_ttl
    record = await created(table, user, longest=longest)
    assert not is_remembered(record, POLICY)
    await table.advance(longest - SECOND)
    raised = await table.store.replace_tokens(step_up(record.id, 2, longest=longest))
    assert raised is not None
    assert raised.refresh_expires_at == record.refresh_expires_at
    await table.advance(SECOND)
    assert await table.store.replace_tokens(step_up(record.id, 3, longest=longest)) is None


async def test_a_step_up_is_notified_once_as_a_change(table: Table, user: str) -> None:
    """The session has not ended, unless its id is its token. Nothing is notified that was
    not written."""
    payloads: list[str] = []
    assert table.store.channel is not None
    link = await table.store.channel.listen(payloads.append, lambda: None)
    record = await created(table, user)
    raised = await table.store.replace_tokens(step_up(record.id, 2))
    assert raised is not None
    assert await table.store.replace_tokens(step_up(raised.id, 2)) is None
    await link.prove()
    link.drop()
    assert payloads == [f"{'s' if table.shape.id_is_token else 'd'}:{record.id}"]


@pytest.fixture(params=["ulid", "uuid"])
def own(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each shape that has a trigger, and a database of its own."""
    name = "dsn" if request.param == "ulid" else "uuid_dsn"
    return request.param, request.getfixturevalue(name)


async def test_the_trigger_does_not_notify_an_end(own: tuple[str, str]) -> None:
    """Another token in place of one is an end, unless we say what it is; with a level and
    without."""
    shape, dsn = own
    psql = await asyncpg.connect(dsn)
    definition = UUID_TABLE
    if shape == "ulid":
        await psql.execute(ADDED.format("user_sessions"))
        definition = KINDS["rotating"].definition
    await install(psql, shape, trigger=True)
    async with postgres_table(dsn, definition=definition) as table:
        payloads: list[str] = []
        link = await table.store.channel.listen(payloads.append, lambda: None)
        record = await created(table, await table.add_user())
        await table.advance(MINUTE)
        for level in (2, None):
            assert await table.store.replace_tokens(step_up(record.id, level)) is not None
            await link.prove()
            assert payloads == [f"d:{record.id}"]
            payloads.clear()
        column = "session_token_hash" if shape == "ulid" else "session_token"
        await psql.execute(f"update user_sessions set {column} = $1", some_digest())
        await link.prove()
        assert payloads == [f"s:{record.id}"]
        link.drop()
    await psql.close()


KEEPING = {
    "the row": "return null;",
    "the level": "new.trust_level := old.trust_level; return new;",
    "the token": "new.session_token_hash := old.session_token_hash; return new;",
}


@pytest.mark.parametrize("kept", KEEPING)
async def test_a_step_up_that_the_database_undoes_is_no_success(
    dsn: str, kept: str
) -> None:
    """A BEFORE trigger of the application changes the row back: no call reports a level, or
    returns tokens, that are not in the row."""
    psql = await asyncpg.connect(dsn)
    await psql.execute(ADDED.format("user_sessions"))
    shape = KINDS["rotating"].definition.shape
    async with Sessions(dsn, secret="x" * 32, shape=shape) as sessions:
        user = await psql.fetchval(ULID_TABLE.new_user, "alice")
        issued = await sessions.create(user)
        await psql.execute(
            "create function keep() returns trigger language plpgsql as $$ begin "
            f"{KEEPING[kept]} end $$; create trigger keep before update of trust_level on"
            " user_sessions for each row execute function keep()"
        )
        with pytest.raises(ConfigError, match="BEFORE trigger"):
            await sessions.step_up(issued.session.id, 2)
    await psql.close()


async def test_a_full_queue_stops_no_step_up(dsn: str) -> None:
    """While no notification can be sent, the tokens are replaced without one."""
    psql = await asyncpg.connect(dsn)
    await psql.execute(ADDED.format("user_sessions"))
    await psql.execute(
        """create schema jammed; create function jammed.pg_notify(text, text) returns void
        language plpgsql as $$ begin
        raise exception 'too many notifications' using errcode = '54000'; end $$"""
    )
    store = TableStore(
        dsn,
        shape=KINDS["rotating"].definition.shape,
        connect={"server_settings": {"search_path": "jammed, pg_catalog, public"}},
    )
    user = await psql.fetchval(ULID_TABLE.new_user, "alice")
    new = await fresh_session(PostgresTable(None, store, ULID_TABLE), user)  # type: ignore[arg-type]
    record = (await store.create(new, POLICY)).record
    step = step_up(record.id, 2)
    assert await store.replace_tokens(step) is not None
    assert await by_token(store, record.token_digest) is None
    assert await by_token(store, step.token_digest) is not None
    await store.close()
    await psql.close()
