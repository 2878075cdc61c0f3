"""Any single table of sessions that a TableShape describes, through asyncpg.

A session token is found by its digest, so nothing a client sends is ever compared with
a stored secret, byte by byte or otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg

from handstamp.config import Policy
from handstamp.core.clients import canonical_address
from handstamp.core.records import NewSession, Record, Successor, Touch
from handstamp.errors import LoginRefused
from handstamp.stores.base import Capabilities, Created, Ended
from handstamp.stores.breaker import Breaker
from handstamp.stores.channel import CHANNEL, Channel
from handstamp.stores.database import Database
from handstamp.stores.lanes import Connection
from handstamp.stores.listening import QUEUE_USAGE, QUIETLY, SPEAK, PostgresChannel
from handstamp.stores.shapes import ULID_HASHED, TableShape
from handstamp.stores.statements import Statements

T = TypeVar("T")

NOWHERE = "0.0.0.0"  # noqa: S104 - no address to bind: it stands for "unknown"
"""What stands in a NOT NULL address column for a client without an address."""
LONGEST_REASON = 100
LONGEST_HASH = 64
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")


class TableStore:
    """The sessions in one PostgreSQL table.

    ``dsn`` is a PostgreSQL URI; ``pool_size`` the most connections to hold for writes, to
    which look-ups add a few of their own and the bus one; ``budget`` the longest that one
    question may take; ``connect`` goes to ``asyncpg.connect`` as it is (``ssl``,
    ``server_settings``, ``statement_cache_size`` and so on). ``listen_dsn`` is where to
    listen for notifications, if ``dsn`` leads to a pooler. Opens no connection before it
    needs one. Raises :class:`ConfigError` for what is no PostgreSQL URI.
    """

    def __init__(
        self,
        dsn: str,
        *,
        shape: TableShape = ULID_HASHED,
        pool_size: int = 10,
        budget: timedelta = timedelta(seconds=1),
        connect: Mapping[str, Any] | None = None,
        listen_dsn: str | None = None,
    ) -> None:
        self._shape = shape
        self._sql = Statements(shape)
        self._database = Database(dsn, width=pool_size, budget=budget, connect=connect)
        self._listening = Database(
            listen_dsn or dsn, width=1, budget=budget, connect=connect
        )
        self._channel = PostgresChannel(self._database, self._listening, self._sql)

    def __repr__(self) -> str:
        return f"TableStore(table={self._shape.table!r})"

    @property
    def capabilities(self) -> Capabilities:
        """Everything but trust levels."""
        return Capabilities()

    @property
    def queries(self) -> int:
        """Statements sent so far, without the bus's heartbeat."""
        return self._database.queries

    @property
    def channel(self) -> Channel:
        """Where revocations are heard of."""
        return self._channel

    @property
    def breaker(self) -> Breaker:
        """What stands between requests and a database that does not answer."""
        return self._database.breaker

    async def open(self) -> None:
        """Get ready on the running loop; connects nowhere."""
        self._database.open()

    async def close(self) -> None:
        """Let go of every connection, after at most a second."""
        await self._listening.close()
        await self._database.close()

    def start_over(self) -> None:
        """See :meth:`Store.start_over`."""
        self._database.start_over()
        self._listening.start_over()

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find`."""
        rows = await self._database.look_up(self._sql.find, list(digests))
        return [_record(row) for row in rows]

    async def find_by_id(self, session_id: str) -> Record | None:
        """See :meth:`Store.find_by_id`."""
        return _one(await self._look_up(self._sql.find_by_id, session_id))

    async def find_many(self, session_ids: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find_many`."""
        rows = await self._look_up(self._sql.find_many, list(session_ids))
        return [_record(row) for row in rows]

    async def find_by_refresh(self, digest: str) -> Record | None:
        """See :meth:`Store.find_by_refresh`; wants an index on the column."""
        return _one(await self._look_up(self._sql.find_by_refresh, digest))

    async def create(self, new: NewSession, policy: Policy) -> Created:
        """See :meth:`Store.create`; one statement where nothing has to make room."""

        async def insert(connection: Connection, loud: bool) -> Created:
            if new.replaces is None and new.limit is None:
                return Created(record=await self._insert(connection, new))
            async with connection.transaction():
                ended = await self._make_room(connection, new, policy, loud)
                return Created(record=await self._insert(connection, new), ended=ended)

        async with self._database.working() as connection:
            return await self._said(connection, insert)

    async def _said(
        self, connection: Connection, act: Callable[[Connection, bool], Awaitable[T]]
    ) -> T:
        """Do something that notifies, also while the notification queue is full.

        A full queue fails the COMMIT (54000), and the revocation with it. Asking for its
        usage frees what nobody needs any more; if that does not help, the change is made
        without a word, and ``max_staleness`` does the rest.
        """
        for _ in range(2):
            try:
                return await act(connection, True)
            except asyncpg.ProgramLimitExceededError:
                self._database.queries += 1
                await connection.execute(QUEUE_USAGE)
        async with connection.transaction():
            await connection.execute(QUIETLY)
            return await act(connection, False)

    async def _make_room(
        self, connection: Connection, new: NewSession, policy: Policy, loud: bool
    ) -> tuple[Ended, ...]:
        leaving = [] if new.replaces is None else [_storable(new.replaces)]
        if new.limit is not None:
            leaving += await self._surplus(connection, new, policy, leaving)
        if not leaving:
            return ()
        self._database.queries += 1
        rows = await connection.fetch(
            self._sql.revoke, leaving, "replaced by a new login", loud
        )
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
        self._database.queries += 2
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
        self._database.queries += 1
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
        self._database.queries += 1
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
        wanted, why = _storable(session_id), _reason(reason)

        async def end(connection: Connection, loud: bool) -> list[asyncpg.Record]:
            self._database.queries += 1
            if user_id is None:
                return await connection.fetch(self._sql.revoke, [wanted], why, loud)
            owner = _storable(user_id)
            return await connection.fetch(self._sql.revoke_own, wanted, why, loud, owner)

        async with self._database.working() as connection:
            rows = await self._said(connection, end)
        return _ended(rows[0]) if rows else None

    async def revoke_user(
        self, user_id: str, *, reason: str, keep: str | None = None
    ) -> Sequence[Ended]:
        """See :meth:`Store.revoke_user`; one message, however many sessions end."""
        values = _storable(user_id), _reason(reason), keep and _storable(keep)

        async def end(connection: Connection, loud: bool) -> list[asyncpg.Record]:
            self._database.queries += 3
            async with connection.transaction():
                await connection.execute(QUIETLY)
                rows = await connection.fetch(self._sql.revoke_user, *values)
                if rows and loud:
                    await connection.execute(SPEAK, CHANNEL, f"u:{_ended(rows[0]).user_id}")
                return rows

        async with self._database.working() as connection:
            rows = await self._said(connection, end)
        return [_ended(row) for row in rows]

    async def list_for_user(self, user_id: str) -> Sequence[Record]:
        """See :meth:`Store.list_for_user`; at most a thousand."""
        return [_record(r) for r in await self._fetch(self._sql.list_for_user, user_id)]

    async def touch(self, touches: Sequence[Touch], session_ttl: timedelta) -> int:
        """See :meth:`Store.touch`."""
        ordered = sorted(touches, key=lambda touch: touch.session_id)
        async with self._database.working() as connection:
            self._database.queries += 1
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
        async with self._database.working() as connection:
            self._database.queries += 1
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
        await self._look_up("select 1")

    async def _fetch(self, sql: str, *values: object) -> list[asyncpg.Record]:
        return await self._database.fetch(sql, *map(_bindable, values))

    async def _look_up(self, sql: str, *values: object) -> list[asyncpg.Record]:
        return await self._database.look_up(sql, *map(_bindable, values))


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
