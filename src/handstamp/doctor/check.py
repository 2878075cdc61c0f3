"""What `handstamp doctor` asks a database: privileges, indexes, triggers, clocks.

Rule 1. Nothing here writes, and no answer holds a value of a row.
Rule 2. The catalog answers wherever it can, because every role may read it: a role without
grants must learn which grants it needs.
Rule 3. A query that reads a table has a time limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from handstamp.doctor import Facts
from handstamp.doctor.infer import Users
from handstamp.stores.connection import Connection
from handstamp.stores.notify.check import Checked, Problem, check_functions, check_triggers
from handstamp.stores.notify.sql import NotifyTrigger, trigger_script
from handstamp.stores.plaintext import Rows, read_forms
from handstamp.stores.resolve import ColumnRef, ResolvedTable, read_table
from handstamp.stores.shapes import quoted
from handstamp.stores.statements import Statements

BIG = 1_000_000
"""From this number of rows on, a sample is counted and the rest estimated."""
TIME_LIMIT = "set local statement_timeout = '15s'"
_WRITTEN = (
    *("id", "user_id", "token", "refresh_token", "address", "user_agent_hash"),
    *("fingerprint", "expires_at", "refresh_expires_at", "user_agent", "location"),
    *("last_activity_at", "is_active", "created_at"),
)
_ROTATED = (
    *("token", "refresh_token", "expires_at", "refresh_expires_at", "last_activity_at"),
)
_ENDED = ("is_active", "revoked_at", "revoked_reason")

_CANDIDATES = """
    select case when pg_table_is_visible(c.oid) and not s.is_supabase then ''
        else n.nspname || '.' end || c.relname as name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace,
    lateral (select (n.nspname, c.relname) = ('auth', 'sessions') as is_supabase) s
    where c.relkind in ('r', 'p') and not c.relispartition
    and n.nspname not in ('pg_catalog', 'information_schema')
    and c.relname ~* '(session|login)'
    and (s.is_supabase or exists (select from pg_attribute a where a.attrelid = c.oid
        and a.attnum > 0 and not a.attisdropped
        and a.attname ~* '(expir|valid_?until|not_?after)'))
    order by 1"""

_REFERENCE = """
    select case when pg_table_is_visible(c.oid) then '' else n.nspname || '.' end
        || c.relname as name, f.attname::text as id
    from pg_constraint k join pg_class c on c.oid = k.confrelid
    join pg_namespace n on n.oid = c.relnamespace
    join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
    join pg_attribute f on f.attrelid = k.confrelid and f.attnum = k.confkey[1]
    where k.contype = 'f' and k.conrelid = to_regclass($1) and a.attname = $2
    and cardinality(k.conkey) = 1 order by k.oid limit 1"""

_SIZE = """
    select coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
    from pg_class c where c.oid in (select to_regclass($1)
        union select relid from pg_partition_tree(to_regclass($1)))"""

_PRIVILEGES = """
    select w.privilege || coalesce(' (' || w.name || ')', '') as missing
    from unnest($2::text[], $3::text[]) with ordinality as w(privilege, name, place)
    where not case when w.name is null
        then has_table_privilege(to_regclass($1), w.privilege)
            or w.privilege <> 'DELETE' and not exists (select from pg_attribute a
                where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
                and not has_column_privilege(a.attrelid, a.attnum, w.privilege))
        else has_column_privilege(to_regclass($1), w.name, w.privilege) end
    order by w.place"""

_OIDS = """
    select w.name, to_regclass(w.quoted)::oid as oid
    from unnest($1::text[], $2::text[]) as w(name, quoted)
    where to_regclass(w.quoted) is not null"""

_FACTS = """
    select current_user::text as role, pg_backend_pid() as pid,
        current_setting('server_version') as version,
        pg_is_in_recovery() as standby,
        current_setting('session_replication_role') as replication,
        c.relrowsecurity and (c.relforcerowsecurity or not
            pg_has_role(c.relowner, 'USAGE')) and not r.rolbypassrls
            and not r.rolsuper as row_security,
        array(select t.tgname::text from pg_trigger t where t.tgrelid = c.oid
            and not t.tgisinternal and t.tgtype & 16 = 16
            and t.tgname <> 'handstamp_session_changed' order by 1) as triggers
    from pg_class c, pg_roles r
    where c.oid = $1::oid and r.rolname = current_user"""

# With this the planner reads a whole table only if no index serves; or if the table is so
# small that reading it through another index is the cheapest.
_INDEXES_ONLY = "set local enable_seqscan = off"
_SERVED_WHEN_BIG = """
    select exists (select from pg_class c join pg_index i on i.indrelid = c.oid
        join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
        where c.oid = to_regclass($1) and c.reltuples between 0 and 1000
        and i.indisvalid and i.indpred is null and quote_ident(a.attname) = any($2))"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A privilege and the feature that needs it.

    ``columns`` are names of columns, or None alone for the whole table. Without a ``vital``
    privilege no user can sign in or out.
    """

    table: str
    privilege: str
    columns: tuple[str | None, ...]
    feature: str
    vital: bool = False


def needed_privileges(resolved: ResolvedTable) -> Iterator[Need]:
    """Every privilege on the tables that handstamp needs."""
    shape, table = resolved.shape, resolved.shape.table

    def need(
        privilege: str, columns: tuple[str | None, ...], feature: str, *, vital: bool
    ) -> Need:
        return Need(
            table=table, privilege=privilege, columns=columns, feature=feature, vital=vital
        )

    yield need("SELECT", (None,), "everything", vital=True)
    if shape.users is not None and resolved.users is not None:
        yield Need(
            table=shape.users.table,
            privilege="SELECT",
            columns=_named(resolved.users, tuple(resolved.users)),
            feature="everything",
            vital=True,
        )
    yield need("INSERT", _named(resolved.columns, _WRITTEN), "sign-in", vital=True)
    sliding = resolved.capabilities.sliding
    updates: dict[str, tuple[str, ...]] = {
        "revocation": _ENDED,
        "rotation": _ROTATED if shape.rotates else (),
        "activity": ("last_activity_at", *(["expires_at"] if sliding else [])),
        "replacing plaintext tokens": ("token",) if shape.at_rest == "plain" else (),
        "step-up": ("level", *(_ROTATED if shape.rotates else ("token",))),
    }
    for feature, fields in updates.items():
        columns = _named(resolved.columns, fields)
        if columns:
            yield need("UPDATE", columns, feature, vital=feature == "revocation")
    deletes = not _named(resolved.columns, _ENDED)
    feature = "revocation" if deletes else "pruning"
    yield need("DELETE", (None,), feature, vital=deletes)


def _named(columns: Mapping[str, ColumnRef], fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(columns[f].name.strip('"') for f in fields if f in columns)


def sequence_of(resolved: ResolvedTable) -> str | None:
    """The sequence that new ids come from, as text for ``regclass``; None without one."""
    expression = resolved.next_id or ""
    if not expression.startswith("nextval('"):
        return None
    return expression.removeprefix("nextval('").partition("'")[0]


@dataclass(frozen=True, slots=True)
class Index:
    """An index on one column; both fields are SQL."""

    table: str
    column: str

    def __str__(self) -> str:
        return f"create index concurrently on {self.table} ({self.column})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A frequent statement, with values that no row has, and the indexes that it needs.

    ``indexes`` is by the table's name without the schema.
    """

    feature: str
    sql: str
    values: Sequence[object]
    indexes: Mapping[str, Index]


