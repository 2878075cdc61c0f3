"""A shape and a real table: what is refused with the DDL that corrects it, what is off."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import asyncpg
import pytest

from handstamp.errors import ConfigError
from handstamp.stores.base import rotating
from handstamp.stores.shapes import ULID_HASHED, UUID_PLAIN, TableShape, UsersTable
from handstamp.stores.table import TableStore
from tests.conftest import copied
from tests.stores.conftest import Templates
from tests.support.foreign_tables import BETTER_AUTH, DJANGO, INTEGERS, PARTITIONED, RAILS

SHAPES = {
    "ulid": ULID_HASHED,
    "uuid": UUID_PLAIN,
    "django": DJANGO.shape,
    "rails": RAILS.shape,
    "better_auth": BETTER_AUTH.shape,
    "integers": INTEGERS.shape,
    "partitioned": PARTITIONED.shape,
}
BLIND = "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)"


class Bench:
    """A database, a connection of its owner, and stores that resolve a shape on it."""

    def __init__(self, dsn: str, psql: asyncpg.Connection) -> None:
        self._dsn = dsn
        self.psql = psql

    async def resolved(self, shape: TableShape) -> TableStore:
        """A store that has looked at the table, closed."""
        store = TableStore(self._dsn, shape=shape)
        try:
            await store.ready()
        finally:
            await store.close()
        return store

    async def refusal(self, shape: TableShape) -> str:
        """Why the table must not be used."""
        with pytest.raises(ConfigError) as refusal:
            await self.resolved(shape)
        return str(refusal.value)


def remedies(refusal: str) -> list[str]:
    """The DDL at the end of a refusal."""
    return re.findall(r"Fix it with: (.*);$", refusal)


@pytest.fixture
async def bench(
    foreign_dsn: Callable[[str], str], request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    """A database with the tables that the test's first parameter names."""
    name = request.node.callspec.params["name"]
    dsn = await asyncio.to_thread(foreign_dsn, name)
    psql = await asyncpg.connect(dsn)
    yield Bench(dsn, psql)
    await psql.close()


DANGERS = [
    (
        "uuid",
        "alter table user_sessions drop constraint user_sessions_session_token_key",
        "has no unique index, so two rows could have one token",
    ),
    (
        "uuid",
        "alter table user_sessions drop constraint user_sessions_session_token_key;"
        " create unique index on user_sessions (session_token) where is_active",
        "has no unique index",
    ),
    (
        "uuid",
        "alter table user_sessions drop constraint user_sessions_session_token_key;"
        " create unique index on user_sessions (session_token, user_id)",
        "has no unique index",
    ),
    (
        "uuid",
        "alter table user_sessions drop constraint user_sessions_session_token_key;"
        " create unique index on user_sessions (session_token, md5(device_id))",
        "has no unique index",
    ),
    ("uuid", "alter table user_sessions alter session_token drop not null", "may be null"),
    (
        "uuid",
        "alter table user_sessions alter session_token type varchar(64)",
        "takes 64 characters and a token needs 71",
    ),
    (
        "ulid",
        "alter table user_sessions alter session_token_hash type varchar(63)",
        "takes 63 characters and a token needs 64",
    ),
    (
        "ulid",
        "alter table user_sessions alter refresh_token_hash type varchar(32)",
        "refresh_token_hash takes 32 characters",
    ),
    (
        "ulid",
        "alter table user_sessions alter last_activity_at type timestamptz(3)",
        "keeps no microseconds",
    ),
    (
        "integers",
        "alter table member_sessions alter valid_until type timestamptz(0)",
        "keeps no microseconds",
    ),
    (
        "integers",
        "update member_sessions set ended = now();"
        " alter table member_sessions alter ended set not null",
        "every session would be over",
    ),
    (
        "ulid",
        "alter table user_sessions alter id type varchar(20)",
        "takes 20 characters and a new id needs 26",
    ),
    (
        "rails",
        "alter table authie_sessions alter updated_at drop default,"
        " alter updated_at set not null",
        "may not be null and has no default",
    ),
    (
        "partitioned",
        "alter table app_sessions alter device set not null",
        "may not be null and has no default",
    ),
    (
        "partitioned",
        "alter table app_sessions drop constraint app_sessions_token_key",
        "has no unique index",
    ),
    # Of the wrong type.
    (
        "uuid",
        "alter table user_sessions alter expires_at type bigint using 0",
        "expires_at is of type int8",
    ),
    (
        "uuid",
        "alter table user_sessions alter expires_at type text",
        "expires_at is of type text",
    ),
    (
        "uuid",
        "drop index idx_user_sessions_user_active, idx_user_sessions_token_active;"
        " alter table user_sessions alter is_active drop default,"
        " alter is_active type integer using is_active::integer",
        "is_active is of type int4",
    ),
    (
        "uuid",
        "alter table user_sessions alter trust_level type text",
        "trust_level is of type text",
    ),
    (
        "ulid",
        "alter table user_sessions alter session_token_hash type bytea"
        " using decode(session_token_hash, 'hex')",
        "session_token_hash is of type bytea",
    ),
    (
        "better_auth",
        'alter table "session" alter "updatedAt" type date',
        "updatedAt is of type date",
    ),
]


