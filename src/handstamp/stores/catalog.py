"""What PostgreSQL's catalog says of a table: columns, types, unique indexes, defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from handstamp.stores.connection import Connection

_COLUMNS = """
    select a.attname::text as name, coalesce(b.typname, t.typname)::text as type,
        case when coalesce(b.typname, t.typname) in ('varchar', 'bpchar') then
            nullif(coalesce(nullif(a.atttypmod, -1), nullif(t.typtypmod, -1)), -1) - 4
        end as length,
        case when coalesce(b.typname, t.typname) in ('timestamptz', 'timestamp') then
            coalesce(nullif(a.atttypmod, -1), nullif(t.typtypmod, -1), 6)
        end as precision,
        a.attnotnull or t.typnotnull as required,
        coalesce(c.collisdeterministic, true) as exact,
        pg_get_serial_sequence($1, a.attname) as sequence,
        case when a.attgenerated = '' then coalesce(pg_get_expr(d.adbin, d.adrelid),
            pg_get_expr(t.typdefaultbin, 0)) end as default,
        a.attgenerated <> '' as computed
    from pg_attribute a join pg_type t on t.oid = a.atttypid
    left join pg_type b on t.typtype = 'd' and b.oid = t.typbasetype
    left join pg_collation c on c.oid = a.attcollation
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped"""

_UNIQUE = """
    select array(select a.attname::text from unnest(i.indkey::int2[]) with ordinality
            as k(attnum, place) join pg_attribute a on a.attrelid = i.indrelid
            and a.attnum = k.attnum where k.place <= i.indnkeyatts order by k.place)
        as columns
    from pg_index i where i.indrelid = to_regclass($1) and i.indisunique
    and i.indisvalid and i.indpred is null and i.indexprs is null"""


_SPLIT = """
    select array(select coalesce(a.attname::text, '') from unnest(p.partattrs::int2[])
            as k(attnum) left join pg_attribute a on a.attrelid = p.partrelid
            and a.attnum = k.attnum)
        as columns
    from pg_partitioned_table p where p.partrelid = to_regclass($1)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. ``length`` is in characters, None for no limit; ``precision`` the
    digits of a second that a time keeps; ``exact`` is False where a collation takes
    different texts for equal; ``default`` is SQL; ``computed`` columns take no value."""

    name: str
    type: str
    length: int | None = None
    precision: int | None = None
    required: bool = False
    computed: bool = False
    exact: bool = True
    sequence: str | None = None
    default: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table; ``unique`` are the columns of each unique index without a condition,
    ``split_by`` those that a partitioned table is split by ("" for an expression)."""

    name: str
    columns: Mapping[str, Column]
    unique: frozenset[tuple[str, ...]] = field(default=frozenset())
    split_by: tuple[str, ...] = ()


async def read_table(connection: Connection, quoted_name: str) -> Table | None:
    """The table of this name on the connection's search path, or None."""
    rows = await connection.fetch(_COLUMNS, quoted_name)
    if not rows:
        return None
    columns = {row["name"]: Column(**dict(row)) for row in rows}
    unique = await connection.fetch(_UNIQUE, quoted_name)
    split = await connection.fetch(_SPLIT, quoted_name)
    return Table(
        name=quoted_name,
        columns=columns,
        unique=frozenset(tuple(row["columns"]) for row in unique),
        split_by=tuple(split[0]["columns"]) if split else (),
    )