def samples(sql: Statements) -> list[Sample]:
    """The frequent statements on a table and its users."""
    resolved = sql.resolved

    def indexes(field: str) -> dict[str, Index]:
        tables = {resolved.shape.table: resolved.columns[field].name}
        if resolved.shape.users is not None and resolved.users is not None:
            tables[resolved.shape.users.table] = resolved.users["id"].name
        return {t.rpartition(".")[2]: Index(quoted(t), c) for t, c in tables.items()}

    def absent(field: str) -> str:
        """A value of the column's type that no row has."""
        cast = resolved.columns[field].cast
        if cast == "uuid":
            return "00000000-0000-0000-0000-000000000000"
        return "0" if cast.startswith("int") else "-"

    return [
        Sample(
            feature="the look-up of a token",
            sql=sql.find,
            values=[["-"]],
            indexes=indexes("token"),
        ),
        Sample(
            feature="reading a session by its id",
            sql=sql.find_many,
            values=[[absent("id")]],
            indexes=indexes("id"),
        ),
        Sample(
            feature="a list of a user's sessions",
            sql=sql.list_for_user,
            values=[absent("user_id")],
            indexes=indexes("user_id"),
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerState:
    """The triggers that should be there, what was found of them, and what is wrong with
    functions of their names that a call would find."""

    triggers: Sequence[NotifyTrigger]
    checked: Checked
    functions: Sequence[Problem]

    @property
    def absent(self) -> bool:
        """Whether nothing of it is there."""
        return self.checked.absent and not self.functions

    @property
    def lacks(self) -> list[str]:
        """What is wrong, in words."""
        return [*(problem.text for problem in self._uncalled()), *self.checked.lacks]

    @property
    def dangerous(self) -> bool:
        """Whether code of another owner runs, or would run."""
        problems = [*self._uncalled(), *self.checked.problems]
        return any(problem.dangerous for problem in problems)

    @property
    def mend(self) -> str:
        """The script that creates all of it. It may be run again."""
        problems = [*self._uncalled(), *self.checked.problems]
        before = [problem.mend for problem in problems if not problem.replaceable]
        return trigger_script(self.triggers, before=list(dict.fromkeys(before)))

    def _uncalled(self) -> list[Problem]:
        """Functions that no trigger calls yet; the others are reported with triggers."""
        called = {problem.mend for problem in self.checked.problems}
        return [problem for problem in self.functions if problem.mend not in called]


async def read_triggers(
    connection: Connection, triggers: Sequence[NotifyTrigger]
) -> TriggerState:
    """Compare the triggers, and the functions of their names, with those that should be."""
    functions = await check_functions(connection, triggers)
    return TriggerState(
        triggers=triggers,
        checked=await check_triggers(connection, triggers),
        functions=[problem for problem in functions.values() if problem is not None],
    )


async def candidates(connection: Connection) -> list[str]:
    """The tables that look like a table of sessions."""
    return [str(row["name"]) for row in await connection.fetch(_CANDIDATES)]


async def read_users(
    connection: Connection, table: str, user_id: str, default: str | None
) -> Users | None:
    """The table that ``user_id`` refers to, else ``default`` if it exists, else None."""
    row = await connection.fetchrow(_REFERENCE, quoted(table), user_id)
    name, id = (str(row["name"]), str(row["id"])) if row else (default, "id")
    found = await read_table(connection, quoted(name)) if name else None
    if name is None or found is None or id not in found.columns:
        return None
    return Users(name=name, id=id, table=found)


async def read_oids(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    """The numbers of these tables in the catalog, by name."""
    rows = await connection.fetch(_OIDS, list(names), [quoted(name) for name in names])
    return {str(row["name"]): int(row["oid"]) for row in rows}


async def read_facts(connection: Connection, oid: int) -> Facts:
    """The role, the server and the table with this number."""
    rows = await connection.fetch(_FACTS, oid)
    return Facts(**dict(rows[0]))


async def count_rows(connection: Connection, table: str, token: str) -> Rows:
    """How many rows hold which form of token; estimated by a sample if the table is big."""
    size = int(await connection.fetchval(_SIZE, quoted(table)))
    percent = 100.0 if size < BIG else 100.0 * BIG / 10 / size
    sample = "" if size < BIG else f" tablesample system ({percent:.6f})"
    forms = await read_forms(connection, table, token, sample)
    counts = {form.name: round(form.rows * 100 / percent) for form in forms}
    return Rows(forms=counts, about=bool(sample))


async def missing_privileges(
    connection: Connection, table: str, wanted: Sequence[tuple[str, str | None]]
) -> list[str]:
    """The privileges that the role lacks; each is for a column, or for the table (None)."""
    privileges = [privilege for privilege, _ in wanted]
    names = [name for _, name in wanted]
    rows = await connection.fetch(_PRIVILEGES, quoted(table), privileges, names)
    return [str(row["missing"]) for row in rows]


async def may_use_sequence(connection: Connection, sequence: str) -> bool:
    """Whether the role may take the next number of a sequence."""
    asked = "select has_sequence_privilege($1::regclass, 'USAGE')"
    return bool(await connection.fetchval(asked, sequence))


async def read_without_index(
    connection: Connection, sql: str, values: Sequence[object]
) -> list[str]:
    """The tables of which a statement would read every row, because an index is missing."""
    async with connection.transaction():
        await connection.execute(TIME_LIMIT)
        await connection.execute(_INDEXES_ONLY)
        plan = await connection.fetchval(f"explain (format json) {sql}", *values)
    return sorted(set(_whole_tables(json.loads(plan)[0]["Plan"])))


async def is_served_when_big(connection: Connection, index: Index) -> bool:
    """Whether a table is small and has an index that begins with the column."""
    columns = [index.column, index.column.strip('"')]
    return bool(await connection.fetchval(_SERVED_WHEN_BIG, index.table, columns))


def _whole_tables(node: dict[str, Any]) -> list[str]:
    """The tables that a plan reads without a condition on an index."""
    condition = {
        "Seq Scan": None,
        "Index Scan": "Index Cond",
        "Index Only Scan": "Index Cond",
        "Bitmap Heap Scan": "Recheck Cond",
    }
    kind = str(node["Node Type"])
    found = []
    if "Relation Name" in node and kind in condition and condition[kind] not in node:
        found.append(str(node["Relation Name"]))
    for child in node.get("Plans", []):
        found += _whole_tables(child)
    return found


async def clock_difference(connection: Connection) -> tuple[timedelta, timedelta]:
    """How far the database's clock is ahead of this machine's, and the uncertainty."""
    found = []
    for _ in range(5):
        before = datetime.now(UTC)
        there = await connection.fetchval("select clock_timestamp()")
        trip = datetime.now(UTC) - before
        found.append((trip / 2, there - before - trip / 2))
    uncertainty, ahead = min(found)
    return ahead, uncertainty


def is_pooled(connection: Connection, pid: int) -> bool:
    """Whether there is a pooler: at the start of a connection it reports another process
    number than the server does."""
    own: int = connection.get_server_pid()
    return own != pid
