"""From rows of Supabase Auth's tables to the nouns of :mod:`supabase_records`, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg

from handstamp.core.ids import normalize_uuid
from handstamp.core.supabase_records import AmrEntry, AuthSession, AuthUser, StoredToken
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Ended
from handstamp.stores.supabase.schema import HIDDEN

DEEPEST = 100
"""How deep the metadata of a user may be nested."""
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")
_SESSION = (
    *("id", "user_id", "created_at", "read_at", "updated_at", "factor_id", "aal"),
    *("not_after", "refreshed_at", "token_updated_at", "user_agent", "address", "tag"),
    *("oauth_client_id", "scopes", "key", "counter", "user_found", "banned_until"),
    *("deleted_at", "has_verified_factor"),
)


def session_of(row: asyncpg.Record) -> AuthSession | None:
    """The session in a row; None where an outer join found none."""
    if row["id"] is None:
        return None
    return AuthSession(**{name: _aware(row[name]) for name in _SESSION})


def user_of(row: asyncpg.Record) -> AuthUser:
    """The user in a row that has one."""
    return AuthUser(
        id=row["u_id"],
        aud=row["u_aud"],
        role=row["u_role"],
        email=row["u_email"],
        phone=row["u_phone"],
        app_metadata=_object(row["u_app_metadata"]),
        user_metadata=_object(row["u_user_metadata"]),
        is_anonymous=row["u_is_anonymous"],
        created_at=_aware(row["u_created_at"]),
        updated_at=_aware(row["u_updated_at"]),
        last_sign_in_at=_aware(row["u_last_sign_in_at"]),
    )


def amr_of(row: asyncpg.Record) -> tuple[AmrEntry, ...]:
    """How the session's user signed in, newest first."""
    return tuple(
        AmrEntry(method=method, at=_aware(at) or row["read_at"])
        for method, at in zip(row["amr_methods"], row["amr_times"], strict=True)
    )


def token_of(row: asyncpg.Record) -> StoredToken | None:
    """The v1 token in a row; None where an outer join found none."""
    if row["t_id"] is None:
        return None
    names = ("id", "token", "user_id", "session_id", "parent", "revoked", "updated_at")
    return StoredToken(**{name: _aware(row[f"t_{name}"]) for name in names})


def seen(rows: Sequence[asyncpg.Record]) -> Sequence[asyncpg.Record]:
    """The rows, if row level security did not empty them: then there is no answer."""
    if rows[0]["hidden"]:
        raise SessionsUnavailable(HIDDEN)
    return rows


def ended_of(rows: Sequence[asyncpg.Record]) -> tuple[Ended, ...]:
    """The sessions that a statement deleted."""
    gone = (row for row in seen(rows) if row["id"] is not None)
    return tuple(Ended(id=row["id"], user_id=row["user_id"]) for row in gone)


def uuid_of(text: str | None) -> str | None:
    """``text`` as the one spelling of a uuid, or None if it is none."""
    return None if text is None else normalize_uuid(text)


def uuids_of(texts: Sequence[str]) -> list[str]:
    """Those that are uuids."""
    return [known for text in texts if (known := uuid_of(text)) is not None]


def mint_uuid(entropy: bytes) -> str:
    """A random uuid (version 4), of 16 bytes of fresh randomness."""
    number = int.from_bytes(entropy, "big")
    number = number & ~(0xF << 76) | 4 << 76
    digits = f"{number & ~(3 << 62) | 2 << 62:032x}"
    return "-".join(digits[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


def storable(text: str | None) -> str | None:
    """``text`` without what PostgreSQL takes in no text; None if nothing is left."""
    return None if text is None else _UNSTORABLE.sub("?", text) or None


def _aware(value: Any) -> Any:
    """The driver's own infinity has no time zone."""
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


def _object(text: str | None) -> Mapping[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):  # users write some of this themselves
        return {}
    return value if isinstance(value, dict) and _is_flat(value) else {}


def _is_flat(value: object) -> bool:
    """Whether this can be written again wherever it is: what can just be read may be too
    deep for a writer that is called from further down."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
        if not level:
            return True
    return False


def _within(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
