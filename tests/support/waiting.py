"""Functions that wait for a condition, in place of a fixed time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 15


async def until(condition: Callable[[], object]) -> None:
    """Return when ``condition`` is true. Raises TimeoutError after ``PATIENCE`` seconds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def turns(number: int = 20) -> None:
    """Let the event loop run ``number`` times, so that ready tasks proceed."""
    for _ in range(number):
        await asyncio.sleep(0)
