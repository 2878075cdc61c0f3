"""The watch over open connections: whose session is over is closed, by push or by look.

A notice about one session closes its connections at once. A notice about a user, or about
anything, makes the watch look. Without proven notices it looks at all of them twice per
``max_staleness``; with them, only at those whose own limits have come, or whose last look
was ``longest_trust`` ago. An outage closes nothing: it is no verdict.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from hashlib import sha256

from handstamp.core.lifetime import Invalid, judge_family
from handstamp.engine.bus import Bus
from handstamp.engine.entries import trusted_for
from handstamp.engine.parts import Parts
from handstamp.errors import SessionsUnavailable
from handstamp.stores.channel import Notice

logger = logging.getLogger("handstamp")

GROUP = 1000


class Watch:
    """Hears notices for the cache and the connections, and looks where they do not say."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._policy = parts.policy
        self._cache = parts.cache
        self._connections = parts.connections
        self._clock = parts.clock
        self._pause = parts.policy.max_staleness.total_seconds() / 2
        self._wake = asyncio.Event()

    def heard(self, notice: Notice) -> None:
        """Something is over, as another process says, or an echo of ourselves."""
        if notice.session_id is not None and notice.doubt:
            self._cache.doubt_session(notice.session_id)
            return
        if notice.session_id is not None:
            self._cache.forget_session(notice.session_id)
            self._connections.close(notice.session_id)
            return
        if notice.user_id is not None:
            self._cache.forget_user(notice.user_id)
        else:
            self._cache.doubt()
        self._connections.doubt(notice.user_id)
        self._wake.set()

    def reset(self) -> None:
        """Anything may have been missed."""
        self.heard(Notice())

    async def keep(self, bus: Bus) -> None:
        """Look again and again, until cancelled."""
        self._wake = asyncio.Event()
        while True:
            try:
                async with asyncio.timeout(self._pause):
                    await self._wake.wait()
            except TimeoutError:
                pass  # nobody called: the round is due
            self._wake.clear()
            try:
                await self.look(everyone=self._clock() >= bus.trusted_until)
            except Exception:
                # Without a watch no connection would ever be looked at again.
                logger.exception("a look failed", extra={"action": "look_failed"})

    async def look(self, *, everyone: bool) -> None:
        """Close the connections of sessions that no longer stand."""
        due = self._connections.due(self._clock(), everyone=everyone)
        for start in range(0, len(due), GROUP):
            await self._check(due[start : start + GROUP])

    async def _check(self, session_ids: Sequence[str]) -> None:
        before = self._clock()
        try:
            records = await self._store.find_many(session_ids)
        except SessionsUnavailable:
            return
        found = {record.id: record for record in records}
        for session_id in session_ids:
            record = found.get(session_id)
            verdict = None if record is None else judge_family(record, self._policy)
            if verdict is None or isinstance(verdict, Invalid):
                self._cache.forget_session(session_id)
                self._connections.close(session_id)
                continue
            limits = (verdict.remaining, verdict.idle_remaining or verdict.remaining)
            lasts = min(min(limits).total_seconds(), self._trusted_for(session_id))
            self._connections.stands(session_id, before + lasts)

    def _trusted_for(self, session_id: str) -> float:
        """Until when the look after the next pause is early enough."""
        key = sha256(session_id.encode()).digest()
        return trusted_for(key, self._policy) - self._pause
