"""Waits until an engine receives notifications, as it does soon after its start."""

from __future__ import annotations

import asyncio

from handstamp.engine.dispatch import ListenerState
from handstamp.engine.sessions import Sessions

TIMEOUT = 60.0


async def wait_until_listening(sessions: Sessions) -> None:
    """Open ``sessions`` and return when its listener has proven that it receives.

    Raises ``RuntimeError`` where no trigger makes other writers notify.
    """
    await sessions.open()
    async with asyncio.timeout(TIMEOUT):
        while sessions.stats().listener is not ListenerState.LISTENING:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    if not sessions.stats().all_writers_notify:
        raise RuntimeError("no trigger makes other writers notify")
