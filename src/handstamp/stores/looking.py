"""The first look at a table: its catalog, how the shape fits, a sample of its ids."""

from __future__ import annotations

import logging

from handstamp.stores.catalog import read_table
from handstamp.stores.dangers import refuse_long_ids
from handstamp.stores.fitting import fit
from handstamp.stores.lanes import Connection
from handstamp.stores.shapes import TableShape, quoted
from handstamp.stores.statements import Statements

logger = logging.getLogger("handstamp")

SAMPLE = 1000
"""Rows whose ids are measured, where the column has no limit of its own."""


async def look(connection: Connection, shape: TableShape) -> Statements:
    """The SQL for the table that ``shape`` names.

    Raises :class:`ConfigError` for a table that must not be used. What is missing is
    logged, and its features are off.
    """
    table = await read_table(connection, quoted(shape.table))
    users = None
    if shape.users is not None:
        users = await read_table(connection, quoted(shape.users.table))
    fitted = fit(shape, table, users)
    sql = Statements(fitted)
    if sql.longest_ids is not None:
        (longest,) = await connection.fetch(sql.longest_ids, SAMPLE)
        refuse_long_ids(shape, dict(longest))
    if fitted.missing:
        logger.warning(
            "%s has no column for %s: these features are off",
            shape.table,
            ", ".join(fitted.missing),
            extra={"action": "features_off"},
        )
    return sql
