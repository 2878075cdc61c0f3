"""Databases of their own for tests, on one server that lives as long as they do.

Rule 1. Only databases that were made here are written to and dropped, and their names say
whose they are. Whatever else is on a given server stays as it is.
Rule 2. The tables are made once, in a template; a test's database is a copy of it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from anyio.from_thread import start_blocking_portal

from handstamp.errors import ConfigError
from handstamp.stores.connection import checked_dsn
from handstamp.stores.install import install

T = TypeVar("T")

GIVEN_SERVER = "HANDSTAMP_TEST_DATABASE_URL"
"""The variable that names a server to use instead of an embedded one."""
_PREFIX = "handstamp_test_"
_ADD_USER = {
    "ulid": "insert into users (username, password_hash) values ($1, '!') returning id",
    # As GoTrue keeps one: it finds none without the instance, and reads no NULL of these.
    "supabase": """
        insert into auth.users (instance_id, id, aud, role, email, encrypted_password,
            confirmation_token, recovery_token, email_change_token_new, email_change,
            raw_app_meta_data, raw_user_meta_data, created_at, updated_at)
        values ('00000000-0000-0000-0000-000000000000', gen_random_uuid(),
            'authenticated', 'authenticated', $1, '', '', '', '', '',
            '{"provider": "email", "providers": ["email"]}', '{}', now(), now())
        returning id""",
}


@contextmanager
def postgres_server() -> Iterator[str]:
    """The address of a PostgreSQL server whose databases tests may make and drop.

    An embedded one, without care for its data, or the one that
    ``HANDSTAMP_TEST_DATABASE_URL`` names, whose role must be allowed to create databases.
    Raises :class:`~handstamp.testing.postgres.PostgresError` where none can be started, and
    :class:`ConfigError` for an address that cannot be read.
    """
    given = os.environ.get(GIVEN_SERVER)
    if given:
        yield checked_dsn(given)
        return
    from handstamp.testing.postgres import ephemeral  # Linux and macOS only

    with ephemeral(settings={"max_connections": "200"}) as server:
        yield server.dsn()


@contextmanager
def template_database(server: str, *, shape: str | None = "ulid") -> Iterator[str]:
    """A database with the empty tables of ``shape`` and their trigger, to be copied.

    An empty one for None. Raises :class:`ConfigError` for ``supabase``, whose tables are
    made by its own server.
    """
    if shape == "supabase":
        raise ConfigError(
            "the tables of Supabase Auth are made by its own server: give shape=None, and "
            "load the schema auth from a dump of your development database"
        )
    with _created(server, "template0") as dsn:
        if shape is not None:
            _apart(partial(_install, dsn, shape))
        yield dsn


@contextmanager
def database_like(template: str) -> Iterator[str]:
    """A copy of a database that nobody is connected to; dropped at the end, whoever
    uses it then."""
    name = urlsplit(template).path.removeprefix("/")
    with _created(_beside(template, "postgres"), name) as dsn:
        yield dsn


def add_user(dsn: str, username: str, *, shape: str = "ulid") -> str:
    """Add a user who cannot sign in by password; their id.

    To handstamp's own table of users, or with ``shape="supabase"`` to ``auth.users``,
    where ``username`` is the email address. Raises :class:`ConfigError` for a shape that
    has no table of users.
    """
    if shape not in _ADD_USER:
        raise ConfigError(f"the shape {shape!r} has no table of users: any id will do")
    return str(_apart(partial(_fetch_value, dsn, _ADD_USER[shape], username)))


@contextmanager
def _created(server: str, template: str) -> Iterator[str]:
    name = _PREFIX + secrets.token_hex(8)
    # The names are our own: letters, digits and underscores, or template0.
    _apart(partial(_execute, server, f'create database {name} template "{template}"'))
    try:
        yield _beside(server, name)
    finally:
        _apart(partial(_execute, server, f"drop database {name} with (force)"))


def _beside(dsn: str, database: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path="/" + quote(database, safe="")))


def _apart(work: Callable[[], Awaitable[T]]) -> T:
    """Run this on a loop in a thread of its own: the test may have one."""
    with start_blocking_portal() as portal:
        return portal.call(work)


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def _fetch_value(dsn: str, sql: str, *values: object) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql, *values)
    finally:
        await connection.close()


async def _install(dsn: str, shape: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await install(connection, shape, trigger=True)
    finally:
        await connection.close()
