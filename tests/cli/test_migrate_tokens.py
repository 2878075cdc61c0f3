"""`handstamp migrate-tokens`, as a user runs it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest

from handstamp import Client, Policy, Sessions
from handstamp.core.credentials import Credentials
from handstamp.engine.answers import Authenticated
from handstamp.stores.shapes import UUID_PLAIN

SECRET = "the secret of the tests of migrate-tokens: 32 bytes"
FILL = """
    insert into user_sessions (user_id, session_token, expires_at)
    select gen_random_uuid(), 'in clear ' || n, now() + interval '1 day'
    from generate_series(1, $1::int) as n"""
LEFT = "select count(*) from user_sessions where session_token not like 'sha256:%'"
DONE = 'no token in clear is left: set at_rest="prefixed" in the TableShape\n'


@pytest.fixture
async def database(uuid_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(uuid_dsn)
    yield connection
    await connection.close()


def command(dsn: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "handstamp", "migrate-tokens", "--dsn", dsn, *arguments]


async def migrate(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it without holding up the test's own connections."""
    kept = {name: os.environ[name] for name in os.environ if name != "DATABASE_URL"}
    return await asyncio.to_thread(
        subprocess.run,
        command(dsn, *arguments),
        capture_output=True,
        text=True,
        env=kept,
        timeout=100,
    )


async def begun(database: asyncpg.Connection) -> None:
    """Return when the first of five thousand rows is hashed."""
    async with asyncio.timeout(60):
        while await database.fetchval(LEFT) == 5000:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def counted(number: int, table: str = "user_sessions") -> str:
    return f"{number} rows of {table} hold a token in clear\n"


