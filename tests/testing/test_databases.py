"""Databases for tests: made, copied and dropped, and nothing else is touched."""

from __future__ import annotations

from urllib.parse import urlsplit

import asyncpg
import pytest

from handstamp import Sessions
from handstamp.testing import add_user, call
from handstamp.testing.databases import (
    SERVER_VARIABLE,
    database_like,
    postgres_server,
    template_database,
)
from tests.support.engines import SECRET


async def names(dsn: str) -> set[str]:
    """The databases of a server."""
    connection = await asyncpg.connect(dsn)
    try:
        return {row[0] for row in await connection.fetch("select datname from pg_database")}
    finally:
        await connection.close()


def test_a_database_has_the_tables(handstamp_dsn: str) -> None:
    """A user and a session can be added, and an engine works on it."""
    sessions = Sessions(handstamp_dsn, secret=SECRET)
    user = add_user(handstamp_dsn, "alice")
    issued = call(sessions.create, user)
    assert issued.session.user_id == user
    assert [s.id for s in call(sessions.list_for_user, user)] == [issued.session.id]


def test_each_test_starts_empty(handstamp_template_dsn: str) -> None:
    """A copy does not contain what was written to another copy."""
    with database_like(handstamp_template_dsn) as one:
        add_user(one, "alice")
    with database_like(handstamp_template_dsn) as other:
        add_user(other, "alice")


async def test_a_template_may_be_empty(handstamp_postgres: str) -> None:
    """With shape=None it has no tables."""
    with template_database(handstamp_postgres, shape=None) as dsn:
        connection = await asyncpg.connect(dsn)
        sql = "select count(*) from pg_tables where schemaname = 'public'"
        assert await connection.fetchval(sql) == 0
        await connection.close()


async def test_only_created_databases_are_dropped(handstamp_postgres: str) -> None:
    """Also if a client is still connected to one. Other tests use the same server."""
    with template_database(handstamp_postgres, shape=None) as other:
        with (
            template_database(handstamp_postgres) as template,
            database_like(template) as copy,
        ):
            made = {urlsplit(dsn).path[1:] for dsn in (template, copy)}
            kept = urlsplit(other).path[1:]
            assert await names(handstamp_postgres) >= made | {kept}
            connection = await asyncpg.connect(copy)
            assert await connection.fetchval("select 1") == 1
        assert await names(handstamp_postgres) & (made | {kept}) == {kept}
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await connection.fetchval("select 1")
    connection.terminate()


@pytest.mark.slow
def test_a_server_is_started_if_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is embedded, and has ended afterwards."""
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    with postgres_server() as server, template_database(server) as dsn:
        assert add_user(dsn, "alice")
    with pytest.raises(OSError):
        add_user(dsn, "bob")


def test_a_server_may_be_given(
    handstamp_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a variable of its own: the application's DATABASE_URL is never used."""
    monkeypatch.setenv(SERVER_VARIABLE, handstamp_postgres)
    monkeypatch.setenv("DATABASE_URL", "postgresql://production.example/app")
    with postgres_server() as dsn:
        assert dsn == handstamp_postgres


async def test_databases_are_created_inside_a_running_loop(
    handstamp_template_dsn: str,
) -> None:
    """A fixture may be requested by an async test."""
    with database_like(handstamp_template_dsn) as dsn:
        assert await names(dsn)
