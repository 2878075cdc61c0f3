"""Creates the tables and two users: ``python -m examples.seed``. It can run repeatedly."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg

from examples import settings
from examples.accounts import hasher
from handstamp.stores.install import install, install_trigger
from handstamp.supabase.schema import install_supabase_trigger

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

USERS = {"alice": "wonderland", "bob": "builder"}
SQL = Path(__file__).parent / "sql"

_ONE_AT_A_TIME = "select pg_advisory_xact_lock(hashtext('handstamp seed'))"
_THERE_IS = "select to_regclass('users') is not null"
_THERE_IS_AUTH = "select to_regnamespace('auth') is not null"
_ADD = """
    insert into users (username, password_hash) values ($1, $2)
    on conflict (username) do nothing returning id"""
_ADD_AS = """
    insert into users (id, username, password_hash) values ($3, $1, $2)
    on conflict (username) do nothing returning id"""
_FIND_IN_AUTH = "select id from auth.users where email = $1"
# As GoTrue writes one; a user without a password there has to sign in here.
_ADD_TO_AUTH = """
    insert into auth.users (instance_id, id, aud, role, email, confirmation_token,
        recovery_token, email_change_token_new, email_change, raw_app_meta_data,
        raw_user_meta_data, created_at, updated_at)
    values ($1, $2, 'authenticated', 'authenticated', $3, '', '', '', '',
        '{"provider": "email", "providers": ["email"]}', '{}', now(), now())"""


async def seed() -> None:
    """Create what is missing of the tables, the trigger with which every writer notifies,
    and the users. Change nothing else."""
    shape = settings.shape_name()
    connection = await asyncpg.connect(settings.database_url(), timeout=10)
    try:
        async with connection.transaction():
            await connection.execute(_ONE_AT_A_TIME)
            await _make_tables(connection, shape)
            for username, password in USERS.items():
                added = await _add(connection, shape, username, hasher.hash(password))
                _say(added, f"user {username} / {password}")
    finally:
        await connection.close()


async def _make_tables(connection: Connection, shape: str) -> None:
    theirs = shape == settings.SUPABASE and await connection.fetchval(_THERE_IS_AUTH)
    if shape == settings.SUPABASE:
        _say(not theirs, "schema auth")
    if theirs:  # created by Supabase: no trigger is added to it
        await _make_users(connection)
        return
    if shape == settings.SUPABASE:
        await connection.execute(_text("auth"))
        outcomes = await install_supabase_trigger(connection)
    else:
        outcomes = await install(connection, shape, trigger=shape == "ulid")
    if shape != "ulid":
        await _make_users(connection)
    if shape == "uuid":  # on the table of users, too, which is not in the preset
        outcomes += await install_trigger(connection, settings.SHAPES[shape])
    for outcome in outcomes:
        print(f"{outcome.state:<7} {outcome.statement}")


async def _make_users(connection: Connection) -> None:
    found = await connection.fetchval(_THERE_IS)
    await connection.execute(_text("users"))
    _say(not found, "table users")


async def _add(connection: Connection, shape: str, username: str, hash: str) -> bool:
    if shape != settings.SUPABASE:
        return bool(await connection.fetchval(_ADD, username, hash))
    email = f"{username}@example.com"
    user_id = await connection.fetchval(_FIND_IN_AUTH, email)
    if user_id is None:
        user_id = uuid4()
        await connection.execute(_ADD_TO_AUTH, UUID(int=0), user_id, email)
    return bool(await connection.fetchval(_ADD_AS, username, hash, user_id))


def _text(name: str) -> str:
    return (SQL / f"{name}.sql").read_text("utf-8")


def _say(created: bool, what: str) -> None:
    print(f"{'created' if created else 'found':<7} {what}")


if __name__ == "__main__":
    asyncio.run(seed())
