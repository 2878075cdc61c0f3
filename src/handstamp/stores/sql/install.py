"""Create what is missing of a table shape, and change nothing that is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from handstamp.stores.sql import Statement, statements

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

_ONE_AT_A_TIME = "select pg_advisory_xact_lock(hashtext('handstamp install'))"

# $1 is the object's name, $2 the table it is on. An index or a trigger of the same
# name on another table is another object.
_EXISTS = {
    "table": "select to_regclass($1) is not null and $2::text is null",
    "function": """
        select exists (select from pg_catalog.pg_proc
        where proname = $1 and pronargs = 0 and $2::text is null
        and pg_catalog.pg_function_is_visible(oid))""",
    "index": """
        select exists (select from pg_catalog.pg_index
        join pg_catalog.pg_class on pg_class.oid = indexrelid
        where relname = $1 and indrelid = to_regclass($2))""",
    "trigger": """
        select exists (select from pg_catalog.pg_trigger
        where tgname = $1 and tgrelid = to_regclass($2) and not tgisinternal)""",
}

_MISSING_COLUMNS = """
    select needed.relation || '.' || needed.name
    from unnest($1::text[], $2::text[]) with ordinality as needed (relation, name, place)
    where not exists (
        select from pg_catalog.pg_attribute
        where attrelid = to_regclass(needed.relation) and attname = needed.name
        and attnum > 0 and not attisdropped)
    order by needed.place"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one statement; `reason` says why it was skipped."""

    statement: Statement
    state: Literal["created", "found", "skipped"]
    reason: str = ""


async def install(
    connection: Connection, shape: str, *, trigger: bool = False
) -> list[Outcome]:
    """Create the objects of `shape` that are missing, all of them or none.

    An object that exists under its name is left as it is, whatever it looks like.
    One that needs columns which a table made by somebody else does not have is
    skipped. Returns one outcome for each statement, in order. Raises `ValueError`
    for an unknown shape and `asyncpg.PostgresError` when the database refuses;
    nothing has changed then.
    """
    steps = statements(shape, trigger=trigger)
    async with connection.transaction():
        await connection.execute(_ONE_AT_A_TIME)
        return [await _apply(connection, step) for step in steps]


async def _apply(connection: Connection, step: Statement) -> Outcome:
    if await connection.fetchval(_EXISTS[step.kind], step.name, step.relation):
        return Outcome(statement=step, state="found")
    missing = await _missing_columns(connection, step)
    if missing:
        reason = f"there is no column {', '.join(missing)}"
        return Outcome(statement=step, state="skipped", reason=reason)
    await connection.execute(step.sql)
    return Outcome(statement=step, state="created")


async def _missing_columns(connection: Connection, step: Statement) -> list[str]:
    tables = [table for table, _ in step.needs]
    columns = [column for _, column in step.needs]
    return [row[0] for row in await connection.fetch(_MISSING_COLUMNS, tables, columns)]
