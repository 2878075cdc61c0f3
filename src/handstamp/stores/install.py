"""The tables handstamp works with, as SQL files, one for each table shape.

The files are plain SQL. A line ``-- name: KIND NAME [on TABLE]`` begins each
statement, and ``-- needs: TABLE.COLUMN ...`` may follow it. Nothing in them names
a schema, so that the connection's search path decides. The tables of Supabase Auth are
never made here. The trigger that makes every writer notify is in no file: it is made from
the table (:mod:`handstamp.stores.notify.sql`).

Create what is missing of a table shape, and change nothing that is there.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Literal

from handstamp.errors import ConfigError
from handstamp.stores.catalog import read_table
from handstamp.stores.notify.check import Problem, check_functions, check_triggers, shown
from handstamp.stores.notify.sql import (
    SEARCH_PATH,
    NotifyTrigger,
    function_sql,
    functions_of,
    tables_of,
    trigger_script,
    triggers_of,
)
from handstamp.stores.resolve import assumed, resolve
from handstamp.stores.shapes import ULID_HASHED, UUID_PLAIN, TableShape, quoted
from handstamp.supabase.schema import LOOK, NEWEST, TABLES, WATCHED, supabase_triggers

_HEAD = re.compile(r"-- name: (?P<kind>\w+) (?P<name>\w+)(?: on (?P<relation>[\w.]+))?\n")
_NEEDS = re.compile(r"-- needs: (?P<columns>.+)\n")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement that creates one object of the database.

    `kind` is ``function``, ``table``, ``index`` or ``trigger``; `relation` is the
    table an index or trigger is on. `needs` names the columns, as (table, column),
    that must exist for the object to make sense. `sql` ends without a semicolon.
    """

    name: str
    kind: str
    relation: str | None
    needs: tuple[tuple[str, str], ...]
    sql: str

    @classmethod
    def function(cls, name: str, sql: str) -> Statement:
        """The statement that creates a function."""
        return cls(name=name, kind="function", relation=None, needs=(), sql=sql)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def shapes() -> list[str]:
    """Name the table shapes there is SQL for, in alphabetical order."""
    files = (file.name for file in resources.files("handstamp.stores").iterdir())
    return sorted(name.removesuffix(".sql") for name in files if name.endswith(".sql"))


def statements(shape: str) -> list[Statement]:
    """Read the statements that make the tables of `shape`, in their order.

    Raises `ValueError` when there is no such shape.
    """
    if shape not in shapes():
        raise ValueError(f"no table shape {shape!r}, only {', '.join(shapes())}")
    text = (resources.files("handstamp.stores") / f"{shape}.sql").read_text("utf-8")
    heads = list(_HEAD.finditer(text))
    if not heads:
        return []  # Supabase Auth makes its tables itself
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [
        _statement(head, text[head.end() : end])
        for head, end in zip(heads, ends, strict=True)
    ]


def _statement(head: re.Match[str], body: str) -> Statement:
    needs = _NEEDS.match(body)
    return Statement(
        name=head["name"],
        kind=head["kind"],
        relation=head["relation"],
        needs=_columns(needs["columns"]) if needs else (),
        sql=body[needs.end() if needs else 0 :].strip().removesuffix(";"),
    )


def _columns(text: str) -> tuple[tuple[str, str], ...]:
    pairs = (name.rsplit(".", 1) for name in text.split())
    return tuple((table, column) for table, column in pairs)


if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

SUPABASE, SCHEMA = "supabase", "auth"
PRESETS: Mapping[str, TableShape] = {"ulid": ULID_HASHED, "uuid": UUID_PLAIN}
"""The shapes of the tables that are made here."""

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
class Outcome:
    """What became of one statement; `reason` says why it was skipped."""

    statement: Statement
    state: Literal["created", "found", "skipped"]
    reason: str = ""


def script(shape: str, *, trigger: bool = False) -> str:
    """Give the statements of `shape` as one script, for a database without them.

    With `trigger` follow those that make every writer notify. Raises `ValueError` when
    there is no such shape.
    """
    parts = [f"-- {step}\n{step.sql};\n" for step in statements(shape)]
    if trigger:
        parts.append(f"{trigger_script(documented_triggers(shape))};\n")
    return "\n".join(parts)


def documented_triggers(shape: str) -> tuple[NotifyTrigger, ...]:
    """The triggers that make every writer of the documented tables notify.

    Raises `ValueError` when there is no such shape.
    """
    if shape == SUPABASE:
        return supabase_triggers(SCHEMA, NEWEST, WATCHED)
    return triggers_of(assumed(PRESETS[shape]))


