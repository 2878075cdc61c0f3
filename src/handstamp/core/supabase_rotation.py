"""Every rule about refresh tokens of Supabase Auth (GoTrue), and nowhere else.

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

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from handstamp.core.supabase_records import NEVER, AuthSession, StoredToken
from handstamp.core.supabase_rules import Refusal, SupabaseRules


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
