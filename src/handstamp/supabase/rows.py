"""From rows of Supabase Auth's tables to the data of :mod:`handstamp.supabase.rules` and to
the engine's records, and the results of the writing statements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from handstamp.core.models import LATEST, Record
from handstamp.core.tokens import normalize_uuid
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Ended
from handstamp.stores.postgres import storable
from handstamp.supabase.rules import (
    Alive,
    AmrEntry,
    AuthSession,
    AuthUser,
    Refusal,
    StoredToken,
    SupabaseRules,
    judge_session,
    judge_user,
)
from handstamp.supabase.schema import HIDDEN

DEEPEST = 100
"""Levels to which the metadata of a user may be nested."""
LEVELS = {"aal1": 1, "aal2": 2, "aal3": 3}
_NO_LIMIT = timedelta(days=400)
_SESSION = tuple(each.name for each in fields(AuthSession))
_TOKEN = tuple(each.name for each in fields(StoredToken))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTokens:
    """A session with a new refresh token, committed: what an access token is minted
    from."""

    session: AuthSession
    user: AuthUser
    amr: tuple[AmrEntry, ...]
    refresh_token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedAuthSession(NewTokens):
    """A new session. ``ended`` are the sessions that it replaced."""

    ended: tuple[Ended, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed(NewTokens):
    """A refresh: the session as it is now. ``reused`` says that the presented token was not
    the current one."""

    reused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A refresh that was refused on fresh data, and what it ended.

    ``session`` is None where the token named no session. ``family_revoked`` says that the
    v1 refresh tokens of the session were revoked and the session stays. ``ended`` holds the
    session of a misused v2 token, which was deleted.
    """

    refusal: Refusal
    session: AuthSession | None = None
    ended: tuple[Ended, ...] = ()
    family_revoked: bool = False


Outcome = Refreshed | Refused


def session_of(row: asyncpg.Record) -> AuthSession | None:
    """Returns the session in a row, or None where an outer join found none."""
    if row["id"] is None:
        return None
    return AuthSession(**{name: _aware(row[name]) for name in _SESSION})


def user_of(row: asyncpg.Record) -> AuthUser:
    """Returns the user in a row that has one."""
    return AuthUser(
        id=row["u_id"],
        aud=row["u_aud"],
        role=row["u_role"],
        email=row["u_email"],
        phone=row["u_phone"],
        app_metadata=_metadata(row["u_app_metadata"]),
        user_metadata=_metadata(row["u_user_metadata"]),
        is_anonymous=row["u_is_anonymous"],
        created_at=_aware(row["u_created_at"]),
        updated_at=_aware(row["u_updated_at"]),
        last_sign_in_at=_aware(row["u_last_sign_in_at"]),
    )


def amr_of(row: asyncpg.Record) -> tuple[AmrEntry, ...]:
    """Returns the methods by which the user of the session signed in, newest first."""
    return tuple(
        AmrEntry(method=method, at=_aware(at) or row["read_at"])
        for method, at in zip(row["amr_methods"], row["amr_times"], strict=True)
    )


def token_of(row: asyncpg.Record) -> StoredToken | None:
    """Returns the v1 token in a row, or None where an outer join found none."""
    if row["t_id"] is None:
        return None
    return StoredToken(**{name: _aware(row[f"t_{name}"]) for name in _TOKEN})


def visible(rows: Sequence[asyncpg.Record]) -> Sequence[asyncpg.Record]:
    """Returns the rows. Raises :class:`SessionsUnavailable` where row level security hid
    the table: then an empty result means nothing."""
    if rows[0]["hidden"]:
        raise SessionsUnavailable(HIDDEN)
    return rows


def ended_of(rows: Sequence[asyncpg.Record]) -> tuple[Ended, ...]:
    """Returns the sessions that a statement deleted. Raises as :func:`visible` does."""
    deleted = (row for row in visible(rows) if row["id"] is not None)
    return tuple(Ended(id=row["id"], user_id=row["user_id"]) for row in deleted)


def record_of(session: AuthSession, rules: SupabaseRules) -> Record:
    """Returns a row of ``auth.sessions`` as a record of the engine.

    The access token names the session, so ``token_digest`` is the id.
    """
    now, alive = session.read_at, judge_session(session, rules)
    remaining = timedelta(0)
    if isinstance(alive, Alive):
        remaining = _NO_LIMIT if alive.remaining is None else alive.remaining
    return Record(
        id=session.id,
        user_id=session.user_id,
        token_digest=session.id,
        refresh_digest=None,
        created_at=session.created_at,
        expires_at=now + min(remaining, LATEST - now),
        refresh_expires_at=None,
        last_activity_at=session.refreshed_at or session.created_at,
        is_active=True,
        read_at=now,
        address=session.address,
        user_agent=session.user_agent,
        user_is_active=judge_user(session, now) is None,
        level=LEVELS.get(session.aal or "aal1", 1),
        undated=session.created_at is None,
        unlimited=True,
    )


def limited_to_token(record: Record, expires_at: datetime, aal: str) -> Record:
    """Returns the record with the end and the assurance level of an access token, where
    these are earlier and lower than its own."""
    return replace(
        record,
        expires_at=min(record.expires_at, expires_at),
        level=min(record.level or 1, LEVELS.get(aal, 1)),
    )


def uuid_of(text: str | None) -> str | None:
    """Returns ``text`` as the one spelling of a uuid, or None if it is none."""
    return None if text is None else normalize_uuid(text)


def uuids_of(texts: Sequence[str]) -> list[str]:
    """Returns those of ``texts`` that are uuids, in their one spelling."""
    return [known for text in texts if (known := uuid_of(text)) is not None]


def text_or_null(text: str | None) -> str | None:
    """Returns ``text`` with a "?" for each character that PostgreSQL cannot store in a
    text; None if nothing is left."""
    return None if text is None else storable(text) or None


def _aware(value: Any) -> Any:
    """The driver's own infinity has no time zone."""
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


def _metadata(text: str | None) -> Mapping[str, Any]:
    """Users write a part of this themselves. What cannot be read, or could be too deep to
    be written again from within a deeper call, is left out."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    level: list[object] = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return value if isinstance(value, dict) and not level else {}