async def test_a_dry_run_counts_and_changes_nothing(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """Status 0, and every token stands as it stood."""
    await database.execute(FILL, 30)
    done = await migrate(uuid_dsn, "--dry-run")
    assert (done.returncode, done.stdout, done.stderr) == (0, counted(30), "")
    assert await database.fetchval(LEFT) == 30


async def test_it_hashes_everything_and_says_what_to_set(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """The digest is the one that the shape looks for; a second run finds nothing."""
    await database.execute(FILL, 30)
    done = await migrate(uuid_dsn, "--batch", "7")
    assert (done.returncode, done.stdout, done.stderr) == (0, counted(30) + DONE, "")
    found = await database.fetch("select session_token from user_sessions")
    digests = (hashlib.sha256(f"in clear {n}".encode()).hexdigest() for n in range(1, 31))
    assert {row[0] for row in found} == {f"sha256:{digest}" for digest in digests}
    again = await migrate(uuid_dsn)
    assert (again.returncode, again.stdout) == (0, counted(0) + DONE)


async def test_verify_looks_and_fails_while_a_token_is_in_clear(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """For CI; it changes nothing."""
    await database.execute(FILL, 1)
    done = await migrate(uuid_dsn, "--verify")
    assert (done.returncode, done.stdout) == (1, counted(1))
    assert await database.fetchval(LEFT) == 1
    await migrate(uuid_dsn)
    done = await migrate(uuid_dsn, "--verify")
    assert (done.returncode, done.stdout) == (0, counted(0) + DONE)


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "ctrl-c"]
)
async def test_one_that_is_killed_is_simply_started_again(
    uuid_dsn: str, database: asyncpg.Connection, how: signal.Signals, status: int
) -> None:
    """What it did stays done, and nothing is hashed twice."""
    await database.execute(FILL, 5000)
    process = await asyncio.create_subprocess_exec(
        *command(uuid_dsn, "--batch", "2"), stdout=subprocess.DEVNULL
    )
    await begun(database)
    process.send_signal(how)
    assert await process.wait() == status
    left = await database.fetchval(LEFT)
    assert 0 < left < 5000
    done = await migrate(uuid_dsn)
    assert (done.returncode, done.stdout) == (0, counted(left) + DONE)
    expected = "sha256:" + hashlib.sha256(b"in clear 1").hexdigest()
    assert await database.fetchval(
        "select count(*) from user_sessions where session_token = $1", expected
    )
    whole = "select count(*) from user_sessions where length(session_token) = 71"
    assert await database.fetchval(whole) == 5000


async def test_nobody_is_signed_out_while_it_runs(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """Twenty thousand rows, the app in another process, and not one wrong answer."""
    await database.execute(FILL, 20_000)
    policy = Policy(
        touch_every=timedelta(microseconds=1), flush_every=timedelta(milliseconds=50)
    )
    async with Sessions(
        uuid_dsn, secret=SECRET, shape=UUID_PLAIN, policy=policy, cache_size=64
    ) as sessions:
        wrong: list[object] = []
        asked = 0
        running = asyncio.create_task(migrate(uuid_dsn, "--batch", "500"))

        async def visit(n: int) -> None:
            nonlocal asked
            while not running.done():
                n = (n + 7919) % 20_000 + 1
                credentials = Credentials(session=(f"in clear {n}".encode(),), sent=True)
                answer = await sessions.authenticate(credentials, Client())
                asked += 1
                if not isinstance(answer, Authenticated):
                    wrong.append(answer)

        async with asyncio.TaskGroup() as group:
            for worker in range(4):
                group.create_task(visit(worker * 1000))
        done = await running
    assert wrong == []
    assert asked > 100
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(DONE)


async def test_a_table_of_other_names(uuid_dsn: str, database: asyncpg.Connection) -> None:
    """They are found by themselves, or given; and an odd one may be given alone."""
    await database.execute(
        'create table logins (id serial primary key, "accountId" text,'
        ' token text, "oddOne" text, "expiresAt" timestamp)'
    )
    await database.execute("""insert into logins (token, "oddOne") values ('a b', 'c d')""")
    done = await migrate(uuid_dsn, "--table", "logins")
    assert (done.returncode, done.stdout) == (0, counted(1, "logins") + DONE)
    row = await database.fetchrow("select * from logins")
    assert row["token"] == "sha256:" + hashlib.sha256(b"a b").hexdigest()
    assert row["oddOne"] == "c d"
    await database.execute('alter table logins drop column "expiresAt"')
    done = await migrate(uuid_dsn, "--table", "logins", "--token", "oddOne", "--id", "id")
    assert (done.returncode, done.stdout) == (0, counted(1, "logins") + DONE)
    row = await database.fetchrow("select * from logins")
    assert row["oddOne"] == "sha256:" + hashlib.sha256(b"c d").hexdigest()


async def test_what_looks_like_digests_is_not_hashed_again(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """For that would sign everybody out; unless somebody says that they are tokens."""
    await database.execute(FILL, 5)
    await database.execute(
        "update user_sessions"
        " set session_token = encode(sha256(session_token::bytea), 'hex')"
    )
    done = await migrate(uuid_dsn)
    assert (done.returncode, done.stdout) == (1, "")
    assert "seems to hold SHA-256 digests already" in done.stderr
    assert await database.fetchval(LEFT) == 5
    done = await migrate(uuid_dsn, "--shape", "uuid")
    assert (done.returncode, done.stdout) == (0, counted(5) + DONE)


async def test_an_empty_table_of_digests_is_left_as_it_is(dsn: str) -> None:
    """It needs no longer column, for nothing in it will be hashed."""
    done = await migrate(dsn)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is nothing to hash" in done.stderr
    assert "alter" not in done.stderr


async def test_where_the_table_has_another_name_it_asks_for_it(empty_dsn: str) -> None:
    """By the option."""
    done = await migrate(empty_dsn)
    assert "there is no table user_sessions: name yours with --table" in done.stderr


async def test_a_digest_that_stands_twice_is_told(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """It ends, with the number of rows it could not hash, and no token."""
    await database.execute(FILL, 5)
    await database.execute(
        "insert into user_sessions (user_id, session_token, expires_at) select"
        " user_id, 'sha256:' || encode(sha256('in clear 3'), 'hex'), now()"
        " from user_sessions limit 1"
    )
    done = await migrate(uuid_dsn)
    assert done.returncode == 1
    assert "1 rows still hold a token in clear" in done.stdout
    assert "in clear 3" not in done.stdout + done.stderr


async def test_what_cannot_be_done_is_one_line(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """With the DDL where DDL mends it, and no password."""
    url = urlsplit(uuid_dsn)
    gone = url._replace(netloc=f"app:hidden@{url.hostname}:1").geturl()
    await database.execute("alter table user_sessions alter session_token type varchar(64)")
    for dsn, arguments, status, text in (
        (gone, (), 2, "cannot reach the database"),
        ("", (), 2, "which database?"),
        (uuid_dsn, ("--table", "nowhere"), 1, "there is no table nowhere"),
        (uuid_dsn, ("--token", "nothing"), 1, "no column nothing"),
        (uuid_dsn, (), 1, 'alter column "session_token" type varchar\\(255\\);'),
    ):
        done = await migrate(dsn, *arguments)
        assert (done.returncode, done.stdout) == (status, "")
        assert re.search(text, done.stderr)
        assert done.stderr.count("\n") == 1
        assert "hidden" not in done.stderr


async def test_a_connection_that_is_lost_is_one_line(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """And the next run goes on."""
    await database.execute(FILL, 5000)
    running = asyncio.create_task(migrate(uuid_dsn, "--batch", "2"))
    end = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname ="
        " current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend'"
    )
    await begun(database)
    assert await database.fetchval(end) == 1
    done = await running
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "start it again to go on" in done.stderr
    assert (await migrate(uuid_dsn)).returncode == 0
