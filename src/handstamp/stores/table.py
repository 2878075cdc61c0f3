"""Any single table of sessions that a TableShape describes, through asyncpg.

A session token is found by its digest, so nothing a client sends is ever compared with
a stored secret, byte by byte or otherwise.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg

from handstamp.config import Policy
from handstamp.core.clients import canonical_address
from handstamp.core.records import NewSession, Record, Successor, Touch
from handstamp.errors import ConfigError, LoginRefused, SessionsUnavailable
from handstamp.stores.base import Capabilities, Created, Ended
from handstamp.stores.shapes import ULID_HASHED, TableShape
from handstamp.stores.statements import Statements

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record] | Any
    Pool = asyncpg.Pool[asyncpg.Record]

NOWHERE = "0.0.0.0"  # noqa: S104 - no address to bind: it stands for "unknown"
"""What stands in a NOT NULL address column for a client without an address."""
LONGEST_REASON = 100
LONGEST_HASH = 64
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")


class TableStore:
    """The sessions in one PostgreSQL table.

    ``dsn`` is a PostgreSQL URI; ``pool_size`` the most connections to hold; ``connect``
    goes to ``asyncpg.create_pool`` as it is (``ssl``, ``server_settings``,
    ``statement_cache_size`` and so on). Opens no connection before it needs one.
    Raises :class:`ConfigError` for what is no PostgreSQL URI.
    """

    def __init__(
        self,
        dsn: str,
        *,
        shape: TableShape = ULID_HASHED,
        pool_size: int = 10,
        connect: Mapping[str, Any] | None = None,
    ) -> None:
        self._dsn = _checked(dsn)
        self._shape = shape
        self._sql = Statements(shape)
        self._options = {"max_size": pool_size, "timeout": 5, **(connect or {})}
        self._pool: Pool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queries = 0

    def __repr__(self) -> str:
        return f"TableStore(table={self._shape.table!r})"

    @property
    def capabilities(self) -> Capabilities:
        """Everything but trust levels."""
        return Capabilities()

    @property
    def queries(self) -> int:
        """Statements sent so far."""
        return self._queries

    async def open(self) -> None:
        """Make a pool on the running loop; one of a loop that is gone is dropped."""
        loop = asyncio.get_running_loop()
        if self._pool is not None and self._loop is loop:
            return
        self._loop = loop
        pool = asyncpg.create_pool(self._dsn, min_size=0, reset=_keep, **self._options)
        async with _answering():
            self._pool = await pool

    async def close(self) -> None:
        """Close the pool, abandoning what has not ended within two seconds."""
        pool, self._pool = self._pool, None
        if pool is None or self._loop is not asyncio.get_running_loop():
            return
        try:
            async with asyncio.timeout(2):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find`."""
        rows = await self._fetch(self._sql.find, list(digests))
        return [_record(row) for row in rows]

    async def find_by_id(self, session_id: str) -> Record | None:
        """See :meth:`Store.find_by_id`."""
        return _one(await self._fetch(self._sql.find_by_id, session_id))

    async def find_by_refresh(self, digest: str) -> Record | None:
        """See :meth:`Store.find_by_refresh`; wants an index on the column."""
        return _one(await self._fetch(self._sql.find_by_refresh, digest))

    async def create(self, new: NewSession, policy: Policy) -> Created:
        """See :meth:`Store.create`; one statement where nothing has to make room."""
        async with self._connection() as connection:
            if new.replaces is None and new.limit is None:
                return Created(record=await self._insert(connection, new))
            async with connection.transaction():
                ended = await self._make_room(connection, new, policy)
                return Created(record=await self._insert(connection, new), ended=ended)

    async def _make_room(
        self, connection: Connection, new: NewSession, policy: Policy
    ) -> tuple[Ended, ...]:
        leaving = [] if new.replaces is None else [_storable(new.replaces)]
        if new.limit is not None:
            leaving += await self._surplus(connection, new, policy, leaving)
        if not leaving:
            return ()
        self._queries += 1
        rows = await connection.fetch(self._sql.revoke, leaving, "replaced by a new login")
        return tuple(map(_ended, rows))

    async def _surplus(
        self,
        connection: Connection,
        new: NewSession,
        policy: Policy,
        leaving: Sequence[str],
    ) -> list[str]:
        """The oldest sessions that must go; logins of one user come here one by one."""
        assert new.limit is not None  # noqa: S101 - the caller asked
        self._queries += 2
        lock = f"{self._shape.table}:{_storable(new.user_id)}"
        await connection.execute(self._sql.serialise, lock)
        rows = await connection.fetch(
            self._sql.live,
            _storable(new.user_id),
            policy.absolute_ttl,
            policy.idle_ttl,
            policy.end_on_password_change,
        )
        live = [id for row in rows if (id := row["id"].rstrip()) not in leaving]
        surplus = max(0, len(live) - new.limit + 1)
        if surplus and not new.evict:
            raise LoginRefused("too_many")
        return live[:surplus]

    async def _insert(self, connection: Connection, new: NewSession) -> Record:
        self._queries += 1
        row = await connection.fetchrow(
            self._sql.create,
            new.id,
            _storable(new.user_id),
            new.token_digest,
            new.refresh_digest,
            canonical_address(new.client.address) or NOWHERE,
            _storable(new.client.user_agent_hash)[:LONGEST_HASH],
            _storable(new.client.fingerprint or "")[:LONGEST_HASH] or None,
            new.session_ttl,
            new.refresh_ttl,
            new.longest,
        )
        if row is None:
            raise await self._refusal(connection, new.user_id)
        return _record(row)

    async def _refusal(self, connection: Connection, user_id: str) -> LoginRefused:
        self._queries += 1
        row = await connection.fetchrow(self._sql.refusal, _storable(user_id))
        if row is None:
            return LoginRefused("unknown_user")
        return LoginRefused("user_locked" if row["active"] else "user_disabled")

    async def rotate(self, step: Successor) -> Record | None:
        """See :meth:`Store.rotate`."""
        return _one(
            await self._fetch(
                self._sql.rotate,
                step.id,
                step.presented,
                step.token_digest,
                step.refresh_digest,
                step.session_ttl,
                step.refresh_ttl,
                step.longest,
            )
        )

    async def redate(self, step: Successor) -> Record | None:
        """See :meth:`Store.redate`."""
        rows = await self._fetch(
            self._sql.redate, step.id, step.presented, step.session_ttl
        )
        return _one(rows)

    async def revoke(
        self, session_id: str, *, reason: str, user_id: str | None = None
    ) -> Ended | None:
        """See :meth:`Store.revoke`."""
        why = _reason(reason)
        if user_id is None:
            rows = await self._fetch(self._sql.revoke, [session_id], why)
        else:
            rows = await self._fetch(self._sql.revoke_own, session_id, why, user_id)
        return _ended(rows[0]) if rows else None

    async def revoke_user(
        self, user_id: str, *, reason: str, keep: str | None = None
    ) -> Sequence[Ended]:
        """See :meth:`Store.revoke_user`."""
        rows = await self._fetch(self._sql.revoke_user, user_id, _reason(reason), keep)
        return [_ended(row) for row in rows]

    async def list_for_user(self, user_id: str) -> Sequence[Record]:
        """See :meth:`Store.list_for_user`; at most a thousand."""
        return [_record(r) for r in await self._fetch(self._sql.list_for_user, user_id)]

    async def touch(self, touches: Sequence[Touch], session_ttl: timedelta) -> int:
        """See :meth:`Store.touch`."""
        ordered = sorted(touches, key=lambda touch: touch.session_id)
        async with self._connection() as connection:
            self._queries += 1
            status = await connection.execute(
                self._sql.touch,
                [_storable(touch.session_id) for touch in ordered],
                [_storable(touch.token_digest) for touch in ordered],
                [touch.at for touch in ordered],
                session_ttl,
            )
        return _count(status)

    async def prune(self, policy: Policy, *, batch: int) -> int:
        """See :meth:`Store.prune`."""
        async with self._connection() as connection:
            self._queries += 1
            status = await connection.execute(
                self._sql.prune,
                policy.retention,
                policy.absolute_ttl,
                policy.idle_ttl,
                batch,
            )
        return _count(status)

    async def ping(self) -> None:
        """See :meth:`Store.ping`."""
        await self._fetch("select 1")

    async def _fetch(self, sql: str, *values: object) -> list[asyncpg.Record]:
        async with self._connection() as connection:
            self._queries += 1
            rows: list[asyncpg.Record] = await connection.fetch(
                sql, *map(_bindable, values)
            )
            return rows

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        await self.open()
        assert self._pool is not None  # noqa: S101 - open() made it
        async with _answering(), self._pool.acquire() as connection:
            yield connection


