"""Create what is missing of a documented table shape, and change nothing that is there.

Rule 1. The tables are plain SQL in files, one for each shape. A line ``-- name: KIND NAME
[on TABLE]`` begins each statement, and ``-- needs: TABLE.COLUMN ...`` may follow it. The
files name no schema, so the search path of the connection decides.
Rule 2. The trigger that makes every writer notify is in no file: it is generated from the
table (:mod:`handstamp.stores.notify.sql`). So it fits a table with other columns too.
Rule 3. All of it is one transaction, and two installations run one after the other.
Rule 4. An object that exists under its name is left as it is. The trigger and its functions
are compared with ours first: a wrong one is refused, because it would be relied on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Literal

from handstamp.errors import ConfigError
from handstamp.stores.connection import Connection
from handstamp.stores.notify.check import check_functions, check_triggers, shown
from handstamp.stores.notify.sql import (
    SEARCH_PATH,
    NotifyTrigger,
    function_sql,
    functions_of,
    tables_of,
    trigger_script,
    triggers_of,
)
from handstamp.stores.resolve import assumed, read_table, resolve
from handstamp.stores.shapes import ULID_HASHED, UUID_PLAIN, TableShape, quoted

PRESETS: Mapping[str, TableShape] = {"ulid": ULID_HASHED, "uuid": UUID_PLAIN}
"""The shapes whose tables are made here, by name; each has a file of SQL."""

_HEAD = re.compile(r"-- name: (?P<kind>\w+) (?P<name>\w+)(?: on (?P<relation>[\w.]+))?\n")
_NEEDS = re.compile(r"-- needs: (?P<columns>.+)\n")

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

_PLACES = """
    select u.name, format('%I.%I', n.nspname, c.relname) as place
    from unnest($1::text[]) as u (name)
    join pg_catalog.pg_class c on c.oid = to_regclass(u.name)
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace"""
_SET_PATH = "select set_config('search_path', $1, true)"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement that creates one object of the database.

    ``kind`` is ``function``, ``table``, ``index`` or ``trigger``; ``relation`` is the table
    of an index or trigger. ``needs`` names the columns, as (table, column), without which
    the object makes no sense. ``sql`` ends without a semicolon.
    """

    name: str
    kind: str
    relation: str | None = None
    needs: tuple[tuple[str, str], ...] = ()
    sql: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one statement; ``reason`` says why it was skipped."""

    statement: Statement
    state: Literal["created", "found", "skipped"]
    reason: str = ""


def statements(shape: str) -> list[Statement]:
    """Read the statements that make the tables of ``shape``, in their order.

    Raises `ValueError` if there is no such shape.
    """
    if shape not in PRESETS:
        raise ValueError(f"no table shape {shape!r}, only {', '.join(PRESETS)}")
    text = (resources.files("handstamp.stores") / f"{shape}.sql").read_text("utf-8")
    heads = list(_HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    found = []
    for head, end in zip(heads, ends, strict=True):
        body = text[head.end() : end]
        needs = _NEEDS.match(body)
        columns = needs["columns"].split() if needs else []
        pairs = [column.rpartition(".") for column in columns]
        found.append(
            Statement(
                name=head["name"],
                kind=head["kind"],
                relation=head["relation"],
                needs=tuple((table, column) for table, _, column in pairs),
                sql=body[needs.end() if needs else 0 :].strip().removesuffix(";"),
            )
        )
    return found


def script(shape: str, *, trigger: bool = False) -> str:
    """Returns the statements of ``shape`` as one script, for a database without them.

    With ``trigger``, the trigger that makes every writer notify follows. Raises
    `ValueError` if there is no such shape.
    """
    parts = [f"-- {step}\n{step.sql};\n" for step in statements(shape)]
    if trigger:
        parts.append(f"{trigger_script(triggers_of(assumed(PRESETS[shape])))};\n")
    return "\n".join(parts)


async def install(
    connection: Connection, shape: str, *, trigger: bool = False
) -> list[Outcome]:
    """Create the objects of ``shape`` that are missing, all of them or none.

    With ``trigger``, also the trigger that makes every writer notify. What needs columns
    that the table does not have is skipped. Returns one outcome for each statement, in
    order. Raises `ValueError` for an unknown shape, :class:`ConfigError` for a trigger or
    a function that is not ours, and `asyncpg.PostgresError` when the database refuses;
    nothing has changed then.
    """
    steps = statements(shape)
    async with connection.transaction():
        await connection.execute(_ONE_AT_A_TIME)
        outcomes = [await _apply(connection, step) for step in steps]
        if trigger:
            triggers: Sequence[NotifyTrigger] = ()
            why = ""
            try:
                triggers = await _triggers_for(connection, PRESETS[shape])
            except ConfigError as error:
                why = str(error)
            documented = triggers_of(assumed(PRESETS[shape]))
            outcomes += await install_triggers(connection, triggers, documented, why=why)
        return outcomes


async def install_trigger(connection: Connection, shape: TableShape) -> list[Outcome]:
    """Make every writer of a table notify, whatever the table looks like.

    Raises :class:`ConfigError` if the shape does not fit the table, and otherwise as
    :func:`install` does.
    """
    async with connection.transaction():
        await connection.execute(_ONE_AT_A_TIME)
        triggers = await _triggers_for(connection, shape)
        return await install_triggers(connection, triggers)


async def install_triggers(
    connection: Connection,
    triggers: Sequence[NotifyTrigger],
    documented: Sequence[NotifyTrigger] = (),
    *,
    why: str = "",
) -> list[Outcome]:
    """Create those of ``triggers`` that are missing, and their functions.

    Those of ``documented`` that are not among ``triggers`` are skipped, with the reason
    ``why``, or that there is no such table. Raises as :func:`install` does.
    """
    async with connection.transaction():
        await connection.execute(_ONE_AT_A_TIME)
        schema = await connection.fetchval("select current_schema()")
        functions = await check_functions(connection, triggers, schema)
        checked = await check_triggers(connection, triggers)
        for problem in (*functions.values(), *checked.problems):
            if problem is not None and problem.mend:
                raise ConfigError(
                    f"{problem.text}. See who did that; then run: {problem.mend}; and this "
                    "again"
                )
        place = str(await connection.fetchval("select quote_ident($1)", schema))
        rows = await connection.fetch(_PLACES, tables_of(triggers))
        places = {row["name"]: row["place"] for row in rows}
        needed = set(functions_of(checked.missing)) - set(functions)
        # A fixed search path, so that no schema can lend an operator to a condition.
        path = await connection.fetchval("select current_setting('search_path')")
        await connection.execute(_SET_PATH, SEARCH_PATH)
        outcomes = []
        for name in functions_of(triggers):
            sql = function_sql(name, place)
            step = Statement(name=name, kind="function", sql=sql)
            outcomes.append(await _create(connection, step, missing=name in needed))
        for trigger in triggers:
            there = replace(trigger, table=places[trigger.table])
            step = _statement(trigger, there.sql(place))
            missing = trigger in checked.missing
            outcomes.append(await _create(connection, step, missing=missing))
        await connection.execute(_SET_PATH, path)
    names = {trigger.name for trigger in triggers}
    return outcomes + [
        Outcome(
            statement=_statement(trigger, trigger.sql()),
            state="skipped",
            reason=why or f"there is no table {shown(trigger.table)} of that kind",
        )
        for trigger in documented
        if trigger.name not in names
    ]


async def _apply(connection: Connection, step: Statement) -> Outcome:
    """Create one object, unless it exists or its columns do not."""
    if await connection.fetchval(_EXISTS[step.kind], step.name, step.relation):
        return Outcome(statement=step, state="found")
    tables = [table for table, _ in step.needs]
    columns = [column for _, column in step.needs]
    missing = await connection.fetch(_MISSING_COLUMNS, tables, columns)
    if missing:
        reason = f"there is no column {', '.join(row[0] for row in missing)}"
        return Outcome(statement=step, state="skipped", reason=reason)
    return await _create(connection, step, missing=True)


async def _create(connection: Connection, step: Statement, *, missing: bool) -> Outcome:
    if not missing:
        return Outcome(statement=step, state="found")
    await connection.execute(step.sql)
    return Outcome(statement=step, state="created")


def _statement(trigger: NotifyTrigger, sql: str) -> Statement:
    table = shown(trigger.table)
    return Statement(name=trigger.name, kind="trigger", relation=table, sql=sql)


async def _triggers_for(
    connection: Connection, shape: TableShape
) -> tuple[NotifyTrigger, ...]:
    """The triggers of the table that is there; :class:`ConfigError` if it does not fit."""
    table = await read_table(connection, quoted(shape.table))
    users = None
    if shape.users is not None:
        users = await read_table(connection, quoted(shape.users.table))
    return triggers_of(resolve(shape, table, users))
