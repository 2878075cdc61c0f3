"""The rules of GoTrue for sessions and refresh tokens, as pure functions.

First the data: a session, its user, the methods of sign-in, a v1 token. Then the settings,
which are GoTrue's own under other names: give both servers the same values, because both
write the same tables. Then the judgements.

Rule 1. Times are the database's: a session carries the database's clock at the read.
Rule 2. A limit has passed when the time is strictly after it: at the very instant the
session is still valid. (A ban is over at its instant.)
Rule 3. A refused judgement writes nothing, except for a misused refresh token: with
rotation enabled, a misused v1 token ends the v1 tokens of its session and the session
stays; a misused v2 token ends its session.
Rule 4. A refresh token that is one step behind is never misuse by itself: its client did
not save the last response, and gets the current token again.
Rule 5. The reuse interval of v1 starts at the last use of the token and includes its end.
That of v2 starts at the last refresh of the session, in both directions, and excludes its
end.

A v1 token is a row with a parent; a v2 token is a signed counter.

    v1, not revoked                                             -> Swap
    v1, revoked, the parent of the active token                 -> HandOut, at any age
    v1, revoked, within the reuse interval of its last use      -> Swap (a second branch)
    v1, revoked, and the interval is over                       -> Misused
    v2, the session's counter                                   -> Count, one more
    v2, one behind                                              -> Count, the same, always
    v2, further behind, within the interval or always allowed   -> Count, the same
    v2, further behind                                          -> Misused
    v2, ahead                                                   -> refused
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any, Literal

from handstamp.errors import ConfigError

AAL1, AAL2 = "aal1", "aal2"
NEVER = datetime.min.replace(tzinfo=UTC)
"""Replaces a NULL in a column that GoTrue always writes but that may be NULL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSession:
    """One row of ``auth.sessions``, the columns of its user that its validity depends on,
    and the database's clock at the read (``read_at``).

    All times are aware, also ``refreshed_at``, whose column has no time zone.
    ``token_updated_at`` is the time of a v1 refresh token of the session, where one was
    read with it. It replaces a ``refreshed_at`` that was never written.
    """

    id: str
    user_id: str
    created_at: datetime | None
    read_at: datetime
    aal: str | None = None
    not_after: datetime | None = None
    refreshed_at: datetime | None = None
    token_updated_at: datetime | None = None
    user_agent: str | None = field(default=None, repr=False)
    address: str | None = field(default=None, repr=False)
    tag: str | None = None
    oauth_client_id: str | None = None
    key: str | None = field(default=None, repr=False)
    """``refresh_token_hmac_key`` as stored; read for a refresh only."""
    counter: int | None = None
    user_found: bool = True
    """Whether GoTrue would find the user. It finds users of instance zero only."""
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
    """One method by which the user of the session signed in, and the last time of it."""

    method: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthUser:
    """A row of ``auth.users``, without its secrets: what an access token holds of a user.

    ``email`` and ``phone`` are "" where the row has NULL, as in GoTrue.
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
    """GoTrue's settings for sessions.

    Each field names the setting whose value it must have (without ``GOTRUE_``). Raises
    :class:`ConfigError` on construction for values with which GoTrue does not start either.
    """

    timebox: timedelta | None = None
    """``SESSIONS_TIMEBOX``: the longest life of a session, from its creation."""
    inactivity: timedelta | None = None
    """``SESSIONS_INACTIVITY_TIMEOUT``: the longest time between two refreshes."""
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
    """``SECURITY_REFRESH_TOKEN_ALLOW_REUSE``: a v2 token is accepted at any age."""
    algorithm_version: Literal[0, 1, 2] = 0
    """``SECURITY_REFRESH_TOKEN_ALGORITHM_VERSION``: 2 for v2 tokens in new sessions, 0
    and 1 for v1. Both kinds are always accepted."""
    upgrade: Literal[0, 100] = 0
    """``SECURITY_REFRESH_TOKEN_UPGRADE_PERCENTAGE``: whether v1 sessions become v2 ones
    at their next refresh. Only GoTrue can apply the percentages between."""
    access_token_ttl: timedelta = timedelta(hours=1)
    """``JWT_EXP``: lifetime of an access token, whole seconds."""
    audit: bool = True
    """The opposite of ``AUDIT_LOG_DISABLE_POSTGRES``: write ``auth.audit_log_entries``."""
    retry_budget: timedelta = timedelta(seconds=5)
    """How long a refresh tries again while other transactions hold the locks it needs.
    GoTrue has no setting for its own five seconds."""

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
    """Why a session is not valid, or a refresh token is not accepted."""

    MALFORMED = auto()
    """The text is no refresh token of either kind."""
    NOT_FOUND = auto()
    """No such token, or no such session, or the user is gone."""
    USER_NOT_FOUND = auto()
    BANNED = auto()
    NO_SESSION = auto()
    """A v1 token of the time before sessions."""
    EXPIRED = auto()
    """``not_after`` or the timebox has passed."""
    INACTIVE = auto()
    LOW_AAL = auto()
    SUPERSEDED = auto()
    """Another session of the user was refreshed later, with ``single_per_user``."""
    OAUTH_CLIENT = auto()
    """A session of an OAuth client, which must authenticate itself at GoTrue to refresh."""
    AHEAD = auto()
    """A v2 token with a counter that was never issued."""
    ALREADY_USED = auto()


@dataclass(frozen=True, slots=True)
class Alive:
    """Valid, and without a refresh for ``remaining`` more; None if no limit applies. When
    exactly that much time has passed, the session is still valid (rule 2)."""

    remaining: timedelta | None


def judge_user(session: AuthSession, now: datetime) -> Refusal | None:
    """Returns why the user may have no session, or None if the user may.

    GoTrue does not read ``deleted_at`` here, because it deletes the sessions when it sets
    the column. It may also be set by hand, so it counts here.
    """
    if not session.user_found:
        return Refusal.USER_NOT_FOUND
    if session.banned_until is not None and now < session.banned_until:
        return Refusal.BANNED
    return None if session.deleted_at is None else Refusal.USER_NOT_FOUND


def judge_session(
    session: AuthSession, rules: SupabaseRules, now: datetime | None = None
) -> Alive | Refusal:
    """Judges the session's own limits. Returns the first limit that has passed.

    ``now`` is the database's clock; ``session.read_at`` if not given.
    """
    now = now or session.read_at
    least: timedelta | None = None
    for refusal, start, length in _limits(session, rules):
        remaining = length - (now - start)  # a sum could exceed the largest datetime
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
    """Returns SUPERSEDED if another valid session of the user, with the same tag, was
    refreshed later, otherwise None. Always None without ``single_per_user``.

    ``others`` may contain the session itself.
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
    """Returns the session's tag, or the first configured tag if its own is not
    configured."""
    if not tags:
        return ""
    return tag if tag in tags else tags[0]


