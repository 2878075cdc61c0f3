"""From rows of Supabase Auth's tables to the nouns of :mod:`supabase_records`, and back.

What is asked of Supabase Auth's tables, and what comes back, committed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from handstamp.core.models import LATEST, Record
from handstamp.core.tokens import normalize_uuid
from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.base import Ended
from handstamp.supabase.rules import (
    Alive,
    AmrEntry,
    AuthSession,
    AuthUser,
    Cause,
    Refusal,
    StoredToken,
    SupabaseRules,
    judge_session,
    judge_user,
)
from handstamp.supabase.schema import HIDDEN

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


LONGEST_SCOPES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAuthSession:
    """What a sign-in may say of a session, beyond its user and client.

    ``method`` is how the user signed in, in GoTrue's words (``password``, ``otp``,
    ``oauth``, ``sso/saml`` and so on): it becomes the session's first AMR claim.
    ``not_after`` ends the session whatever the rules say. ``replaces`` are sessions that
    end in the same transaction. Raises :class:`ConfigError` for what has no place in the
    tables.
    """

    method: str = "password"
    not_after: datetime | None = None
    tag: str | None = None
    oauth_client_id: str | None = None
    scopes: str | None = None
    replaces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.method:
            raise ConfigError("method must say how the user signed in")
        if self.not_after is not None and self.not_after.tzinfo is None:
            raise ConfigError("not_after must be an aware datetime")
        if self.oauth_client_id is not None and uuid_of(self.oauth_client_id) is None:
            raise ConfigError("oauth_client_id must be a uuid")
        if self.scopes is not None and len(self.scopes) > LONGEST_SCOPES:
            # Refused by the table too, but its complaint would quote the whole row.
            raise ConfigError(f"scopes must have at most {LONGEST_SCOPES} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedAuthSession:
    """A new session, and what to hand out; ``ended`` made room for it. ``v2`` tells which
    kind ``refresh_token`` is."""

    session: AuthSession
    user: AuthUser
    amr: tuple[AmrEntry, ...]
    refresh_token: str = field(repr=False)
    v2: bool
    ended: tuple[Ended, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """A refresh: the session as it is now, and what to hand out.

    ``causes`` is empty for the current token; otherwise they say why another one was
    accepted. ``v2`` tells which kind ``refresh_token`` is.
    """

    session: AuthSession
    user: AuthUser
    amr: tuple[AmrEntry, ...]
    refresh_token: str = field(repr=False)
    v2: bool
    causes: tuple[Cause, ...] = ()

    @property
    def reused(self) -> bool:
        """Whether the presented token was not the current one."""
        return bool(self.causes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A refresh that is refused on fresh data, and what it ended.

    ``session`` is what is known of it: None where the token named none. A misused v1
    token leaves its session alive with ``family_revoked``, a misused v2 token ends it.
    """

    refusal: Refusal
    session: AuthSession | None = None
    ended: tuple[Ended, ...] = ()
    family_revoked: bool = False


Outcome = Refreshed | Refused


LEVELS = {"aal1": 1, "aal2": 2, "aal3": 3}
_NO_LIMIT = timedelta(days=400)


def record_of(session: AuthSession, rules: SupabaseRules) -> Record:
    """A row of ``auth.sessions`` as the engine judges one."""
    now = session.read_at
    alive = judge_session(session, rules)
    return Record(
        id=session.id,
        user_id=session.user_id,
        token_digest=session.id,
        refresh_digest=None,
        created_at=session.created_at,
        expires_at=_end(alive, now),
        refresh_expires_at=None,
        last_activity_at=session.refreshed_at or session.created_at,
        is_active=True,
        read_at=now,
        address=session.address,
        user_agent=session.user_agent,
        user_is_active=judge_user(session, now) is None,
        level=LEVELS.get(session.aal or "aal1", 1),
        dateless=session.created_at is None,
        unlimited=True,
    )


def _end(alive: object, now: datetime) -> datetime:
    if not isinstance(alive, Alive):
        return now
    remaining = _NO_LIMIT if alive.remaining is None else alive.remaining
    return now + min(remaining, LATEST - now)


def bounded(record: Record, ends: datetime, level: str) -> Record:
    """The record as an access token of this end and this level has it."""
    return replace(
        record,
        expires_at=min(record.expires_at, ends),
        level=min(record.level or 1, LEVELS.get(level, 1)),
    )
