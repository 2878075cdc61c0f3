"""One PostgreSQL server as the stores see it: lanes, a time budget, a breaker, one error.

Rule 1. Whatever goes wrong in the driver is "no answer": :class:`SessionsUnavailable`.
Rule 2. The budget holds for everything together: waiting for a lane, connecting, the query.
asyncpg's own ``command_timeout`` waits longer than it says, because it cancels politely.
Rule 3. A question whose connection was lost is asked once more, on a fresh one, where
asking twice is harmless.
Rule 4. Look-ups have lanes of their own, so that slow writes cannot starve them. Only they
open the breaker by being slow or by losing a connection twice: a write may merely be
waiting for somebody's lock, so it has ``PATIENCE`` times the budget, and a connection that
breaks under one does not say that the database is down. (A request that waits for a write
is given up by the engine when its own budget is spent; the write goes on.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg

from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.forking import pin
from handstamp.stores.breaker import Breaker
from handstamp.stores.dsn import checked_dsn
from handstamp.stores.lanes import Connection, Lanes

READ_LANES = 4
PATIENCE = 3
_QUOTING = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.PLPGSQLError,  # what an application's own trigger raises
    asyncpg.UnknownPostgresError,  # the same, with a code of its own
)
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a FATAL came in just before the query went out
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    ConnectionError,
)
_REFUSED = (
    ConnectionRefusedError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)
_ABSENT = (*_LOST, *_REFUSED, OSError)
FAULTS = (*_ABSENT, asyncpg.PostgresError)
"""Whatever the driver raises when there is no answer (rule 1)."""


class Database:
    """Connections to one server. ``budget`` is the longest that one question may take."""

    def __init__(
        self,
        dsn: str,
        *,
        width: int,
        budget: timedelta,
        connect: Mapping[str, Any] | None = None,
    ) -> None:
        self._dsn = checked_dsn(dsn)
        self._width = width
        self._budget = budget.total_seconds()
        self._options: dict[str, Any] = {"timeout": self._budget, **(connect or {})}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reads: Lanes | None = None
        self._writes: Lanes | None = None
        self._connecting: set[asyncio.Future[Connection]] = set()
        self.breaker = Breaker(self._probe)
        self.queries = 0

    def open(self) -> None:
        """Get ready on the running loop; lanes of a loop that is gone are forgotten."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop = loop
        self.breaker = Breaker(self._probe)
        self._reads = Lanes(self.connect, READ_LANES)
        self._writes = Lanes(self.connect, self._width)

    def start_over(self) -> None:
        """In a forked child: the lanes are the parent's."""
        pin((self._loop, self._reads, self._writes, self._connecting, self.breaker))
        self._loop = self._reads = self._writes = None
        self._connecting = set()
        self.breaker = Breaker(self._probe)

    async def close(self) -> None:
        """Let go of every connection; at most a second each."""
        await self._finish_connecting()
        lanes, self._reads, self._writes = (self._reads, self._writes), None, None
        if self._loop is not asyncio.get_running_loop():
            return
        self._loop = None
        await self.breaker.close()
        for some in lanes:
            if some is not None:
                await some.close()

    async def connect(self) -> Connection:
        """A connection of one's own. Raises :class:`ConfigError` for settings that no
        connection can be made with.

        Whoever gives up on it waits no longer, but the driver does: cancelled in the
        middle of a handshake it leaves an error behind that nobody ever looks at. So there
        may be more handshakes than lanes, but not more than twice as many.
        """
        if len(self._connecting) >= 2 * (READ_LANES + self._width):
            raise SessionsUnavailable("too many connections are being made")
        connecting = asyncio.ensure_future(asyncpg.connect(self._dsn, **self._options))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_abandon)
            raise
        except (ValueError, OverflowError) as exc:
            if isinstance(exc, OSError):  # a certificate that is not accepted
                raise
            # The text may quote the address: what is raised below has no part of it.
        raise ConfigError(
            "the driver refuses how the database is to be reached: look at what follows "
            "the ? of its address, at connect= and at the environment variables PG…"
        )

    async def _finish_connecting(self) -> None:
        loop = asyncio.get_running_loop()
        late = [task for task in self._connecting if task.get_loop() is loop]
        if late:
            await asyncio.wait(late, timeout=self._budget)
        for task in late:
            task.cancel()

    async def _probe(self) -> None:
        """One round trip on a connection of its own, past the breaker."""
        try:
            async with asyncio.timeout(self._budget):
                connection = await self.connect()
                try:
                    await connection.fetchval("select 1")
                finally:
                    connection.terminate()
        except FAULTS as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc

    async def look_up(self, sql: str, *values: object) -> list[asyncpg.Record]:
        """Rows for a look-up: its own lanes, asked twice if the connection was lost."""
        self.open()
        assert self._reads is not None  # noqa: S101 - open() made it
        async with self._asking(trips=True):
            return await self._fetch_twice(self._reads, sql, values)

    async def fetch(self, sql: str, *values: object) -> list[asyncpg.Record]:
        """Rows of any statement that may be repeated without harm."""
        self.open()
        assert self._writes is not None  # noqa: S101 - open() made it
        async with self._asking(trips=False):
            return await self._fetch_twice(self._writes, sql, values)

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[Connection]:
        """A connection for several look-ups; nothing is repeated, nothing is counted."""
        self.open()
        assert self._reads is not None  # noqa: S101 - open() made it
        async with self._asking(trips=True), self._reads.lane() as connection:
            yield connection

    @asynccontextmanager
    async def working(self) -> AsyncIterator[Connection]:
        """A connection for several statements; nothing is repeated."""
        self.open()
        assert self._writes is not None  # noqa: S101 - open() made it
        async with self._asking(trips=False), self._writes.lane() as connection:
            yield connection

    async def _fetch_twice(
        self, lanes: Lanes, sql: str, values: tuple[object, ...]
    ) -> list[asyncpg.Record]:
        try:
            return await self._fetch(lanes, sql, values, fresh=False)
        except _LOST:
            return await self._fetch(lanes, sql, values, fresh=True)

    async def _fetch(
        self, lanes: Lanes, sql: str, values: tuple[object, ...], *, fresh: bool
    ) -> list[asyncpg.Record]:
        async with lanes.lane(fresh=fresh) as connection:
            self.queries += 1
            rows: list[asyncpg.Record] = await connection.fetch(sql, *values)
            return rows

    @asynccontextmanager
    async def _asking(self, *, trips: bool) -> AsyncIterator[None]:
        """Within the budget, past the breaker, and telling it how it went."""
        self.breaker.admit()
        try:
            async with asyncio.timeout(self._budget if trips else PATIENCE * self._budget):
                yield
        except _ABSENT as exc:
            if trips or isinstance(exc, _REFUSED):
                self.breaker.trip()
            raise SessionsUnavailable(type(exc).__name__) from exc
        except _QUOTING as exc:
            raise SessionsUnavailable(type(exc).__name__) from None
        except asyncpg.PostgresError as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc


def _abandon(connecting: asyncio.Future[Connection]) -> None:
    """Nobody wants this connection any more."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()