async def install(
    connection: Connection, shape: str, *, trigger: bool = False
) -> list[Outcome]:
    """Create the objects of `shape` that are missing, all of them or none.

    An object that exists under its name is left as it is, whatever it looks like, but for
    the trigger that makes every writer notify and its functions: they are compared. What
    needs columns that a table made by somebody else does not have is skipped. Returns one
    outcome for each statement, in order. Raises `ValueError` for an unknown shape,
    :class:`ConfigError` for a trigger or a function that is not ours, and
    `asyncpg.PostgresError` when the database refuses; nothing has changed then.
    """
    steps = statements(shape)
    async with connection.transaction():
        await connection.execute(_ONE_AT_A_TIME)
        outcomes = [await _apply(connection, step) for step in steps]
        if trigger:
            triggers, skipped = await _possible(connection, shape)
            outcomes += await _install_triggers(connection, triggers)
            outcomes += skipped
        return outcomes


async def install_trigger(connection: Connection, shape: TableShape) -> list[Outcome]:
    """Make every writer of a table notify, whatever it looks like.

    Raises :class:`ConfigError` where the shape does not fit the table, and otherwise as
    :func:`install` does.
    """
    async with connection.transaction():
        await connection.execute(_ONE_AT_A_TIME)
        return await _install_triggers(connection, await _fitting(connection, shape))


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


async def _possible(
    connection: Connection, shape: str
) -> tuple[Sequence[NotifyTrigger], list[Outcome]]:
    """The triggers that these tables can have; and what is skipped of the documented."""
    triggers: Sequence[NotifyTrigger] = ()
    why = ""
    if shape == SUPABASE:
        rows = await connection.fetch(LOOK, SCHEMA, list(TABLES))
        columns = {row["name"]: row["columns"] for row in rows}
        triggers = supabase_triggers(SCHEMA, columns, WATCHED)
    else:
        try:
            triggers = await _fitting(connection, PRESETS[shape])
        except ConfigError as error:
            why = str(error)
    made = {trigger.name for trigger in triggers}
    return triggers, [
        Outcome(
            statement=_trigger_statement(trigger, ""),
            state="skipped",
            reason=why or f"there is no table {shown(trigger.table)} of that kind",
        )
        for trigger in documented_triggers(shape)
        if trigger.name not in made
    ]


async def _fitting(connection: Connection, shape: TableShape) -> tuple[NotifyTrigger, ...]:
    table = await read_table(connection, quoted(shape.table))
    users = None
    if shape.users is not None:
        users = await read_table(connection, quoted(shape.users.table))
    return triggers_of(resolve(shape, table, users))


async def _install_triggers(
    connection: Connection, triggers: Sequence[NotifyTrigger]
) -> list[Outcome]:
    schema = await connection.fetchval("select current_schema()")
    functions = await check_functions(connection, triggers, schema)
    checked = await check_triggers(connection, triggers)
    for problem in (*functions.values(), *checked.problems):
        if problem is not None and problem.mend:
            raise ConfigError(_refusal(problem))
    needed = functions_of(checked.missing)
    place = str(await connection.fetchval("select quote_ident($1)", schema))
    rows = await connection.fetch(_PLACES, tables_of(triggers))
    places = {row["name"]: row["place"] for row in rows}
    outcomes = []
    async with _fixed_path(connection):
        for name in functions_of(triggers):
            step = Statement.function(name, function_sql(name, place))
            make = name in needed and name not in functions
            outcomes.append(await _make(connection, step, make=make))
        for trigger in triggers:
            there = replace(trigger, table=places[trigger.table])
            step = _trigger_statement(trigger, there.sql(place))
            make = trigger in checked.missing
            outcomes.append(await _make(connection, step, make=make))
    return outcomes


def _trigger_statement(trigger: NotifyTrigger, sql: str) -> Statement:
    return Statement(
        name=trigger.name,
        kind="trigger",
        relation=shown(trigger.table),
        needs=(),
        sql=sql,
    )


def _refusal(problem: Problem) -> str:
    return f"{problem.text}. See who did that; then run: {problem.mend}; and this again"


async def _make(connection: Connection, step: Statement, *, make: bool) -> Outcome:
    if not make:
        return Outcome(statement=step, state="found")
    await connection.execute(step.sql)
    return Outcome(statement=step, state="created")


@asynccontextmanager
async def _fixed_path(connection: Connection) -> AsyncIterator[None]:
    """So that no schema of the search path can lend an operator to a condition."""
    before = await connection.fetchval("select current_setting('search_path')")
    await connection.execute(_SET_PATH, SEARCH_PATH)
    yield
    await connection.execute(_SET_PATH, before)
