"""Lanes: connections that are held, not handed back and reset.

A pool resets a connection whenever it is released, which costs a round trip for every
query. Nothing here changes a connection's state, so a lane is simply kept. One that failed
or was left in the middle of a query is dropped at once, without a word to a server that may
not answer: waiting for a cancelled query is what makes a frozen database slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg

from handstamp.errors import HandstampError

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | Any"


class Lanes:
    """At most ``width`` connections, made when needed and kept, on one event loop."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], width: int) -> None:
        self._connect = connect
        self._slots = asyncio.Semaphore(width)
        self._free: list[Connection] = []
        self._all: set[Connection] = set()

    @asynccontextmanager
    async def lane(self, *, fresh: bool = False) -> AsyncIterator[Connection]:
        """A connection for one piece of work; a new one if ``fresh``."""
        async with self._slots:
            connection = None if fresh else self._take()
            if connection is None:
                connection = await self._connect()
                self._all.add(connection)
            kept = False
            try:
                yield connection
                kept = True
            except (HandstampError, asyncpg.PostgresError):
                kept = not connection.is_in_transaction()  # a refusal, not a fault
                raise
            finally:
                if kept and not connection.is_closed():
                    self._free.append(connection)
                else:
                    self._drop(connection)

    def _take(self) -> Connection | None:
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
            self._all.discard(connection)
        return None

    def _drop(self, connection: Connection) -> None:
        self._all.discard(connection)
        connection.terminate()

    async def close(self) -> None:
        """Say goodbye on the free ones, and drop the others."""
        free, self._free = self._free, []
        await asyncio.gather(*(c.close(timeout=1) for c in free), return_exceptions=True)
        for connection in list(self._all):
            self._drop(connection)
