"""Hashing tokens in place, against a real table and what else writes to it."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from handstamp import Client, Policy, Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated
from handstamp.errors import ConfigError
from handstamp.stores.plaintext import TokenMigration
from handstamp.stores.resolve import Table, read_table
from handstamp.stores.shapes import UUID_PLAIN, TableShape, quoted

SECRET = "the secret of the tests of hashing: 32 bytes and more"
FILL = """
    insert into user_sessions (id, user_id, session_token, expires_at)
    select lpad(to_hex(n), 32, '0')::uuid, lpad(to_hex(n % 97), 32, '0')::uuid,
        'plaintext ' || n, now() + interval '1 day' from generate_series(1, $1::int) as n"""


@pytest.fixture
async def database(uuid_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(uuid_dsn)
    yield connection
    await connection.close()


async def table_of(database: asyncpg.Connection, shape: TableShape) -> Table:
    found = await read_table(database, quoted(shape.table))
    assert found is not None
    return found


async def hashing_of(
    database: asyncpg.Connection, shape: TableShape = UUID_PLAIN
) -> TokenMigration:
    return TokenMigration(shape, await table_of(database, shape), ["other"])


def digest_of(token: str) -> str:
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


async def stored(database: asyncpg.Connection) -> dict[int, str]:
    """The tokens by the numbers of their rows."""
    rows = await database.fetch("select id, session_token from user_sessions")
    return {row["id"].int: row["session_token"] for row in rows}


async def run(hashing: TokenMigration, database: asyncpg.Connection, size: int = 7) -> int:
    return sum([batch.hashed async for batch in hashing.run(database, size=size)])


async def test_every_token_becomes_the_digest_that_find_uses(
    database: asyncpg.Connection,
) -> None:
    """As the engine makes it, of the UTF-8 of the token; and a second run finds nothing."""
    await database.execute(FILL, 30)
    await database.execute(
        "update user_sessions set session_token = $1 where session_token = 'plaintext 9'",
        "schlüssel \U0001f511",
    )
    hashing = await hashing_of(database)
    assert await hashing.count(database) == 30
    batches = [batch.hashed async for batch in hashing.run(database, size=7)]
    assert batches == [7, 7, 7, 7, 2, 0]
    expected = {n: digest_of(f"plaintext {n}") for n in range(1, 31)}
    assert await stored(database) == {**expected, 9: digest_of("schlüssel \U0001f511")}
    assert await hashing.count(database) == 0
    assert await run(hashing, database) == 0
    assert await stored(database) == {**expected, 9: digest_of("schlüssel \U0001f511")}


async def test_a_run_that_was_stopped_goes_on(database: asyncpg.Connection) -> None:
    """What is hashed stays hashed, and once only."""
    await database.execute(FILL, 50)
    hashing = await hashing_of(database)
    async for _ in hashing.run(database, size=20):
        break
    assert await hashing.count(database) == 30
    assert await run(hashing, database) == 30
    assert await stored(database) == {n: digest_of(f"plaintext {n}") for n in range(1, 51)}


async def test_a_locked_row_is_skipped_and_hashed_later(
    database: asyncpg.Connection, uuid_dsn: str
) -> None:
    """The others are hashed meanwhile, and the row when it is free."""
    await database.execute(FILL, 20)
    other = await asyncpg.connect(uuid_dsn)
    hashing = await hashing_of(database)
    try:
        locking = other.transaction()
        await locking.start()
        await other.execute(
            "select from user_sessions where session_token = 'plaintext 3' for update"
        )
        hashed = 0
        async for batch in hashing.run(database, size=5):
            hashed += batch.hashed
            if hashed == 19 and batch.hashed == 0 and locking is not None:
                assert await hashing.count(database) == 1
                await locking.rollback()
                locking = None
        assert hashed == 20
    finally:
        await other.close()
    assert await hashing.count(database) == 0


async def test_a_token_that_is_replaced_meanwhile_is_hashed_as_it_is_then(
    database: asyncpg.Connection, uuid_dsn: str
) -> None:
    """Nothing is hashed twice, and no old token comes back."""
    await database.execute(FILL, 400)
    hashing = await hashing_of(database)
    writer = await asyncpg.connect(uuid_dsn)

    async def replace_tokens() -> None:
        for n in range(1, 401):
            token = f"new {n}" if n % 2 else digest_of(f"plaintext {n}")
            await writer.execute(
                "update user_sessions set session_token = $2 where id = $1",
                uuid.UUID(int=n),
                token,
            )

    async with asyncio.TaskGroup() as group:
        group.create_task(replace_tokens())
        for _ in range(3):
            await run(hashing, database, size=3)
    await run(hashing, database)
    await writer.close()
    assert await stored(database) == {
        n: digest_of(f"new {n}" if n % 2 else f"plaintext {n}") for n in range(1, 401)
    }


STUCK = """
    select exists (select from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock')
    or (select count(*) = 1 from user_sessions where session_token like 'plaintext %')"""


async def test_a_token_that_is_being_hashed_is_not_hashed_twice(
    database: asyncpg.Connection, uuid_dsn: str
) -> None:
    """A transaction that has the row finishes first, and what it wrote stays."""
    await database.execute(FILL, 10)
    hashing = await hashing_of(database)
    writer, watcher = await asyncpg.connect(uuid_dsn), await asyncpg.connect(uuid_dsn)
    writing = writer.transaction()
    await writing.start()
    await writer.execute(
        "update user_sessions set session_token = $1 where session_token = 'plaintext 3'",
        digest_of("plaintext 3"),
    )
    running = asyncio.create_task(run(hashing, database))
    async with asyncio.timeout(15):
        while not await watcher.fetchval(STUCK):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await writing.commit()
    assert await running == 9
    await writer.close()
    await watcher.close()
    assert await stored(database) == {n: digest_of(f"plaintext {n}") for n in range(1, 11)}


async def test_a_digest_that_another_row_has_is_reported(
    database: asyncpg.Connection,
) -> None:
    """The row stays as it is, and the run ends."""
    await database.execute(FILL, 5)
    await database.execute(
        "insert into user_sessions (user_id, session_token, expires_at)"
        " values (gen_random_uuid(), $1, now())",
        digest_of("plaintext 2"),
    )
    hashing = await hashing_of(database)
    batches = [batch async for batch in hashing.run(database, size=2)]
    assert sum(batch.hashed for batch in batches) == 4
    assert batches[-1].clashing == 1
    assert await hashing.count(database) == 1


NAMES = TableShape(
    table="Wild.Logins",
    id="key",
    user_id="who",
    token="secretText",
    expires_at="until",
    at_rest="plain",
)


@pytest.mark.parametrize("type", ["int8 generated always as identity", "char(30)", "text"])
@pytest.mark.parametrize("token", ["text", "varchar(71)"])
async def test_a_table_of_other_names_and_types(
    database: asyncpg.Connection, type: str, token: str
) -> None:
    """Ids of any type are a keyset; names are quoted."""
    await database.execute(
        f'create schema "Wild"; create table "Wild"."Logins" (key {type} primary key,'
        f' "secretText" {token})'
    )
    own = "" if type.startswith("int8") else "key, "
    key = "" if type.startswith("int8") else "'k' || n, "
    await database.execute(
        f'insert into "Wild"."Logins" ({own}"secretText")'
        f" select {key}'t' || n from generate_series(1, 25) n"
    )
    await database.execute(
        f'insert into "Wild"."Logins" ({own}"secretText")'
        + (" values (null)" if not own else " values ('null', null)")
    )
    assert await run(await hashing_of(database, NAMES), database, size=4) == 25
    found = await database.fetch('select "secretText" from "Wild"."Logins"')
    expected = {None, *(digest_of(f"t{n}") for n in range(1, 26))}
    assert {row["secretText"] for row in found} == expected


REFUSED = {
    "alter session_token type varchar(70)": ("takes 70 characters", UUID_PLAIN),
    "alter session_token type bytea using ''::bytea": ("type bytea", UUID_PLAIN),
    "drop column session_token": ("no column session_token", UUID_PLAIN),
    "add column other int": (
        "both id and token",
        replace(UUID_PLAIN, id="session_token", at_rest="prefixed"),
    ),
}


@pytest.mark.parametrize("change", REFUSED)
async def test_a_column_that_cannot_hold_digests_is_refused(
    database: asyncpg.Connection, change: str
) -> None:
    """Before anything is written."""
    await database.execute(f"alter table user_sessions {change}")
    text, shape = REFUSED[change]
    with pytest.raises(ConfigError, match=text):
        await hashing_of(database, shape)


ROWS = 20_000
WORKERS = 4


async def test_no_request_fails_while_tokens_are_hashed(
    database: asyncpg.Connection, uuid_dsn: str
) -> None:
    """Look-ups, activity, upgrades in place, sign-ins, revocations and pruning go on
    beside twenty thousand rows, and every answer is the right one."""
    await database.execute(FILL, ROWS)
    policy = Policy(
        touch_every=timedelta(microseconds=1),
        flush_every=timedelta(milliseconds=50),
        retention=timedelta(microseconds=1),
    )
    hashing, wrong, asked, ended = await hashing_of(database), [], 0, set()
    done = asyncio.Event()
    async with Sessions(
        uuid_dsn, secret=SECRET, shape=UUID_PLAIN, policy=policy, cache_size=64
    ) as sessions:

        async def visit(first: int) -> None:
            nonlocal asked
            n = first
            while not done.is_set():
                n = (n + 7919 * WORKERS) % ROWS or first
                credentials = Credentials(session=(f"plaintext {n}".encode(),), sent=True)
                answer = await sessions.authenticate(credentials, Client())
                asked += 1
                good = isinstance(answer, Authenticated)
                if good is (n in ended) or (good and answer.session.id != id_of(n)):
                    wrong.append((n, answer))
                if asked % 50 == 0:
                    await sessions.create(str(uuid.uuid4()))
                    await sessions.prune()
                if asked % 80 == 0 and n not in ended:
                    ended.add(n)
                    await sessions.revoke(id_of(n))

        async def migrate() -> None:
            try:
                await run(hashing, database, size=500)
            finally:
                done.set()

        async with asyncio.TaskGroup() as group:
            for worker in range(WORKERS):
                group.create_task(visit(worker + 1))
            group.create_task(migrate())
        written = sessions.stats().written_touches
    assert wrong == []
    assert asked > 100
    assert written > 0
    assert await hashing.count(database) == 0
    assert await database.fetchval("select count(*) from user_sessions") > ROWS / 2
    still = await stored(database)
    assert all(
        token == digest_of(f"plaintext {n}") for n, token in still.items() if n <= ROWS
    )


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number))
