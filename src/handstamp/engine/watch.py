"""The watch: what a notice makes this process read again, and whose connections it closes.

Rule 1. A notice is a doubt and no verdict: anybody who may connect to the database can
send one. The cache reads again before it believes, and the watch looks before it closes.
Only what this process has committed or read itself closes a connection. An outage closes
nothing: it is no verdict.
Rule 2. A notice costs the same however much is cached and open, and one about what is
neither causes no query. Doubts wait in one line: a query takes up to ``GROUP`` of them and
is followed by a rest of ``REST``, so that a flood of notices causes a bounded number of
queries.
Rule 3. Everything is doubted at once, and then not again for ``WINDOW``: what comes
meanwhile is one doubt at its end.
Rule 4. Without proven notices the watch looks at all connections twice per
``max_staleness``; with them, only at those whose own limits have come, or
whose last look was ``longest_trust`` ago.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from hashlib import sha256

from handstamp.core.lifetime import Invalid, Valid, judge_family
from handstamp.core.records import Record, Session
from handstamp.engine.bus import Bus
from handstamp.engine.cache import Ticket
from handstamp.engine.connections import Closer
from handstamp.engine.entries import trusted_for
from handstamp.engine.parts import Parts
from handstamp.errors import SessionsUnavailable
from handstamp.stores.channel import Notice

logger = logging.getLogger("handstamp")

GROUP = 1000
REST = 0.01
"""Seconds after a query that a notice caused, so at most a hundred a second."""
WINDOW = 0.25
"""Seconds in which everything is doubted once, whoever asks for it and how often."""
NEVER = float("-inf")


class Watch:
    """Hears notices for the cache and the connections, and looks where they point."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._policy = parts.policy
        self._cache = parts.cache
        self._connections = parts.connections
        self._activity = parts.activity
        self._clock = parts.clock
        self._pause = parts.policy.max_staleness.total_seconds() / 2
        self._window = min(WINDOW, self._pause)
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._doubted_at = NEVER
        self._planned: asyncio.TimerHandle | None = None

    def heard(self, notice: Notice) -> None:
        """Something may be over, as somebody says."""
        if notice.session_id is not None:
            self.doubt_session(notice.session_id)
        elif notice.user_id is not None:
            self.doubt_user(notice.user_id)
        else:
            self._doubt_soon()

    def doubt_session(self, session_id: str) -> None:
        """Read this session again before it is believed, and look at its connections."""
        self._cache.doubt_session(session_id)
        self.look_soon(session_id)

    def doubt_user(self, user_id: str) -> None:
        """The same for every session of a user."""
        self._cache.doubt_user(user_id)
        if self._connections.doubt_user(user_id):
            self._wake.set()

    def add_connection(
        self, session: Session, closer: Closer, ticket: Ticket | None = None
    ) -> None:
        """Call ``closer`` when this session is over.

        ``ticket`` was taken before ``session`` was authenticated. Without one, and where
        anything may have ended the session since, the table is asked at once: only its
        answer closes the connection. :meth:`Connections.remove` takes it back.
        """
        self._connections.add(session, closer)
        if ticket is None or not self._cache.admits(ticket, session):
            self.look_soon(session.id)

    def look_soon(self, session_id: str) -> None:
        """Look at the connections of this session now."""
        if self._connections.doubt_session(session_id):
            self._wake.set()

    def reset(self) -> None:
        """Anything may be over: doubt everything now."""
        self._forget_plan()
        if self._loop is not None:
            self._doubted_at = self._loop.time()
        self._cache.doubt()
        if self._connections.doubt():
            self._wake.set()

    def _doubt_soon(self) -> None:
        """The same, now or at the end of the window (rule 3)."""
        if self._planned is not None:
            return
        loop, left = self._loop, 0.0
        if loop is not None:
            left = self._doubted_at + self._window - loop.time()
        if loop is None or left <= 0:
            self.reset()
        else:
            self._planned = loop.call_later(left, self.reset)

    def _forget_plan(self) -> None:
        planned, self._planned = self._planned, None
        if planned is not None:
            planned.cancel()

    async def keep_looking(self) -> None:
        """Work off the doubts in their order, until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._wake, self._doubted_at, self._planned = asyncio.Event(), NEVER, None
        self._wake.set()  # for doubts from before this loop
        try:
            await self._work_off()
        finally:
            self._forget_plan()
            self._loop = None

    async def _work_off(self) -> None:
        waiting: dict[str, None] = {}
        while True:
            if not waiting:
                await self._wake.wait()
            self._wake.clear()
            waiting |= dict.fromkeys(self._connections.take_doubted())
            group = list(waiting)[:GROUP]
            for session_id in group:
                del waiting[session_id]
            if group:
                await self._try(self._check(group))
                await asyncio.sleep(REST)

    async def keep_rounds(self, bus: Bus) -> None:
        """Look at whatever is due, again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._pause)
            await self._try(self.look(everyone=self._clock() >= bus.trusted_until))

    async def _try(self, look: Awaitable[None]) -> None:
        try:
            await look
        except Exception:
            # Without a watch no connection would ever be looked at again.
            logger.exception("a look failed", extra={"action": "look_failed"})

    async def look(self, *, everyone: bool) -> None:
        """Close the connections of sessions that no longer stand."""
        due = self._connections.take_due(self._clock(), everyone=everyone)
        for start in range(0, len(due), GROUP):
            await self._check(due[start : start + GROUP])

    async def _check(self, session_ids: Sequence[str]) -> None:
        before = self._clock()
        try:
            records = await self._store.find_many(session_ids)
        except Exception as exc:
            for session_id in session_ids:  # the next round asks again
                self._connections.doubt_session(session_id)
            if not isinstance(exc, SessionsUnavailable):
                raise
            return
        found = {record.id: record for record in records}
        for session_id in session_ids:
            record = found.get(session_id)
            verdict = None if record is None else self._judge(record)
            if verdict is None or isinstance(verdict, Invalid):
                self._cache.forget_session(session_id)
                self._connections.close(session_id)
                continue
            limits = (verdict.remaining, verdict.idle_remaining or verdict.remaining)
            lasts = min(min(limits).total_seconds(), self._trusted_for(session_id))
            self._connections.stands(session_id, before + lasts)

    def _judge(self, record: Record) -> Valid | Invalid:
        """Whether the session stands, with the activity that is still to be written."""
        noted = self._activity.noted(record.id, record.token_digest)
        return judge_family(record, self._policy, active_at=noted)

    def _trusted_for(self, session_id: str) -> float:
        """Until when the look after the next pause is early enough."""
        key = sha256(session_id.encode()).digest()
        return trusted_for(key, self._policy) - self._pause
