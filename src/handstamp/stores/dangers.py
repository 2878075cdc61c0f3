"""Tables that must not be used as they are: why, and the DDL that mends them.

Rule 1. Two rows could have one token, a row none, or a token other than the one that was
issued: whoever holds it would be somebody else, or nobody.
Rule 2. A time that forgets fractions of a second forgets what tells a token that was used
from one that never arrived, so where tokens rotate, no theft would be noticed.
Rule 3. Every sign-in would fail: an id that the column does not take, or a column that
wants a value nobody gives it; or its rows have ids that no token can carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from handstamp.core.ids import LONGEST_ID
from handstamp.errors import ConfigError
from handstamp.stores.catalog import Column, Table
from handstamp.stores.shapes import PREFIX, TableShape, own_ids, quoted

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
