"""What the parts of one engine share, and the one way of a row into the cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

from handstamp.config import Policy
from handstamp.core.lifetime import FINAL
from handstamp.core.models import Invalid, Record, Ticket
from handstamp.core.tokens import Tokens
from handstamp.engine.activity import ActivityBuffer, BindingTracker
from handstamp.engine.cache import (
    FOREVER,
    Cache,
    CacheEntry,
    NegativeCache,
    Read,
    make_entry,
)
from handstamp.engine.clocks import Clock, DatabaseClock
from handstamp.engine.connections import Connections
from handstamp.engine.dispatch import EventDispatcher
from handstamp.stores.base import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """One store, one policy, one cache, one clock: of one process."""

    store: Store
    tokens: Tokens
    policy: Policy
    clock: Clock
    database_clock: DatabaseClock
    cache: Cache
    dispatcher: EventDispatcher
    negative_cache: NegativeCache = field(default_factory=NegativeCache)
    activity: ActivityBuffer = field(default_factory=ActivityBuffer)
    bindings: BindingTracker = field(default_factory=BindingTracker)
    connections: Connections = field(default_factory=Connections)

    def reset_after_fork(self) -> None:
        """Forget everything in a forked child; the table has it."""
        self.cache.reset_after_fork()
        self.negative_cache.reset_after_fork()
        self.activity.reset_after_fork()
        self.bindings.reset_after_fork()
        self.connections.reset_after_fork()

    def pending_activity(self, record: Record) -> datetime | None:
        """Return the time of activity that is not written to this row yet, or None."""
        return self.activity.pending(record.id, record.token_digest)

    def cache_record(
        self,
        record: Record,
        key: bytes,
        ticket: Ticket,
        read: Read,
        *,
        claim: str | None = None,
        until: float = FOREVER,
        margin: float = 0.0,
    ) -> CacheEntry | Invalid:
        """Judge a row that was just read or written; return its cache entry, or why it is
        invalid. A valid one is cached, unless it was invalidated since the ``ticket``.

        ``key`` is the digest of the token by which requests will find it, ``claim`` the
        claim of that token. The entry ends at ``until`` at the latest, and is read again
        ``margin`` seconds before its own end.
        """
        self.database_clock.update(record.read_at, read.after)
        if claim is not None:
            record = replace(record, claim=claim)
        pending, known = self.pending_activity(record), self.cache.get_any(key)
        entry = make_entry(record, self.policy, key, read, known, pending)
        if isinstance(entry, Invalid):
            self.cache.drop(key)
            if entry.reason in FINAL:
                self.negative_cache.add(key, read.after, entry.reason)
            return entry
        entry.hard = min(entry.hard, until)
        entry.deadline = min(entry.deadline, entry.hard - margin)
        self.negative_cache.remove(key)
        self.cache.put(ticket, entry)
        return entry
