"""Flights: whoever asks one thing at one time shares one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Flights(dict[K, asyncio.Task[T]]):
    """The questions under way, by what they ask."""

    async def share(self, key: K, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer to ``key``, asked by ``begin`` unless somebody on this loop is asking;
        no client that goes away takes the others along."""
        flight = self.get(key)
        if flight is None or flight.get_loop() is not asyncio.get_running_loop():
            flight = asyncio.create_task(begin())
            self[key] = flight
            flight.add_done_callback(lambda done: self._land(key, done))
        return await asyncio.shield(flight)

    def _land(self, key: K, done: asyncio.Task[T]) -> None:
        if self.get(key) is done:
            del self[key]
        if not done.cancelled():
            done.exception()  # retrieved: its passengers may all be gone
