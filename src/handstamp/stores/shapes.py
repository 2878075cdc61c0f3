"""How one table spells a session: names and types of columns, and nothing else.

Everything in a shape is an identifier or a type that ends up in SQL text, so all of it
is checked against a grammar when the shape is made and quoted when it is used. Values
are always bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from handstamp.errors import ConfigError

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}(\.[A-Za-z_][A-Za-z0-9_$]{0,62})?")
_TYPE = re.compile(r"[a-z]+( [a-z]+)*")


def _check(shape: UsersTable | TableShape) -> None:
    for entry in fields(shape):
        value = getattr(shape, entry.name)
        if not isinstance(value, str):
            continue
        grammar = _TYPE if entry.name.endswith("_type") else _IDENTIFIER
        if not grammar.fullmatch(value):
            raise ConfigError(f"{entry.name}={value!r} is no SQL name handstamp accepts")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersTable:
    """Where the application keeps its users, as far as a session depends on it."""

    table: str = "users"
    id: str = "id"
    is_active: str = "is_active"
    locked_until: str = "locked_until"
    password_changed_at: str = "last_password_change"  # noqa: S105

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableShape:
    """One table of sessions with digests at rest and the refresh token in the row.

    Every field names a column, but ``table`` (with a schema if you like), ``id_type``
    and ``digest_type`` (the types to which bound values are cast, so that the table's
    own indexes serve) and ``users``. Raises :class:`ConfigError` for a name that is no
    identifier.
    """

    table: str = "user_sessions"
    id_type: str = "bpchar"
    digest_type: str = "bpchar"
    id: str = "id"
    user_id: str = "user_id"
    token_digest: str = "session_token_hash"  # noqa: S105 - the name of a column
    refresh_digest: str = "refresh_token_hash"
    address: str = "ip_address"
    user_agent_hash: str = "user_agent_hash"
    fingerprint: str = "device_fingerprint"
    expires_at: str = "expires_at"
    refresh_expires_at: str = "refresh_expires_at"
    last_activity_at: str = "last_activity_at"
    is_active: str = "is_active"
    revoked_at: str = "revoked_at"
    revoked_reason: str = "revoked_reason"
    created_at: str = "created_at"
    users: UsersTable = UsersTable()

    def __post_init__(self) -> None:
        _check(self)


ULID_HASHED = TableShape()
"""ULID ids, SHA-256 digests at rest, the refresh token in the row, a users table."""


def quoted(name: str) -> str:
    """``name`` as SQL text: the one place where an identifier is quoted."""
    return ".".join(f'"{part}"' for part in name.split("."))
