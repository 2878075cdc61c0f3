"""The examples' own code: accounts, settings and the seed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

import asyncpg
import jwt
import pytest

from examples import settings
from examples.accounts import (
    FAILURES,
    Accounts,
    AccountsUnavailable,
    WrongPassword,
    hasher,
)
from handstamp import LoginRefused
from tests.examples.servers import (
    OTHER_SHAPES,
    ROOT,
    SECRET,
    Example,
    environment,
    execute,
    seed,
)

FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
FATAL = b"E" + (len(FIELDS) + 4).to_bytes(4, "big") + FIELDS


ALL = ["ulid", *OTHER_SHAPES]


@pytest.fixture(params=["ulid", "uuid"])
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shapes with users of their own, and `examples.settings` as they are with it."""
    monkeypatch.setenv("HANDSTAMP_SHAPE", request.param)
    monkeypatch.setenv("HANDSTAMP_SECRET", SECRET)
    return request.param


@pytest.fixture
async def accounts(
    seeded_copy: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Accounts]:
    """The accounts of a seeded database."""
    monkeypatch.setenv("DATABASE_URL", seeded_copy)
    async with Accounts(seeded_copy) as accounts:
        yield accounts


@pytest.fixture
async def database(seeded_copy: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the same database."""
    connection = await asyncpg.connect(seeded_copy)
    yield connection
    await connection.close()


async def fail(accounts: Accounts, times: int) -> None:
    """Try a wrong password of alice's so many times."""
    for _ in range(times):
        with pytest.raises(WrongPassword):
            await accounts.verify("alice", "wrong")


@pytest.mark.parametrize("shape", ALL, indirect=True)
async def test_the_right_password_gives_the_user(
    accounts: Accounts, database: asyncpg.Connection, shape: str
) -> None:
    """The id is that of the row, and the name leads back."""
    user_id = await accounts.verify("alice", "wonderland")
    assert user_id == await database.fetchval(
        "select id::text from users where username = 'alice'"
    )
    assert await accounts.username(user_id) == "alice"
    assert await accounts.username(Example("none", shape=shape).some_id) is None


async def test_ten_failures_lock_the_user_for_a_quarter_of_an_hour(
    accounts: Accounts, database: asyncpg.Connection
) -> None:
    """The tenth failure locks; the right password is of no use then, and bob is free."""
    locked = "select locked_until is not null from users where username = 'alice'"
    await fail(accounts, FAILURES - 1)
    assert not await database.fetchval(locked)
    await fail(accounts, 1)
    assert await database.fetchval(locked)
    with pytest.raises(WrongPassword):
        await accounts.verify("alice", "wonderland")
    await accounts.verify("bob", "builder")
    left = await database.fetchval(
        "select extract(epoch from locked_until - now()) / 60 from users"
        " where username = 'alice'"
    )
    assert 14 < left <= 15


async def test_a_locked_user_is_neither_counted_nor_locked_for_longer(
    accounts: Accounts, database: asyncpg.Connection
) -> None:
    """Whoever goes on guessing does not move the end of the lock."""
    await fail(accounts, FAILURES)
    state = "select failed_login_attempts, locked_until from users where username = 'alice'"
    before = await database.fetchrow(state)
    await fail(accounts, 2)
    assert await database.fetchrow(state) == before


async def test_a_lock_that_is_over_starts_a_new_count(
    accounts: Accounts, database: asyncpg.Connection
) -> None:
    """One failure after the lock is the first of ten, not the eleventh."""
    await fail(accounts, FAILURES)
    await database.execute("update users set locked_until = now() - interval '1 second'")
    await fail(accounts, 1)
    count = "select failed_login_attempts, locked_until from users where username = 'alice'"
    assert tuple(await database.fetchrow(count)) == (1, None)
    await accounts.verify("alice", "wonderland")


async def test_the_right_password_forgets_the_failures(
    accounts: Accounts, database: asyncpg.Connection
) -> None:
    """Nine failures now and then do not add up to a lock."""
    await fail(accounts, FAILURES - 1)
    await accounts.verify("alice", "wonderland")
    await fail(accounts, 1)
    await accounts.verify("alice", "wonderland")
    count = "select failed_login_attempts from users where username = 'alice'"
    assert await database.fetchval(count) == 0


async def test_a_lock_during_the_check_still_counts(
    accounts: Accounts, database: asyncpg.Connection
) -> None:
    """A password that was verified just before the lock opens no session any more."""
    user_id = await accounts.verify("alice", "wonderland")
    await fail(accounts, FAILURES)
    async with settings.sessions() as sessions:
        with pytest.raises(LoginRefused):
            await sessions.create(user_id)


async def test_a_disabled_user_is_refused_like_a_stranger(
    accounts: Accounts, database: asyncpg.Connection
) -> None:
    """Neither false nor NULL lets anybody in."""
    for value in ("false", "null"):
        await database.execute(f"update users set is_active = {value}")
        with pytest.raises(WrongPassword):
            await accounts.verify("alice", "wonderland")


async def test_an_unknown_user_costs_a_check_as_well(
    accounts: Accounts, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """argon2 runs once for an unknown user, for a wrong password and for a right one."""
    seeded = hasher.hash("wonderland")  # as the seed does it
    await database.execute("update users set password_hash = $1", seeded)
    checks = []
    verify = hasher.verify

    def counted(password: str, stored: str) -> bool:
        checks.append(stored)
        return verify(password, stored)

    monkeypatch.setattr(hasher, "verify", counted)
    for username, password in (("eve", "x"), ("alice", "x")):
        with pytest.raises(WrongPassword):
            await accounts.verify(username, password)
    await accounts.verify("alice", "wonderland")
    assert len(checks) == 3
    assert len({stored.rpartition("$")[0].rpartition("$")[0] for stored in checks}) == 1


async def test_a_farewell_read_just_before_the_query_is_no_answer(
    accounts: Accounts, caplog: pytest.LogCaptureFixture
) -> None:
    """The kind of error is logged, and the caller gets AccountsUnavailable."""
    await accounts.verify("alice", "wonderland")
    async with accounts._pool.acquire() as borrowed:
        connection = borrowed._con
    connection._protocol.data_received(FATAL)
    with pytest.raises(AccountsUnavailable):
        await accounts.verify("alice", "wonderland")
    assert "InternalClientError" in caplog.text


@pytest.mark.parametrize("shape", ALL, indirect=True)
def test_the_seed_can_be_run_again(seeded_copy: str, shape: str) -> None:
    """A second run finds everything and changes nothing."""
    lines = seed(seeded_copy, HANDSTAMP_SHAPE=shape).stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"found"}
    assert lines[-2:] == ["found   user alice / wonderland", "found   user bob / builder"]


async def test_the_seed_changes_no_auth_schema_that_is_there(supabase_dsn: str) -> None:
    """To Supabase's own tables it adds two users, and not even a trigger; and the tables
    it makes where there are none have the same columns."""
    before = await columns(supabase_dsn)
    printed = seed(supabase_dsn, HANDSTAMP_SHAPE="supabase").stdout.splitlines()
    assert printed[0] == "found   schema auth"
    assert printed[1:] == [
        "created table users",
        "created user alice / wonderland",
        "created user bob / builder",
    ]
    ours = "select count(*) from pg_proc where proname like 'handstamp%'"
    assert (await execute(supabase_dsn, ours))[0][0] == 0
    same = "select count(*) from auth.users join users using (id)"
    assert (await execute(supabase_dsn, same))[0][0] == 2
    assert await columns(supabase_dsn) == before


def test_the_tables_of_the_demo_are_those_of_supabase(
    supabase_dsn: str, copy_of: Callable[[str], AbstractContextManager[str]]
) -> None:
    """Column by column, as the store's own tests have them."""
    with copy_of("supabase") as dsn:
        assert asyncio.run(columns(dsn)) == asyncio.run(columns(supabase_dsn))


async def columns(dsn: str) -> list[tuple[str, ...]]:
    """Every column of the schema auth."""
    rows = await execute(
        dsn,
        "select table_name, column_name, data_type, character_maximum_length,"
        " is_nullable, column_default from information_schema.columns"
        " where table_schema = 'auth' order by table_name, ordinal_position",
    )
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("shape", ["supabase"], indirect=True)
async def test_access_tokens_are_signed_with_the_newest_secret(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the JWT secret of the project, and they live as long as the setting says."""
    newest = "the newest secret of the example contract: 32 bytes"
    monkeypatch.setenv("HANDSTAMP_SECRET", f"{SECRET},{newest}")
    monkeypatch.setenv("HANDSTAMP_ACCESS_TOKEN_TTL", "600")
    user_id = await accounts.verify("alice", "wonderland")
    async with settings.sessions() as sessions:
        token = (await sessions.create(user_id)).session_token
    claims = jwt.decode(token, newest, ["HS256"], audience="authenticated")
    assert claims["sub"] == user_id
    assert claims["exp"] - claims["iat"] == 600


@pytest.mark.parametrize(
    ("name", "text"), [("HANDSTAMP_ACCESS_TOKEN_TTL", "1h"), ("SUPABASE_URL", "nowhere")]
)
def test_a_setting_of_supabase_that_makes_no_sense_is_named(name: str, text: str) -> None:
    """The program does not start with it, and says why."""
    given = {"HANDSTAMP_SHAPE": "supabase", name: text}
    done = subprocess.run(
        [sys.executable, "-m", "examples.starlette.app"],
        cwd=ROOT,
        env=environment("postgresql://127.0.0.1:1/none", **given),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert text in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("module", ["seed", "starlette.app", "fastapi.app"])
@pytest.mark.parametrize(
    ("unset", "settings", "message"),
    [
        ("DATABASE_URL", {}, "DATABASE_URL is not set. For example: export DATABASE_URL="),
        ("HANDSTAMP_SECRET", {}, "HANDSTAMP_SECRET is not set. For example: export HAND"),
        ("", {"HANDSTAMP_SECRET": " , "}, "HANDSTAMP_SECRET is not set. For example"),
        ("", {"HANDSTAMP_SHAPE": "oval"}, "HANDSTAMP_SHAPE=oval: there is only ulid"),
    ],
    ids=["database", "secret", "empty secret", "shape"],
)
def test_a_missing_setting_is_named(
    module: str, unset: str, settings: dict[str, str], message: str
) -> None:
    """One line says what to set, and there is no traceback."""
    if module == "seed" and "SECRET" in message:
        pytest.skip("the seed needs no secret")
    given = environment("postgresql://127.0.0.1:1/none", **settings)
    given.pop(unset, None)
    command = [sys.executable, "-m", f"examples.{module}"]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
