"""New tokens of Supabase Auth, as its server would answer them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from handstamp.core.models import Issued, Record, Session
from handstamp.errors import ConfigError
from handstamp.supabase.jwt import AccessTokens, assurance_level
from handstamp.supabase.rows import CreatedAuthSession
from handstamp.supabase.rows import Refreshed as RefreshOutcome
from handstamp.supabase.rules import AuthUser, access_token_ends
from handstamp.supabase.table import LEVELS, SupabaseTable, record_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssuer:
    """How answers with new tokens are made."""

    tokens: AccessTokens
    table: SupabaseTable
    with_user: bool

    def check(self) -> None:
        """Raise :class:`ConfigError` where nothing can be minted: before a row is written
        of which nobody could ever get the tokens."""
        if not self.tokens.can_mint:
            raise ConfigError(
                "no key signs access tokens: give jwt_secret=, or jwt_keys= with a "
                "private key, to sign in and to refresh here"
            )

    def issue(
        self, given: CreatedAuthSession | RefreshOutcome, deliver_until: float
    ) -> Issued:
        """The access token of a session that was just written, and its refresh token."""
        rules, session = self.table.auth.rules, given.session
        level = assurance_level(entry.method for entry in given.amr)
        now = session.read_at
        ends = access_token_ends(session, level, rules, now)
        access = self.tokens.mint(
            session, given.user, given.amr, issued_at=now, expires_at=ends
        )
        record = bounded(record_of(session, rules), ends, level)
        return Issued(
            session=Session.of(record),
            session_token=access,
            refresh_token=given.refresh_token,
            remember=True,
            session_lifetime=None,
            refresh_lifetime=None,
            deliver_until=deliver_until,
            body=self._body(access, given.refresh_token, given.user, now, ends),
        )

    def _body(
        self, access: str, refresh: str, user: AuthUser, now: datetime, ends: datetime
    ) -> dict[str, object]:
        body: dict[str, object] = {
            "access_token": access,
            "token_type": "bearer",
            "expires_in": int((ends - now).total_seconds()),
            "expires_at": int(ends.timestamp()),
            "refresh_token": refresh,
        }
        return body | {"user": _public(user)} if self.with_user else body


def _public(user: AuthUser) -> dict[str, object]:
    """The user as auth-js shows one; whoever reads a cookie must not believe it."""
    times = {
        name: at.isoformat().replace("+00:00", "Z")
        for name in ("created_at", "updated_at", "last_sign_in_at")
        if (at := getattr(user, name)) is not None
    }
    return {
        "id": user.id,
        "aud": user.aud or "",
        "role": user.role or "",
        "email": user.email,
        "phone": user.phone,
        "app_metadata": dict(user.app_metadata),
        "user_metadata": dict(user.user_metadata),
        "identities": [],
        "is_anonymous": user.is_anonymous,
        **times,
    }


def bounded(record: Record, ends: datetime, level: str) -> Record:
    """The record as an access token of this end and this level has it."""
    return replace(
        record,
        expires_at=min(record.expires_at, ends),
        level=min(record.level or 1, LEVELS.get(level, 1)),
    )
