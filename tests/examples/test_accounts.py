"""The examples' own code: accounts, settings and the seed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest

from examples.accounts import (
    FAILURES,
    Accounts,
    AccountsUnavailable,
    WrongPassword,
    hasher,
)
from handstamp import LoginRefused, Sessions
from tests.examples.serving import ROOT, SECRET, environment, seed

FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
FATAL = b"E" + (len(FIELDS) + 4).to_bytes(4, "big") + FIELDS


@pytest.fixture
async def accounts(seeded_copy: str) -> AsyncIterator[Accounts]:
    """The accounts of a seeded database."""
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


async def test_the_right_password_gives_the_user(
    accounts: Accounts, database: asyncpg.Connection
) -> None:
    """The id is that of the row, and the name leads back."""
    user_id = await accounts.verify("alice", "wonderland")
    assert user_id == await database.fetchval(
        "select id from users where username = 'alice'"
    )
    assert await accounts.username(user_id) == "alice"
    assert await accounts.username("01HZY3J8Z8Z8Z8Z8Z8Z8Z8Z8Z8") is None


async def test_ten_failures_lock_the_user_for_a_quarter_of_an_hour(
    accounts: Accounts, database: asyncpg.Connection
) -> None:
    """The tenth failure locks; the right password is of no use then, and bob is free."""
    await fail(accounts, FAILURES - 1)
    await accounts.verify("alice", "wonderland")
    await fail(accounts, 1)
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
    await accounts.verify("alice", "wonderland")
    count = "select failed_login_attempts, locked_until from users where username = 'alice'"
    assert tuple(await database.fetchrow(count)) == (1, None)


async def test_a_sign_in_forgets_the_failures(
    accounts: Accounts, database: asyncpg.Connection, seeded_copy: str
) -> None:
    """The trigger on the table of sessions does it."""
    await fail(accounts, 3)
    async with Sessions(seeded_copy, secret=SECRET) as sessions:
        await sessions.create(await accounts.verify("alice", "wonderland"))
    count = "select failed_login_attempts from users where username = 'alice'"
    assert await database.fetchval(count) == 0


async def test_a_lock_during_the_check_still_counts(
    accounts: Accounts, database: asyncpg.Connection, seeded_copy: str
) -> None:
    """A password that was verified just before the lock opens no session any more."""
    user_id = await accounts.verify("alice", "wonderland")
    await fail(accounts, FAILURES)
    async with Sessions(seeded_copy, secret=SECRET) as sessions:
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
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """argon2 runs once for a stranger, for a wrong password and for a right one."""
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
    """The kind of error is logged, and the caller is told that there is no answer."""
    await accounts.username("x")
    async with accounts._pool.acquire() as borrowed:
        connection = borrowed._con
    connection._protocol.data_received(FATAL)
    with pytest.raises(AccountsUnavailable):
        await accounts.username("x")
    assert "InternalClientError" in caplog.text


def test_the_seed_can_be_run_again(seeded_copy: str) -> None:
    """A second run finds everything and changes nothing."""
    lines = seed(seeded_copy).stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"found"}
    assert lines[-2:] == ["found   user alice / wonderland", "found   user bob / builder"]


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