@pytest.mark.parametrize(("name", "spoil", "reason"), DANGERS)
async def test_a_dangerous_table_is_refused_until_it_is_fixed(
    bench: Bench, name: str, spoil: str, reason: str
) -> None:
    """The reason names the place, and the DDL it gives makes the table accepted."""
    await bench.psql.execute(spoil)
    refusal = await bench.refusal(SHAPES[name])
    assert reason in refusal
    assert f"{SHAPES[name].table}." in refusal
    (ddl,) = remedies(refusal)
    await bench.psql.execute(ddl)
    await bench.resolved(SHAPES[name])


@pytest.fixture
def system_copy(
    system_templates: Templates, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A database on the system's own server, which may know ICU."""
    with copied(system_templates(request.node.callspec.params["name"])) as dsn:
        yield dsn


@pytest.mark.postgres15
@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("ulid", "user_sessions alter session_token_hash type text"),
        ("ulid", "user_sessions alter refresh_token_hash type text"),
        ("better_auth", '"session" alter token type varchar(255)'),
    ],
)
async def test_a_collation_that_ignores_case_is_refused_until_it_is_fixed(
    system_copy: str, name: str, spoil: str
) -> None:
    """Two tokens that differ in case only would be one."""
    psql = await asyncpg.connect(system_copy)
    try:
        await psql.execute(f"create collation blind {BLIND}")
        await psql.execute(f"alter table {spoil} collate blind")
        bench = Bench(system_copy, psql)
        refusal = await bench.refusal(SHAPES[name])
        assert "takes different texts for equal" in refusal
        await psql.execute(remedies(refusal)[0])
        await bench.resolved(SHAPES[name])
    finally:
        await psql.close()


@pytest.mark.parametrize("name", ["uuid"])
async def test_citext_is_refused_until_it_is_text(bench: Bench, name: str) -> None:
    """A type that takes two tokens for one."""
    try:
        await bench.psql.execute("create extension citext")
    except (asyncpg.UndefinedFileError, asyncpg.FeatureNotSupportedError):
        pytest.skip("this server has no citext")
    await bench.psql.execute("alter table user_sessions alter session_token type citext")
    refusal = await bench.refusal(UUID_PLAIN)
    assert "is of type citext" in refusal
    await bench.psql.execute(remedies(refusal)[0])
    await bench.resolved(UUID_PLAIN)


@pytest.mark.parametrize("name", ["ulid"])
async def test_the_ddl_for_a_digest_in_bytes_keeps_the_digest(
    bench: Bench, name: str
) -> None:
    """The conversion keeps what the rows hold."""
    await bench.psql.execute(
        "alter table user_sessions alter session_token_hash type bytea"
        " using decode(session_token_hash, 'hex');"
        " insert into users (id, username, password_hash) values ('u', 'u', '');"
        " insert into user_sessions (user_id, session_token_hash, ip_address,"
        " user_agent_hash, expires_at) values ('u', '\\x00ff', '::1', '',"
        " now() + interval '1 hour')"
    )
    (ddl,) = remedies(await bench.refusal(ULID_HASHED))
    await bench.psql.execute(ddl)
    sql = "select session_token_hash from user_sessions"
    assert await bench.psql.fetchval(sql) == "00ff"


@pytest.mark.parametrize("name", ["partitioned"])
async def test_a_table_partitioned_by_another_column_gets_no_ddl(
    bench: Bench, name: str
) -> None:
    """It can have no unique index on the token, so none is proposed."""
    await bench.psql.execute(
        "create table by_month (like app_sessions) partition by range (created_at)"
    )
    refusal = await bench.refusal(replace(PARTITIONED.shape, table="by_month"))
    assert "has no unique index" in refusal
    assert remedies(refusal) == []


