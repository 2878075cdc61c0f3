"""The nouns of Supabase Auth: a session, its user, how the user signed in, a v1 token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

AAL1, AAL2 = "aal1", "aal2"
NEVER = datetime.min.replace(tzinfo=UTC)
"""Stands in for a time that GoTrue always writes and the column does not insist on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSession:
    """One row of ``auth.sessions``, the facts of its user that decide, and the database's
    clock at the read. All times are aware; ``refreshed_at`` too, which the column is not.

    ``token_updated_at`` is that of a v1 refresh token of the session, where one was read
    with it: it stands in for a ``refreshed_at`` that was never written.
    """

    id: str
    user_id: str
    created_at: datetime | None
    read_at: datetime
    updated_at: datetime | None = None
    factor_id: str | None = None
    aal: str | None = None
    not_after: datetime | None = None
    refreshed_at: datetime | None = None
    token_updated_at: datetime | None = None
    user_agent: str | None = field(default=None, repr=False)
    address: str | None = field(default=None, repr=False)
    tag: str | None = None
    oauth_client_id: str | None = None
    scopes: str | None = None
    key: str | None = field(default=None, repr=False)
    """``refresh_token_hmac_key`` as stored; read for a refresh only."""
    counter: int | None = None
    user_found: bool = True
    """Whether there is such a user for GoTrue, which knows instance zero only."""
    banned_until: datetime | None = None
    deleted_at: datetime | None = None
    has_verified_factor: bool = False

    @property
    def highest_aal(self) -> str:
        """The assurance level the user could reach."""
        return AAL2 if self.has_verified_factor else AAL1

    @property
    def last_refreshed_at(self) -> datetime:
        """When the session was last refreshed; its creation if it never was."""
        if self.refreshed_at is not None:
            return self.refreshed_at
        created = self.created_at or NEVER
        return max(created, self.token_updated_at or created)


@dataclass(frozen=True, slots=True, kw_only=True)
class AmrEntry:
    """One way the session's user has signed in, and when last."""

    method: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthUser:
    """What an access token says of a user: a row of ``auth.users``, without secrets.

    ``email`` and ``phone`` are "" where the row has none, as GoTrue has it.
    """

    id: str
    aud: str | None
    role: str | None
    email: str = field(repr=False)
    phone: str = field(repr=False)
    app_metadata: Mapping[str, Any] = field(repr=False)
    user_metadata: Mapping[str, Any] = field(repr=False)
    is_anonymous: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None
    last_sign_in_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """One row of ``auth.refresh_tokens``: a v1 token."""

    id: int
    token: str = field(repr=False)
    user_id: str | None
    session_id: str | None
    parent: str | None = field(repr=False)
    revoked: bool
    updated_at: datetime | None
