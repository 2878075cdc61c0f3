"""Activity: noted in a dict, written in batches.

One UPDATE a flush, whatever the number of requests; the newest time per session and
token counts. A batch that could not be written goes back, under whatever was noted since.
The collection is bounded: beyond that the oldest go first, and are counted.

Pruning: rows that died long enough ago leave the table, a small batch at a time.

Dead is what the lifetime rules call invalid for good, and nothing else: a session whose
token has expired but whose refresh token stands is alive, however long its owner is away.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from threading import Lock

from handstamp.config import Policy
from handstamp.core.models import Touch
from handstamp.engine.cache import CacheEntry
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Store, recording

logger = logging.getLogger("handstamp")

STOP_TIMEOUT = 2.0
"""Seconds that a graceful stop may spend on the last flush."""

Key = tuple[str, str]


class ActivityBuffer:
    """The touches that are not written yet.

    ``notice`` may be called from any thread; ``flush`` belongs to the event loop.
    """

    def __init__(self, *, most: int = 100_000) -> None:
        self._most = most
        self._lock = Lock()
        self._pending: dict[Key, Touch] = {}
        self.dropped = 0
        self.written = 0
        self.flushes = 0

    def __len__(self) -> int:
        return len(self._pending)

    def reset_after_fork(self) -> None:
        """Forget everything, in a forked child: its parent writes it."""
        self._lock = Lock()
        self._pending = {}

    def notice(self, entry: CacheEntry, now: float) -> None:
        """This session was active at ``now``."""
        entry.touched = now
        entry.seen = True
        self._keep(entry.session.id, entry.digest, entry.database_time(now))

    def notice_seen(self, entry: CacheEntry, now: float) -> None:
        """A passive request was the first to use this token: seen, and no more."""
        entry.seen = True
        self.mark_seen(entry.session.id, entry.digest)

    def mark_seen(self, session_id: str, digest: str) -> None:
        """The client has the tokens of the session token with this digest. That is no
        activity."""
        self._keep(session_id, digest, None)

    def noted(self, session_id: str, digest: str) -> datetime | None:
        """Activity of this session that the table does not know of yet."""
        touch = self._pending.get((session_id, digest))
        return None if touch is None else touch.at

    def _keep(self, session_id: str, digest: str, at: datetime | None) -> None:
        key = session_id, digest
        touch = Touch(session_id=session_id, token_digest=digest, at=at)
        with self._lock:
            known = self._pending.pop(key, None)  # and to the end: the oldest go first
            self._pending[key] = _newer(known, touch)
            self._shed()

    def _shed(self) -> None:
        while len(self._pending) > self._most:
            del self._pending[next(iter(self._pending))]
            self.dropped += 1

    async def flush(self, store: Store, policy: Policy) -> int:
        """Write everything noted so far, in one statement; how many rows moved. A table
        without a place for activity gets nothing.

        Raises :class:`SessionsUnavailable`; the batch is then kept for the next time.
        """
        batch = self._take()
        if not batch:
            return 0
        try:
            table = await recording(store)
            moved = 0 if table is None else await table.touch(list(batch.values()), policy)
        except BaseException:
            self._put_back(batch)
            raise
        self.flushes += 1
        self.written += moved
        return moved

    async def keep_flushing(self, store: Store, policy: Policy) -> None:
        """Flush every ``policy.flush_every``, until cancelled."""
        while True:
            await asyncio.sleep(policy.flush_every.total_seconds())
            try:
                await self.flush(store, policy)
            except SessionsUnavailable as exc:
                logger.warning(
                    "activity kept for the next flush: %s",
                    exc.cause,
                    extra={"action": "flush_failed"},
                )
            except Exception:
                # If this task ended, no activity would ever be written again.
                logger.exception("a flush failed", extra={"action": "flush_failed"})

    async def flush_before_stop(self, store: Store, policy: Policy) -> None:
        """Flush within ``STOP_TIMEOUT``; what cannot be written is counted in the log."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self.flush(store, policy)
        except (SessionsUnavailable, TimeoutError):
            logger.warning(
                "%d touches could not be written",
                len(self),
                extra={"action": "touches_lost"},
            )

    def _take(self) -> dict[Key, Touch]:
        with self._lock:
            batch, self._pending = self._pending, {}
        return batch

    def _put_back(self, batch: dict[Key, Touch]) -> None:
        with self._lock:
            for key, touch in self._pending.items():
                batch[key] = _newer(batch.pop(key, None), touch)
            self._pending = batch
            self._shed()


def _newer(one: Touch | None, other: Touch) -> Touch:
    """Whichever says more: a later time, or any time rather than "seen" alone."""
    if one is None or one.at is None:
        return other
    return other if other.at is not None and other.at >= one.at else one


BATCH = 500


async def prune_in_batches(store: Store, policy: Policy, *, batch: int = BATCH) -> int:
    """Delete every row dead for longer than ``policy.retention``; how many there were.

    Each batch is a transaction of its own and skips rows that others hold, so logins and
    flushes never wait for it. Raises :class:`SessionsUnavailable`.
    """
    total = 0
    while True:
        deleted = await store.prune(policy, batch=batch)
        total += deleted
        if deleted < batch:
            return total
