"""Every rule about a session of Supabase Auth (GoTrue), and nowhere else.

A session lives while its row exists, plus what is judged here. The settings are GoTrue's
own, under names of ours: give both servers the same values, for both write one table.

Rule 1. Times are the database's: a session carries its clock at the read.
Rule 2. A limit has passed when the time is strictly after it: at the very instant the
session is still valid. (A ban is over at its instant.)
Rule 3. A failed judgement changes nothing: an expired session stays in its table.
Rule 4. What is refused is refused in GoTrue's words, code and message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal

from handstamp.core.supabase_records import AAL1, NEVER, AuthSession
from handstamp.errors import ConfigError

_ZERO = timedelta(0)
_SECOND = timedelta(seconds=1)
_LONGEST = timedelta(days=36_500)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupabaseRules:
    """GoTrue's settings, as far as they concern sessions.

    Each field names the setting whose value it must have (without ``GOTRUE_``). Raises
    :class:`ConfigError` on construction for what GoTrue would not start with either.
    """

    timebox: timedelta | None = None
    """``SESSIONS_TIMEBOX``: the longest life of a session, from its creation."""
    inactivity: timedelta | None = None
    """``SESSIONS_INACTIVITY_TIMEOUT``: the longest pause between two refreshes."""
    allow_low_aal: timedelta | None = None
    """``SESSIONS_ALLOW_LOW_AAL``: how long a user with a verified second factor may go
    without using it."""
    single_per_user: bool = False
    """``SESSIONS_SINGLE_PER_USER``: only the session refreshed last can refresh."""
    tags: tuple[str, ...] = ()
    """``SESSIONS_TAGS``: with these, one session per user and tag."""
    rotation_enabled: bool = True
    """``SECURITY_REFRESH_TOKEN_ROTATION_ENABLED``: whether a token used again too late
    ends the others. Tokens rotate in any case."""
    reuse_interval: timedelta = _ZERO
    """``SECURITY_REFRESH_TOKEN_REUSE_INTERVAL``, whole seconds. Supabase's own servers
    are documented to have 10."""
    allow_reuse: bool = False
    """``SECURITY_REFRESH_TOKEN_ALLOW_REUSE``: v2 tokens are never too old."""
    algorithm_version: Literal[0, 1, 2] = 0
    """``SECURITY_REFRESH_TOKEN_ALGORITHM_VERSION``: 2 for v2 tokens in new sessions, 0
    and 1 for v1. Both kinds are always accepted."""
    upgrade: Literal[0, 100] = 0
    """``SECURITY_REFRESH_TOKEN_UPGRADE_PERCENTAGE``: whether v1 sessions become v2 ones
    at their next refresh. The percentages between are GoTrue's alone."""
    access_token_ttl: timedelta = timedelta(hours=1)
    """``JWT_EXP``: life of an access token, whole seconds."""
    audit: bool = True
    """Not ``AUDIT_LOG_DISABLE_POSTGRES``: write ``auth.audit_log_entries``."""
    cleanup: bool = False
    """``DB_CLEANUP_ENABLED``: let ``prune`` do what GoTrue's own cleanup would."""
    retry_budget: timedelta = timedelta(seconds=5)
    """How long a refresh tries to get at a session that others hold. GoTrue has no
    setting for its own five seconds."""

    def __post_init__(self) -> None:
        for name in ("timebox", "inactivity", "allow_low_aal"):
            if getattr(self, name) is not None:
                _check_duration(name, getattr(self, name))
        for name in ("access_token_ttl", "retry_budget"):
            _check_duration(name, getattr(self, name))
        _check_duration("reuse_interval", self.reuse_interval, least=_ZERO)
        for name in ("reuse_interval", "access_token_ttl"):
            if getattr(self, name) % _SECOND:
                raise ConfigError(f"{name} must be a whole number of seconds")
        if self.algorithm_version not in (0, 1, 2):
            raise ConfigError("algorithm_version must be 0, 1 or 2")
        if self.upgrade not in (0, 100):
            raise ConfigError(
                "upgrade must be 0 or 100: the percentages between pick sessions by a "
                "generator that only GoTrue has"
            )
        tags: object = self.tags
        if not isinstance(tags, tuple) or not all(tags):
            raise ConfigError("tags must be a tuple of texts, none of them empty")

    @property
    def upgrades(self) -> bool:
        """Whether a v1 refresh makes the session a v2 one."""
        return self.algorithm_version == 2 and self.upgrade == 100


def _check_duration(name: str, value: object, least: timedelta = _SECOND / 10**6) -> None:
    if not isinstance(value, timedelta):
        raise ConfigError(f"{name} must be a timedelta, not {value!r}")
    if not least <= value <= _LONGEST:
        raise ConfigError(f"{name} must be longer than zero and at most 100 years")


