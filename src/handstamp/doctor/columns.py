"""What an examination of a table found: a level, a place, a sentence, and what mends it.

What developers call the columns of a table of sessions, best name first.

Names are compared without underscores and capitals: ``expiresAt`` is ``expires_at``.

Doubts about a proposed shape: columns that mean something handstamp does not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from handstamp.stores.catalog import Table
from handstamp.stores.resolve import types_of
from handstamp.stores.shapes import TableShape, UsersTable, quoted


class Level(StrEnum):
    """How bad it is. With a danger handstamp refuses the table, or sessions would live
    that your own code has ended; a warning costs a feature or time."""

    OK = "ok"
    NOTICE = "notice"
    WARNING = "warning"
    DANGER = "danger"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. ``about`` is a word for a group of them; ``mend`` is SQL, or empty.

    None of it is data of a row: names of tables and columns, counts and durations.
    """

    level: Level
    about: str
    text: str
    mend: str = ""


_FIELDS: Mapping[str, str] = {
    "token": "session_token_hash session_token_digest hashed_session_token token_hash"
    " token_digest hashed_token session_hash session_digest session_token token"
    " session_key secret access_token sid",
    "id": "id session_id sid uuid pk key",
    "user_id": "user_id account_id member_id customer_id owner_id person_id login_id"
    " identity_id principal_id subject_id authenticatable_id user",
    "expires_at": "expires_at expires expires_on expiry expiry_at expiry_date expire_date"
    " expire_at expiration expiration_date expires_date valid_until not_after",
    "refresh_token": "refresh_token_hash refresh_token_digest refresh_hash refresh_digest"
    " hashed_refresh_token refresh_token",
    "refresh_expires_at": "refresh_expires_at refresh_token_expires_at refresh_expires"
    " refresh_token_expires refresh_expiry refresh_valid_until",
    "created_at": "created_at created created_on date_created creation_date inserted_at"
    " opened_at started_at issued_at signed_in_at logged_in_at login_at login_time",
    "last_activity_at": "last_activity_at last_activity last_active_at last_active"
    " last_seen_at last_seen last_used_at last_used last_accessed_at last_access"
    " accessed_at touched_at active_at refreshed_at updated_at updated modified_at",
    "is_active": "is_active active is_valid valid is_enabled enabled",
    "revoked_at": "revoked_at ended_at terminated_at invalidated_at logged_out_at"
    " signed_out_at logout_at closed_at discarded_at deleted_at",
    "revoked_reason": "revoked_reason revoke_reason revocation_reason ended_reason"
    " end_reason logout_reason",
    "address": "ip_address ip remote_ip client_ip remote_addr remote_address ip_addr"
    " login_ip address",
    "user_agent": "user_agent ua browser user_agent_string",
    "user_agent_hash": "user_agent_hash user_agent_digest ua_hash user_agent_sha256",
    "fingerprint": "device_fingerprint fingerprint device_hash device_id browser_id",
    "location": "location geo_location geo place city country",
    "level": "trust_level level auth_level assurance_level security_level",
}
FIELDS: Mapping[str, tuple[str, ...]] = {
    field: tuple(names.split()) for field, names in _FIELDS.items()
}
"""The fields of a shape in the order in which they choose."""

USER_FIELDS: Mapping[str, tuple[str, ...]] = {
    "is_active": ("is_active", "active", "is_enabled", "enabled"),
    "locked_until": ("locked_until", "locked_out_until", "lockout_end", "lockout_until"),
    "password_changed_at": (
        *("last_password_change", "password_changed_at", "password_updated_at"),
        *("password_set_at", "password_modified_at", "password_last_changed"),
    ),
}

_ENDS = (
    "revoked isrevoked invalidated isinvalid disabled isdisabled blocked isblocked closed"
    " isclosed terminated isterminated loggedout isloggedout signedout deleted isdeleted"
    " expired isexpired"
)
_BANS = (
    "banned isbanned bannedat banneduntil blocked isblocked disabled isdisabled"
    " disabledat suspended issuspended suspendedat deleted isdeleted deletedat"
    " deactivatedat archivedat"
)
ENDS = frozenset(_ENDS.split())
"""Flags by which applications end a session, and handstamp does not."""
BANS = frozenset(_BANS.split())
"""Columns by which applications shut a user out, and handstamp does not."""


def plain(name: str) -> str:
    """``name`` without underscores and capitals."""
    return name.replace("_", "").lower()


def says_digest(name: str) -> bool:
    """Whether the name of a column says that digests are in it."""
    return any(word in plain(name) for word in ("hash", "digest", "sha256"))


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
