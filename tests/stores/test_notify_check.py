"""A name proves nothing: what others plant, replace or switch off is not our trigger."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from handstamp.errors import ConfigError
from handstamp.stores.base import ListenConnection
from handstamp.stores.install import install, install_trigger, script
from handstamp.stores.notify.check import canonical, check_triggers, read_version
from handstamp.stores.notify.sql import function_sql, triggers_of
from handstamp.stores.resolve import assumed
from handstamp.stores.shapes import ULID_HASHED, TableShape
from handstamp.stores.table import TableStore
from tests.support.foreign_tables import FOREIGN

FUNCTIONS = ("handstamp_notify_session", "handstamp_notify_user", "handstamp_notify_all")
ULID = triggers_of(assumed(ULID_HASHED))
PLANTED = """
    create function {schema}.{name}() returns trigger language plpgsql as $$ begin
        if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
            alter role {mallory} superuser;
        end if;
        return null;
    end $$"""
IS_SUPERUSER = "select rolsuper from pg_roles where rolname = $1"
ODD = TableShape(
    table="Odd",
    user_id="user",
    token="Token",
    refresh_token=None,
    expires_at="end",
    refresh_expires_at=None,
    created_at="From",
    last_activity_at=None,
    is_active="select",
    revoked_at=None,
    revoked_reason=None,
    address=None,
    user_agent_hash=None,
    fingerprint=None,
    level="over",
    at_rest="prefixed",
    new_id="database",
    users=None,
)
OURS = """
    select count(*) from pg_trigger t join pg_proc p on p.oid = t.tgfoid
    where t.tgname like 'handstamp%' or p.proname like 'handstamp%'"""


@dataclass
class Place:
    """A database with the tables, its owner at psql, and a role that may make functions
    there and has no right on any table."""

    dsn: str
    psql: asyncpg.Connection
    mallory: str
    address: str

    async def plant(self, name: str, schema: str = "public") -> None:
        """Mallory creates a function with our name."""
        connection = await asyncpg.connect(self.address)
        try:
            sql = PLANTED.format(schema=schema, name=name, mallory=self.mallory)
            await connection.execute(sql)
        finally:
            await connection.close()

    async def update_as_superuser(self) -> bool:
        """Fire the trigger; returns whether that made mallory a superuser."""
        user = await self.psql.fetchval(
            "insert into users (username, password_hash) values ('x', '-')"
            " on conflict (username) do update set password_hash = '-' returning id"
        )
        await self.psql.execute(
            "insert into user_sessions (user_id, session_token_hash, ip_address,"
            " user_agent_hash, expires_at) values ($1, md5(random()::text) ||"
            " md5(random()::text), '127.0.0.1', '-', now() + interval '1 day')",
            user,
        )
        await self.psql.execute("update user_sessions set is_active = not is_active")
        await self.psql.execute("update users set is_active = not is_active")
        await self.psql.execute("truncate users cascade")
        return bool(await self.psql.fetchval(IS_SUPERUSER, self.mallory))


@pytest.fixture
async def place(dsn: str) -> AsyncIterator[Place]:
    """The documented tables, where mallory may create in the schema public."""
    psql = await asyncpg.connect(dsn)
    name, word = f"mallory_{secrets.token_hex(4)}", secrets.token_hex(8)
    await psql.execute(f"create role {name} login password '{word}'")
    await psql.execute(f"grant create, usage on schema public to {name}")
    url = urlsplit(dsn)
    netloc = f"{name}:{word}@{url.netloc.rpartition('@')[2]}"
    yield Place(dsn, psql, name, urlunsplit(url._replace(netloc=netloc)))
    await psql.execute(f"drop owned by {name} cascade; drop role {name}")
    await psql.close()


async def listen(dsn: str) -> tuple[TableStore, ListenConnection]:
    store = TableStore(dsn)
    return store, await store.channel.listen(lambda _: None, lambda: None)


async def covers(dsn: str) -> bool:
    """Whether a process that starts now relies on the trigger."""
    store, link = await listen(dsn)
    try:
        return await link.all_writers_notify()
    finally:
        link.drop()
        await store.close()


async def problems(connection: asyncpg.Connection) -> list[str]:
    return [problem.text for problem in (await check_triggers(connection, ULID)).problems]


# Planted before.


@pytest.mark.parametrize("name", FUNCTIONS)
async def test_a_planted_function_is_refused_and_nothing_is_installed(
    place: Place, name: str
) -> None:
    """Its owner would run code with the rights of every writer, also of a superuser."""
    await place.plant(name)
    with pytest.raises(ConfigError) as caught:
        await install(place.psql, "ulid", trigger=True)
    for text in (f"public.{name}()", place.mallory, "may not create triggers"):
        assert text in str(caught.value)
    assert f"drop function public.{name}() cascade" in str(caught.value)
    assert await place.psql.fetchval(OURS) == 0
    assert await place.update_as_superuser() is False


async def test_the_refusal_names_the_next_step(place: Place) -> None:
    """Its next step, and init again."""
    await place.plant("handstamp_notify_all")
    with pytest.raises(ConfigError) as caught:
        await install(place.psql, "ulid", trigger=True)
    await place.psql.execute(str(caught.value).partition("then run: ")[2].split(";")[0])
    await install(place.psql, "ulid", trigger=True)
    assert await covers(place.dsn)


@pytest.mark.parametrize("name", FUNCTIONS)
async def test_the_printed_script_calls_no_planted_function(
    place: Place, name: str
) -> None:
    """Also where each statement is sent by itself and errors are overlooked, as by psql:
    a superuser takes the function over, and for any other role nothing is created."""
    await place.plant(name)
    owner = f"owner_{secrets.token_hex(4)}"
    await place.psql.execute(
        f"create role {owner}; grant create on schema public to {owner};"
        f"alter table users owner to {owner}; alter table user_sessions owner to {owner}"
    )
    for role, expected in (f"set role {owner}", (0, False)), ("reset role", (6, True)):
        await place.psql.execute(role)
        for statement in script("ulid", trigger=True).split(";\n\n"):
            with suppress(asyncpg.PostgresError):
                await place.psql.execute(statement)
        await place.psql.execute("reset role")
        made = await place.psql.fetchval(OURS)
        assert (made, await covers(place.dsn)) == expected
        assert await place.update_as_superuser() is False
    await place.psql.execute(f"drop owned by {owner} cascade; drop role {owner}")


async def test_a_trigger_on_a_planted_function_is_not_relied_on(place: Place) -> None:
    """It was made by hand, or by an older init without this check."""
    for name in FUNCTIONS:
        await place.plant(name)
    for trigger in ULID:
        await place.psql.execute(trigger.sql())
    assert await covers(place.dsn) is False
    with pytest.raises(ConfigError, match=place.mallory):
        await install(place.psql, "ulid", trigger=True)


async def test_the_same_body_with_another_owner_is_refused(place: Place) -> None:
    """It can be replaced at any time by its owner."""
    connection = await asyncpg.connect(place.address)
    await connection.execute(function_sql("handstamp_notify_session"))
    await connection.close()
    with pytest.raises(ConfigError, match=place.mallory):
        await install(place.psql, "ulid", trigger=True)


async def test_an_overload_is_another_function(place: Place) -> None:
    """Triggers call the one without arguments, so this one changes nothing."""
    connection = await asyncpg.connect(place.address)
    for name in FUNCTIONS:
        await connection.execute(
            f"create function {name}(text default 'x') returns int language sql"
            " as 'select 1'"
        )
    await connection.close()
    await install(place.psql, "ulid", trigger=True)
    assert await covers(place.dsn)


@pytest.mark.parametrize("path", ["evil, public", "public, evil"])
async def test_a_function_elsewhere_in_the_search_path_is_not_called(
    place: Place, path: str
) -> None:
    """Before ours in the path it is refused; behind ours no call finds it."""
    await place.psql.execute(f"create schema evil authorization {place.mallory}")
    for name in FUNCTIONS:
        await place.plant(name, "evil")
    await place.psql.execute(f"set search_path = {path}")
    if path.startswith("evil"):
        with pytest.raises(ConfigError, match=r"evil\.handstamp_notify_"):
            await install(place.psql, "ulid", trigger=True)
    else:
        await install(place.psql, "ulid", trigger=True)
        assert await covers(place.dsn)
    assert await place.update_as_superuser() is False


async def test_a_planted_operator_is_in_no_condition(place: Place) -> None:
    """What compares two times is PostgreSQL's own, whatever the installer's search path."""
    await place.psql.execute(f"create schema evil authorization {place.mallory}")
    await place.psql.execute(
        "create function evil.never(timestamptz, timestamptz) returns boolean"
        " language sql immutable as 'select false';"
        "create operator evil.< (function = evil.never, leftarg = timestamptz,"
        " rightarg = timestamptz);"
        "create operator evil.= (function = evil.never, leftarg = timestamptz,"
        " rightarg = timestamptz)"
    )
    await place.psql.execute("set search_path = public, evil, pg_catalog")
    await install(place.psql, "ulid", trigger=True)
    assert await place.psql.fetchval("show search_path") == "public, evil, pg_catalog"
    await place.psql.execute("reset search_path")
    assert await problems(place.psql) == []
    assert await covers(place.dsn)
    # Made by hand under that path, the operators of DISTINCT do not show in its text.
    await place.psql.execute("set search_path = public, evil, pg_catalog")
    await place.psql.execute(ULID[3].sql(replace=True))
    await place.psql.execute("reset search_path")
    (text,) = await problems(place.psql)
    assert "its condition is another one" in text
    assert await covers(place.dsn) is False


async def test_a_function_runs_with_a_search_path_of_its_own(place: Place) -> None:
    """A writer whose path begins with a foreign schema calls nothing in it."""
    await install(place.psql, "ulid", trigger=True)
    await place.psql.execute(f"create schema evil authorization {place.mallory}")
    for function in (
        "pg_notify(text, text) returns void",
        "current_setting(text, boolean) returns text",
        "format(text, text) returns text",
    ):
        await place.psql.execute(
            f"create function evil.{function} language plpgsql as"
            " $$ begin raise exception 'called'; end $$"
        )
    await place.psql.execute("set search_path = evil, pg_temp, pg_catalog, public")
    assert await place.update_as_superuser() is False


# Changed afterwards.

CHANGED: dict[str, str] = {
    "alter function handstamp_notify_session() owner to {mallory}": "belongs to mallory_",
    "alter function handstamp_notify_all() owner to {mallory}": "belongs to mallory_",
    "alter function handstamp_notify_user() security definer": "rights of its owner",
    "alter function handstamp_notify_user() set search_path = public": "search path",
    "alter function handstamp_notify_user() set handstamp.x = on": "search path",
    "create or replace function handstamp_notify_user() returns trigger language plpgsql"
    " set search_path = pg_catalog, pg_temp as 'begin return null; end'": "body",
    "alter function handstamp_notify_user() immutable": "body",
    "create or replace trigger handstamp_user_changed after update on users for each row"
    " when (false) execute function handstamp_notify_user('id')": "condition",
    "create or replace trigger handstamp_user_changed after update on users for each row"
    " when (old.is_active is distinct from new.is_active and old.last_password_change"
    " is distinct from new.last_password_change or old.id is distinct from new.id)"
    " execute function handstamp_notify_user('id')": "condition",
    "create or replace trigger handstamp_user_changed before update on users for each row"
    " when (old.id is distinct from new.id or old.is_active is distinct from new.is_active"
    " or old.last_password_change is distinct from new.last_password_change)"
    " execute function handstamp_notify_user('id')": "fires at other events",
    "create or replace trigger handstamp_user_deleted after delete on users for each row"
    " execute function handstamp_notify_user('username')": "another column of ids",
    "create or replace trigger handstamp_user_deleted after delete on users for each row"
    " execute function handstamp_notify_all()": "calls another function",
    "alter table users disable trigger user": "is disabled",
    "alter table users enable replica trigger handstamp_user_changed": "is disabled",
    "create table more_users () inherits (users)": "inherit from users",
}


@pytest.mark.parametrize("change", CHANGED)
async def test_what_was_changed_is_relied_on_no_longer(place: Place, change: str) -> None:
    """By a process that starts then, and by one that is listening already."""
    await install(place.psql, "ulid", trigger=True)
    store, link = await listen(place.dsn)
    assert await link.all_writers_notify()
    await place.psql.execute(change.format(mallory=place.mallory))
    assert [await link.all_writers_notify() for _ in range(3)] == [False] * 3
    link.drop()
    await store.close()
    assert await covers(place.dsn) is False
    assert CHANGED[change] in " ".join(await problems(place.psql))


async def test_the_log_says_why_the_trigger_is_not_relied_on(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each state, and nothing of a trigger that was never installed."""
    assert await covers(place.dsn) is False
    assert caplog.records == []
    await install(place.psql, "ulid", trigger=True)
    store, link = await listen(place.dsn)
    await place.psql.execute(
        f"alter function handstamp_notify_user() owner to {place.mallory}"
    )
    for _ in range(3):
        assert not await link.all_writers_notify()
    link.drop()
    await store.close()
    (record,) = caplog.records
    assert record.__dict__["action"] == "trigger_incomplete"
    assert place.mallory in record.getMessage()