@pytest.mark.parametrize("name", ["uuid"])
@pytest.mark.parametrize("new_id", ["ulid", "database"])
async def test_ids_that_the_column_does_not_take_are_refused(
    bench: Bench, name: str, new_id: str
) -> None:
    """With what to say instead."""
    if new_id == "database":
        await bench.psql.execute("alter table user_sessions alter id drop default")
    shape = replace(UUID_PLAIN, new_id=new_id)  # type: ignore[arg-type]
    assert 'new_id="uuid"' in await bench.refusal(shape)


@pytest.mark.parametrize("name", ["uuid"])
@pytest.mark.parametrize("column", ["id", "user_id", "session_token", "expires_at"])
async def test_what_identifies_a_session_must_be_there(
    bench: Bench, name: str, column: str
) -> None:
    """The refusal says which field of the shape could name another column."""
    await bench.psql.execute(f"alter table user_sessions drop column {column} cascade")
    refusal = await bench.refusal(UUID_PLAIN)
    assert f"has no column {column}" in refusal
    assert "TableShape(" in refusal


@pytest.mark.parametrize("name", ["uuid"])
async def test_no_table_is_refused(bench: Bench, name: str) -> None:
    """By name, with what makes it."""
    refusal = await bench.refusal(TableShape(table="nothing"))
    assert "there is no table nothing" in refusal


OFF = {
    "trust_level": ("level", "level"),
    "device_id": ("fingerprint", "fingerprint"),
    "updated_at": ("last_activity_at", "activity"),
    "created_at": ("created_at", "absolute"),
}


@pytest.mark.parametrize("name", ["uuid"])
@pytest.mark.parametrize("column", OFF)
async def test_a_missing_column_switches_its_feature_off(
    bench: Bench, name: str, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Visibly: in the capabilities, in the log, and nothing else is off."""
    await bench.psql.execute(f"alter table user_sessions drop column {column} cascade")
    store = await bench.resolved(UUID_PLAIN)
    field, ability = OFF[column]
    assert not getattr(store.capabilities, ability)
    assert (await store.statements()).resolved.missing == (field,)
    assert f"no column for {field}" in caplog.text
    await store.close()


@pytest.mark.parametrize("name", ["ulid"])
@pytest.mark.parametrize(
    "column",
    ["refresh_token_hash", "refresh_expires_at", "last_activity_at", "created_at"],
)
async def test_without_what_rotation_needs_nothing_rotates(
    bench: Bench, name: str, column: str
) -> None:
    """Rather than rotate and never notice a theft."""
    await bench.psql.execute(f"alter table user_sessions drop column {column} cascade")
    store = await bench.resolved(ULID_HASHED)
    assert not store.capabilities.refresh
    sql = await store.statements()
    assert not hasattr(sql, "rotate")
    assert not hasattr(sql, "redate")
    assert await rotating(store) is None
    assert "refresh_token" in sql.resolved.missing
    await store.close()


@pytest.mark.parametrize("name", ["ulid"])
@pytest.mark.parametrize("column", ["is_active", "locked_until", "last_password_change"])
async def test_a_missing_column_of_a_user_is_reported(
    bench: Bench, name: str, column: str
) -> None:
    """By the word of the shape, with the table in front."""
    await bench.psql.execute(f"alter table users drop column {column} cascade")
    store = await bench.resolved(ULID_HASHED)
    field = {"last_password_change": "password_changed_at"}.get(column, column)
    assert (await store.statements()).resolved.missing == (f"users.{field}",)
    await store.close()


@pytest.mark.parametrize("name", ["django"])
async def test_users_that_are_not_there_are_reported(bench: Bench, name: str) -> None:
    """Their rules are off, and the sessions work."""
    shape = replace(DJANGO.shape, users=UsersTable(table="nobody"))
    store = await bench.resolved(shape)
    assert (await store.statements()).resolved.missing == ("users",)
    assert not store.capabilities.user_status
    await store.close()


@pytest.mark.parametrize("name", ["uuid"])
async def test_a_domain_counts_as_the_type_below_it(bench: Bench, name: str) -> None:
    """With its length, and with its own NOT NULL."""
    await bench.psql.execute(
        "create domain token as varchar(40);"
        " alter table user_sessions alter session_token type token"
    )
    assert "takes 40 characters" in await bench.refusal(UUID_PLAIN)
