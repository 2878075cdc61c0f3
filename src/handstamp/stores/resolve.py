"""Tables that must not be used as they are: why, and the DDL that mends them.

Rule 1. Two rows could have one token, a row none, or a token other than the one that was
issued: whoever holds it would be somebody else, or nobody.
Rule 2. A time that forgets fractions of a second forgets what tells a token that was used
from one that never arrived, so where tokens rotate, no theft would be noticed.
Rule 3. Every sign-in would fail: an id that the column does not take, or a column that
wants a value nobody gives it; or its rows have ids that no token can carry.

A shape and a real table: whether they fit, and how each column is to be spelled.

Rule 1. What is needed and missing, or of a type handstamp cannot bind, is refused, with
the reason and the DDL that mends it.
Rule 2. A table that would be dangerous is refused (:mod:`handstamp.stores.resolve`).
Rule 3. Anything else that is missing switches a feature off, and is reported.
Rule 4. A ``timestamp without time zone`` holds UTC; it is read and written as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

from handstamp.core.tokens import LONGEST_ID
from handstamp.errors import ConfigError
from handstamp.stores.base import Capabilities
from handstamp.stores.catalog import Column, Table
from handstamp.stores.shapes import PREFIX, TableShape, UsersTable, own_ids, quoted

_DIGEST = 64
_ID_LENGTHS = {"ulid": 26, "uuid": 36}
_MICROSECONDS = 6
_FOR_TYPE = {"bool": "false", "jsonb": "'{}'", "json": "'{}'", "uuid": "gen_random_uuid()"}
_FOR_TYPE |= dict.fromkeys(("text", "varchar", "bpchar", "citext", "bytea"), "''")
_FOR_TYPE |= dict.fromkeys(("int2", "int4", "int8", "numeric", "float4", "float8"), "0")
_FOR_TYPE |= {"timestamptz": "now()", "timestamp": "timezone('utc', now())"}
_FOR_TYPE |= {"date": "current_date", "inet": "'0.0.0.0'"}

Danger = tuple[bool, str, str]
"""Whether it is so, the reason, and the DDL, without which there is no remedy."""


def refuse(place: str, reason: str, ddl: str = "") -> ConfigError:
    """The error for one place of a table; ``ddl`` mends it."""
    return ConfigError(f"{place} {reason}." + (f" Mend it with: {ddl};" if ddl else ""))


def refuse_long_ids(shape: TableShape, longest: Mapping[str, int]) -> None:
    """Raise :class:`ConfigError` where an id of a row is longer than a token can carry.

    ``longest`` are the characters of the longest value, for the fields ``id`` and
    ``user_id``.
    """
    for field, length in longest.items():
        if length > LONGEST_ID:
            raise refuse(
                f"{shape.table}.{getattr(shape, field)}",
                f"holds ids of up to {length} characters, and {LONGEST_ID} is the most that"
                " a token can carry: such a session is none"
                + ('. Name the column made here, id="session_id"' if field == "id" else ""),
                own_ids(shape) if field == "id" else "",
            )


def check(shape: TableShape, table: Table, named: dict[str, str]) -> None:
    """Raise :class:`ConfigError` for a table that would be dangerous.

    ``named`` are the columns that ``shape`` uses, by its fields.
    """
    for refusal in refusals(shape, table, named):
        raise refusal


def refusals(
    shape: TableShape, table: Table, named: dict[str, str]
) -> Iterator[ConfigError]:
    """Every reason for which :func:`check` would refuse the table."""
    for field, name in named.items():
        column = table.columns[name]
        place = f"{shape.table}.{name}"
        alter = f"alter table {quoted(shape.table)} alter column {quoted(name)}"
        for wrong, reason, ddl in _dangers(field, shape, table, column, alter):
            if wrong:
                yield refuse(place, reason, ddl)
    yield from _other_columns(shape, table, frozenset(named.values()))


def _dangers(
    field: str, shape: TableShape, table: Table, column: Column, alter: str
) -> Iterator[Danger]:
    if field in ("token", "refresh_token"):
        yield from _token_dangers(field, shape, column, alter)
    if field == "token":
        yield from _identity_dangers(shape, table, column, alter)
        yield (
            shape.id_is_token and shape.rotates,
            "is both id and token, and tokens rotate: every rotation would make another "
            "session of it. Say refresh_token=None, or name the column made here with id=",
            own_ids(shape),
        )
    if field == "id" and not shape.id_is_token:
        yield from _id_dangers(shape, column, alter)
    if field == "revoked_at":
        drop = f"{alter} drop not null"
        yield column.required, "may not be null, so every session would be over", drop
    if shape.rotates and field in ("last_activity_at", "expires_at"):
        yield (
            (column.precision or 0) < _MICROSECONDS,
            "keeps no microseconds, so a stolen token would not be noticed",
            f"{alter} type {column.type}({_MICROSECONDS})",
        )
    yield column.computed, "is computed, and takes no value", ""


def _token_dangers(
    field: str, shape: TableShape, column: Column, alter: str
) -> Iterator[Danger]:
    prefixed = field == "token" and shape.at_rest != "digest"
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


def _identity_dangers(
    shape: TableShape, table: Table, column: Column, alter: str
) -> Iterator[Danger]:
    on = f"{quoted(shape.table)} ({quoted(column.name)})"
    if not table.split_by:
        mend = f"create unique index concurrently on {on}"
    elif table.split_by == (column.name,):
        mend = f"create unique index on {on}"
    else:
        mend = ""  # a unique index contains what its table is split by
    yield (
        (column.name,) not in table.unique,
        "has no unique index, so two rows could have one token",
        mend,
    )
    yield not column.required, "may be null", f"{alter} set not null"


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


def _other_columns(
    shape: TableShape, table: Table, named: frozenset[str]
) -> Iterator[ConfigError]:
    """A column that handstamp knows nothing of must not need a value from it."""
    for name, column in table.columns.items():
        given = column.default is not None or column.sequence is not None
        if name in named or given or column.computed or not column.required:
            continue
        value = _FOR_TYPE.get(column.type)
        alter = f"alter table {quoted(shape.table)} alter column {quoted(name)}"
        yield refuse(
            f"{shape.table}.{name}",
            "may not be null and has no default, and no field of the shape names it, so "
            "no session could be written",
            f"{alter} set default {value}" if value else f"{alter} drop not null",
        )


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


@dataclass(frozen=True, slots=True)
class ColumnRef:
    """One column as SQL: its quoted name, the type to which bound text is cast, whether
    it is a timestamp without time zone, and how many characters it takes."""

    name: str
    cast: str
    naive: bool = False
    length: int | None = None
    required: bool = False

    def takes(self, text: str) -> bool:
        """Whether it has room for this text."""
        return not self.is_text or self.length is None or len(text) <= self.length

    @property
    def is_text(self) -> bool:
        """Whether it holds texts."""
        return self.cast in ("text", "bpchar")

    def may_exceed(self, length: int) -> bool:
        """Whether it can hold texts of more characters than this."""
        return self.is_text and (self.length is None or self.length > length)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedTable:
    """A shape as it fits the table that is there.

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
        """What is left of the features."""
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
    """How ``shape`` fits. Raises :class:`ConfigError` where it must not be used."""
    if table is None:
        raise ConfigError(
            f"there is no table {shape.table}: create it (handstamp init), or name it in "
            "TableShape(table=…)"
        )
    shape, missing = _without_missing(shape, table, users)
    columns = {
        name: _spelling(shape.table, name, table.columns[column])
        for name, column in _columns(shape).items()
    }
    check(shape, table, _columns(shape))
    own = table.columns[shape.id]
    return ResolvedTable(
        shape=shape,
        columns=columns,
        users=_users(shape.users, users),
        missing=missing,
        next_id=_next_id(shape, own),
        address_is_required=bool(shape.address and table.columns[shape.address].required),
    )


