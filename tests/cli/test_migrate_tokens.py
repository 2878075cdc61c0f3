"""`handstamp migrate-tokens`, as a user runs it."""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
import subprocess
import sys
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest

from handstamp import Client, Policy, Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated
from handstamp.stores.shapes import UUID_PLAIN
from tests.conftest import execute
from tests.support.commands import handstamp

SECRET = "the secret of the tests of migrate-tokens: 32 bytes"
FILL = """
    insert into user_sessions (user_id, session_token, expires_at)
    select gen_random_uuid(), 'in plaintext ' || n, now() + interval '1 day'
    from generate_series(1, $1::int) as n"""
OTHERS = (
    "select count(pid) from pg_stat_activity where datname = current_database()"
    " and pid <> pg_backend_pid() and backend_type = 'client backend'"
)
LEFT = "select count(*) from user_sessions where session_token not like 'sha256:%'"
DONE = 'every row is hashed: set at_rest="prefixed" in the TableShape\n'
APPLY = ("--form", "other", "--apply")


@pytest.fixture
async def database(uuid_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(uuid_dsn)
    yield connection
    await connection.close()


def command(dsn: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "handstamp", "migrate-tokens", "--dsn", dsn, *arguments]


async def migrate(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in a thread, so that the test's own connections work meanwhile."""
    return await asyncio.to_thread(handstamp, "migrate-tokens", "--dsn", dsn, *arguments)


async def begun(database: asyncpg.Connection) -> None:
    """Return when the first of five thousand rows is hashed."""
    async with asyncio.timeout(300):
        while await database.fetchval(LEFT) == 5000:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@asynccontextmanager
async def one_row_locked(database: asyncpg.Connection, n: int) -> AsyncIterator[None]:
    """Lock a row for the time of a ``with`` block, so that the command cannot finish."""
    async with database.transaction():
        sql = "select from user_sessions where session_token = $1 for update"
        await database.execute(sql, f"in plaintext {n}")
        yield


def listed(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The forms that were listed, and their rows."""
    found = re.findall(r"^ +([0-9]+)  ([a-z0-9-]+): ", done.stdout, re.MULTILINE)
    return {form: int(number) for number, form in found}


async def plant(database: asyncpg.Connection, *texts: str) -> None:
    """Add rows with these texts in the column of tokens."""
    await database.executemany(
        "insert into user_sessions (user_id, session_token, expires_at)"
        " values (gen_random_uuid(), $1, now() + interval '1 day')",
        [(text,) for text in texts],
    )


async def stored(database: asyncpg.Connection) -> set[str]:
    rows = await database.fetch("select session_token from user_sessions")
    return {row[0] for row in rows}


@pytest.mark.parametrize(
    "arguments", [(), ("--dry-run",), ("--form", "other")], ids=" ".join
)
async def test_it_lists_the_forms_and_changes_nothing(
    uuid_dsn: str, database: asyncpg.Connection, arguments: tuple[str, ...]
) -> None:
    """Without --apply the status is 0, no row is changed, and no token is shown."""
    await database.execute(FILL, 30)
    await plant(database, hashlib.sha256(b"hidden").hexdigest(), "$2b$12$hidden")
    before = await stored(database)
    done = await migrate(uuid_dsn, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert listed(done) == {"other": 30, "hex-64": 1, "marked": 1}
    assert "nothing was changed" in done.stdout
    assert ("--apply would hash 30 rows" in done.stdout) == ("--form" in arguments)
    assert "14 to 15 characters, such as xx x(9) x" in done.stdout
    assert "hidden" not in done.stdout
    assert await stored(database) == before


async def test_it_hashes_everything_and_says_what_to_set(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """The digest is the one that the shape looks for. A second run finds nothing."""
    await database.execute(FILL, 30)
    done = await migrate(uuid_dsn, *APPLY, "--batch", "7")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(DONE)
    digests = (
        hashlib.sha256(f"in plaintext {n}".encode()).hexdigest() for n in range(1, 31)
    )
    assert await stored(database) == {f"sha256:{digest}" for digest in digests}
    for arguments in (APPLY, (), ("--verify",), ("--apply",)):
        again = await migrate(uuid_dsn, *arguments)
        assert again.returncode == 0
        assert again.stdout.endswith(DONE)


RAW = hashlib.sha256(b"a token").digest()
DIGESTS = {
    "hex-64": RAW.hex(),
    "hex-64-capitals": RAW.hex().upper(),
    "hex-128": hashlib.sha512(b"a token").hexdigest(),
    "hex-40": hashlib.sha1(b"a token").hexdigest(),
    "base64-43": b64encode(RAW).decode(),
    "base64-86": urlsafe_b64encode(hashlib.sha512(b"a token").digest()).decode(),
    "marked": "sha512:" + RAW.hex(),
}


async def test_no_row_is_hashed_unless_its_form_is_named(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """A digest that is hashed again is lost, and with it every session."""
    await plant(database, *DIGESTS.values(), "in plaintext")
    before = await stored(database)
    done = await migrate(uuid_dsn)
    assert listed(done) == {**dict.fromkeys(DIGESTS, 1), "other": 1}
    refused = await migrate(uuid_dsn, "--apply")
    assert refused.returncode == 1
    assert "which rows of user_sessions hold tokens?" in refused.stderr
    assert all(form in refused.stderr for form in DIGESTS)
    assert await stored(database) == before
    done = await migrate(uuid_dsn, *APPLY)
    assert done.returncode == 1
    assert "rows of other forms are left as they were" in done.stdout
    clear = "sha256:" + hashlib.sha256(b"in plaintext").hexdigest()
    assert await stored(database) == {*DIGESTS.values(), clear}


@pytest.mark.parametrize("form", DIGESTS)
async def test_tokens_that_look_like_digests_are_hashed_if_named(
    uuid_dsn: str, database: asyncpg.Connection, form: str
) -> None:
    """Rows of other forms are not changed."""
    await plant(database, *DIGESTS.values())
    done = await migrate(uuid_dsn, "--form", form, "--apply")
    assert done.returncode == 1  # the others are left
    hashed = "sha256:" + hashlib.sha256(DIGESTS[form].encode()).hexdigest()
    assert await stored(database) == {hashed, *DIGESTS.values()} - {DIGESTS[form]}


async def test_several_forms_may_be_named(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """For an application that made tokens in two ways."""
    await plant(database, DIGESTS["base64-43"], "in plaintext")
    done = await migrate(uuid_dsn, *APPLY, "--form", "base64-43")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(text.startswith("sha256:") for text in await stored(database))


async def test_a_text_with_our_prefix_is_never_hashed(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """No session can be opened with it; --verify reports it."""
    await plant(database, "sha256:" + RAW.hex().upper(), "sha256:", "sha256:$x$")
    before = await stored(database)
    done = await migrate(uuid_dsn, "--form", "marked", "--form", "other", "--apply")
    assert done.returncode == 1
    assert await stored(database) == before
    assert (await migrate(uuid_dsn, "--verify")).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--form", "text"), "there is no form text"),
        (("--form", "prefixed"), "are handstamp's own digests"),
        (("--form", "'); drop table user_sessions; --"), "there is no form"),
        (("--apply", "--dry-run"), "--dry-run and --verify do not"),
        (("--apply", "--verify"), "--dry-run and --verify do not"),
        (("--shape", "uuid"), "No such option"),
    ],
    ids=str,
)
async def test_options_that_contradict_are_refused(
    uuid_dsn: str, arguments: tuple[str, ...], text: str
) -> None:
    """Before the table is read."""
    done = await migrate(uuid_dsn, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in " ".join(done.stderr.replace("│", " ").split())


async def test_a_form_without_rows_is_an_error(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """It may be mistyped. Nothing is changed."""
    await database.execute(FILL, 3)
    done = await migrate(uuid_dsn, "--form", "hex-64", "--apply")
    assert done.returncode == 1
    assert "no row of user_sessions has this form" in done.stderr


async def test_verify_fails_while_a_token_is_in_plaintext(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """For CI: it changes nothing."""
    await database.execute(FILL, 1)
    done = await migrate(uuid_dsn, "--verify")
    assert done.returncode == 1
    assert done.stdout.endswith("1 row not hashed\n")
    assert await database.fetchval(LEFT) == 1
    await migrate(uuid_dsn, *APPLY)
    done = await migrate(uuid_dsn, "--verify")
    assert done.returncode == 0
    assert done.stdout.endswith(DONE)


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "ctrl-c"]
)
async def test_after_a_kill_it_is_started_again(
    uuid_dsn: str, database: asyncpg.Connection, how: signal.Signals, status: int
) -> None:
    """The rows that are done stay done, and no row is hashed twice."""
    await database.execute(FILL, 5000)
    async with one_row_locked(database, 5000):
        process = await asyncio.create_subprocess_exec(
            *command(uuid_dsn, *APPLY, "--batch", "2"), stdout=subprocess.DEVNULL
        )
        await begun(database)
        process.send_signal(how)
        assert await process.wait() == status
    async with asyncio.timeout(300):  # until its last transaction has ended
        while await database.fetchval(OTHERS):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    left = await database.fetchval(LEFT)
    assert 0 < left < 5000
    done = await migrate(uuid_dsn, *APPLY)
    assert (done.returncode, listed(done)["other"]) == (0, left)
    expected = "sha256:" + hashlib.sha256(b"in plaintext 1").hexdigest()
    assert await database.fetchval(
        "select count(*) from user_sessions where session_token = $1", expected
    )
    whole = "select count(*) from user_sessions where length(session_token) = 71"
    assert await database.fetchval(whole) == 5000


async def test_no_user_is_signed_out_while_it_runs(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """Not one wrong answer for twenty thousand rows, while another process hashes them."""
    await database.execute(FILL, 20_001)
    locked = AsyncExitStack()
    await locked.enter_async_context(one_row_locked(database, 20_001))
    policy = Policy(
        touch_every=timedelta(microseconds=1), flush_every=timedelta(milliseconds=50)
    )
    async with Sessions(
        uuid_dsn, secret=SECRET, shape=UUID_PLAIN, policy=policy, cache_size=64
    ) as sessions:
        wrong: list[object] = []
        asked = 0
        running = asyncio.create_task(migrate(uuid_dsn, *APPLY, "--batch", "500"))

        async def visit(n: int) -> None:
            nonlocal asked
            while not running.done():
                n = (n + 7919) % 20_000 + 1
                credentials = Credentials(
                    session=(f"in plaintext {n}".encode(),), sent=True
                )
                answer = await sessions.authenticate(credentials, Client())
                asked += 1
                if asked == 200:
                    await locked.aclose()  # now it can finish
                if not isinstance(answer, Authenticated):
                    wrong.append(answer)

        async with asyncio.TaskGroup() as group:
            for worker in range(4):
                group.create_task(visit(worker * 1000))
        done = await running
    assert wrong == []
    assert asked >= 200
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(DONE)


async def test_a_table_with_other_names(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """The columns are found, or named; one may be named alone."""
    await database.execute(
        'create table logins (id serial primary key, "accountId" text,'
        ' token text, "oddOne" text, "expiresAt" timestamp)'
    )
    await database.execute("""insert into logins (token, "oddOne") values ('a b', 'c d')""")
    done = await migrate(uuid_dsn, "--table", "logins", *APPLY)
    assert (done.returncode, listed(done)) == (0, {"other": 1})
    row = await database.fetchrow("select * from logins")
    assert row["token"] == "sha256:" + hashlib.sha256(b"a b").hexdigest()
    assert row["oddOne"] == "c d"
    await database.execute('alter table logins drop column "expiresAt"')
    named = ("--table", "logins", "--token", "oddOne", "--id", "id")
    done = await migrate(uuid_dsn, *named, *APPLY)
    assert (done.returncode, listed(done)) == (0, {"other": 1})
    row = await database.fetchrow("select * from logins")
    assert row["oddOne"] == "sha256:" + hashlib.sha256(b"c d").hexdigest()


async def test_an_empty_table_of_digests_is_not_changed(dsn: str) -> None:
    """It needs no longer column, because nothing in it is hashed."""
    done = await migrate(dsn)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("there is nothing to hash\n")


async def test_a_column_of_digests_cannot_be_hashed(
    dsn: str, database: asyncpg.Connection
) -> None:
    """The documented digests: no option hashes them in passing, and the column is too
    short for what would become of them."""
    await execute(
        dsn,
        "alter table user_sessions drop constraint user_sessions_user_id_fkey;"
        " insert into user_sessions (id, user_id, session_token_hash, refresh_token_hash,"
        " ip_address, user_agent_hash, expires_at, refresh_expires_at) values ('a', 'u',"
        " encode(sha256('a'), 'hex'), encode(sha256('b'), 'hex'), '192.0.2.1', 'x',"
        " now() + interval '1 day', now() + interval '2 days')",
    )
    assert listed(await migrate(dsn)) == {"hex-64": 1}
    assert (await migrate(dsn, "--apply")).returncode == 1
    done = await migrate(dsn, "--form", "hex-64", "--apply")
    assert done.returncode == 1
    assert "takes 64 characters and a digest needs 71" in done.stderr


async def test_without_a_table_it_asks_for_the_name(empty_dsn: str) -> None:
    """With --table."""
    done = await migrate(empty_dsn)
    assert "there is no table user_sessions: name yours with --table" in done.stderr


async def test_a_digest_that_exists_already_is_reported(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """It ends with the number of rows that it could not hash, and shows no token."""
    await database.execute(FILL, 5)
    await database.execute(
        "insert into user_sessions (user_id, session_token, expires_at) select"
        " user_id, 'sha256:' || encode(sha256('in plaintext 3'), 'hex'), now()"
        " from user_sessions limit 1"
    )
    done = await migrate(uuid_dsn, *APPLY)
    assert done.returncode == 1
    assert "1 row could not be hashed" in done.stdout
    assert "in plaintext 3" not in done.stdout + done.stderr


async def test_what_cannot_be_done_is_one_line(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """With the DDL, if there is one, and no password."""
    url = urlsplit(uuid_dsn)
    gone = url._replace(netloc=f"app:hidden@{url.hostname}:1").geturl()
    await database.execute("alter table user_sessions alter session_token type varchar(64)")
    for dsn, arguments, status, text in (
        (gone, (), 2, "cannot reach the database"),
        ("", (), 2, "which database?"),
        (uuid_dsn, ("--table", "nowhere"), 1, "there is no table nowhere"),
        (uuid_dsn, ("--token", "nothing"), 1, "no column nothing"),
        (uuid_dsn, APPLY, 1, 'alter column "session_token" type varchar\\(255\\);'),
    ):
        done = await migrate(dsn, *arguments)
        assert (done.returncode, bool(done.stdout)) == (status, arguments is APPLY)
        assert re.search(text, done.stderr)
        assert done.stderr.count("\n") == 1
        assert "hidden" not in done.stderr


async def test_a_lost_connection_is_one_line(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """The next run continues."""
    await database.execute(FILL, 5000)
    end = OTHERS.replace("count(pid)", "count(pg_terminate_backend(pid))")
    async with one_row_locked(database, 5000):
        running = asyncio.create_task(migrate(uuid_dsn, *APPLY, "--batch", "2"))
        await begun(database)
        assert await database.fetchval(end) == 1
        done = await running
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "start it again to continue" in done.stderr
    assert (await migrate(uuid_dsn, *APPLY)).returncode == 0