_QUOTING = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.PLPGSQLError,  # what an application's own trigger raises
    asyncpg.UnknownPostgresError,  # the same, with a code of its own
)


@asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    """The edge of the driver: whatever went wrong there is "no answer".

    The driver's own text stays out of ours, for its DETAIL lines quote rows. The cause
    is chained for the operator's log, but where it can quote values itself.
    """
    try:
        yield
    except _QUOTING as exc:
        raise SessionsUnavailable(type(exc).__name__) from None
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # a FATAL came in just before the query went out
        OSError,
        TimeoutError,
    ) as exc:
        raise SessionsUnavailable(type(exc).__name__) from exc


def _checked(dsn: str) -> str:
    try:
        known = urlsplit(dsn).scheme in ("postgresql", "postgres")
    except ValueError:
        known = False
    if not known:  # and it is not quoted, for there may be a password in it
        raise ConfigError("the database must be a URI like postgresql://host/database")
    return dsn


async def _keep(connection: object) -> None:
    """No reset on release: nothing here changes a connection's state, and a reset
    costs a round trip for every query."""


def _record(row: asyncpg.Record) -> Record:
    values = dict(row)
    for name in ("id", "user_id", "token_digest", "refresh_digest", "fingerprint"):
        if values[name] is not None:
            values[name] = str(values[name]).rstrip()  # character(n) comes padded
    values["address"] = _address(values["address"])
    return Record(**values)


def _address(value: object) -> str | None:
    text = None if value is None else str(value).partition("/")[0]
    return None if text == NOWHERE else text


def _one(rows: Sequence[asyncpg.Record]) -> Record | None:
    return _record(rows[0]) if rows else None


def _ended(row: asyncpg.Record) -> Ended:
    return Ended(id=str(row["id"]).rstrip(), user_id=str(row["user_id"]).rstrip())


def _reason(text: str) -> str:
    return _storable(text)[:LONGEST_REASON]


def _storable(text: str) -> str:
    """``text`` without what PostgreSQL takes in no text at all: NUL and half a pair."""
    return _UNSTORABLE.sub("?", text)


def _bindable(value: object) -> object:
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return _storable(value) if isinstance(value, str) else value


def _count(status: str) -> int:
    return int(status.rpartition(" ")[2])
