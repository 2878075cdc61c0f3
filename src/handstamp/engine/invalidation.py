"""The bus: what other processes end, this one hears of; and how far that is proven.

Rule 1. A silent channel means that nothing happened, or that nothing gets through, and
only a round trip on the listening connection tells which: it proves that everything
committed before it began has been delivered. Trust reaches from the *start* of the last
proven round trip for ``max_staleness``, and not a moment further.
Rule 2. While nothing is proven, entries are not denied, they are read again.
Rule 3. What was said while nobody listened is never repeated: once listening is
confirmed, everything cached before is doubted.
Rule 4. LISTEN can succeed and deliver nothing (behind a pooler in transaction mode). So
a canary is said the way revocations are said, and must be heard before anything is
trusted.
Rule 5. Trust replaces re-reading only where every writer is heard, that is, where the
trigger is installed. Otherwise the bus makes our own revocations quick, and each entry is
still read again once per ``max_staleness``, which bounds everybody else's. A trigger can
be dropped and made at any time, so every round trip asks for it again.

The watch: what a notice makes this process read again, and whose connections it closes.

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
import os
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from hashlib import sha256
from random import uniform

from handstamp.core.lifetime import judge_family
from handstamp.core.models import Invalid, Record, Session, Ticket, Valid
from handstamp.engine.cache import trusted_for
from handstamp.engine.clocks import Clock
from handstamp.engine.connections import Closer
from handstamp.engine.dispatch import ListenerState
from handstamp.engine.state import EngineState
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Channel, ListenConnection, Notification
from handstamp.stores.notify.sql import Probe, read_payload

logger = logging.getLogger("handstamp")

HEARTBEAT = 1.0
BUDGET = 1.0
"""Seconds that a proof may take before the connection counts as lost."""
CANARY_BUDGET = 2.0
LISTEN_BUDGET = 3.0
"""Seconds to connect and to hear that LISTEN was understood."""
LONGEST_PAUSE = 2.0
REPORTED = 60.0
"""Seconds until unknown payloads are logged again, however many there are."""
NEVER = float("-inf")


class NotificationListener:
    """Listens for one process, on its event loop.

    ``heard`` is told of every notice, ``reset`` when anything may have been missed.
    """

    def __init__(
        self,
        channel: Channel | None,
        *,
        heard: Callable[[Notification], None],
        reset: Callable[[], None],
        max_staleness: float,
        clock: Clock,
    ) -> None:
        self._channel = channel
        self._heard = heard
        self._reset = reset
        self._max_staleness = max_staleness
        self._heartbeat = min(HEARTBEAT, max_staleness / 4)
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._canary: tuple[Probe, asyncio.Event] | None = None
        self._reported_at = NEVER
        self.notifications = 0
        """Payloads that were heard, canaries aside."""
        self.unknown_notifications = 0
        """Those among them that no handstamp sends."""
        self.hearing = ListenerState.OFF
        self.all_writers_notify = False
        self.trusted_until = NEVER
        """Until when, on the engine's clock, an entry needs no reading again."""
        self.proven_until = NEVER
        """The same, as it was last proven: the bound that holds through a silence."""

    def start(self) -> None:
        """Begin listening in the background; a database that is down is no error."""
        if self._channel is not None and self._task is None:
            self.hearing = ListenerState.DISCONNECTED
            work = self._keep_listening(self._channel)
            self._task = asyncio.create_task(work, context=Context())  # of no request

    async def stop(self) -> None:
        """Stop listening; trust nothing any more."""
        task, self._task = self._task, None
        self._distrust(ListenerState.OFF)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def abandon(self) -> None:
        """The loop this ran on is gone: forget it without waiting for it."""
        self._task = None
        self._distrust(ListenerState.OFF)

    async def _keep_listening(self, channel: Channel) -> None:
        pause = 0.05
        while True:
            try:
                proven = await self._listen_once(channel)
            except SessionsUnavailable as exc:
                proven = False
                self._complain(f"not listening: {exc.cause}")
            except Exception:
                # Without a listener nothing would ever be heard again.
                proven = False
                logger.exception("bus: not listening", extra={"action": "listener_lost"})
            pause = 0.05 if proven else min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(uniform(pause / 2, pause))  # noqa: S311 - jitter

    async def _listen_once(self, channel: Channel) -> bool:
        """Listen until the connection is lost; whether anything was ever proven."""
        self._lost = lost = asyncio.Event()
        try:
            async with asyncio.timeout(LISTEN_BUDGET):
                link = await channel.listen(self._on_payload, lost.set)
        except TimeoutError:
            raise SessionsUnavailable("TimeoutError") from None
        try:
            if not await self._sings(channel):
                self._distrust(ListenerState.NO_DELIVERY)
                self._complain(
                    "LISTEN succeeds and nothing arrives, as behind a pooler in "
                    "transaction mode: give listen_dsn= an address of the server itself"
                )
                await self._wait(lost, 30.0)
                return False
            self.all_writers_notify = await self._asks(link)
            self._reset()
            await self._beat(link, lost)
            return True
        finally:
            self._distrust(ListenerState.DISCONNECTED)
            link.drop()

    async def _asks(self, link: ListenConnection) -> bool:
        try:
            async with asyncio.timeout(BUDGET):
                return await link.all_writers_notify()
        except TimeoutError:
            raise SessionsUnavailable("TimeoutError") from None

    async def _sings(self, channel: Channel) -> bool:
        """Say a canary the way revocations are said; whether it is heard."""
        canary, heard = Probe(os.urandom(8).hex()), asyncio.Event()
        self._canary = canary, heard
        try:
            await channel.notify(canary.payload)
            return await self._wait(heard, CANARY_BUDGET)
        finally:
            self._canary = None

    async def _beat(self, link: ListenConnection, lost: asyncio.Event) -> None:
        while not lost.is_set():
            start = self._clock()
            try:
                async with asyncio.timeout(BUDGET):
                    await link.prove()
                    covered = await link.all_writers_notify()
            except (TimeoutError, SessionsUnavailable):
                self._complain("the listening connection does not answer")
                return
            self.hearing = ListenerState.LISTENING
            if covered and not self.all_writers_notify:
                self._reset()  # nobody said what was written before the trigger came
            self.all_writers_notify = covered
            if self.all_writers_notify:
                self.trusted_until = self.proven_until = start + self._max_staleness
            await self._wait(lost, self._heartbeat)

    def _on_payload(self, payload: str) -> None:
        said = read_payload(payload)
        if isinstance(said, Probe):
            if self._canary is not None and said == self._canary[0]:
                self._canary[1].set()
            return
        self.notifications += 1
        if not said.understood:
            self._report_unknown()
        self._heard(said)

    def _report_unknown(self) -> None:
        """Say so at most once in ``REPORTED`` seconds, without quoting what a stranger
        may have written."""
        self.unknown_notifications += 1
        now = self._clock()
        if now < self._reported_at + REPORTED:
            return
        self._reported_at = now
        logger.warning(
            "bus: %d notifications so far that no handstamp sends: who else writes to "
            "the channel?",
            self.unknown_notifications,
            extra={"action": "unknown_notification"},
        )

    def _distrust(self, hearing: ListenerState) -> None:
        self.hearing = hearing
        self.trusted_until = NEVER

    def _complain(self, text: str) -> None:
        logger.warning("bus: %s", text, extra={"action": "listener_lost"})

    async def _wait(self, event: asyncio.Event, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        return True


GROUP = 1000
REST = 0.01
"""Seconds after a query that a notice caused, so at most a hundred a second."""
WINDOW = 0.25
"""Seconds in which everything is doubted once, whoever asks for it and how often."""


class Invalidator:
    """Hears notices for the cache and the connections, and looks where they point."""

    def __init__(self, state: EngineState) -> None:
        self._store = state.store
        self._policy = state.policy
        self._cache = state.cache
        self._connections = state.connections
        self._activity = state.activity
        self._clock = state.clock
        self._pause = state.policy.max_staleness.total_seconds() / 2
        self._window = min(WINDOW, self._pause)
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._doubted_at = NEVER
        self._planned: asyncio.TimerHandle | None = None

    def heard(self, notice: Notification) -> None:
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

    async def keep_rounds(self, listener: NotificationListener) -> None:
        """Look at whatever is due, again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._pause)
            await self._try(self.look(everyone=self._clock() >= listener.trusted_until))

    async def _try(self, look: Awaitable[None]) -> None:
        try:
            await look
        except Exception:
            # Without a watch no connection would ever be looked at again.
            logger.exception("a look failed", extra={"action": "connection_check_failed"})

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
