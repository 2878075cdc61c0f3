"""What ``handstamp doctor`` asks a database. Nothing here writes, and no answer holds a
value of a row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from handstamp.stores.catalog import read_table
from handstamp.stores.channel import CHANNEL
from handstamp.stores.doctor.doubting import Users
from handstamp.stores.doctor.needs import Index
from handstamp.stores.lanes import Connection
from handstamp.stores.listening import SPEAK
from handstamp.stores.shapes import quoted
from handstamp.stores.token_forms import Rows, read_forms

BIG = 1_000_000
"""Rows from which on a sample is counted, and the rest estimated."""
CANARY_PATIENCE = 2.0

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

# Only a mistake of the planner would read the whole table where an index serves; or a table
# so small that any index serves to read it whole.
_INDEXES_ONLY = "set local enable_seqscan = off"
_SERVED_WHEN_BIG = """
    select exists (select from pg_class c join pg_index i on i.indrelid = c.oid
        join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
        where c.oid = to_regclass($1) and c.reltuples between 0 and 1000
        and i.indisvalid and i.indpred is null and quote_ident(a.attname) = any($2))"""

TIME_LIMIT = "set local statement_timeout = '15s'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The role, the server and the table, as the catalog has them."""

    role: str
    pid: int
    version: str
    standby: bool
    replication: str
    row_security: bool
    triggers: Sequence[str]


async def candidates(connection: Connection) -> list[str]:
    """Tables that may be a table of sessions."""
    return [str(row["name"]) for row in await connection.fetch(_CANDIDATES)]


async def read_users(
    connection: Connection, table: str, user_id: str, default: str | None
) -> Users | None:
    """The table that ``user_id`` refers to; else ``default``, if it is there."""
    row = await connection.fetchrow(_REFERENCE, quoted(table), user_id)
    name, id = (str(row["name"]), str(row["id"])) if row else (default, "id")
    found = await read_table(connection, quoted(name)) if name else None
    if name is None or found is None or id not in found.columns:
        return None
    return Users(name=name, id=id, table=found)


async def read_oids(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    """The numbers by which the catalog knows these tables."""
    rows = await connection.fetch(_OIDS, list(names), [quoted(name) for name in names])
    return {str(row["name"]): int(row["oid"]) for row in rows}


async def read_facts(connection: Connection, oid: int) -> Facts:
    """See :class:`Facts`."""
    rows = await connection.fetch(_FACTS, oid)
    return Facts(**dict(rows[0]))


async def count_rows(connection: Connection, table: str, token: str) -> Rows:
    """What the tokens look like; exact, or from a sample of a big table."""
    size = int(await connection.fetchval(_SIZE, quoted(table)))
    percent = 100.0 if size < BIG else 100.0 * BIG / 10 / size
    sample = "" if size < BIG else f" tablesample system ({percent:.6f})"
    forms = await read_forms(connection, table, token, sample)
    counts = {form.name: round(form.rows * 100 / percent) for form in forms}
    return Rows(forms=counts, about=bool(sample))


async def missing_privileges(
    connection: Connection, table: str, wanted: Sequence[tuple[str, str | None]]
) -> list[str]:
    """Which of these the role does not have; a privilege is for a column, or for all."""
    privileges = [privilege for privilege, _ in wanted]
    names = [name for _, name in wanted]
    rows = await connection.fetch(_PRIVILEGES, quoted(table), privileges, names)
    return [str(row["missing"]) for row in rows]


async def may_use_sequence(connection: Connection, sequence: str) -> bool:
    """Whether the role may take the next number."""
    asked = "select has_sequence_privilege($1::regclass, 'USAGE')"
    return bool(await connection.fetchval(asked, sequence))


async def read_without_index(
    connection: Connection, sql: str, values: Sequence[object]
) -> list[str]:
    """The tables of which a statement would read every row, for want of an index."""
    async with connection.transaction():
        await connection.execute(TIME_LIMIT)
        await connection.execute(_INDEXES_ONLY)
        plan = await connection.fetchval(f"explain (format json) {sql}", *values)
    return sorted(set(_whole_tables(json.loads(plan)[0]["Plan"])))


async def is_served_when_big(connection: Connection, index: Index) -> bool:
    """Whether a table is small, and has an index that begins with the column."""
    columns = [index.column, index.column.strip('"')]
    return bool(await connection.fetchval(_SERVED_WHEN_BIG, index.table, columns))


def _whole_tables(node: dict[str, Any]) -> list[str]:
    found = []
    if "Relation Name" in node and _reads_all(node):
        found.append(str(node["Relation Name"]))
    for child in node.get("Plans", []):
        found += _whole_tables(child)
    return found


def _reads_all(node: dict[str, Any]) -> bool:
    kind = str(node["Node Type"])
    if kind in ("Index Scan", "Index Only Scan"):
        return "Index Cond" not in node
    if kind == "Bitmap Heap Scan":
        return "Recheck Cond" not in node
    return kind == "Seq Scan"


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


async def is_heard(speaking: Connection, listening: Connection, nonce: str) -> bool:
    """Whether a notification arrives: behind some poolers LISTEN delivers nothing."""
    heard = asyncio.Event()

    def listen(*said: object) -> None:
        if said[3] == f"c:{nonce}":
            heard.set()

    await listening.add_listener(CHANNEL, listen)
    await speaking.execute(SPEAK, CHANNEL, f"c:{nonce}")
    try:
        async with asyncio.timeout(CANARY_PATIENCE):
            await heard.wait()
    except TimeoutError:
        return False
    return True


def is_pooled(connection: Connection, pid: int) -> bool:
    """Whether a pooler is in between: it tells another process's number at the start
    than the server does."""
    own: int = connection.get_server_pid()
    return own != pid
