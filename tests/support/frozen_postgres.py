"""A real PostgreSQL whose ``now()`` is frozen until a test moves it.

All SQL of handstamp calls ``now()`` without a schema. A connection with the schema
``frozen`` first in its search path calls the function of that name there, which reads a
table of one row.

    async with frozen_postgres(dsn) as frozen:
        store = TableStore(dsn, connect=frozen.connect)
        await frozen.advance(timedelta(minutes=15))
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
SEARCH_PATH = "frozen, pg_catalog, public"

_INSTALL = """
    create schema if not exists frozen;
    create table if not exists frozen.clock (shows timestamptz not null);
    truncate frozen.clock;
    create or replace function frozen.now() returns timestamptz
        language sql stable as 'select shows from frozen.clock';
    grant usage on schema frozen to public;
    grant select on frozen.clock to public;"""
_EMPTY = """
    do $body$ begin execute (select 'truncate ' || string_agg(oid::regclass::text, ', ')
        from pg_class where relkind in ('r', 'p') and relnamespace not in (select oid
            from pg_namespace where nspname in ('frozen', 'information_schema')
            or nspname like 'pg\\_%'));
    end $body$"""
_OTHERS = """
    from pg_stat_activity where datname = current_database()
    and backend_type = 'client backend' and pid <> pg_backend_pid()"""
_SINCE = """
    and backend_start > (select own.backend_start from pg_stat_activity own
        where own.pid = pg_backend_pid())"""
_ADMIT = "update pg_database set datallowconn = $1 where datname = current_database()"


class FrozenPostgres:
    """The clock of one database. ``connect`` are the options of a store that uses it."""

    connect: dict[str, Any] = {"server_settings": {"search_path": SEARCH_PATH}}  # noqa: RUF012

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.now = START

    async def set(self, shows: datetime) -> None:
        """Set the time, for every connection, from the next statement on."""
        await self.connection.execute("update frozen.clock set shows = $1", shows)
        self.now = shows

    async def advance(self, by: timedelta) -> None:
        """Move the time ahead, or back."""
        await self.set(self.now + by)

    async def empty(self) -> None:
        """Delete the rows that earlier tests left."""
        await self.connection.execute(_EMPTY)

    async def others(self) -> set[int]:
        """The process ids of the connections made after this one."""
        rows = await self.connection.fetch(f"select pid {_OTHERS} {_SINCE}")
        return {row["pid"] for row in rows}

    @asynccontextmanager
    async def unreachable(self) -> AsyncIterator[None]:
        """Meanwhile, other connections to this database are ended and refused."""
        await self.connection.execute(_ADMIT, False)
        await self.connection.execute(f"select pg_terminate_backend(pid, 9999) {_OTHERS}")
        try:
            yield
        finally:
            await self.connection.execute(_ADMIT, True)


@asynccontextmanager
async def frozen_postgres(
    dsn: str, start: datetime = START
) -> AsyncIterator[FrozenPostgres]:
    """Freeze the clock of this database; ``connection`` is open for a test's own SQL."""
    connection = await asyncpg.connect(dsn, **FrozenPostgres.connect)
    try:
        await connection.execute(_INSTALL)
        await connection.execute("insert into frozen.clock values ($1)", start)
        frozen = FrozenPostgres(connection)
        frozen.now = start
        yield frozen
    finally:
        await connection.close()
