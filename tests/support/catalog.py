"""Queries of PostgreSQL's catalog: what one table is made of. The argument is its name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

COLUMNS_OF = """
    select attname,
        replace(format_type(atttypid, atttypmod), 'character varying', 'varchar'),
        coalesce(pg_get_expr(adbin, adrelid), ''), not attnotnull
    from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
    where attrelid = $1::text::regclass and attnum > 0 and not attisdropped
    order by attnum"""
# PostgreSQL 18 lists NOT NULL as a constraint too; COLUMNS_OF tells that.
CONSTRAINTS_OF = """
    select conname, pg_get_constraintdef(oid) from pg_constraint
    where conrelid = $1::text::regclass and contype <> 'n'"""
INDEXES_OF = """
    select pg_get_indexdef(indexrelid) from pg_index
    where indrelid = $1::text::regclass"""


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that is closed at the end."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()
