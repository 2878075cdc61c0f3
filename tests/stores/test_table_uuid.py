"""The table with UUIDs and plaintext tokens: what is particular to it."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial

import asyncpg
import pytest

from handstamp import Client, Policy, Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated
from handstamp.errors import ConfigError
from handstamp.stores.install import install
from handstamp.stores.shapes import UUID_PLAIN, TableShape
from tests.support.waiting import until

SECRET = "the secret of the tests of the uuid table: 32 bytes"
LAPTOP = Client(address="192.0.2.7", user_agent="a browser " * 80, location="Oslo")
DAY = timedelta(days=1)


@pytest.fixture
async def sessions(uuid_dsn: str) -> AsyncIterator[Sessions]:
    """An engine on an empty table."""
    async with Sessions(uuid_dsn, secret=SECRET, shape=UUID_PLAIN) as sessions:
        yield sessions


@pytest.fixture
async def database(uuid_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """What an administrator at psql has."""
    connection = await asyncpg.connect(uuid_dsn)
    yield connection
    await connection.close()


def presented(token: str) -> Credentials:
    """A request with this session cookie."""
    return Credentials(session=(token.encode(),), sent=True, ambient=True)


async def in_clear(database: asyncpg.Connection, user: str, token: str) -> str:
    """A session from before handstamp; its id."""
    return str(
        await database.fetchval(
            "insert into user_sessions (user_id, session_token, expires_at)"
            " values ($1::text::uuid, $2, now() + interval '1 hour') returning id",
            user,
            token,
        )
    )


async def test_a_new_session_is_stored_as_a_prefixed_digest(
    sessions: Sessions, database: asyncpg.Connection
) -> None:
    """Nothing in the row is a token, and everything else the row can hold is there."""
    issued = await sessions.create(str(uuid.uuid4()), client=LAPTOP, remember=True)
    row = await database.fetchrow("select * from user_sessions")
    digest = hashlib.sha256(issued.session_token.encode()).hexdigest()
    assert row["session_token"] == f"sha256:{digest}"
    assert str(row["id"]) == issued.session.id
    assert row["user_agent"] == LAPTOP.user_agent[:500]
    assert (row["ip_address"], row["location"]) == ("192.0.2.7", "Oslo")
    assert issued.refresh_token is None
    assert issued.session_lifetime == sessions.policy.absolute_ttl
    answer = await sessions.authenticate(presented(issued.session_token), LAPTOP)
    assert isinstance(answer, Authenticated)


async def test_a_token_in_plaintext_is_accepted_and_replaced_at_first_use(
    sessions: Sessions, database: asyncpg.Connection
) -> None:
    """The user stays signed in, and the row no longer holds the token."""
    token = secrets.token_urlsafe(32)
    id = await in_clear(database, str(uuid.uuid4()), token)
    answer = await sessions.authenticate(presented(token), LAPTOP)
    assert isinstance(answer, Authenticated)
    assert answer.session.id == id

    async def replaced() -> bool:
        stored = await database.fetchval("select session_token from user_sessions")
        return stored == "sha256:" + hashlib.sha256(token.encode()).hexdigest()

    async with asyncio.timeout(15):
        while not await replaced():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    async with Sessions(sessions_dsn(database), secret=SECRET, shape=UUID_PLAIN) as other:
        again = await other.authenticate(presented(token), LAPTOP)
    assert isinstance(again, Authenticated)


def sessions_dsn(database: asyncpg.Connection) -> str:
    """Where a connection leads to."""
    host, port = database._addr
    given = database._params
    user, name, password = given.user, given.database, given.password
    return f"postgresql://{user}:{password}@{host}:{port}/{name}"


async def test_the_text_of_the_column_is_no_token(
    sessions: Sessions, database: asyncpg.Connection
) -> None:
    """Who reads the table can sign in with nothing in it, and no query is made."""
    issued = await sessions.create(str(uuid.uuid4()))
    stored = await database.fetchval("select session_token from user_sessions")
    before = sessions.stats().queries
    for text in (stored, stored.removeprefix("sha256:")):
        answer = await sessions.authenticate(presented(text), LAPTOP)
        assert not isinstance(answer, Authenticated)
    assert stored not in issued.session_token
    assert sessions.stats().queries <= before + 1  # the bare digest may be asked for


async def test_activity_moves_the_expiry_ahead_and_not_beyond_the_limit(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """By refresh_ttl, never past absolute_ttl, and one that is not remembered never past
    browser_ttl."""
    policy = Policy(refresh_ttl=10 * DAY, absolute_ttl=12 * DAY, browser_ttl=DAY)
    engine = partial(Sessions, uuid_dsn, secret=SECRET, shape=UUID_PLAIN, policy=policy)
    async with engine() as sessions:
        kept = await sessions.create(str(uuid.uuid4()), remember=True)
        brief = await sessions.create(str(uuid.uuid4()))
        await database.execute(
            "update user_sessions set created_at = created_at - interval '20 hours',"
            " updated_at = updated_at - interval '20 hours',"
            " expires_at = expires_at - interval '20 hours'"
        )
    async with engine() as sessions:
        for issued in (kept, brief):
            answer = await sessions.authenticate(presented(issued.session_token), LAPTOP)
            assert isinstance(answer, Authenticated)
        assert await sessions.flush() == 2
        rows = await database.fetch(
            "select id, expires_at - created_at as lives, expires_at - updated_at as ahead"
            " from user_sessions"
        )
        lives = {str(row["id"]): (row["lives"], row["ahead"]) for row in rows}
    assert lives[kept.session.id][1] == 10 * DAY
    assert lives[brief.session.id][0] == DAY


async def test_a_revoked_row_is_inactive_and_deleted(
    sessions: Sessions, database: asyncpg.Connection
) -> None:
    """Both columns say so, and the token is refused."""
    issued = await sessions.create(str(uuid.uuid4()))
    assert await sessions.revoke(issued.session.id, reason="x")
    row = await database.fetchrow("select is_active, deleted_at from user_sessions")
    assert row["is_active"] is False
    assert row["deleted_at"] is not None
    answer = await sessions.authenticate(presented(issued.session_token), LAPTOP)
    assert not isinstance(answer, Authenticated)


async def test_an_old_copy_of_the_cookie_never_has_the_new_level(
    sessions: Sessions, uuid_dsn: str
) -> None:
    """The step-up replaces the token, and another process, which has the session cached,
    hears of it."""
    issued = await sessions.create(str(uuid.uuid4()), remember=True)
    async with Sessions(uuid_dsn, secret=SECRET, shape=UUID_PLAIN) as other:
        await until(lambda: other.stats().listener == "listening")
        answer = await other.authenticate(presented(issued.session_token), LAPTOP)
        assert isinstance(answer, Authenticated)
        assert answer.session.level == 0
        raised = await sessions.step_up(issued.session.id, 2)
        assert raised is not None
        assert raised.session.level == 2
        assert raised.issued is not None
        fresh = raised.issued
        assert (fresh.refresh_token, fresh.remember) == (None, True)
        assert fresh.session_lifetime is not None
        assert issued.session_lifetime is not None
        assert DAY < fresh.session_lifetime < issued.session_lifetime

        async def is_over() -> bool:
            answer = await other.authenticate(presented(issued.session_token), LAPTOP)
            if isinstance(answer, Authenticated):
                assert answer.session.level == 0
            return not isinstance(answer, Authenticated)

        async with asyncio.timeout(15):
            while not await is_over():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        for engine in (sessions, other):
            old = await engine.authenticate(presented(issued.session_token), LAPTOP)
            assert not isinstance(old, Authenticated)
            new = await engine.authenticate(presented(fresh.session_token), LAPTOP)
            assert isinstance(new, Authenticated)
            assert new.session.level == 2
    again = await sessions.step_up(issued.session.id, 1)
    assert again is not None
    assert (again.session.level, again.issued) == (2, None)
    assert await sessions.step_up(str(uuid.uuid4()), 1) is None
    assert await sessions.step_up("no uuid", 1) is None


DANGERS = {
    "drop constraint user_sessions_session_token_key": "no unique index",
    "alter session_token drop not null": "may be null",
    "alter session_token type varchar(64)": "takes 64 characters",
    "drop column expires_at": "has no column expires_at",
    "alter trust_level type text": "is of type text",
}


@pytest.mark.parametrize("change", DANGERS, ids=lambda text: text[:30])
async def test_a_dangerous_uuid_table_is_refused_with_the_ddl(
    uuid_dsn: str, database: asyncpg.Connection, change: str
) -> None:
    """At opening, before any request."""
    await database.execute(f"alter table user_sessions {change}")
    sessions = Sessions(uuid_dsn, secret=SECRET, shape=UUID_PLAIN)
    with pytest.raises(ConfigError, match=DANGERS[change]):
        await sessions.open()
    await sessions.close()


async def test_a_missing_column_switches_a_feature_off(
    uuid_dsn: str, database: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest works, and the log says what is off."""
    for column in ("trust_level", "device_id", "updated_at", "deleted_at", "location"):
        await database.execute(f"alter table user_sessions drop column {column}")
    async with Sessions(uuid_dsn, secret=SECRET, shape=UUID_PLAIN) as sessions:
        issued = await sessions.create(str(uuid.uuid4()), client=LAPTOP)
        assert isinstance(
            await sessions.authenticate(presented(issued.session_token), LAPTOP),
            Authenticated,
        )
        with pytest.raises(ConfigError, match="no trust level"):
            await sessions.step_up(issued.session.id, 1)
        assert await sessions.revoke(issued.session.id)
        assert not sessions.store.capabilities.level
    assert "level" in caplog.text


def test_a_shape_needs_what_identifies_a_session() -> None:
    """Without them there is nothing to look for."""
    with pytest.raises(ConfigError, match="token"):
        TableShape(token=None)


async def test_a_replaced_token_is_not_accepted_again(
    uuid_dsn: str, database: asyncpg.Connection
) -> None:
    """With the trigger too, which alone lets a process believe what it read long ago."""
    await install(database, "uuid", trigger=True)
    async with Sessions(uuid_dsn, secret=SECRET, shape=UUID_PLAIN) as sessions:
        await until(lambda: sessions.stats().all_writers_notify)
        issued = await sessions.create(str(uuid.uuid4()), client=LAPTOP)
        token = issued.session_token.encode()
        assert sessions.hit(token) is not None
        await database.execute("update user_sessions set session_token = 'another one'")
        await until(lambda: sessions.hit(token) is None)