CHANGED_BACK = [
    (
        "alter table user_sessions disable trigger user",
        "alter table user_sessions enable trigger user",
    ),
    (
        "alter function handstamp_notify_session() owner to {mallory}",
        "alter function handstamp_notify_session() owner to {owner}",
    ),
    (
        "create or replace function handstamp_notify_session() returns trigger"
        " language plpgsql as 'begin return null; end'",
        function_sql("handstamp_notify_session", replace=True),
    ),
    ("drop trigger handstamp_session_changed on user_sessions", ULID[0].sql()),
    (
        "alter table user_sessions rename to before; create table user_sessions ()"
        " inherits (before)",
        "drop table user_sessions; alter table before rename to user_sessions",
    ),
]


@pytest.mark.parametrize(("away", "back"), CHANGED_BACK)
async def test_what_was_changed_and_changed_back_is_noticed(
    place: Place, away: str, back: str
) -> None:
    """In one transaction, so that no check falls in between: what was written then is in
    doubt, because nothing notified it."""
    await install(place.psql, "ulid", trigger=True)
    owner = await place.psql.fetchval("select current_user")
    store, link = await listen(place.dsn)
    assert [await link.all_writers_notify() for _ in range(2)] == [True, True]
    async with place.psql.transaction():
        await place.psql.execute(away.format(mallory=place.mallory))
        await place.psql.execute("update user_sessions set is_active = false")
        await place.psql.execute(back.format(owner=owner))
    results = [await link.all_writers_notify() for _ in range(3)]
    renamed = "rename" in away  # no trigger was ever different
    assert results == ([True] * 3 if renamed else [False, True, True])
    link.drop()
    await store.close()


