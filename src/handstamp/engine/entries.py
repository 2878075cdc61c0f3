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
    verdict = judge(_with_activity(record, known, noted), policy)
    if isinstance(verdict, Invalid):
        return verdict
    hard = read.before + verdict.remaining.total_seconds()
    entry = Entry(
        key=key,
        digest=record.token_digest,
        session=Session.of(record),
        hard=hard,
        deadline=_deadline(verdict, read.before, hard),
        confirmed=read.before + policy.max_staleness.total_seconds(),
        read=read.after,
        read_at=record.read_at,
        touched=_touched(record, policy, read.after),
        used=NEVER,
        seen=was_seen(record, policy.session_ttl),
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


def _touched(record: Record, policy: Policy, after: float) -> float:
    if record.last_activity_at is None or not was_seen(record, policy.session_ttl):
        return NEVER
    return after - (record.read_at - record.last_activity_at).total_seconds()


def _with_activity(record: Record, known: Entry | None, noted: datetime | None) -> Record:
    times = [t for t in (record.last_activity_at, noted) if t is not None]
    if known is not None and known.used != NEVER:
        times.append(min(known.database_time(known.used), record.read_at))
    return replace(record, last_activity_at=max(times, default=None))


def refresh_key(digest: bytes) -> bytes:
    """The cache key under which a refresh token vouches for passive requests: it can
    never be taken for a session token's."""
    return digest + b"r"


def outlived(record: Record) -> Record:
    """The record as a passive request sees it: judged by its family alone, for the
    refresh token stands in for a session token that has expired."""
    return replace(record, expires_at=record.refresh_expires_at or record.expires_at)
