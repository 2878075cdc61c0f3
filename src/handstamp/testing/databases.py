"""Where the sessions of a test are stored: in memory, or in a database of its own.

Rule 1. Only databases that were created here are written to and dropped. Their names begin
with ``handstamp_test_``. Everything else on a server that was given stays as it is.
Rule 2. The tables are created once, in a template. The database of a test is a copy of it.
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

from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError
from handstamp.stores.connection import Connection, check_dsn
from handstamp.stores.install import install
from handstamp.stores.memory import MemoryStore
from handstamp.testing.engines import FrozenClock, run_in_thread

T = TypeVar("T")

SECRET = "a secret of the tests and of nothing else"  # noqa: S105
SERVER_VARIABLE = "HANDSTAMP_TEST_DATABASE_URL"
"""The variable that names a server to use instead of an embedded one."""
_SUPABASE_OPTIONS = {"url", "cookie", "jwt_secret", "jwt_keys", "rules"}
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


def memory_sessions(*, clock: FrozenClock | None = None, **options: Any) -> Sessions:
    """Make a :class:`Sessions` on a :class:`MemoryStore`: the whole engine without I/O.

    Every user id exists and is active there; ``sessions.store.users`` changes that.
    ``clock`` is used by both the engine and the store. ``options`` are those of
    :class:`Sessions`; a secret for tests is used unless you give one. Raises
    :class:`ConfigError` for the options of :class:`SupabaseSessions`, which works on a real
    table only.
    """
    if theirs := sorted(_SUPABASE_OPTIONS & set(options)):
        raise ConfigError(
            f"{', '.join(theirs)}: only for SupabaseSessions, which needs its tables: make "
            "one with the address of a test database that has the schema auth"
        )
    if not {"secret", "secrets"} & set(options):
        options["secret"] = SECRET
    if clock is None:
        return Sessions(MemoryStore(), **options)
    return Sessions(MemoryStore(clock.now), clock=clock, **options)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yield the address of a PostgreSQL server whose databases tests may create and drop.

    It is an embedded server without durability, or the one in
    ``HANDSTAMP_TEST_DATABASE_URL``, whose role must have the right to create databases.
    Raises :class:`~handstamp.testing.postgres.PostgresError` if none can be started, and
    :class:`ConfigError` for an address that cannot be read.
    """
    given = os.environ.get(SERVER_VARIABLE)
    if given:
        yield check_dsn(given)
        return
    from handstamp.testing.postgres import ephemeral  # Linux and macOS only

    with ephemeral(settings={"max_connections": "200"}) as server:
        yield server.dsn()


@contextmanager
def template_database(server: str, *, shape: str | None = "ulid") -> Iterator[str]:
    """Yield the address of a new database with the empty tables of ``shape``, to be copied.

    It has the trigger too. With ``shape=None`` the database has no tables. Raises
    :class:`ConfigError` for ``supabase``, whose tables are created by its own server.
    """
    if shape == "supabase":
        raise ConfigError(
            "the tables of Supabase Auth are created by its own server: give shape=None, "
            "and load the schema auth from a dump of your development database"
        )
    with _created(server, "template0") as dsn:
        if shape is not None:
            install_tables = partial(install, shape=shape, trigger=True)
            run_in_thread(partial(_with_connection, dsn, install_tables))
        yield dsn


@contextmanager
def database_like(template: str) -> Iterator[str]:
    """Yield the address of a copy of a database, to which nothing may be connected.

    The copy is dropped at the end, and its connections are closed.
    """
    name = urlsplit(template).path.removeprefix("/")
    with _created(_beside(template, "postgres"), name) as dsn:
        yield dsn


def add_user(dsn: str, username: str, *, shape: str = "ulid") -> str:
    """Add a user who has no password; returns the user's id.

    The user is added to handstamp's own table of users, or with ``shape="supabase"`` to
    ``auth.users``, where ``username`` is the email address. Raises :class:`ConfigError` for
    a shape without a table of users.
    """
    if shape not in _ADD_USER:
        raise ConfigError(f"the shape {shape!r} has no table of users: any id will do")
    return str(_execute(dsn, _ADD_USER[shape], username))


@contextmanager
def _created(server: str, template: str) -> Iterator[str]:
    name = _PREFIX + secrets.token_hex(8)
    # The names are our own: letters, digits and underscores, or template0.
    _execute(server, f'create database {name} template "{template}"')
    try:
        yield _beside(server, name)
    finally:
        _execute(server, f"drop database {name} with (force)")


def _beside(dsn: str, database: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path="/" + quote(database, safe="")))


def _execute(dsn: str, sql: str, *values: object) -> Any:
    """Run a statement; returns the first value of its result, if it has one."""

    async def fetch(connection: Connection) -> Any:
        return await connection.fetchval(sql, *values)

    return run_in_thread(partial(_with_connection, dsn, fetch))


async def _with_connection(dsn: str, use: Callable[[Connection], Awaitable[T]]) -> T:
    connection = await asyncpg.connect(dsn)
    try:
        return await use(connection)
    finally:
        await connection.close()
