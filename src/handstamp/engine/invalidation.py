"""What other processes end, this process learns; and how far that is proven.

The listener (:class:`NotificationListener`):

Rule 1. A silent channel means that nothing happened, or that nothing is delivered. Only a
round trip on the listening connection tells which: it proves that everything committed
before its start has been delivered. Trust reaches from the *start* of the last proven
round trip for ``max_staleness``, and not a moment further.
Rule 2. While nothing is proven, cached entries are not denied: they are read again.
Rule 3. A notification that was sent while nothing listened is never repeated. So once
listening is confirmed, everything that was cached before is doubted.
Rule 4. LISTEN can succeed and deliver nothing (behind a pooler in transaction mode). So a
probe is sent the way revocations are sent, and must arrive before anything is trusted.
Rule 5. Trust replaces reading again only where every writer notifies, that is, where the
trigger is complete. Otherwise notifications make our own revocations quick, and each entry
is still read again once per ``max_staleness``, which bounds all other writers. A trigger
can be dropped and created at any time, so every round trip asks for it again.

The invalidator (:class:`Invalidator`):

Rule 6. A notification is a doubt and no verdict: every role that may connect to the
database can send one. The cache reads again before it believes, and the table is read
before a connection is closed. Only what this process has committed or read itself closes
a connection. An outage is no verdict, so it closes nothing.
Rule 7. A notification costs the same however much is cached and open, and one about what
is neither causes no query. Doubts wait in one line: a query takes up to ``BATCH`` of them
and is followed by a pause of ``PAUSE``, so a flood of notifications causes a bounded
number of queries.
Rule 8. Everything is doubted at once, and then not again for ``DOUBT_INTERVAL``: what
arrives in between is one doubt at its end.
Rule 9. Without proven notifications all connections are checked twice per
``max_staleness``. With them, only those are checked whose session has reached a limit of
its own, or whose last check was ``longest_trust`` ago.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from hashlib import sha256
from random import uniform
from typing import TypeVar

from handstamp.core.lifetime import judge_family
from handstamp.core.models import Invalid, Session, Ticket
from handstamp.engine.cache import trusted_for
from handstamp.engine.clocks import Clock
from handstamp.engine.connections import CloseCallback
from handstamp.engine.dispatch import ListenerState
from handstamp.engine.state import EngineState
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Channel, ListenConnection, Notification
from handstamp.stores.notify.sql import Probe, read_payload

logger = logging.getLogger("handstamp")

T = TypeVar("T")

HEARTBEAT = 1.0
"""Seconds between two round trips, at most."""
PROOF_TIMEOUT = 1.0
"""Seconds that a round trip may take before the connection counts as lost."""
PROBE_TIMEOUT = 2.0
LISTEN_TIMEOUT = 3.0
"""Seconds to connect and to LISTEN."""
LONGEST_PAUSE = 2.0
"""Seconds between two attempts to listen, at most."""
NO_DELIVERY_PAUSE = 30.0
"""The same where LISTEN succeeds and nothing is delivered."""
REPORT_INTERVAL = 60.0
"""Seconds until unknown payloads are logged again, however many arrive."""
NEVER = float("-inf")


class NotificationListener:
    """Listens for one process, on its event loop.

    ``on_notification`` is called with every notification, ``on_reset`` when any may have
    been missed. ``channel`` is None for a store without notifications. ``max_staleness`` is
    in seconds.
    """

    def __init__(
        self,
        channel: Channel | None,
        *,
        on_notification: Callable[[Notification], None],
        on_reset: Callable[[], None],
        max_staleness: float,
        clock: Clock,
    ) -> None:
        self._channel = channel
        self._on_notification = on_notification
        self._on_reset = on_reset
        self._max_staleness = max_staleness
        self._heartbeat = min(HEARTBEAT, max_staleness / 4)
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._probe: tuple[Probe, asyncio.Event] | None = None
        self._reported_at = NEVER
        self.notifications = 0
        """Payloads that arrived, without the probes."""
        self.unknown_notifications = 0
        """Those among them that handstamp does not send."""
        self.state = ListenerState.OFF
        self.all_writers_notify = False
        self.trusted_until = NEVER
        """Until when, on the engine's clock, an entry need not be read again."""
        self.proven_until = NEVER
        """The last value of ``trusted_until``, kept when the connection is lost."""

    def start(self) -> None:
        """Begin listening in the background; a database that is down is no error."""
        if self._channel is not None and self._task is None:
            self.state = ListenerState.DISCONNECTED
            work = self._keep_listening(self._channel)
            # An empty context: the task must not keep that of the first request.
            self._task = asyncio.create_task(work, context=Context())

    async def stop(self) -> None:
        """Stop listening, and trust nothing from now on."""
        task = self._task
        self.abandon()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def abandon(self) -> None:
        """Forget the task without waiting for it: its event loop is gone."""
        self._task = None
        self._distrust(ListenerState.OFF)

    async def _keep_listening(self, channel: Channel) -> None:
        pause = 0.05
        while True:
            try:
                proven = await self._listen_once(channel)
            except SessionsUnavailable as exc:
                proven = False
                self._warn(f"not listening: {exc.cause}")
            except Exception:
                # If this task ended, no notification would ever arrive again.
                proven = False
                logger.exception("not listening", extra={"action": "listener_lost"})
            pause = 0.05 if proven else min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(uniform(pause / 2, pause))  # noqa: S311 - jitter

    async def _listen_once(self, channel: Channel) -> bool:
        """Listen until the connection is lost; returns whether anything was ever proven."""
        self._lost = lost = asyncio.Event()
        connection = await _within(
            LISTEN_TIMEOUT, channel.listen(self._on_payload, lost.set)
        )
        try:
            if not await self._delivers(channel):
                self._distrust(ListenerState.NO_DELIVERY)
                self._warn(
                    "LISTEN succeeds and nothing arrives, as behind a pooler in "
                    "transaction mode: give listen_dsn= an address of the server itself"
                )
                await _wait_for(lost, NO_DELIVERY_PAUSE)
                return False
            self.all_writers_notify = await _within(
                PROOF_TIMEOUT, connection.all_writers_notify()
            )
            self._on_reset()
            await self._beat(connection, lost)
            return True
        finally:
            self._distrust(ListenerState.DISCONNECTED)
            connection.drop()

    async def _delivers(self, channel: Channel) -> bool:
        """Send a probe the way revocations are sent; returns whether it arrived."""
        probe, arrived = Probe(os.urandom(8).hex()), asyncio.Event()
        self._probe = probe, arrived
        try:
            await channel.notify(probe.payload)
            return await _wait_for(arrived, PROBE_TIMEOUT)
        finally:
            self._probe = None

    async def _beat(self, connection: ListenConnection, lost: asyncio.Event) -> None:
        """Prove delivery again and again, until the connection is lost."""
        while not lost.is_set():
            start = self._clock()
            try:
                async with asyncio.timeout(PROOF_TIMEOUT):
                    await connection.prove()
                    complete = await connection.all_writers_notify()
            except (TimeoutError, SessionsUnavailable):
                self._warn("the listening connection does not answer")
                return
            self.state = ListenerState.LISTENING
            if complete and not self.all_writers_notify:
                self._on_reset()  # what was written before the trigger came notified nobody
            self.all_writers_notify = complete
            if complete:
                self.trusted_until = self.proven_until = start + self._max_staleness
            await _wait_for(lost, self._heartbeat)

    def _on_payload(self, payload: str) -> None:
        message = read_payload(payload)
        if isinstance(message, Probe):
            if self._probe is not None and message == self._probe[0]:
                self._probe[1].set()
            return
        self.notifications += 1
        if not message.understood:
            self._count_unknown()
        self._on_notification(message)

    def _count_unknown(self) -> None:
        """Log it once in ``REPORT_INTERVAL`` seconds, without the text: any role that may
        connect can have written it."""
        self.unknown_notifications += 1
        now = self._clock()
        if now < self._reported_at + REPORT_INTERVAL:
            return
        self._reported_at = now
        logger.warning(
            "%d notifications so far that handstamp does not send: who else writes to "
            "the channel?",
            self.unknown_notifications,
            extra={"action": "unknown_notification"},
        )

    def _distrust(self, state: ListenerState) -> None:
        self.state = state
        self.trusted_until = NEVER

    def _warn(self, text: str) -> None:
        logger.warning("notification listener: %s", text, extra={"action": "listener_lost"})


