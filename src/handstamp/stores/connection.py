"""Connections to one PostgreSQL server: its address, pools, time budget and breaker.

The address (:func:`check_dsn`). The driver splits an address by the rules of a URL. A
password with an unescaped ``#`` or ``/`` then ends too early, and the driver takes its
first half for a host and a port. So every part is checked here, and an address that could
be read in two ways is refused. No error quotes any part of an address: it may contain a
password.

The breaker (:class:`CircuitBreaker`). A database that does not answer costs one request its
time budget, and the following requests nothing. While the breaker is closed, every query is
sent. After a fault it is open: every query fails at once, until a probe in the background
gets an answer.

The pool (:class:`ConnectionPool`). The pool of asyncpg resets a connection whenever it is
released, which costs a round trip for every query. Nothing here changes the state of a
connection, so it is simply kept. A connection that failed, or whose query was abandoned, is
dropped at once, without a message to the server: waiting for the cancellation of a query is
what makes a frozen database slow.

The server (:class:`Database`):

1. Whatever goes wrong in the driver means "no answer": :class:`SessionsUnavailable`.
2. The time budget holds for everything together: waiting for a connection, connecting, the
   query. asyncpg's own ``command_timeout`` takes longer than it says, because it asks the
   server to cancel.
3. A statement whose connection was lost is sent once more, on a new connection, if sending
   it twice is harmless.
4. Reads have a pool of their own, so that slow writes cannot starve them. Only reads open
   the breaker by being slow or by losing a connection twice. A write may be waiting for
   somebody's lock, so it has ``WRITE_BUDGETS`` times the budget, and a write whose
   connection breaks does not prove that the database is down. (A request that waits for a
   write is given up by the engine when its own budget is spent; the write goes on.)
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

logger = logging.getLogger("handstamp")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | Any"

EXPECTED = "postgresql://user:password@host:5432/name"
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+(?:%25[0-9A-Za-z._~-]+)?\]|[^\[\]:]+)(?::([0-9]*))?"
)
_PORTS = re.compile(r"[0-9]+(?:,[0-9]+)*")
_LAST_PORT = 65_535

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.5
"""Seconds between two probes of a breaker."""

READ_POOL_SIZE = 4
WRITE_BUDGETS = 3
_WITH_VALUES = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.PLPGSQLError,  # what an application's own trigger raises
    asyncpg.UnknownPostgresError,  # the same, with an error code of its own
)
"""Errors whose message may contain values of a row."""
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a FATAL arrived just before the query was sent
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    ConnectionError,
)
_REFUSED = (
    ConnectionRefusedError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)
_NO_ANSWER = (*_LOST, *_REFUSED, OSError)
FAULTS = (*_NO_ANSWER, asyncpg.PostgresError)
"""Everything that the driver raises when there is no answer (rule 1)."""


def check_dsn(dsn: str) -> str:
    """``dsn`` without surrounding whitespace, if it is the URI of a PostgreSQL database
    that can be read in one way only.

    Raises :class:`ConfigError`, which says what to do and quotes nothing.
    """
    dsn = dsn.strip()
    try:
        parts = urlsplit(dsn)
    except ValueError:  # its text may quote a part of the password
        parts = None
    if parts is None:
        raise ConfigError(dsn_error("its host is malformed"))
    if parts.scheme.startswith(("postgresql+", "postgres+")):
        raise ConfigError(
            f"the database must be a URI like {EXPECTED}: leave out the name of a driver"
        )
    if parts.scheme not in ("postgresql", "postgres"):
        raise ConfigError(f"the database must be a URI like {EXPECTED}")
    problem = _malformed_part(dsn, parts)
    if problem is not None:
        raise ConfigError(dsn_error(problem))
    return dsn


def dsn_error(problem: str) -> str:
    """The message for the operator about an address that has this problem."""
    return (
        f"the database's address cannot be read: {problem}. Expected {EXPECTED}, with "
        "every special character of the user, the password and the name percent-encoded, "
        "such as # as %23 and @ as %40: urllib.parse.quote(password, safe='')"
    )


def _malformed_part(dsn: str, parts: SplitResult) -> str | None:
    if _UNPRINTABLE.search(dsn):
        return "there is a space or a control character in it"
    if "#" in dsn:
        return "there is a # in it"
    if dsn.count("@") > 1 or "@" in parts.path + parts.query:
        return "there is an @ that does not stand before the host"
    try:
        unquote(dsn, errors="strict")
    except UnicodeDecodeError:
        is_utf8 = False
    else:
        is_utf8 = True
    if _BAD_ESCAPE.search(dsn) or not is_utf8:
        return "a % in it is not followed by the two digits of a character"
    hosts = parts.netloc.rpartition("@")[2]
    if hosts and not all(map(_is_host_and_port, hosts.split(","))):
        return "a host or a port in it is malformed"
    return _malformed_query(parts.query)


def _malformed_query(query: str) -> str | None:
    try:
        settings = parse_qs(query, strict_parsing=True) if query else {}
    except ValueError:
        return "what follows the ? is malformed"
    ports = settings.get("port", ["0"])[-1]
    if not _PORTS.fullmatch(ports) or any(int(p) > _LAST_PORT for p in ports.split(",")):
        return "the port that follows the ? is malformed"
    hosts = settings.get("host", ["localhost"])[-1].split(",")
    if not all(map(_is_host, hosts)):
        return "the host that follows the ? is malformed"
    return None


def _is_host_and_port(text: str) -> bool:
    match = _HOST.fullmatch(text)
    if match is None or int(match[1] or 0) > _LAST_PORT:
        return False
    return _is_host(unquote(text if match[1] is None else text[: match.start(1) - 1]))


def _is_host(host: str) -> bool:
    """Whether the driver can resolve it: a directory of a socket, an IPv6 address, or a
    name. For any other name the resolver raises ValueError."""
    if host.startswith(("/", "[")):
        return True
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


class CircuitBreaker:
    """Whether it makes sense to send a query. ``probe`` sends one and raises
    :class:`SessionsUnavailable` without an answer. Belongs to one event loop."""

    def __init__(self, probe: Callable[[], Awaitable[object]]) -> None:
        self._probe = probe
        self._probing: asyncio.Task[None] | None = None
        self.trips = 0

    @property
    def is_open(self) -> bool:
        """Whether queries fail at once."""
        return self._probing is not None

    def check(self) -> None:
        """Raise :class:`SessionsUnavailable` if the breaker is open."""
        if self._probing is not None:
            raise SessionsUnavailable("the database did not answer a moment ago")

    def trip(self) -> None:
        """Open the breaker, until a probe gets an answer."""
        if self._probing is None:
            self.trips += 1
            self._probing = asyncio.get_running_loop().create_task(self._probe_until_up())

    async def _probe_until_up(self) -> None:
        pause = FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await self._probe()
            except SessionsUnavailable:
                continue
            except Exception:
                # If this task ended, the breaker would stay open for ever.
                logger.exception("a probe failed", extra={"action": "probe_failed"})
                continue
            self._probing = None
            return

    async def close(self) -> None:
        """End the probes, and close the breaker."""
        probing, self._probing = self._probing, None
        if probing is not None and probing.get_loop() is asyncio.get_running_loop():
            probing.cancel()
            await asyncio.wait([probing])


class ConnectionPool:
    """At most ``size`` connections, made when needed and kept, on one event loop."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self._slots = asyncio.Semaphore(size)
        self._free: list[Connection] = []
        self._all: set[Connection] = set()

    @asynccontextmanager
    async def acquire(self, *, fresh: bool = False) -> AsyncIterator[Connection]:
        """A connection for one piece of work; a new one if ``fresh``."""
        async with self._slots:
            connection = None if fresh else self._pop_free()
            if connection is None:
                connection = await self._connect()
                self._all.add(connection)
            usable = False
            try:
                yield connection
                usable = True
            except (HandstampError, asyncpg.PostgresError):
                usable = not connection.is_in_transaction()  # the server answered
                raise
            finally:
                if usable and not connection.is_closed():
                    self._free.append(connection)
                else:
                    self._drop(connection)

    def _pop_free(self) -> Connection | None:
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
        """Close the free connections, and drop the others."""
        free, self._free = self._free, []
        await asyncio.gather(*(c.close(timeout=1) for c in free), return_exceptions=True)
        for connection in list(self._all):
            self._drop(connection)


