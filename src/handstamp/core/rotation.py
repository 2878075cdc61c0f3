"""How a refresh token is judged: every rule about it.

The token that is presented has passed the signature gate, and the record is the row
of the session it names. Three digests decide: the presented one, the row's, and those
of the presented one's successor (one for each key).

    presented is the row's own                                        -> Rotate
    its successor is the row's, within grace of the last rotation      -> Reissue
    its successor is the row's and was never seen                      -> Reissue, redate
    its successor is the row's, was seen, and grace is over            -> Replay
    neither, within grace of the last rotation                         -> Refuse (late)
    neither, and grace is over                                         -> Replay

Rule 1. A family that is not valid refuses every token, and nothing is written.
Rule 2. A rotation writes ``last_activity_at`` = the rotation and ``expires_at`` = the
rotation + ``session_ttl``, so the table needs no column for its date.
Rule 3. A successor was *seen* once something is recorded after the rotation. Only a client
that received it can cause that: it presents the new session token or the new refresh token,
by any request, or sends a frame over a WebSocket whose handshake carried them. So an unseen
successor means that the answer was lost, however long ago; the holder of the old token then
gets the very same successor again, and the rotation is dated anew so that grace counts from
the answer that arrived.
Rule 4. Being one step behind, unseen, is never theft by itself. Being behind after the
successor was seen and grace has passed can only be two holders of one family.
Rule 5. Rows outlive settings. A rotation leaves a whole number of seconds between
``last_activity_at`` and ``expires_at`` (the ``session_ttl`` it ran under), and stores
see to it that recorded activity never does (:func:`seen_at`); so a changed
``session_ttl`` does not make a lost answer look like theft.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from handstamp.config import Policy
from handstamp.core.lifetime import judge_family
from handstamp.core.models import Invalid, Reason, Record, shift
from handstamp.core.tokens import TokenPair

_STEP = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Rotate:
    """Replace both tokens by ``pair``."""

    pair: TokenPair = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reissue:
    """Send the current ``pair`` again; with ``redate``, date the rotation to now."""

    pair: TokenPair = field(repr=False)
    rotated_at: datetime
    redate: bool


@dataclass(frozen=True, slots=True)
class Replay:
    """Two parties hold tokens of this family: revoke it and report both."""

    steps_behind_one: bool


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not accepted, and nothing is written."""

    reason: Reason


RefreshVerdict = Rotate | Reissue | Replay | Refuse


def judge_refresh(
    record: Record,
    presented: str,
    successors: Iterable[TokenPair],
    policy: Policy,
    *,
    active_at: datetime | None = None,
) -> RefreshVerdict:
    """Return what to do about a genuine refresh token, by the table above.

    ``presented`` is the digest of the token as sent; ``successors`` are what it leads
    to, newest key first, and are derived only as far as they are needed. ``active_at`` is
    the time of activity that is not written yet: it counts for an idle limit only.
    """
    family = judge_family(record, policy, active_at=active_at)
    if isinstance(family, Invalid):
        return Refuse(family.reason)
    if record.refresh_digest is None or record.refresh_expires_at is None:
        return Refuse(Reason.NOT_FOUND)
    pairs = iter(successors)
    if presented == record.refresh_digest:
        return Rotate(next(pairs))
    current = next((p for p in pairs if p.refresh_digest == record.refresh_digest), None)
    if current is not None:
        return _judge_predecessor(record, current, policy)
    if _in_grace(record, policy):
        return Refuse(Reason.LATE)
    return Replay(steps_behind_one=False)


def _judge_predecessor(
    record: Record, current: TokenPair, policy: Policy
) -> RefreshVerdict:
    rotated = rotated_at(record, policy.session_ttl)
    if _in_grace(record, policy):
        return Reissue(current, rotated, redate=False)
    if not was_seen(record, policy.session_ttl):
        return Reissue(current, rotated, redate=True)
    return Replay(steps_behind_one=True)


def rotated_at(record: Record, session_ttl: timedelta) -> datetime:
    """When the row's tokens were made: at the last rotation, or at the login."""
    if _has_rotation_mark(record):
        assert record.last_activity_at is not None  # noqa: S101 - for the type checker
        return record.last_activity_at
    return shift(record.expires_at, -session_ttl)


def was_seen(record: Record, session_ttl: timedelta) -> bool:
    """Whether the row's current tokens were presented since they were made (rule 3)."""
    if record.last_activity_at is None or _has_rotation_mark(record):
        return False
    return record.last_activity_at > shift(record.expires_at, -session_ttl)


def seen_at(at: datetime | None, record: Record, session_ttl: timedelta) -> datetime:
    """How activity at ``at`` is written down: after the rotation, whatever the clocks
    say, and never a whole number of seconds before ``expires_at`` (rule 5).

    None means a passive first use: the smallest step after the rotation. A rotation that
    a changed ``session_ttl`` makes look like one to come counts as one of now, nearly.
    Stores do the same in SQL.
    """
    latest = shift(record.read_at, timedelta(minutes=1))
    first = shift(min(shift(record.expires_at, -session_ttl), latest), _STEP)
    if at is None and record.last_activity_at and _has_rotation_mark(record):
        first = max(first, shift(record.last_activity_at, _STEP))
    stamp = first if at is None else max(at, first)
    whole = not (record.expires_at - stamp) % timedelta(seconds=1)
    return shift(stamp, _STEP) if whole else stamp


def _has_rotation_mark(record: Record) -> bool:
    if record.last_activity_at is None:
        return False
    apart = record.expires_at - record.last_activity_at
    return apart > timedelta(0) and not apart % timedelta(seconds=1)


def _in_grace(record: Record, policy: Policy) -> bool:
    return record.read_at - rotated_at(record, policy.session_ttl) <= policy.grace
