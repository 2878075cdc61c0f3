"""Cached sessions of the UUID and Supabase tables, for the benchmark of hits.

A hit reads the cache and nothing else, so no database is needed: the engine makes each
cache entry from a row such as its store would have read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from handstamp.config import Policy
from handstamp.core.models import Invalid, Record
from handstamp.engine.cache import Read, make_entry
from handstamp.engine.sessions import Sessions
from handstamp.stores.shapes import UUID_PLAIN
from handstamp.supabase import SupabaseSessions
from handstamp.supabase.cookies import SupabaseCookie, cut, encode_session
from handstamp.supabase.jwt import AccessTokens, Keys
from handstamp.supabase.rules import AmrEntry, AuthSession, AuthUser

NOWHERE = "postgresql://nowhere.invalid/none"
SECRET = "the secret of this benchmark: 32 bytes and more"
NAME = "sb-abcdefghijklmnopqrst-auth-token"
ID, USER_ID = "01890a5d-ac96-774b-bcce-b302099a8057", "3f2b8a4e-9f0c-4a55-8a43-0b7d1d3b6a10"
TWO_DAYS = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class CachedSession:
    """An engine with one session in its cache, and the cookie of that session."""

    name: str
    sessions: Sessions
    cookie: bytes


def cached_sessions(policy: Policy) -> Iterator[CachedSession]:
    """One engine for each of the other shapes."""
    yield _uuid(policy)
    for with_user in (False, True):
        yield _supabase(policy, with_user=with_user)


def _uuid(policy: Policy) -> CachedSession:
    sessions = Sessions(NOWHERE, secret=SECRET, shape=UUID_PLAIN, policy=policy)
    pair = sessions._state.tokens.mint(ID, bytes(64), remember=True)
    text = pair.session.encode()
    _keep(sessions, text, replace(_record(), slides=True))
    return CachedSession("uuid", sessions, b"__Host-session=" + text)


def _supabase(policy: Policy, *, with_user: bool) -> CachedSession:
    cookie = SupabaseCookie(name=NAME, http_only=not with_user)
    options = {"cookie": cookie, "jwt_secret": SECRET, "policy": policy}
    sessions = SupabaseSessions(NOWHERE, **options)  # type: ignore[arg-type]
    value = encode_session(_body(with_user=with_user))
    _keep(sessions, value.encode(), replace(_record(), unlimited=True))
    pieces = cut(NAME, value)
    header = "; ".join(f"{name}={piece}" for name, piece in pieces.items())
    name = "supabase, with the user" if with_user else "supabase, tokens only"
    return CachedSession(name, sessions, header.encode())


def _keep(sessions: Sessions, text: bytes, record: Record) -> None:
    now = sessions.clock()
    key = sha256(text).digest()
    entry = make_entry(record, sessions.policy, key, Read(now, now))
    if isinstance(entry, Invalid):
        raise RuntimeError(f"the row is not valid: {entry.reason}")
    sessions._state.cache.put(sessions.ticket(), entry)


def _record() -> Record:
    now = datetime.now(UTC)
    return Record(
        id=ID,
        user_id=USER_ID,
        token_digest="0" * 64,
        refresh_digest=None,
        created_at=now,
        expires_at=now + TWO_DAYS,
        refresh_expires_at=None,
        last_activity_at=now,
        is_active=True,
        read_at=now,
    )


def _body(*, with_user: bool) -> dict[str, object]:
    """The answer of GoTrue for a user of a social login, with little metadata."""
    now = datetime.now(UTC)
    metadata = {
        "avatar_url": "https://avatars.example.com/u/1234567?v=4",
        "email": "ada.lovelace@example.com",
        "email_verified": True,
        "full_name": "Ada Lovelace",
        "iss": "https://api.example.com",
        "sub": "1234567",
    }
    user = AuthUser(
        id=USER_ID,
        aud="authenticated",
        role="authenticated",
        email="ada.lovelace@example.com",
        phone="",
        app_metadata={"provider": "github", "providers": ["github"]},
        user_metadata=metadata,
    )
    session = AuthSession(id=ID, user_id=USER_ID, created_at=now, read_at=now)
    amr = [AmrEntry(method="oauth", at=now)]
    tokens = AccessTokens(Keys(secret=SECRET))
    access = tokens.mint(session, user, amr, issued_at=now, expires_at=now + TWO_DAYS)
    body: dict[str, object] = {
        "access_token": access,
        "token_type": "bearer",
        "expires_in": int(TWO_DAYS.total_seconds()),
        "expires_at": int((now + TWO_DAYS).timestamp()),
        "refresh_token": "a2b3c4d5e6f7",
    }
    shown = {"id": USER_ID, "email": user.email, "user_metadata": metadata}
    return body | {"user": shown} if with_user else body