class Refusal(Enum):
    """Why a session is not valid or not refreshed: GoTrue's error code and message.

    GoTrue answers each of them with status 400. For events, logs and clients that speak
    GoTrue's protocol; a browser learns no more than that it is signed out.
    """

    MALFORMED = "validation_failed", "Refresh token is not valid"
    NOT_FOUND = "refresh_token_not_found", "Refresh Token Not Found"
    USER_NOT_FOUND = "user_not_found", "User Not Found"
    BANNED = "user_banned", "User Banned"
    NO_SESSION = "session_not_found", "No Valid Session Found"
    EXPIRED = "session_expired", "Session Expired"
    INACTIVE = "session_expired", "Session Expired (Inactivity)"
    LOW_AAL = "session_expired", "Session Expired (Low AAL: User Needs MFA Verification)"
    SUPERSEDED = "session_expired", "Session Expired (Revoked by Newer Login)"
    CLIENT_MISSING = "invalid_client", "Client authentication required for OAuth session"
    CLIENT_DIFFERS = "invalid_client", "Client does not match the session's OAuth client"
    CLIENT_UNASKED = (
        "invalid_client",
        "Client authentication not allowed for non-OAuth session",
    )
    AHEAD = "validation_failed", "Not Issued By This Server"
    ALREADY_USED = "refresh_token_already_used", "Already Used"

    @property
    def code(self) -> str:
        """GoTrue's ``error_code``; ``invalid_client`` is an OAuth ``error``."""
        return self.value[0]

    @property
    def message(self) -> str:
        """GoTrue's ``msg``; for ``invalid_client`` the ``error_description``."""
        plain = self is Refusal.MALFORMED or self.code == "invalid_client"
        return self.value[1] if plain else f"Invalid Refresh Token: {self.value[1]}"


@dataclass(frozen=True, slots=True)
class Alive:
    """Valid, and for ``remaining`` more if nothing happens; None for no limit of time.
    When exactly that much has passed it is still valid, and after that no more."""

    remaining: timedelta | None


def judge_user(session: AuthSession, now: datetime) -> Refusal | None:
    """What speaks against the user. GoTrue never asks for ``deleted_at``, because it
    deletes the sessions along with setting it; whoever sets it by hand means it too."""
    if not session.user_found:
        return Refusal.USER_NOT_FOUND
    if session.banned_until is not None and now < session.banned_until:
        return Refusal.BANNED
    return None if session.deleted_at is None else Refusal.USER_NOT_FOUND


def judge_session(
    session: AuthSession, rules: SupabaseRules, now: datetime | None = None
) -> Alive | Refusal:
    """Whether the session's own limits allow it, the first that has passed being the
    reason. ``now`` is the database's clock, ``session.read_at`` if not given."""
    now = now or session.read_at
    least: timedelta | None = None
    for refusal, start, length in _limits(session, rules):
        remaining = length - (now - start)  # no sum: it could leave the calendar
        if remaining < _ZERO:
            return refusal
        least = remaining if least is None else min(least, remaining)
    return Alive(least)


def _limits(
    session: AuthSession, rules: SupabaseRules
) -> Iterable[tuple[Refusal, datetime, timedelta]]:
    created = session.created_at or NEVER
    if session.not_after is not None:
        yield Refusal.EXPIRED, session.not_after, _ZERO
    if rules.timebox is not None:
        yield Refusal.EXPIRED, created, rules.timebox
    if rules.inactivity is not None:
        yield Refusal.INACTIVE, session.last_refreshed_at, rules.inactivity
    low = (session.aal or AAL1) < session.highest_aal
    if rules.allow_low_aal is not None and low:
        yield Refusal.LOW_AAL, created, rules.allow_low_aal


def judge_rivals(
    session: AuthSession,
    others: Iterable[AuthSession],
    rules: SupabaseRules,
    now: datetime,
) -> Refusal | None:
    """Whether another valid session of the user, of the same tag, was refreshed later.

    ``others`` may contain the session itself. Always None without ``single_per_user``.
    """
    if not rules.single_per_user:
        return None
    mine = effective_tag(session.tag, rules.tags)
    for other in others:
        if other.id == session.id or effective_tag(other.tag, rules.tags) != mine:
            continue
        later = other.last_refreshed_at > session.last_refreshed_at
        if later and isinstance(judge_session(other, rules, now), Alive):
            return Refusal.SUPERSEDED
    return None


def effective_tag(tag: str | None, tags: tuple[str, ...]) -> str:
    """The tag a session counts for: the first one for whatever is not configured."""
    if not tags:
        return ""
    return tag if tag in tags else tags[0]


def access_token_ends(
    session: AuthSession, aal: str, rules: SupabaseRules, issued_at: datetime
) -> datetime:
    """When an access token issued now expires: earlier where the session's low level,
    ``aal`` as computed from how its user signed in, runs out first."""
    lasts = rules.access_token_ttl
    if rules.allow_low_aal is not None and aal < session.highest_aal:
        age = issued_at - (session.created_at or issued_at)
        lasts = min(lasts, rules.allow_low_aal - age)
    return issued_at + lasts
