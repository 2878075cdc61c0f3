"""What runs beside the requests of one process: flushing, listening, watching.

Nothing starts before :meth:`BackgroundTasks.start`. :meth:`BackgroundTasks.stop` leaves
nothing running. The tasks of an event loop that is closed are forgotten, not awaited.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import Context

from handstamp.engine.invalidation import Invalidator, NotificationListener
from handstamp.engine.state import EngineState
from handstamp.errors import SessionsUnavailable

logger = logging.getLogger("handstamp")

FLUSH_BUDGET = 2.0
"""Seconds that a graceful stop may spend on the last flush."""


class BackgroundTasks:
    """The tasks of one process, on one event loop."""

    def __init__(
        self, state: EngineState, listener: NotificationListener, invalidator: Invalidator
    ) -> None:
        self._store = state.store
        self._policy = state.policy
        self._activity = state.activity
        self._listener = listener
        self._invalidator = invalidator
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin on the running loop."""
        self._listener.abandon()
        self._listener.start()
        work = (
            self._keep_flushing(),
            self._invalidator.keep_looking(),
            self._invalidator.keep_rounds(self._listener),
        )
        self._tasks = [self._begin(each) for each in work]

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        # Of no request: whose request happened to be the first is not to be remembered.
        return asyncio.get_running_loop().create_task(work, context=Context())

    def reset_after_fork(self) -> None:
        """In a forked child: the tasks are the parent's."""
        self._tasks = []
        self._listener.abandon()

    async def stop(self) -> None:
        """End everything, and write what is pending within ``FLUSH_BUDGET``."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._listener.stop()
        await self._flush_at_last()

    async def _flush_at_last(self) -> None:
        try:
            async with asyncio.timeout(FLUSH_BUDGET):
                await self._flush()
        except (SessionsUnavailable, TimeoutError):
            lost = len(self._activity)
            logger.warning(
                "%d touches could not be written", lost, extra={"action": "touches_lost"}
            )

    async def _keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(self._policy.flush_every.total_seconds())
            try:
                await self._flush()
            except SessionsUnavailable as exc:
                logger.warning(
                    "activity kept for the next flush: %s",
                    exc.cause,
                    extra={"action": "flush_failed"},
                )
            except Exception:
                # Without a flusher no activity would ever be written again.
                logger.exception("a flush failed", extra={"action": "flush_failed"})

    async def _flush(self) -> None:
        await self._activity.flush(self._store, self._policy)
