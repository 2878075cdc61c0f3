"""The nouns of Supabase Auth: a session, its user, how the user signed in, a v1 token.

Every rule about a session of Supabase Auth (GoTrue), and nowhere else.

A session lives while its row exists, plus what is judged here. The settings are GoTrue's
own, under names of ours: give both servers the same values, for both write one table.

Rule 1. Times are the database's: a session carries its clock at the read.
Rule 2. A limit has passed when the time is strictly after it: at the very instant the
session is still valid. (A ban is over at its instant.)
Rule 3. A failed judgement changes nothing: an expired session stays in its table.
Rule 4. What is refused is refused in GoTrue's words, code and message.

Every rule about refresh tokens of Supabase Auth (GoTrue), and nowhere else.

A v1 token is a row with a parent; a v2 token is a signed counter.

    v1, not revoked                                             -> Swap
    v1, revoked, the parent of the active token                 -> HandOut, at any age
    v1, revoked, within the reuse interval of its last use       -> Swap (it forks)
    v1, revoked, and the interval is over                       -> Misused
    v2, the session's counter                                   -> Count, one more
    v2, one behind                                              -> Count, the same, always
    v2, further behind, within the interval or always allowed   -> Count, the same
    v2, further behind                                          -> Misused
    v2, ahead                                                   -> refused

Rule 1. Being one step behind is never theft by itself: it is a client that did not save
the last answer, and it gets the current token again.
Rule 2. A misuse ends something, if rotation is enabled: the v1 tokens of the session, which
stays, or the whole session of a v2 token. Nothing else that is refused writes anything.
Rule 3. The reuse interval of v1 counts from the token's own last use and includes its end;
that of v2 counts from the session's last refresh, in both directions, and excludes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Literal

from handstamp.errors import ConfigError

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


class Cause(Enum):
    """Why a token that is not the current one was accepted.

    The values of v2 are GoTrue's header ``sb-auth-refresh-token-reuse-cause``; for v1
    GoTrue tells nobody.
    """

    CONCURRENT = "concurrent-refresh"
    NOT_SAVED = "fail-to-save"
    ALWAYS_ALLOWED = "always-allow"
    PARENT = "parent-of-active"
    WITHIN_INTERVAL = "within-reuse-interval"


@dataclass(frozen=True, slots=True)
class Swap:
    """v1: revoke the presented token and mint a new one."""

    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True, slots=True)
class HandOut:
    """v1: answer with the active token, and write no token."""

    token: str = field(repr=False)
    causes: tuple[Cause, ...] = (Cause.PARENT,)


@dataclass(frozen=True, slots=True)
class Count:
    """v2: issue the token of ``counter``, which is written."""

    counter: int
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True, slots=True)
class Misused:
    """A token came again too late. With ``ends`` its family (v1) or session (v2) goes."""

    ends: bool


def judge_v1(
    token: StoredToken, active: StoredToken | None, rules: SupabaseRules, now: datetime
) -> Swap | HandOut | Misused:
    """What becomes of a v1 token; ``active`` is the session's not revoked token of the
    highest id."""
    if not token.revoked:
        return Swap()
    if active is not None and _is_parent(token, active):
        return HandOut(active.token)
    if now - (token.updated_at or NEVER) > rules.reuse_interval:
        return Misused(ends=rules.rotation_enabled)
    return Swap((Cause.WITHIN_INTERVAL,))


def _is_parent(token: StoredToken, active: StoredToken) -> bool:
    """Both texts come from the table: no time is told to anyone who guesses."""
    child, parent = active.parent, token.token
    return child == parent


def judge_v2(
    session: AuthSession, counter: int, rules: SupabaseRules, now: datetime
) -> Count | Misused | Refusal:
    """What becomes of a correctly signed v2 token of ``counter``. ``now`` is when the
    request came; the session has a counter."""
    assert session.counter is not None  # noqa: S101 - there is no signature without one
    behind = session.counter - counter
    if behind < 0:
        return Refusal.AHEAD
    if behind == 0:
        return Count(session.counter + 1)
    causes = _causes(session, behind, rules, now)
    if causes:
        return Count(session.counter, causes)
    return Misused(ends=rules.rotation_enabled)


def _causes(
    session: AuthSession, behind: int, rules: SupabaseRules, now: datetime
) -> tuple[Cause, ...]:
    concurrent = abs(now - session.last_refreshed_at) < rules.reuse_interval
    found = (
        (Cause.CONCURRENT, concurrent),
        (Cause.NOT_SAVED, behind == 1),
        (Cause.ALWAYS_ALLOWED, rules.allow_reuse),
    )
    return tuple(cause for cause, applies in found if applies)


def judge_client(session: AuthSession, oauth_client_id: str | None) -> Refusal | None:
    """Whether the OAuth client that asks is the one the session belongs to."""
    if session.oauth_client_id is None:
        return Refusal.CLIENT_UNASKED if oauth_client_id is not None else None
    if oauth_client_id is None:
        return Refusal.CLIENT_MISSING
    same = session.oauth_client_id == oauth_client_id
    return None if same else Refusal.CLIENT_DIFFERS
