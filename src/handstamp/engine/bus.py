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
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextvars import Context
from enum import StrEnum
from random import uniform

from handstamp.clock import Clock
from handstamp.errors import SessionsUnavailable
from handstamp.stores.channel import Canary, Channel, Link, Notice, read_payload

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


class Hearing(StrEnum):
    """The state of the bus, for health pages."""

    OFF = "off"
    DEAF = "deaf"
    MUTE = "mute"
    LISTENING = "listening"


class Bus:
    """Listens for one process, on its event loop.

    ``heard`` is told of every notice, ``reset`` when anything may have been missed.
    """

    def __init__(
        self,
        channel: Channel | None,
        *,
        heard: Callable[[Notice], None],
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
        self._canary: tuple[Canary, asyncio.Event] | None = None
        self._reported_at = NEVER
        self.notices = 0
        """Payloads that were heard, canaries aside."""
        self.unknown_notices = 0
        """Those among them that no handstamp sends."""
        self.hearing = Hearing.OFF
        self.covers_foreign_writers = False
        self.trusted_until = NEVER
        """Until when, on the engine's clock, an entry needs no reading again."""
        self.proven_until = NEVER
        """The same, as it was last proven: the bound that holds through a silence."""

    def start(self) -> None:
        """Begin listening in the background; a database that is down is no error."""
        if self._channel is not None and self._task is None:
            self.hearing = Hearing.DEAF
            work = self._keep_listening(self._channel)
            self._task = asyncio.create_task(work, context=Context())  # of no request

    async def stop(self) -> None:
        """Stop listening; trust nothing any more."""
        task, self._task = self._task, None
        self._distrust(Hearing.OFF)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def abandon(self) -> None:
        """The loop this ran on is gone: forget it without waiting for it."""
        self._task = None
        self._distrust(Hearing.OFF)

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
                logger.exception("bus: not listening", extra={"action": "bus_lost"})
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
                self._distrust(Hearing.MUTE)
                self._complain(
                    "LISTEN succeeds and nothing arrives, as behind a pooler in "
                    "transaction mode: give listen_dsn= an address of the server itself"
                )
                await self._wait(lost, 30.0)
                return False
            self.covers_foreign_writers = await self._asks(link)
            self._reset()
            await self._beat(link, lost)
            return True
        finally:
            self._distrust(Hearing.DEAF)
            link.drop()

    async def _asks(self, link: Link) -> bool:
        try:
            async with asyncio.timeout(BUDGET):
                return await link.covers_foreign_writers()
        except TimeoutError:
            raise SessionsUnavailable("TimeoutError") from None

    async def _sings(self, channel: Channel) -> bool:
        """Say a canary the way revocations are said; whether it is heard."""
        canary, heard = Canary(os.urandom(8).hex()), asyncio.Event()
        self._canary = canary, heard
        try:
            await channel.speak(canary.payload)
            return await self._wait(heard, CANARY_BUDGET)
        finally:
            self._canary = None

    async def _beat(self, link: Link, lost: asyncio.Event) -> None:
        while not lost.is_set():
            start = self._clock()
            try:
                async with asyncio.timeout(BUDGET):
                    await link.prove()
                    covered = await link.covers_foreign_writers()
            except (TimeoutError, SessionsUnavailable):
                self._complain("the listening connection does not answer")
                return
            self.hearing = Hearing.LISTENING
            if covered and not self.covers_foreign_writers:
                self._reset()  # nobody said what was written before the trigger came
            self.covers_foreign_writers = covered
            if self.covers_foreign_writers:
                self.trusted_until = self.proven_until = start + self._max_staleness
            await self._wait(lost, self._heartbeat)

    def _on_payload(self, payload: str) -> None:
        said = read_payload(payload)
        if isinstance(said, Canary):
            if self._canary is not None and said == self._canary[0]:
                self._canary[1].set()
            return
        self.notices += 1
        if not said.understood:
            self._report_unknown()
        self._heard(said)

    def _report_unknown(self) -> None:
        """Say so at most once in ``REPORTED`` seconds, without quoting what a stranger
        may have written."""
        self.unknown_notices += 1
        now = self._clock()
        if now < self._reported_at + REPORTED:
            return
        self._reported_at = now
        logger.warning(
            "bus: %d notifications so far that no handstamp sends: who else writes to "
            "the channel?",
            self.unknown_notices,
            extra={"action": "unknown_notice"},
        )

    def _distrust(self, hearing: Hearing) -> None:
        self.hearing = hearing
        self.trusted_until = NEVER

    def _complain(self, text: str) -> None:
        logger.warning("bus: %s", text, extra={"action": "bus_lost"})

    async def _wait(self, event: asyncio.Event, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        return True
