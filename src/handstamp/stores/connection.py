"""The address of the database: read before anything is done with it.

The driver splits an address by the rules of a URL. A password with a bare ``#`` or ``/``
then ends where it should not: its first half is taken for a host and a port. So every
part is checked here, and what could be read in two ways is refused.

No error quotes any part of an address, because there may be a password in it.

The circuit breaker: a database that does not answer costs one request its budget, and
the following ones nothing.

Closed, everybody asks. After a fault it is open: everybody is told at once that there is no
answer, until a probe, which belongs to no request, has had one.

Lanes: connections that are held, not handed back and reset.

A pool resets a connection whenever it is released, which costs a round trip for every
query. Nothing here changes a connection's state, so a lane is simply kept. One that failed
or was left in the middle of a query is dropped at once, without a word to a server that may
not answer: waiting for a cancelled query is what makes a frozen database slow.

One PostgreSQL server as the stores see it: lanes, a time budget, a breaker, one error.

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
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import asyncpg

from handstamp._fork import pin
from handstamp.errors import ConfigError, HandstampError, SessionsUnavailable

EXPECTED = "postgresql://user:password@host:5432/name"
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+(?:%25[0-9A-Za-z._~-]+)?\]|[^\[\]:]+)(?::([0-9]*))?"
)
_PORTS = re.compile(r"[0-9]+(?:,[0-9]+)*")
_LAST_PORT = 65_535


def checked_dsn(dsn: str) -> str:
    """``dsn`` without the space around it, if it is the URI of a PostgreSQL database that
    can be read in one way only.

    Raises :class:`ConfigError`, which says what to do and quotes nothing.
    """
    dsn = dsn.strip()
    problem = _problem(dsn)
    if problem is not None:
        raise ConfigError(problem)
    return dsn


def unreadable(what: str) -> str:
    """What to tell the operator about an address in which ``what`` is wrong."""
    return (
        f"the database's address cannot be read: {what}. Expected {EXPECTED}, with every "
        "special character of the user, the password and the name percent-encoded, such "
        "as # as %23 and @ as %40: urllib.parse.quote(password, safe='')"
    )


def _problem(dsn: str) -> str | None:
    parts = _split(dsn)
    if parts is not None and parts.scheme.startswith(("postgresql+", "postgres+")):
        return f"the database must be a URI like {EXPECTED}: leave out the name of a driver"
    if parts is not None and parts.scheme not in ("postgresql", "postgres"):
        return f"the database must be a URI like {EXPECTED}"
    what = "its host is malformed" if parts is None else _fault(dsn, parts)
    return None if what is None else unreadable(what)


def _split(dsn: str) -> SplitResult | None:
    try:
        return urlsplit(dsn)
    except ValueError:  # its text may quote a piece of the password
        return None


def _fault(dsn: str, parts: SplitResult) -> str | None:
    if _UNPRINTABLE.search(dsn):
        return "there is a space or a control character in it"
    if "#" in dsn:
        return "there is a # in it"
    if dsn.count("@") > 1 or "@" in parts.path + parts.query:
        return "there is an @ that does not stand before the host"
    if _ESCAPE.search(dsn) or not _is_utf8(dsn):
        return "a % in it is not followed by the two digits of a character"
    hosts = parts.netloc.rpartition("@")[2]
    if hosts and not all(map(_is_host, hosts.split(","))):
        return "a host or a port in it is malformed"
    return _fault_of_query(parts.query)


def _is_utf8(dsn: str) -> bool:
    try:
        unquote(dsn, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    if match is None or int(match[1] or 0) > _LAST_PORT:
        return False
    name = unquote(text if match[1] is None else text[: match.start(1) - 1])
    return name.startswith(("/", "[")) or _is_name(name)


def _is_name(host: str) -> bool:
    """Whether the resolver would take this; it raises ValueError where it does not."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _fault_of_query(query: str) -> str | None:
    try:
        settings = parse_qs(query, strict_parsing=True) if query else {}
    except ValueError:
        return "what follows the ? is malformed"
    ports = settings.get("port", ["0"])[-1]
    if not _PORTS.fullmatch(ports) or any(int(p) > _LAST_PORT for p in ports.split(",")):
        return "the port that follows the ? is malformed"
    hosts = settings.get("host", ["localhost"])[-1].split(",")
    if not all(host.startswith(("/", "[")) or _is_name(host) for host in hosts):
        return "the host that follows the ? is malformed"
    return None


logger = logging.getLogger("handstamp")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.5


class CircuitBreaker:
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


Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | Any"


class ConnectionPool:
    """At most ``width`` connections, made when needed and kept, on one event loop."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], width: int) -> None:
        self._connect = connect
        self._slots = asyncio.Semaphore(width)
        self._free: list[Connection] = []
        self._all: set[Connection] = set()

    @asynccontextmanager
    async def acquire(self, *, fresh: bool = False) -> AsyncIterator[Connection]:
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


READ_POOL_SIZE = 4
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
        self._reads: ConnectionPool | None = None
        self._writes: ConnectionPool | None = None
        self._connecting: set[asyncio.Future[Connection]] = set()
        self.breaker = CircuitBreaker(self._probe)
        self.queries = 0

    def open(self) -> None:
        """Get ready on the running loop; lanes of a loop that is gone are forgotten."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop = loop
        self.breaker = CircuitBreaker(self._probe)
        self._reads = ConnectionPool(self.connect, READ_POOL_SIZE)
        self._writes = ConnectionPool(self.connect, self._width)

    def reset_after_fork(self) -> None:
        """In a forked child: the lanes are the parent's."""
        pin((self._loop, self._reads, self._writes, self._connecting, self.breaker))
        self._loop = self._reads = self._writes = None
        self._connecting = set()
        self.breaker = CircuitBreaker(self._probe)

    async def close(self) -> None:
        """Let go of every connection; at most a second each."""
        await self._finish_connecting()
        pool, self._reads, self._writes = (self._reads, self._writes), None, None
        if self._loop is not asyncio.get_running_loop():
            return
        self._loop = None
        await self.breaker.close()
        for some in pool:
            if some is not None:
                await some.close()

    async def connect(self) -> Connection:
        """A connection of one's own. Raises :class:`ConfigError` for settings that no
        connection can be made with.

        Whoever gives up on it waits no longer, but the driver does: cancelled in the
        middle of a handshake it leaves an error behind that nobody ever looks at. So there
        may be more handshakes than lanes, but not more than twice as many.
        """
        if len(self._connecting) >= 2 * (READ_POOL_SIZE + self._width):
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
        async with self._asking(trips=True), self._reads.acquire() as connection:
            yield connection

    @asynccontextmanager
    async def working(self) -> AsyncIterator[Connection]:
        """A connection for several statements; nothing is repeated."""
        self.open()
        assert self._writes is not None  # noqa: S101 - open() made it
        async with self._asking(trips=False), self._writes.acquire() as connection:
            yield connection

    async def _fetch_twice(
        self, pool: ConnectionPool, sql: str, values: tuple[object, ...]
    ) -> list[asyncpg.Record]:
        try:
            return await self._fetch(pool, sql, values, fresh=False)
        except _LOST:
            return await self._fetch(pool, sql, values, fresh=True)

    async def _fetch(
        self, pool: ConnectionPool, sql: str, values: tuple[object, ...], *, fresh: bool
    ) -> list[asyncpg.Record]:
        async with pool.acquire(fresh=fresh) as connection:
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
