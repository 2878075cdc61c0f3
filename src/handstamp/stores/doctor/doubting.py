"""Doubts about a proposed shape: columns that mean something handstamp does not read."""

from __future__ import annotations

from dataclasses import dataclass, fields

from handstamp.stores.catalog import Table
from handstamp.stores.doctor.column_names import BANS, ENDS, FIELDS, plain
from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.fitting import types_of
from handstamp.stores.shapes import TableShape, UsersTable, quoted

_APART = frozenset({"table", "at_rest", "new_id", "users"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """The table that the sessions' user_id refers to, and the column there."""

    name: str
    id: str
    table: Table


def columns_of(shape: TableShape | UsersTable) -> dict[str, str]:
    """The columns that a shape names, by its fields."""
    named = {f.name: getattr(shape, f.name) for f in fields(shape) if f.name not in _APART}
    return {field: column for field, column in named.items() if column is not None}


def doubts_about(shape: TableShape, table: Table, users: Users | None) -> list[Finding]:
    """All of them."""
    return [*_ends(shape, table), *_types(shape, table), *_bans(shape, users)]


def _ends(shape: TableShape, table: Table) -> list[Finding]:
    """Columns by which the application may end a session unheard."""
    used = set(columns_of(shape).values())
    left = [c for n, c in table.columns.items() if n not in used]
    flags = [c.name for c in left if plain(c.name) in ENDS and c.type == "bool"]
    times = set(map(plain, FIELDS["revoked_at"]))
    dates = [c.name for c in left if plain(c.name) in times]
    mend = f"alter table {quoted(shape.table)} add column revoked_at timestamptz"
    return [
        *(
            Finding(
                Level.DANGER,
                "revocation",
                f"{name} looks like a flag that ends a session, and handstamp does not"
                " read it: a session your code ends by it alone would stand. Let your"
                " code set revoked_at as well, or instead",
                "" if shape.revoked_at or shape.is_active else mend,
            )
            for name in flags
        ),
        *(
            Finding(
                Level.WARNING,
                "revocation",
                f"{name} looks like the end of a session too, and handstamp reads only"
                f" {shape.revoked_at}: end sessions by that column",
            )
            for name in dates
        ),
    ]


def _types(shape: TableShape, table: Table) -> list[Finding]:
    """Columns that have the right name and a type that will not do."""
    used = set(columns_of(shape).values())
    named = columns_of(shape)
    found = []
    for field, words in FIELDS.items():
        for column in table.columns.values():
            is_named = plain(column.name) in map(plain, words[:4])
            if field in named or column.name in used or not is_named:
                continue
            wanted = ", ".join(sorted(types_of(field)))
            text = f"{column.name} looks like {field}, but it is of type {column.type}"
            found.append(Finding(Level.NOTICE, field, f"{text}, not one of {wanted}"))
    return found


def _bans(shape: TableShape, users: Users | None) -> list[Finding]:
    """Columns by which the application may shut a user out unheard."""
    if users is None:
        return []
    used = set() if shape.users is None else set(columns_of(shape.users).values())
    names = [n for n in users.table.columns if plain(n) in BANS and n not in used]
    return [
        Finding(
            Level.WARNING,
            "users",
            f"{users.name}.{name} looks like it shuts a user out, and handstamp does not"
            " read it: call sessions.revoke_user() where your code sets it",
        )
        for name in names
    ]
