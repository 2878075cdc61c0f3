"""A shape and the real table: what the catalog says, whether they fit, and what is refused.

1. A column that is needed and missing, or of a type that handstamp cannot bind, is refused,
   with the reason and the DDL that corrects it.
2. A table is refused if two rows could have one token, if a row could have no token, or if
   a stored token could differ from the issued one: a client would get the session of
   another user, or none.
3. A table whose tokens rotate is refused if its times keep no fraction of a second. The
   fraction tells a token that was used from one that was never received, so no theft would
   be noticed.
4. A table is refused if no session could be written: an id that its column does not take, a
   column that needs a value that handstamp does not have, or ids that no token can carry.
5. Any other missing column switches a feature off, and is reported.
6. A ``timestamp without time zone`` holds UTC; it is read and written as UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

from handstamp.core.tokens import LONGEST_ID
from handstamp.errors import ConfigError
from handstamp.stores.base import Capabilities
from handstamp.stores.connection import Connection
from handstamp.stores.shapes import PREFIX, TableShape, UsersTable, own_ids, quoted

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

_PARTITION_KEY = """
    select array(select coalesce(a.attname::text, '') from unnest(p.partattrs::int2[])
            as k(attnum) left join pg_attribute a on a.attrelid = p.partrelid
            and a.attnum = k.attnum)
        as columns
    from pg_partitioned_table p where p.partrelid = to_regclass($1)"""

_TEXT = frozenset({"text", "varchar", "bpchar"})
_IDS = _TEXT | {"uuid", "int2", "int4", "int8"}
_TIMES = frozenset({"timestamptz", "timestamp"})
_ALLOWED: Mapping[str, frozenset[str]] = {
    "id": _IDS,
    "user_id": _IDS,
    "token": _TEXT,
    "refresh_token": _TEXT,
    "address": _TEXT | {"inet"},
    "is_active": frozenset({"bool"}),
    "level": frozenset({"int2", "int4", "int8"}),
}
_BEST: Mapping[str, str] = {"is_active": "boolean", "level": "integer"}
"""The type to propose for a field whose column has a type that cannot be used."""
_EPOCHS = frozenset({"int4", "int8", "numeric", "float4", "float8"})

_DIGEST = 64
_ID_LENGTHS = {"ulid": 26, "uuid": 36}
_MICROSECONDS = 6
_FOR_TYPE = {"bool": "false", "jsonb": "'{}'", "json": "'{}'", "uuid": "gen_random_uuid()"}
_FOR_TYPE |= dict.fromkeys(("text", "varchar", "bpchar", "citext", "bytea"), "''")
_FOR_TYPE |= dict.fromkeys(("int2", "int4", "int8", "numeric", "float4", "float8"), "0")
_FOR_TYPE |= {"timestamptz": "now()", "timestamp": "timezone('utc', now())"}
_FOR_TYPE |= {"date": "current_date", "inet": "'0.0.0.0'"}

Danger = tuple[bool, str, str]
"""Whether it applies, the reason, and the DDL that corrects it ("" if there is none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. ``length`` is in characters, None for no limit; ``precision`` is the
    number of decimal digits of the seconds; ``exact`` is False if the collation treats
    different texts as equal; ``default`` is SQL; ``computed`` columns take no value."""

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
    """One table. ``unique`` are the columns of each unique index without a condition;
    ``split_by`` is the partition key of a partitioned table ("" for an expression)."""

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
    split = await connection.fetch(_PARTITION_KEY, quoted_name)
    return Table(
        name=quoted_name,
        columns=columns,
        unique=frozenset(tuple(row["columns"]) for row in unique),
        split_by=tuple(split[0]["columns"]) if split else (),
    )


@dataclass(frozen=True, slots=True)
class ColumnRef:
    """One column as SQL: its quoted name, the type to which a bound text is cast, whether
    it is a timestamp without time zone, its length in characters, and whether it is NOT
    NULL."""

    name: str
    cast: str
    naive: bool = False
    length: int | None = None
    required: bool = False

    def takes(self, text: str) -> bool:
        """Whether the column is long enough for this text."""
        return not self.is_text or self.length is None or len(text) <= self.length

    @property
    def is_text(self) -> bool:
        """Whether the column holds text."""
        return self.cast in ("text", "bpchar")

    def may_exceed(self, length: int) -> bool:
        """Whether the column can hold a longer text than this."""
        return self.is_text and (self.length is None or self.length > length)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedTable:
    """A shape on a real table. ``shape`` names only columns that are there.

    ``missing`` are the fields of the shape whose columns the table does not have.
    ``next_id`` is an SQL expression for ids that come from the database.
    """

    shape: TableShape
    columns: Mapping[str, ColumnRef]
    users: Mapping[str, ColumnRef] | None
    missing: tuple[str, ...]
    next_id: str | None
    address_is_required: bool

    @property
    def unbounded_ids(self) -> tuple[str, ...]:
        """The fields of ids whose columns may hold longer ones than a token can carry."""
        names = ("id", "user_id")
        return tuple(n for n in names if self.columns[n].may_exceed(LONGEST_ID))

    @property
    def capabilities(self) -> Capabilities:
        """What this table can do."""
        length = self.columns["id"].length or LONGEST_ID
        return replace(capabilities_of(self.shape), longest_id=min(length, LONGEST_ID))


def capabilities_of(shape: TableShape) -> Capabilities:
    """What a table of this shape can do."""
    users = shape.users
    return Capabilities(
        refresh=shape.rotates,
        sliding=not shape.rotates and shape.created_at is not None,
        activity=shape.last_activity_at is not None,
        absolute=shape.created_at is not None,
        user_status=users is not None and users.is_active is not None,
        password_change=users is not None and users.password_changed_at is not None,
        level=shape.level is not None,
        fingerprint=shape.fingerprint is not None,
        plain=shape.at_rest == "plain",
    )


def resolve(shape: TableShape, table: Table | None, users: Table | None) -> ResolvedTable:
    """``shape`` on the table that is there. Raises :class:`ConfigError` for a table that
    must not be used."""
    if table is None:
        raise ConfigError(
            f"there is no table {shape.table}: create it (handstamp init), or name it in "
            "TableShape(table=…)"
        )
    shape, missing = _without_missing(shape, table, users)
    columns = {
        name: _column_ref(shape.table, name, table.columns[column])
        for name, column in _columns(shape).items()
    }
    for refusal in refusals(shape, table, _columns(shape)):
        raise refusal
    user_columns = None
    if shape.users is not None and users is not None:
        user_columns = {
            name: _column_ref(shape.users.table, name, users.columns[column])
            for name, column in _columns(shape.users).items()
        }
    return ResolvedTable(
        shape=shape,
        columns=columns,
        users=user_columns,
        missing=missing,
        next_id=_next_id(shape, table.columns[shape.id]),
        address_is_required=bool(shape.address and table.columns[shape.address].required),
    )


def assumed(shape: TableShape) -> ResolvedTable:
    """The shape on a table that has every column it names, as text: for SQL that is
    printed without a database."""

    def text_columns(part: TableShape | UsersTable) -> Mapping[str, ColumnRef]:
        return {
            n: ColumnRef(quoted(column), "text") for n, column in _columns(part).items()
        }

    return ResolvedTable(
        shape=shape,
        columns=text_columns(shape),
        users=None if shape.users is None else text_columns(shape.users),
        missing=(),
        next_id=None,
        address_is_required=False,
    )


def _columns(shape: TableShape | UsersTable) -> dict[str, str]:
    others = {"table", "at_rest", "new_id", "users"}
    named = {f.name: getattr(shape, f.name) for f in fields(shape) if f.name not in others}
    return {name: column for name, column in named.items() if column is not None}


def _without_missing(
    shape: TableShape, table: Table, users: Table | None
) -> tuple[TableShape, tuple[str, ...]]:
    missing = [n for n, c in _columns(shape).items() if c not in table.columns]
    for needed in ("id", "user_id", "token", "expires_at"):
        if needed in missing:
            raise ConfigError(
                f"table {shape.table} has no column {getattr(shape, needed)}: name the "
                f"one that holds it in TableShape({needed}=…)"
            )
    wanted = shape.refresh_token is not None
    shape = replace(shape, **dict.fromkeys(missing))  # type: ignore[arg-type]
    if not shape.rotates:
        shape = replace(shape, refresh_token=None, refresh_expires_at=None)
        missing += ["refresh_token"] if wanted else []
    if shape.users is None:
        return shape, tuple(dict.fromkeys(missing))
    if users is None or shape.users.id not in users.columns:
        return replace(shape, users=None), (*dict.fromkeys(missing), "users")
    absent = [n for n, c in _columns(shape.users).items() if c not in users.columns]
    kept = replace(shape.users, **dict.fromkeys(absent))  # type: ignore[arg-type]
    reported = (*dict.fromkeys(missing), *(f"users.{name}" for name in absent))
    return replace(shape, users=kept), reported


def types_of(name: str) -> frozenset[str]:
    """The types that a column may have which a shape names for this field."""
    return _ALLOWED.get(name, _TIMES if name.endswith(("_at", "_until")) else _TEXT)


def _column_ref(table: str, name: str, column: Column) -> ColumnRef:
    """One column for the field ``name``. The error has the DDL that gives the column a type
    that can be used, and keeps its values."""
    allowed = types_of(name)
    own = quoted(column.name)
    if column.type not in allowed:
        is_time = allowed is _TIMES
        best = "timestamptz" if is_time else _BEST.get(name, "text")
        value = f"{own}::text" if best == "text" else f"{own}::text::{best}"
        if is_time and column.type in _EPOCHS:
            value = f"to_timestamp({own})"
        elif column.type == "bytea":
            value = f"encode({own}, 'hex')"
        alter = f"alter table {quoted(table)} alter column {own}"
        raise refuse(
            f"{table}.{column.name}",
            f"is of type {column.type}, and handstamp needs one of "
            f"{', '.join(sorted(allowed))} for {name}=",
            f"{alter} drop default, alter column {own} type {best} using {value}",
        )
    return ColumnRef(
        name=own,
        cast="text" if column.type == "varchar" else column.type,
        naive=column.type == "timestamp",
        length=column.length,
        required=column.required,
    )


def _next_id(shape: TableShape, column: Column) -> str | None:
    if shape.new_id != "database" or shape.id_is_token:
        return None
    if column.sequence is not None:
        literal = column.sequence.replace("'", "''")
        return f"nextval('{literal}')"
    if column.default is not None:
        return column.default
    raise ConfigError(
        f"{shape.table}.{column.name} has no default to take new ids from: give it one, or "
        'set new_id="ulid" or new_id="uuid"'
    )


def refuse(place: str, reason: str, ddl: str = "") -> ConfigError:
    """The error for one place of a table; ``ddl`` corrects it."""
    return ConfigError(f"{place} {reason}." + (f" Fix it with: {ddl};" if ddl else ""))


def refuse_long_ids(shape: TableShape, longest: Mapping[str, int]) -> None:
    """Raise :class:`ConfigError` where an id of a row is longer than a token can carry.

    ``longest`` are the characters of the longest value, for the fields ``id`` and
    ``user_id``.
    """
    for name, length in longest.items():
        if length > LONGEST_ID:
            raise refuse(
                f"{shape.table}.{getattr(shape, name)}",
                f"holds ids of up to {length} characters, and {LONGEST_ID} is the most that"
                " a token can carry: such a session is none"
                + ('. Name the column made here, id="session_id"' if name == "id" else ""),
                own_ids(shape) if name == "id" else "",
            )


def refusals(
    shape: TableShape, table: Table, named: dict[str, str]
) -> Iterator[ConfigError]:
    """Every reason to refuse the table (rules 2 to 4).

    ``named`` are the columns that ``shape`` uses, by its fields.
    """
    for name, column_name in named.items():
        column = table.columns[column_name]
        alter = f"alter table {quoted(shape.table)} alter column {quoted(column_name)}"
        for applies, reason, ddl in _dangers(name, shape, table, column, alter):
            if applies:
                yield refuse(f"{shape.table}.{column_name}", reason, ddl)
    for name, column in table.columns.items():
        filled = column.default is not None or column.sequence is not None
        if name in named.values() or filled or column.computed or not column.required:
            continue
        value = _FOR_TYPE.get(column.type)
        alter = f"alter table {quoted(shape.table)} alter column {quoted(name)}"
        yield refuse(
            f"{shape.table}.{name}",
            "may not be null and has no default, and no name of the shape names it, so "
            "no session could be written",
            f"{alter} set default {value}" if value else f"{alter} drop not null",
        )


def _dangers(
    name: str, shape: TableShape, table: Table, column: Column, alter: str
) -> Iterator[Danger]:
    if name in ("token", "refresh_token"):
        prefixed = name == "token" and shape.at_rest != "digest"
        shortest = _DIGEST + (len(PREFIX) if prefixed else 0)
        yield (
            column.length is not None and column.length < shortest,
            f"takes {column.length} characters and a token needs {shortest}",
            f"{alter} type varchar(255)",
        )
        yield (
            not column.exact,
            "has a collation that takes different texts for equal",
            f'{alter} type text collate "C"',
        )
    if name == "token":
        on = f"{quoted(shape.table)} ({quoted(column.name)})"
        if not table.split_by:
            index = f"create unique index concurrently on {on}"
        elif table.split_by == (column.name,):
            index = f"create unique index on {on}"
        else:
            index = ""  # a unique index must contain the partition key
        yield (
            (column.name,) not in table.unique,
            "has no unique index, so two rows could have one token",
            index,
        )
        yield not column.required, "may be null", f"{alter} set not null"
        yield (
            shape.id_is_token and shape.rotates,
            "is both id and token, and tokens rotate: every rotation would make another "
            "session of it. Say refresh_token=None, or name the column made here with id=",
            own_ids(shape),
        )
    if name == "id" and not shape.id_is_token:
        yield from _id_dangers(shape, column, alter)
    if name == "revoked_at":
        drop = f"{alter} drop not null"
        yield column.required, "may not be null, so every session would be over", drop
    if shape.rotates and name in ("last_activity_at", "expires_at"):
        yield (
            (column.precision or 0) < _MICROSECONDS,
            "keeps no microseconds, so a stolen token would not be noticed",
            f"{alter} type {column.type}({_MICROSECONDS})",
        )
    yield column.computed, "is computed, and takes no value", ""


def _id_dangers(shape: TableShape, column: Column, alter: str) -> Iterator[Danger]:
    needed = _ID_LENGTHS.get(shape.new_id)
    if needed is None:
        return
    is_text = column.type in ("text", "varchar", "bpchar")
    fits = is_text or (column.type == "uuid" and shape.new_id == "uuid")
    other = "uuid" if column.type == "uuid" else "database"
    yield (
        not fits,
        f'is of type {column.type}, which takes no {shape.new_id}: set new_id="{other}"',
        "",
    )
    yield (
        column.length is not None and column.length < needed,
        f"takes {column.length} characters and a new id needs {needed}",
        f"{alter} type varchar({needed})",
    )
