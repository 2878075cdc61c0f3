"""How long a session lives: every rule about it.

Rule 1. Times are the database's: a record carries its clock at the read, and nothing
here reads another one. Sums stop at the first and last date (:mod:`handstamp.core.models`),
so that no record raises, whatever its row holds.
Rule 2. A family (a session and all tokens it will ever have) is valid while it is not
revoked, its user may sign in, and no limit of its own has passed: the absolute limit
counted from the creation, the refresh limit, the idle limit. A row that should have a date
of creation and has none is not valid, because no limit can be counted.
Rule 3. A token is valid while its family is valid and its own expiry has not passed. A
session token never outlives the refresh limit, because the life of a session that is not
remembered ends there.
Rule 4. A limit has passed at the very instant that it names.
Rule 5. ``locked_until`` is no rule here: it refuses new logins only. If it ended
sessions, anyone could sign a user out by failing logins.
Rule 6. Where nothing rotates, activity moves ``expires_at`` to ``refresh_ttl`` ahead, but
never past the absolute limit. A session that is not remembered starts with an expiry no
further than ``browser_ttl`` from its creation, and never gets past that either. So the
expiry shows which of the two a session is, and the table needs no column for it.
Rule 7. A refused session may become valid again: a login and a logout end such a session.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from handstamp.config import Policy
from handstamp.core.models import Invalid, Reason, Record, Valid, shift

_ROUNDING = timedelta(seconds=1)
"""How far two columns with different fractions of a second may be apart."""


FINAL = frozenset(
    {
        Reason.NOT_FOUND,
        Reason.REVOKED,
        Reason.USER_DISABLED,
        Reason.PASSWORD_CHANGED,
        Reason.ABSOLUTE,
        Reason.REFRESH_EXPIRED,
        Reason.REPLAYED,
    }
)
"""Reasons that nothing a client does can change. An expired token may be dated anew with
its successor, and an idle session may have been active in another process."""
_FOR_GOOD = frozenset(
    {Reason.REVOKED, Reason.EXPIRED, Reason.REFRESH_EXPIRED, Reason.ABSOLUTE}
)
"""Reasons of a family that nothing at all can change (rule 7)."""


def judge(
    record: Record, policy: Policy, *, active_at: datetime | None = None
) -> Valid | Invalid:
    """Whether the record's session token is valid at ``record.read_at`` (rule 3).

    ``active_at`` is the time of activity that is not written to the row yet.
    """
    family = judge_family(record, policy, active_at=active_at)
    if isinstance(family, Invalid):
        return family
    if record.slides:
        return family
    remaining = min(family.remaining, record.expires_at - record.read_at)
    if remaining <= timedelta(0):
        return Invalid(Reason.EXPIRED)
    return Valid(remaining, family.idle_remaining)


def judge_family(
    record: Record, policy: Policy, *, active_at: datetime | None = None
) -> Valid | Invalid:
    """Whether the session is valid, whatever its current token is (rule 2).

    ``active_at`` is the time of activity that is not written to the row yet.
    """
    dead = _ended(record, policy)
    if dead is not None:
        return Invalid(dead)
    limits = dict(_limits(record, policy, active_at))
    reason = min(limits, key=limits.__getitem__)
    remaining = limits[reason] - record.read_at
    if remaining <= timedelta(0):
        return Invalid(reason)
    idle = limits.get(Reason.IDLE)
    return Valid(remaining, None if idle is None else idle - record.read_at)


def may_be_alive(
    record: Record, policy: Policy, *, active_at: datetime | None = None
) -> bool:
    """Whether the session is valid, or may become valid again: its user may be enabled,
    another process may have its activity, the policy may change (rule 7)."""
    family = judge_family(record, policy, active_at=active_at)
    return not isinstance(family, Invalid) or family.reason not in _FOR_GOOD


def _ended(record: Record, policy: Policy) -> Reason | None:
    if not record.is_active or record.revoked_at is not None:
        return Reason.REVOKED
    if not record.user_is_active:
        return Reason.USER_DISABLED
    created, changed = record.created_at, record.password_changed_at
    if created is None:
        return None if record.undated else Reason.ABSOLUTE
    if policy.end_on_password_change and changed and changed > created:
        return Reason.PASSWORD_CHANGED
    return None


def _limits(
    record: Record, policy: Policy, active_at: datetime | None
) -> list[tuple[Reason, datetime]]:
    if record.unlimited:
        return [(Reason.EXPIRED, record.expires_at)]
    created = record.created_at or record.read_at
    limits = [(Reason.ABSOLUTE, shift(created, policy.absolute_ttl))]
    if record.refresh_digest is None or record.refresh_expires_at is None:
        limits.append((Reason.EXPIRED, sliding_expiry(record, policy, active_at)))
    else:
        limits.append((Reason.REFRESH_EXPIRED, record.refresh_expires_at))
    if policy.idle_ttl is not None:
        active = max(created, record.last_activity_at or created, active_at or created)
        limits.append((Reason.IDLE, shift(active, policy.idle_ttl)))
    return limits


def sliding_expiry(record: Record, policy: Policy, active_at: datetime | None) -> datetime:
    """Return ``expires_at`` after activity at ``active_at`` is written (rule 6).

    Stores do the same in SQL.
    """
    created, ends = record.created_at, record.expires_at
    if not record.slides or created is None or active_at is None or active_at >= ends:
        return ends
    limit = shift(created, policy.lifetime(remember=is_remembered(record, policy)))
    return max(ends, min(shift(active_at, policy.refresh_ttl), limit))


def is_remembered(record: Record, policy: Policy) -> bool:
    """Whether a session outlives its browser, as far as its row tells (rule 6).

    A refresh token that tells it counts before. False where the table does not keep
    when a session was created: a cookie that is too short-lived does no harm.
    """
    if record.created_at is None:
        return False
    ends = record.expires_at
    if record.refresh_digest is not None and record.refresh_expires_at is not None:
        ends = record.refresh_expires_at
    return ends > shift(record.created_at, policy.browser_ttl + _ROUNDING)
