"""A process that has just started hears nothing yet, and believes nothing it cached."""

from __future__ import annotations

import asyncio

from handstamp.engine.dispatch import ListenerState
from handstamp.engine.sessions import Sessions

PATIENCE = 60.0


async def listening(sessions: Sessions) -> None:
    """Wait until the bus is proven, and see that it covers every writer."""
    await sessions.open()
    async with asyncio.timeout(PATIENCE):
        while sessions.stats().listener is not ListenerState.LISTENING:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    if not sessions.stats().foreign_writers_heard:
        raise RuntimeError("there are writers of whom nothing is heard")
