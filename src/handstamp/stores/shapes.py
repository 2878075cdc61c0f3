"""Which column of a table holds what: names of columns, and nothing else.

Everything in a shape is an identifier that becomes part of SQL text. So each one is checked
against a grammar when the shape is made, and quoted when it is used. Values are always
bound. Types, lengths and indexes are read from the catalog when the table is first used
(:mod:`handstamp.stores.resolve`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal

from handstamp.errors import ConfigError

AtRest = Literal["digest", "prefixed", "plain"]
NewId = Literal["ulid", "uuid", "database"]

PREFIX = "sha256:"
"""The prefix of a digest in a column that holds, or once held, plaintext tokens."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}(\.[A-Za-z_][A-Za-z0-9_$]{0,62})?")
_NO_COLUMNS = frozenset({"at_rest", "new_id", "users"})

_SHOWN_TOKENS = (
    'id= and token= name one column, {column}, and with at_rest="plain" it holds tokens in'
    " plaintext: anybody who sees the id of a session, in a log, an event or a list, could"
    ' sign in with it. Say at_rest="prefixed", which ends every session whose token is in'
    ' plaintext; or give the rows ids of their own, and say id="session_id" and'
    ' new_id="uuid". Fix it with: {ddl};'
)


def _check(shape: UsersTable | TableShape) -> None:
    for entry in fields(shape):
        value = getattr(shape, entry.name)
        if entry.name in _NO_COLUMNS or value is None:
            continue
        if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
            raise ConfigError(f"{entry.name}={value!r} is no SQL name handstamp accepts")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersTable:
    """The table of users, as far as a session depends on it.

    A column that is None, or that the table does not have, switches its rule off.
    """

    table: str = "users"
    id: str = "id"
    is_active: str | None = "is_active"
    locked_until: str | None = "locked_until"
    password_changed_at: str | None = "last_password_change"  # noqa: S105

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableShape:
    """One table of sessions: which of its columns holds what.

    ``table`` may have a schema in front. Every other field names a column, or is None
    where the table has none; a column that turns out to be missing switches its feature
    off, and that is reported. Only ``id``, ``user_id``, ``token`` and ``expires_at`` are
    needed.

    ``at_rest`` says how ``token`` holds a token: ``"digest"`` (SHA-256 in hex),
    ``"prefixed"`` (``sha256:`` and the digest), or ``"plain"``: as prefixed, and older rows
    that hold the token itself are accepted and replaced at their first use.
    ``new_id`` says where ids come from: ``"database"`` is the column's own default.
    A session ends by ``is_active``, by ``revoked_at``, by both, or, with neither, by
    deletion of its row. Without ``refresh_token`` nothing rotates, and ``expires_at``
    moves ahead with activity; rotation also needs ``refresh_expires_at``, ``created_at``
    and ``last_activity_at``. ``users`` is None where users are somewhere else.

    ``id`` and ``token`` may name one column if it holds digests: a session's id is then
    the digest of its token. Raises :class:`ConfigError` for a name that is no identifier,
    and for a shape that would show tokens.
    """

    table: str = "user_sessions"
    id: str = "id"
    user_id: str = "user_id"
    token: str = "session_token_hash"  # noqa: S105 - the name of a column
    refresh_token: str | None = "refresh_token_hash"  # noqa: S105
    expires_at: str = "expires_at"
    refresh_expires_at: str | None = "refresh_expires_at"
    created_at: str | None = "created_at"
    last_activity_at: str | None = "last_activity_at"
    is_active: str | None = "is_active"
    revoked_at: str | None = "revoked_at"
    revoked_reason: str | None = "revoked_reason"
    address: str | None = "ip_address"
    user_agent: str | None = None
    user_agent_hash: str | None = "user_agent_hash"
    fingerprint: str | None = "device_fingerprint"
    location: str | None = None
    level: str | None = None
    at_rest: AtRest = "digest"
    new_id: NewId = "ulid"
    users: UsersTable | None = UsersTable()

    def __post_init__(self) -> None:
        _check(self)
        if self.at_rest not in ("digest", "prefixed", "plain"):
            raise ConfigError('at_rest must be "digest", "prefixed" or "plain"')
        if self.new_id not in ("ulid", "uuid", "database"):
            raise ConfigError('new_id must be "ulid", "uuid" or "database"')
        for needed in ("table", "id", "user_id", "token", "expires_at"):
            if getattr(self, needed) is None:
                raise ConfigError(f"a shape needs {needed}=")
        self._check_tokens()

    def _check_tokens(self) -> None:
        """Raise :class:`ConfigError` if a field that an application shows is a token."""
        held = {self.refresh_token: {"refresh_token"}, self.token: {"token", "id"}}
        for entry in fields(self):
            column = getattr(self, entry.name)
            if entry.name in _NO_COLUMNS | {"table"} or column is None:
                continue
            if entry.name not in held.get(column, {entry.name}):
                raise ConfigError(
                    f"{entry.name}= names {column}, a column of tokens, whose values would "
                    "be shown. Name another column, or None"
                )
        if self.id_is_token and self.at_rest == "plain":
            raise ConfigError(_SHOWN_TOKENS.format(column=self.id, ddl=own_ids(self)))

    @property
    def id_is_token(self) -> bool:
        """Whether one column is both: the id of a session is the digest of its token."""
        return len({self.id, self.token}) == 1

    @property
    def rotates(self) -> bool:
        """Whether the row has a refresh token, and all columns that rotation needs."""
        needed = self.refresh_token, self.refresh_expires_at
        return None not in (*needed, self.created_at, self.last_activity_at)


ULID_HASHED = TableShape()
"""ULID ids, SHA-256 digests at rest, the refresh token in the row, a users table."""

UUID_PLAIN = TableShape(
    token="session_token",  # noqa: S106 - the name of a column
    refresh_token=None,
    refresh_expires_at=None,
    last_activity_at="updated_at",
    revoked_at="deleted_at",
    revoked_reason=None,
    user_agent="user_agent",
    user_agent_hash=None,
    fingerprint="device_id",
    location="location",
    level="trust_level",
    at_rest="plain",
    new_id="uuid",
    users=None,
)
"""UUID ids, tokens that were once stored in plaintext, a sliding expiry, trust levels."""


def quoted(name: str) -> str:
    """``name`` as SQL text: the one place where an identifier is quoted."""
    return ".".join(f'"{part}"' for part in name.split("."))


def own_ids(shape: TableShape) -> str:
    """The DDL that gives the rows ids of their own, in a column ``session_id``."""
    made = "add column session_id uuid not null default gen_random_uuid()"
    return f"alter table {quoted(shape.table)} {made}, add unique (session_id)"