def access_token_ends(
    session: AuthSession, aal: str, rules: SupabaseRules, issued_at: datetime
) -> datetime:
    """Returns when an access token that is issued now expires.

    ``aal`` is computed from the methods of sign-in. A session of a low level expires
    earlier where ``allow_low_aal`` ends first.
    """
    lasts = rules.access_token_ttl
    if rules.allow_low_aal is not None and aal < session.highest_aal:
        age = issued_at - (session.created_at or issued_at)
        lasts = min(lasts, rules.allow_low_aal - age)
    return issued_at + lasts


@dataclass(frozen=True, slots=True)
class Swap:
    """v1: revoke the presented token and mint a new one."""

    reused: bool = False
    """Whether the presented token was not the current one."""


@dataclass(frozen=True, slots=True)
class HandOut:
    """v1: answer with the active token again, and write no token."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Count:
    """v2: write ``counter`` and issue its token."""

    counter: int
    reused: bool = False
    """Whether the presented token was not the current one."""


@dataclass(frozen=True, slots=True)
class Misused:
    """A token was used again too late. ``ends`` says whether the v1 tokens of its session,
    or the session of a v2 token, end."""

    ends: bool


def judge_v1(
    token: StoredToken, active: StoredToken | None, rules: SupabaseRules, now: datetime
) -> Swap | HandOut | Misused:
    """Judges a v1 token. ``active`` is the token of the session that is not revoked and has
    the highest id."""
    if not token.revoked:
        return Swap()
    if active is not None and _is_parent(token, active):
        return HandOut(active.token)
    if now - (token.updated_at or NEVER) > rules.reuse_interval:
        return Misused(ends=rules.rotation_enabled)
    return Swap(reused=True)


def _is_parent(token: StoredToken, active: StoredToken) -> bool:
    """Both texts come from the table, so the comparison need not take constant time."""
    child, parent = active.parent, token.token
    return child == parent


def judge_v2(
    session: AuthSession, counter: int, rules: SupabaseRules, now: datetime
) -> Count | Misused | Refusal:
    """Judges a v2 token of ``counter`` whose signature is correct. ``now`` is when the
    request came; the session has a counter."""
    assert session.counter is not None  # noqa: S101 - there is no signature without one
    behind = session.counter - counter
    if behind < 0:
        return Refusal.AHEAD
    if behind == 0:
        return Count(session.counter + 1)
    concurrent = abs(now - session.last_refreshed_at) < rules.reuse_interval
    if behind == 1 or concurrent or rules.allow_reuse:
        return Count(session.counter, reused=True)
    return Misused(ends=rules.rotation_enabled)
