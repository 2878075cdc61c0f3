"""What ``handstamp doctor`` asks about Supabase Auth's tables. Nothing here writes.

The catalog answers, which any role may read: one without a single grant must be told so.
"""

from __future__ import annotations

import asyncpg

from handstamp.stores.doctor.examining import read_triggers
from handstamp.stores.doctor.supabase_triggering import Hearing, watched_of
from handstamp.stores.lanes import Connection
from handstamp.stores.supabase.schema import LOOK, TABLES, Found, spelled


async def read_tables(connection: Connection, name: str) -> Found:
    """The tables in the schema ``name``, their columns and the role's privileges."""
    rows = await connection.fetch(LOOK, name, list(TABLES))
    return {row["name"]: row for row in rows}


async def read_hearing(connection: Connection, name: str, found: Found) -> Hearing:
    """The triggers of ours, and whether the bus relies on them."""
    oids = {spelled(name, table): int(row["oid"]) for table, row in found.items()}
    triggers = await read_triggers(connection, oids)
    watched = watched_of(name)
    try:
        relied = await connection.fetchval(watched.triggers, *watched.tables)
    except asyncpg.InsufficientPrivilegeError:
        return Hearing(triggers=triggers, relied=None)
    return Hearing(triggers=triggers, relied=bool(relied))
