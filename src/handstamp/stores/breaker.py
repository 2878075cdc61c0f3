"""The circuit breaker: a database that does not answer costs one request its budget, and
the following ones nothing.

Closed, everybody asks. After a fault it is open: everybody is told at once that there is no
answer, until a probe, which belongs to no request, has had one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from handstamp.errors import SessionsUnavailable

logger = logging.getLogger("handstamp")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.5


class Breaker:
    """Knows whether asking makes sense. ``probe`` asks and raises
    :class:`SessionsUnavailable` without an answer. Belongs to one event loop."""

    def __init__(self, probe: Callable[[], Awaitable[object]]) -> None:
        self._probe = probe
        self._probing: asyncio.Task[None] | None = None
        self.trips = 0

    @property
    def is_open(self) -> bool:
        """Whether everybody is told "no answer" without being asked."""
        return self._probing is not None

    def admit(self) -> None:
        """Let one question pass, or raise :class:`SessionsUnavailable` at once."""
        if self._probing is not None:
            raise SessionsUnavailable("the database did not answer a moment ago")

    def trip(self) -> None:
        """There was no answer: nobody asks until a probe has had one."""
        if self._probing is None:
            self.trips += 1
            self._probing = asyncio.get_running_loop().create_task(self._keep_probing())

    async def _keep_probing(self) -> None:
        pause = FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await self._probe()
            except SessionsUnavailable:
                continue
            except Exception:
                # Without a prober nobody would ever be let through again.
                logger.exception("a probe failed", extra={"action": "probe_failed"})
                continue
            self._probing = None
            return

    async def close(self) -> None:
        """Probe no more."""
        probing, self._probing = self._probing, None
        if probing is not None and probing.get_loop() is asyncio.get_running_loop():
            probing.cancel()
            await asyncio.wait([probing])
