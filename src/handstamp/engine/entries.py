"""From a row to a cache entry: where database time becomes time on our clock.

``before`` and ``after`` are readings of our clock around the query. What is left of a
life is counted from ``before``, so an entry ends early by a round trip, never late.
Activity is dated from ``after``, so it lies behind the database's clock by a round trip,
never ahead: use of an old token is never dated after the rotation that replaced it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from handstamp.config import Policy
from handstamp.core.lifetime import Invalid, Valid, judge
from handstamp.core.records import Record, Session
from handstamp.core.rotation import was_seen
from handstamp.engine.cache import NEVER, Entry


@dataclass(frozen=True, slots=True)
class Read:
    """When, on our clock, a query was made and answered."""

    before: float
    after: float


def make_entry(
    record: Record,
    policy: Policy,
    key: bytes,
    read: Read,
    known: Entry | None = None,
    noted: datetime | None = None,
) -> Entry | Invalid:
    """Judge a fresh record and put the verdict into seconds.

    ``known`` is the entry that this one replaces, ``noted`` the time of activity that is
    not written yet: both count before an idle limit denies.
    """
    verdict = judge(record, policy, active_at=_active_at(record, known, noted))
    if isinstance(verdict, Invalid):
        return verdict
    hard = read.before + verdict.remaining.total_seconds()
    # Without a refresh token there is no predecessor for which it could matter.
    seen = record.refresh_digest is None or was_seen(record, policy.session_ttl)
    entry = Entry(
        key=key,
        digest=record.token_digest,
        session=Session.of(record),
        hard=hard,
        deadline=_deadline(verdict, read.before, hard),
        confirmed=read.before + policy.max_staleness.total_seconds(),
        read=read.after,
        read_at=record.read_at,
        touched=_touched(record, read.after) if seen else NEVER,
        used=NEVER,
        seen=seen,
    )
    if known is not None:
        entry.touched = max(entry.touched, known.touched)
        entry.used = known.used
        entry.seen = entry.seen or known.seen
    return entry


def _deadline(verdict: Valid, before: float, hard: float) -> float:
    if verdict.idle_remaining is None:
        return hard
    return min(hard, before + verdict.idle_remaining.total_seconds())


def _touched(record: Record, after: float) -> float:
    if record.last_activity_at is None:
        return NEVER
    return after - (record.read_at - record.last_activity_at).total_seconds()


def _active_at(
    record: Record, known: Entry | None, noted: datetime | None
) -> datetime | None:
    """Activity that the row does not know of yet."""
    if known is None or known.used == NEVER:
        return noted
    used = min(known.database_time(known.used), record.read_at)
    return used if noted is None else max(used, noted)


def refresh_key(digest: bytes) -> bytes:
    """The cache key under which a refresh token vouches for passive requests: it can
    never be taken for a session token's."""
    return digest + b"r"


def outlived(record: Record) -> Record:
    """The record as a passive request sees it: judged by its family alone, for the
    refresh token stands in for a session token that has expired."""
    return replace(record, expires_at=record.refresh_expires_at or record.expires_at)