def assumed(shape: TableShape) -> ResolvedTable:
    """The shape on a table that has every column it names, of the usual types: for what
    is printed without a database."""

    def spelled(part: TableShape | UsersTable) -> Mapping[str, ColumnRef]:
        return {
            n: ColumnRef(quoted(column), "text") for n, column in _columns(part).items()
        }

    return ResolvedTable(
        shape=shape,
        columns=spelled(shape),
        users=None if shape.users is None else spelled(shape.users),
        missing=(),
        next_id=None,
        address_is_required=False,
    )


def _columns(shape: TableShape | UsersTable) -> dict[str, str]:
    apart = {"table", "at_rest", "new_id", "users"}
    named = {f.name: getattr(shape, f.name) for f in fields(shape) if f.name not in apart}
    return {field: column for field, column in named.items() if column is not None}


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
    told = (*dict.fromkeys(missing), *(f"users.{name}" for name in absent))
    return replace(shape, users=kept), told


def _users(shape: UsersTable | None, table: Table | None) -> Mapping[str, ColumnRef] | None:
    if shape is None or table is None:
        return None
    return {
        name: _spelling(shape.table, name, table.columns[column])
        for name, column in _columns(shape).items()
    }


def types_of(field: str) -> frozenset[str]:
    """The types that the column may have which a shape names for this field."""
    is_time = field.endswith(("_at", "_until"))
    return _ALLOWED.get(field, _TIMES if is_time else _TEXT)


def _spelling(table: str, field: str, column: Column) -> ColumnRef:
    is_time = field.endswith(("_at", "_until"))
    allowed = types_of(field)
    if column.type not in allowed:
        raise refuse(
            f"{table}.{column.name}",
            f"is of type {column.type}, and handstamp needs one of "
            f"{', '.join(sorted(allowed))} for {field}=",
            _conversion(table, field, column, is_time=is_time),
        )
    cast = "text" if column.type == "varchar" else column.type
    return ColumnRef(
        name=quoted(column.name),
        cast=cast,
        naive=column.type == "timestamp",
        length=column.length,
        required=column.required,
    )


def _conversion(table: str, field: str, column: Column, *, is_time: bool) -> str:
    """The DDL that gives a column a type handstamp can use, its values kept."""
    name = quoted(column.name)
    best = "timestamptz" if is_time else _BEST.get(field, "text")
    value = f"{name}::text" if best == "text" else f"{name}::text::{best}"
    if is_time and column.type in _EPOCHS:
        value = f"to_timestamp({name})"
    elif column.type == "bytea":
        value = f"encode({name}, 'hex')"
    alter = f"alter table {quoted(table)} alter column {name}"
    return f"{alter} drop default, alter column {name} type {best} using {value}"


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
