"""From a row to a cache entry: where database time becomes time on our clock.

``before`` and ``after`` are readings of our clock around the query. What is left of a
life is counted from ``before``, so an entry ends early by a round trip, never late.
Activity is dated from ``after``, so it lies behind the database's clock by a round trip,
never ahead: use of an old token is never dated after the rotation that replaced it.

However long notifications are trusted, an entry is read again within ``longest_trust``: a
trigger can miss a change. That is a reason to ask and no limit of the session, so it does
not shorten what may be believed while there is nobody to ask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from handstamp.config import Policy
from handstamp.core.lifetime import Invalid, Valid, judge
from handstamp.core.records import Record, Session
from handstamp.core.rotation import was_seen
from handstamp.engine.cache import FOREVER, NEVER, Entry


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
    idle = _idle_limit(verdict, read.before)
    # Without a refresh token there is no predecessor for which it could matter.
    seen = record.refresh_digest is None or was_seen(record, policy.session_ttl)
    entry = Entry(
        key=key,
        digest=record.token_digest,
        session=Session.of(record),
        hard=hard,
        idle=idle,
        deadline=min(hard, idle, read.before + trusted_for(key, policy)),
        confirmed=read.before + policy.max_staleness.total_seconds(),
        read=read.after,
        read_at=record.read_at,
        touched=_touched(record, read.after) if seen else NEVER,
        used=NEVER,
        seen=seen,
        signed_in=record.client,
    )
    if known is not None:
        entry.touched = max(entry.touched, known.touched)
        entry.used = known.used
        entry.seen = entry.seen or known.seen
        entry.observed, entry.client_key = known.observed, known.client_key
    return entry


def _idle_limit(verdict: Valid, before: float) -> float:
    if verdict.idle_remaining is None:
        return FOREVER
    return before + verdict.idle_remaining.total_seconds()


def trusted_for(key: bytes, policy: Policy) -> float:
    """Seconds for which notifications are trusted in place of another read: at most
    ``longest_trust``, at least half of it, and never less than ``max_staleness``.

    ``key`` is a digest, whose first bytes decide where in between: so sessions that were
    read together are not read again together.
    """
    longest = policy.longest_trust.total_seconds()
    shortest = max(longest / 2, policy.max_staleness.total_seconds())
    return shortest + (longest - shortest) * (int.from_bytes(key[:2]) / 0xFFFF)


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
