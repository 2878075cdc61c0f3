"""What the database's own log and a dump of it hold of a session."""

from __future__ import annotations

import asyncio
import hashlib

import asyncpg
import pytest
from ulid import ULID

from handstamp import Client, Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Invalid
from handstamp.core.tokens import Tokens
from handstamp.stores.install import install
from handstamp.testing.postgres import ephemeral

SECRET = "a secret of the tests, and of nothing else"
LOUD = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_parameter_max_length": "-1",
}
ADD = "insert into users (id, username, password_hash) values ($1, 'alice', 'x')"
EXPIRE = "update user_sessions set expires_at = expires_at - interval '20 minutes', \
last_activity_at = last_activity_at - interval '20 minutes', \
created_at = created_at - interval '20 minutes'"


async def life(dsn: str) -> list[str]:
    """Sign in, be known, refresh, revoke; every token there was."""
    connection = await asyncpg.connect(dsn)
    await install(connection, "ulid", trigger=True)
    user = str(ULID())
    await connection.execute(ADD, user)
    async with Sessions(dsn, secret=SECRET) as sessions:
        issued = await sessions.create(user, remember=True)
        await connection.execute(EXPIRE)
    async with Sessions(dsn, secret=SECRET) as sessions:
        shown = Credentials(
            session=(issued.session_token.encode(),),
            refresh=(issued.refresh_token.encode(),),
        )
        answer = await sessions.authenticate(shown, Client())
        assert isinstance(answer, Authenticated)
        assert answer.issued is not None
        await sessions.revoke(issued.session.id)
    await connection.close()
    pairs = (issued, answer.issued)
    return [t for pair in pairs for t in (pair.session_token, pair.refresh_token)]


def test_c47_the_servers_log_holds_no_token() -> None:
    """Also when it logs every statement with its parameters."""
    with ephemeral(settings=LOUD) as server:
        tokens = asyncio.run(life(server.dsn()))
        log = (server.data_dir / "server.log").read_text()
    assert hashlib.sha256(tokens[0].encode()).hexdigest() in log  # it does log them
    for token in tokens:
        assert token not in log
        assert token.rpartition(".")[0] not in log


async def test_c44_a_dump_and_an_old_refresh_token_yield_nothing(dsn: str) -> None:
    """Without the key the successor cannot be derived, and another key derives another."""
    async with Sessions(dsn, secret=SECRET) as sessions:
        connection = await asyncpg.connect(dsn)
        user = str(ULID())
        await connection.execute(
            "insert into users (id, username, password_hash) values ($1, 'alice', 'x')",
            user,
        )
        old = await sessions.create(user, remember=True)
        new = await sessions.refresh(old.refresh_token)
        assert new is not None
        dump = await connection.fetchrow("select * from user_sessions")
        await connection.close()
        thief = Tokens(["another key, that the thief has made himself"])
        assert thief.read_refresh(old.refresh_token.encode()) is None
        for stored in dump.values():
            claim = Credentials(
                session=(str(stored).encode(),), refresh=(str(stored).encode(),)
            )
            assert isinstance(await sessions.authenticate(claim, Client()), Invalid)


@pytest.mark.parametrize("state", ["unknown", "revoked", "malformed"])
async def test_c40_every_refusal_looks_alike(dsn: str, state: str) -> None:
    """A token is found by its digest, so nothing is compared bit by bit; and what is
    wrong with it is not for the client to know."""
    async with Sessions(dsn, secret=SECRET) as sessions:
        connection = await asyncpg.connect(dsn)
        user = str(ULID())
        await connection.execute(
            "insert into users (id, username, password_hash) values ($1, 'alice', 'x')",
            user,
        )
        issued = await sessions.create(user)
        if state == "revoked":
            await sessions.revoke(issued.session.id)
        if state == "unknown":
            await connection.execute("delete from user_sessions")
            sessions._state.cache.forget_session(issued.session.id)
        await connection.close()
        text = "malformed" if state == "malformed" else issued.session_token
        answer = await sessions.authenticate(
            Credentials(session=(text.encode(),)), Client()
        )
        assert isinstance(answer, Invalid)