class Database:
    """Connections to one server.

    ``pool_size`` is how many connections the writes may have, ``budget`` the longest that
    one statement may take, and ``connect`` are options of ``asyncpg.connect``.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int,
        budget: timedelta,
        connect: Mapping[str, Any] | None = None,
    ) -> None:
        self._dsn = check_dsn(dsn)
        self._pool_size = pool_size
        self._budget = budget.total_seconds()
        self._options: dict[str, Any] = {"timeout": self._budget, **(connect or {})}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reads: ConnectionPool | None = None
        self._writes: ConnectionPool | None = None
        self._connecting: set[asyncio.Future[Connection]] = set()
        self.breaker = CircuitBreaker(self._probe)
        self.queries = 0

    def open(self) -> None:
        """Prepare for the running loop. Connections of another loop are forgotten."""
        self._pools()

    def _pools(self) -> tuple[ConnectionPool, ConnectionPool]:
        """The pools of the running loop: for reads, and for everything else."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._reads is None or self._writes is None:
            self._loop = loop
            self.breaker = CircuitBreaker(self._probe)
            self._reads = ConnectionPool(self.connect, READ_POOL_SIZE)
            self._writes = ConnectionPool(self.connect, self._pool_size)
        return self._reads, self._writes

    def reset_after_fork(self) -> None:
        """In a forked child: the connections belong to the parent."""
        pin((self._loop, self._reads, self._writes, self._connecting, self.breaker))
        self._loop = self._reads = self._writes = None
        self._connecting = set()
        self.breaker = CircuitBreaker(self._probe)

    async def close(self) -> None:
        """Close every connection; takes at most a second for each."""
        loop = asyncio.get_running_loop()
        connecting = [task for task in self._connecting if task.get_loop() is loop]
        if connecting:
            await asyncio.wait(connecting, timeout=self._budget)
        for task in connecting:
            task.cancel()
        pools, self._reads, self._writes = (self._reads, self._writes), None, None
        if self._loop is not loop:
            return
        self._loop = None
        await self.breaker.close()
        for pool in pools:
            if pool is not None:
                await pool.close()

    async def connect(self) -> Connection:
        """A new connection, which belongs to the caller. Raises :class:`ConfigError` for
        settings with which no connection can be made.

        A caller that is cancelled waits no longer, but the driver goes on: if it were
        cancelled in the middle of a handshake, it would leave an exception that nothing
        retrieves. So there may be more handshakes than connections, but not more than
        twice as many.
        """
        if len(self._connecting) >= 2 * (READ_POOL_SIZE + self._pool_size):
            raise SessionsUnavailable("too many connections are being made")
        connecting = asyncio.ensure_future(asyncpg.connect(self._dsn, **self._options))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_terminate_unused)
            raise
        except (ValueError, OverflowError) as exc:
            if isinstance(exc, OSError):  # a certificate that is not accepted
                raise
            # The text may quote the address: what is raised below has no part of it.
        raise ConfigError(
            "the driver refuses how the database is to be reached: look at what follows "
            "the ? of its address, at connect= and at the environment variables PG…"
        )

    async def _probe(self) -> None:
        """One round trip on a connection of its own, whether the breaker is open or not."""
        try:
            async with asyncio.timeout(self._budget):
                connection = await self.connect()
                try:
                    await connection.fetchval("select 1")
                finally:
                    connection.terminate()
        except FAULTS as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc

    async def read(self, sql: str, *values: object) -> list[asyncpg.Record]:
        """The rows of a statement that only reads; sent again if its connection was
        lost."""
        reads, _ = self._pools()
        async with self._guard(trips=True):
            return await self._fetch_twice(reads, sql, values)

    async def fetch(self, sql: str, *values: object) -> list[asyncpg.Record]:
        """The rows of any other statement that may be sent twice without harm."""
        _, writes = self._pools()
        async with self._guard(trips=False):
            return await self._fetch_twice(writes, sql, values)

    @asynccontextmanager
    async def acquire_read(self) -> AsyncIterator[Connection]:
        """A connection for several reads; nothing is repeated or counted."""
        reads, _ = self._pools()
        async with self._guard(trips=True), reads.acquire() as connection:
            yield connection

    @asynccontextmanager
    async def acquire_write(self) -> AsyncIterator[Connection]:
        """A connection for several statements; nothing is repeated or counted."""
        _, writes = self._pools()
        async with self._guard(trips=False), writes.acquire() as connection:
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
    async def _guard(self, *, trips: bool) -> AsyncIterator[None]:
        """The breaker, the time budget and the one error for everything inside. A fault
        opens the breaker if it ``trips``; a refused connection always does."""
        self.breaker.check()
        try:
            budget = self._budget if trips else WRITE_BUDGETS * self._budget
            async with asyncio.timeout(budget):
                yield
        except _NO_ANSWER as exc:
            if trips or isinstance(exc, _REFUSED):
                self.breaker.trip()
            raise SessionsUnavailable(type(exc).__name__) from exc
        except _WITH_VALUES as exc:
            raise SessionsUnavailable(type(exc).__name__) from None
        except asyncpg.PostgresError as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc


def _terminate_unused(connecting: asyncio.Future[Connection]) -> None:
    """Drop a connection whose caller has gone."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()
