"""What is asked of Supabase Auth's tables, and what comes back, committed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from handstamp.core.supabase_records import AmrEntry, AuthSession, AuthUser
from handstamp.core.supabase_rotation import Cause
from handstamp.core.supabase_rules import Refusal
from handstamp.errors import ConfigError
from handstamp.stores.base import Ended
from handstamp.stores.supabase.rows import uuid_of

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
