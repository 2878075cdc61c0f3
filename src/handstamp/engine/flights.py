"""Flights: whoever asks one thing at one time shares one answer.

A flight goes on when nobody waits for it any more, because what it writes may be done
already. So their number is bounded: beyond ``most`` there is no answer for a new question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from handstamp.errors import SessionsUnavailable

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

MOST = 10_000


class Flights(dict[K, asyncio.Task[T]]):
    """The questions under way, by what they ask."""

    def __init__(self, *, most: int = MOST) -> None:
        super().__init__()
        self._most = most

    async def share(self, key: K, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer to ``key``, asked by ``begin`` unless somebody on this loop is asking;
        no client that goes away takes the others along.

        Raises :class:`SessionsUnavailable` where too much is asked already.
        """
        flight, loop = self.get(key), asyncio.get_running_loop()
        if flight is None or flight.get_loop() is not loop:
            self._make_room(loop)
            flight = asyncio.create_task(begin())
            self[key] = flight
            flight.add_done_callback(lambda done: self._land(key, done))
        return await asyncio.shield(flight)

    def _make_room(self, loop: asyncio.AbstractEventLoop) -> None:
        if len(self) < self._most:
            return
        for key in [k for k, flight in self.items() if flight.get_loop() is not loop]:
            del self[key]  # its loop is gone, so it never lands
        if len(self) >= self._most:
            raise SessionsUnavailable("too many refreshes are under way")

    def _land(self, key: K, done: asyncio.Task[T]) -> None:
        if self.get(key) is done:
            del self[key]
        if not done.cancelled():
            done.exception()  # retrieved: its passengers may all be gone