async def test_the_owner_of_the_table_may_own_the_functions(place: Place) -> None:
    """And any role that may create triggers on it: it could do as much without one."""
    await install(place.psql, "ulid", trigger=True)
    for name in FUNCTIONS:
        await place.psql.execute(f"alter function {name}() owner to {place.mallory}")
    assert await covers(place.dsn) is False
    await place.psql.execute(f"grant trigger on user_sessions, users to {place.mallory}")
    assert await covers(place.dsn)
    await place.psql.execute(f"revoke trigger on users from {place.mallory}")
    assert await covers(place.dsn) is False


async def test_init_changes_no_trigger_that_is_not_ours(place: Place) -> None:
    """It says which, and what to run; nothing else is made meanwhile."""
    await install(place.psql, "ulid", trigger=True)
    await place.psql.execute(
        "drop trigger handstamp_user_changed on users;"
        "create trigger handstamp_user_changed after update of is_active on users"
        " for each row execute function handstamp_notify_user('id');"
        "drop trigger handstamp_users_truncated on users"
    )
    with pytest.raises(ConfigError, match="fires for some columns only") as caught:
        await install(place.psql, "ulid", trigger=True)
    assert [t.name for t in (await check_triggers(place.psql, ULID)).missing] == [
        "handstamp_users_truncated"
    ]
    await place.psql.execute(str(caught.value).partition("then run: ")[2].split(";")[0])
    await install(place.psql, "ulid", trigger=True)
    assert await covers(place.dsn)


