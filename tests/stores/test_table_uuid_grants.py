"""docs/uuid.md: the role that it describes can do everything, and nothing more is asked."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from handstamp import Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Client
from handstamp.errors import SessionsUnavailable
from handstamp.stores.shapes import UUID_PLAIN, UsersTable
from tests.stores.test_table import role

SECRET = "the secret of the tests of grants on uuids: 32 bytes"
GRANTS = (
    "select on user_sessions",
    "insert on user_sessions",
    "update on user_sessions",
    "delete on user_sessions",
)
USERS = "select (id, is_active, locked_until, last_password_change) on users"
SHAPE = replace(UUID_PLAIN, users=UsersTable())


@pytest.fixture
async def admin(uuid_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection; there is a table of users beside that of sessions."""
    connection = await asyncpg.connect(uuid_dsn)
    await connection.execute(
        "create table users (id uuid primary key, is_active boolean, locked_until"
        " timestamptz, last_password_change timestamptz, password_hash text)"
    )
    yield connection
    await connection.close()


async def whole_life(dsn: str, user: str) -> None:
    """Everything an application does with sessions, once."""
    async with Sessions(dsn, secret=SECRET, shape=SHAPE) as sessions:
        first = await sessions.create(user, remember=True)
        issued = await sessions.create(user, replaces=first.session.id)
        shown = Credentials(session=(issued.session_token.encode(),), sent=True)
        assert isinstance(await sessions.authenticate(shown, Client()), Authenticated)
        assert await sessions.step_up(issued.session.id, 2) is not None
        assert len(await sessions.list_for_user(user)) == 1
        await sessions.flush()
        assert await sessions.revoke_user(user, reason="x") == 1
        await sessions.prune()


async def new_user(admin: asyncpg.Connection) -> str:
    """A user who may sign in."""
    user = uuid.uuid4()
    await admin.execute("insert into users (id, is_active) values ($1, true)", user)
    return str(user)


async def test_p14_the_documented_grants_are_enough_for_uuids(
    admin: asyncpg.Connection, uuid_dsn: str
) -> None:
    """Everything works with them, and the users' secrets are out of reach."""
    async with role(admin, uuid_dsn) as (name, address):
        for grant in (*GRANTS, USERS):
            await admin.execute(f"grant {grant} to {name}")
        await whole_life(address, await new_user(admin))
        theirs = await asyncpg.connect(address)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await theirs.fetchval("select password_hash from users")
        await theirs.close()


@pytest.mark.parametrize("missing", [*GRANTS, USERS])
async def test_p14_no_documented_grant_on_uuids_is_too_many(
    admin: asyncpg.Connection, uuid_dsn: str, missing: str
) -> None:
    """Without any one of them something fails."""
    async with role(admin, uuid_dsn) as (name, address):
        for grant in (*GRANTS, USERS):
            if grant != missing:
                await admin.execute(f"grant {grant} to {name}")
        with pytest.raises(SessionsUnavailable):
            await whole_life(address, await new_user(admin))
