"""What the use of a session is recorded as: its activity, and a changed client.

ActivityBuffer: the times of use, which are written in batches.

Rule 1. Use is collected in a dict: the newest time for each session and token. A flush
writes all of it with one UPDATE, for any number of requests.
Rule 2. A batch that could not be written is put back. What was collected meanwhile is newer
and wins.
Rule 3. The buffer is bounded. The oldest touches are dropped first, and counted.

BindingTracker: sessions that are used from another network or browser than they were
opened from.

Rule 4. Each change is reported once, and denies nothing. A cached session is compared with
a request at most once a second: to compare every request would cost more than all other
work of a hit. Requests within that second are not compared.
Rule 5. Networks are compared, as logs show them. What the row does not hold is not
compared: a table may have no user agent, or only its beginning.
Rule 6. Only sessions whose client has changed are kept, so that a change is reported once
in a process, whatever tokens the session gets. They are few. The oldest are dropped first;
the change of a dropped one is reported again.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from threading import Lock
from typing import Protocol

from handstamp.config import Policy
from handstamp.core.models import Client, Session, Touch, mask_address
from handstamp.engine.cache import CacheEntry
from handstamp.errors import SessionsUnavailable
from handstamp.events import BindingChanged, Event
from handstamp.stores.base import Store, recording

logger = logging.getLogger("handstamp")

MAX_TOUCHES = 100_000
OBSERVE_INTERVAL = 1.0
"""Seconds within which the client of a cached session is not compared again."""
MAX_CHANGED = 10_000
STOP_TIMEOUT = 2.0
"""Seconds that a graceful stop may spend on the last flush."""
_NO_AGENT = Client().user_agent_hash
_Key = tuple[str, str]


class ActivityBuffer:
    """The touches that are not written yet.

    ``flush`` belongs to the event loop. Every other method may be called from any thread.
    """

    def __init__(self, *, max_touches: int = MAX_TOUCHES) -> None:
        self._max_touches = max_touches
        self._lock = Lock()
        self._pending: dict[_Key, Touch] = {}
        self.dropped = 0
        self.written = 0
        self.flushes = 0

    def __len__(self) -> int:
        return len(self._pending)

    def reset_after_fork(self) -> None:
        """Forget everything, in a forked child: its parent writes it."""
        self._lock = Lock()
        self._pending = {}

    def touch(self, entry: CacheEntry, now: float) -> None:
        """Record that this session was active at ``now``."""
        entry.touched = now
        entry.seen = True
        self._add(entry.session.id, entry.digest, entry.database_time(now))

    def mark_seen(self, session_id: str, digest: str) -> None:
        """Record that the client has received this session token and its refresh token.
        That is no activity."""
        self._add(session_id, digest, None)

    def pending(self, session_id: str, digest: str) -> datetime | None:
        """Return the time of activity that is not written yet, or None."""
        touch = self._pending.get((session_id, digest))
        return None if touch is None else touch.at

    def _add(self, session_id: str, digest: str, at: datetime | None) -> None:
        key = session_id, digest
        touch = Touch(session_id=session_id, token_digest=digest, at=at)
        with self._lock:
            known = self._pending.pop(key, None)  # to the end: the oldest are dropped first
            self._pending[key] = _newer(known, touch)
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        while len(self._pending) > self._max_touches:
            del self._pending[next(iter(self._pending))]
            self.dropped += 1

    async def flush(self, store: Store, policy: Policy) -> int:
        """Write every pending touch with one statement; return how many rows changed.

        A table without a column for activity gets nothing. Raises
        :class:`SessionsUnavailable`; the touches are then kept for the next flush.
        """
        with self._lock:
            batch, self._pending = self._pending, {}
        if not batch:
            return 0
        try:
            table = await recording(store)
            changed = 0
            if table is not None:
                changed = await table.touch(list(batch.values()), policy)
        except BaseException:
            with self._lock:
                for key, touch in self._pending.items():
                    batch[key] = _newer(batch.pop(key, None), touch)
                self._pending = batch
                self._drop_oldest()
            raise
        self.flushes += 1
        self.written += changed
        return changed

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


def _newer(one: Touch | None, other: Touch) -> Touch:
    """Return the later touch; one with a time counts before one that is only "seen"."""
    if one is None or one.at is None:
        return other
    return other if other.at is not None and other.at >= one.at else one


class Requester(Protocol):
    """The client of a request; its properties are read only when they are needed."""

    @property
    def client(self) -> Client:
        """The client of the request."""
        ...

    def client_key(self) -> int:
        """Return the same number for requests of the same client, at little cost."""
        ...

    def report(self, event: Event) -> None:
        """Publish an event, from any thread."""
        ...


class BindingTracker:
    """The last client of each session whose client has changed. For any thread."""

    def __init__(self, *, max_changed: int = MAX_CHANGED) -> None:
        self._max_changed = max_changed
        self._lock = Lock()
        self._last: dict[str, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self._last)

    def reset_after_fork(self) -> None:
        """Forget everything, in a forked child."""
        self._lock = Lock()
        self._last = {}

    def observe(self, entry: CacheEntry, now: float, requester: Requester) -> None:
        """Compare the client of a request with the one that opened the session, at most
        once in ``OBSERVE_INTERVAL``, and report a change."""
        if now - entry.observed < OBSERVE_INTERVAL:
            return
        entry.observed = now
        key = requester.client_key()
        if key == entry.client_key:
            return
        entry.client_key = key
        event = self.changed(entry.session, entry.signed_in, requester.client)
        if event is not None:
            requester.report(event)

    def changed(self, session: Session, was: Client, now: Client) -> BindingChanged | None:
        """Return the event of a session that ``was`` opened and ``now`` uses, or None
        where nothing changed or the change was reported before."""
        moved = was.address is not None and mask_address(was.address) != mask_address(
            now.address
        )
        other_agent = (
            was.user_agent_hash not in (now.user_agent_hash, _NO_AGENT)
            # A table may keep only the beginning of the text.
            and not (was.user_agent and (now.user_agent or "").startswith(was.user_agent))
        )
        origin = mask_address(now.address), now.user_agent_hash
        if not moved and not other_agent:
            if session.id in self._last:
                with self._lock:
                    self._last.pop(session.id, None)
            return None
        with self._lock:
            last = self._last.pop(session.id, None)
            self._last[session.id] = origin
            while len(self._last) > self._max_changed:
                del self._last[next(iter(self._last))]
        if last == origin:
            return None
        return BindingChanged(
            session_id=session.id,
            user_id=session.user_id,
            was=was,
            now=now,
            address_changed=moved,
            user_agent_changed=other_agent,
        )