# Tables of every kind.


@pytest.fixture
def foreign(
    request: pytest.FixtureRequest, foreign_dsn: Callable[[str], str]
) -> tuple[str, TableShape]:
    """The address and the shape of a table of another product."""
    return foreign_dsn(request.param), FOREIGN[request.param].shape


@pytest.mark.parametrize("foreign", FOREIGN, indirect=True)
async def test_every_table_s_own_trigger_is_recognised(
    foreign: tuple[str, TableShape],
) -> None:
    """PostgreSQL prints the condition as it was written, whatever the columns' types."""
    dsn, shape = foreign
    connection = await asyncpg.connect(dsn)
    try:
        outcomes = await install_trigger(connection, shape)
        assert {outcome.state for outcome in outcomes} == {"created"}
        again = await install_trigger(connection, shape)
        assert {outcome.state for outcome in again} == {"found"}
    finally:
        await connection.close()
    store = TableStore(dsn, shape=shape)
    link = await store.channel.listen(lambda _: None, lambda: None)
    assert await link.all_writers_notify()
    link.drop()
    await store.close()


TYPES = {
    "id domain_of_text default '' primary key": "s:a b ",
    "id varchar(20) default '' primary key": "s:a b ",
    "id text default '' primary key": "s:a b ",
    "id character(20) default '' primary key": "s:a b",
}


