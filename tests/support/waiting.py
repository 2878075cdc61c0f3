"""Waiting for a condition, instead of for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 15


async def until(condition: Callable[[], object]) -> None:
    """Return when ``condition`` holds; a test that waits in vain fails."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def turns(number: int = 20) -> None:
    """Let everything run that is ready to."""
    for _ in range(number):
        await asyncio.sleep(0)