async def _within(seconds: float, work: Awaitable[T]) -> T:
    """Await ``work``; :class:`SessionsUnavailable` if it takes longer than ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise SessionsUnavailable("TimeoutError") from None


async def _wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event for at most ``seconds``; returns whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


BATCH = 1000
"""Sessions that one query reads."""
PAUSE = 0.01
"""Seconds after a query that a notification caused, so at most a hundred a second."""
DOUBT_INTERVAL = 0.25
"""Seconds in which everything is doubted once, however often it is asked for."""


class Invalidator:
    """Makes the cache and the open connections of this process follow the notifications."""

    def __init__(self, state: EngineState) -> None:
        self._store = state.store
        self._policy = state.policy
        self._cache = state.cache
        self._connections = state.connections
        self._activity = state.activity
        self._clock = state.clock
        self._round = state.policy.max_staleness.total_seconds() / 2
        self._doubt_interval = min(DOUBT_INTERVAL, self._round)
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._doubted_at = NEVER
        self._planned: asyncio.TimerHandle | None = None

    def on_notification(self, notification: Notification) -> None:
        """Doubt what the notification names (rule 6)."""
        if notification.session_id is not None:
            self.doubt_session(notification.session_id)
        elif notification.user_id is not None:
            self.doubt_user(notification.user_id)
        elif self._planned is None:
            # Everything: now, or at the end of the interval (rule 8).
            loop, left = self._loop, 0.0
            if loop is not None:
                left = self._doubted_at + self._doubt_interval - loop.time()
            if loop is None or left <= 0:
                self.reset()
            else:
                self._planned = loop.call_later(left, self.reset)

    def doubt_session(self, session_id: str) -> None:
        """Read this session again before it is believed, and check its connections."""
        self._cache.doubt_session(session_id)
        self.check_soon(session_id)

    def doubt_user(self, user_id: str) -> None:
        """The same for every session of a user."""
        self._cache.doubt_user(user_id)
        if self._connections.doubt_user(user_id):
            self._wake.set()

    def reset(self) -> None:
        """Doubt everything now: any session may have ended."""
        self._cancel_planned()
        if self._loop is not None:
            self._doubted_at = self._loop.time()
        self._cache.doubt()
        if self._connections.doubt():
            self._wake.set()

    def add_connection(
        self, session: Session, close: CloseCallback, ticket: Ticket | None = None
    ) -> None:
        """Call ``close`` when this session ends.

        ``ticket`` was taken before ``session`` was authenticated. Without one, and if the
        session may have ended since, the table is read at once: only its answer closes the
        connection. :meth:`Connections.remove` undoes this.
        """
        self._connections.add(session, close)
        if ticket is None or not self._cache.allows(ticket, session):
            self.check_soon(session.id)

    def check_soon(self, session_id: str) -> None:
        """Check the connections of this session as soon as possible."""
        if self._connections.doubt_session(session_id):
            self._wake.set()

    def _cancel_planned(self) -> None:
        planned, self._planned = self._planned, None
        if planned is not None:
            planned.cancel()

    async def check_doubted(self) -> None:
        """Check the doubted connections in the order of the doubts, until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._wake, self._doubted_at, self._planned = asyncio.Event(), NEVER, None
        self._wake.set()  # for doubts from before this loop
        waiting: dict[str, None] = {}
        try:
            while True:
                if not waiting:
                    await self._wake.wait()
                self._wake.clear()
                waiting |= dict.fromkeys(self._connections.take_doubted())
                batch = list(waiting)[:BATCH]
                for session_id in batch:
                    del waiting[session_id]
                if batch:
                    await self._contained(self._check(batch))
                    await asyncio.sleep(PAUSE)
        finally:
            self._cancel_planned()
            self._loop = None

    async def check_in_rounds(self, listener: NotificationListener) -> None:
        """Check the connections that are due, again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._round)
            untrusted = self._clock() >= listener.trusted_until
            await self._contained(self.check_due(all_sessions=untrusted))

    async def _contained(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:
            # If the task ended, no connection would ever be checked again.
            logger.exception(
                "the check of open connections failed",
                extra={"action": "connection_check_failed"},
            )

    async def check_due(self, *, all_sessions: bool) -> None:
        """Close the connections of sessions that have ended (rule 9)."""
        due = self._connections.take_due(self._clock(), all_sessions=all_sessions)
        for start in range(0, len(due), BATCH):
            await self._check(due[start : start + BATCH])

    async def _check(self, session_ids: Sequence[str]) -> None:
        before = self._clock()
        try:
            records = await self._store.find_many(session_ids)
        except Exception as exc:
            for session_id in session_ids:  # the next round checks them again
                self._connections.doubt_session(session_id)
            if not isinstance(exc, SessionsUnavailable):
                raise
            return
        found = {record.id: record for record in records}
        for session_id in session_ids:
            record, verdict = found.get(session_id), None
            if record is not None:
                # With the activity that is not written yet.
                active_at = self._activity.pending(record.id, record.token_digest)
                verdict = judge_family(record, self._policy, active_at=active_at)
            if verdict is None or isinstance(verdict, Invalid):
                self._cache.forget_session(session_id)
                self._connections.close(session_id)
                continue
            limits = (verdict.remaining, verdict.idle_remaining or verdict.remaining)
            key = sha256(session_id.encode()).digest()
            # Early enough even if the check comes a whole round later.
            trusted = trusted_for(key, self._policy) - self._round
            lasts = min(min(limits).total_seconds(), trusted)
            self._connections.mark_checked(session_id, before + lasts)