@pytest.mark.parametrize("id", TYPES)
async def test_names_and_types_of_columns_do_not_matter(each_dsn: str, id: str) -> None:
    """Domains, character types, times without a zone, words of SQL and capitals; and an id
    is spelled as the column's text is, with the blanks at its end that belong to it."""
    connection = await asyncpg.connect(each_dsn)
    payloads: list[str] = []
    try:
        await connection.execute(
            "create domain domain_of_text as text;"
            "create domain domain_of_time as timestamp;"
            "create domain domain_of_bool as boolean;"
            f'create table "Odd" ({id}, "user" varchar(9), "Token" varchar(99) unique'
            ' not null, "end" domain_of_time, "From" timestamp(6), "select"'
            " domain_of_bool, over smallint)"
        )
        await install_trigger(connection, ODD)
        table = TableStore(each_dsn, shape=ODD)
        link = await table.channel.listen(payloads.append, lambda: None)
        assert await link.all_writers_notify()
        await connection.execute(
            "insert into \"Odd\" values ('a b ', 'u', 't', now() + interval '1 day',"
            " now(), true, 1)"
        )
        for change in (
            "\"Token\" = 'other'",
            '"end" = null',
            "over = 0",
            '"select" = null',
        ):
            await connection.execute(f'update "Odd" set {change}')
            await link.prove()
            assert payloads == [TYPES[id]], change
            payloads.clear()
        link.drop()
        await table.close()
    finally:
        await connection.close()


@pytest.mark.parametrize("foreign", ["partitioned"], indirect=True)
async def test_a_partition_without_the_trigger_is_reported(
    foreign: tuple[str, TableShape],
) -> None:
    """Rows are written there too: disabled in one, not all writers notify."""
    dsn, shape = foreign
    connection = await asyncpg.connect(dsn)
    await install_trigger(connection, shape)
    store = TableStore(dsn, shape=shape)
    triggers = triggers_of((await store.statements()).resolved)
    assert (await check_triggers(connection, triggers)).complete
    before = await read_version(connection, triggers)
    await connection.execute(
        "alter table app_sessions_2 disable trigger handstamp_session_deleted"
    )
    assert await read_version(connection, triggers) != before
    (problem,) = (await check_triggers(connection, triggers)).problems
    assert "disabled in the partitions app_sessions_2" in problem.text
    await connection.execute(problem.mend)
    await install_trigger(connection, shape)
    assert (await check_triggers(connection, triggers)).complete
    before = await read_version(connection, triggers)
    await connection.execute("alter table app_sessions detach partition app_sessions_1")
    assert await read_version(connection, triggers) != before
    await store.close()
    await connection.close()


# How conditions are compared.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("((old.a)::text < (new.a)::text)", "(old.a < new.a)"),
        ('(old."a" IS NULL)', "(old.a is null)"),
        ("(COALESCE((new.a)::integer, 0) < (0)::bigint)", "(coalesce(new.a, 0) < 0)"),
        ("(old.a > pg_catalog.now())", "(old.a > now())"),
        ("f((old.a)::character varying(3), 'UTF8'::name)", "f(old.a, 'UTF8')"),
        ("((old.a)::timestamp(3) without time zone[])", "(old.a)"),
        ("(a IS DISTINCT FROM (new.b)::text)", "(a IS DISTINCT FROM new.b)"),
    ],
)
def test_the_same_condition(one: str, other: str) -> None:
    """Types, quotes and parentheses around a column say nothing else."""
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(a OR (b AND c))", "((a OR b) AND c)"),
        ('(old."A" IS NULL)', "(old.a IS NULL)"),
        ("(old.a = 'X')", "(old.a = 'x')"),
        ("(old.a = 'x::text')", "(old.a = 'x')"),
        ("(old.a < new.a)", "(new.a < old.a)"),
        ("(old.a evil.< new.a)", "(old.a < new.a)"),
        ("evil.now()", "now()"),
    ],
)
def test_another_condition(one: str, other: str) -> None:
    """Grouping, names, constants and the schema of a function are the condition."""
    assert canonical(one) != canonical(other)
