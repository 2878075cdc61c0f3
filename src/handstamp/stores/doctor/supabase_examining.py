"""What ``handstamp doctor`` asks about Supabase Auth's tables. Nothing here writes.

The catalog answers, which any role may read: one without a single grant must be told so.
"""

from __future__ import annotations

from handstamp.stores.lanes import Connection
from handstamp.stores.supabase.schema import LOOK, TABLES, Found


async def read_tables(connection: Connection, name: str) -> Found:
    """The tables in the schema ``name``, their columns and the role's privileges."""
    rows = await connection.fetch(LOOK, name, list(TABLES))
    return {row["name"]: row for row in rows}
