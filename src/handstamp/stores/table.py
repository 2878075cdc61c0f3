"""Any single table of sessions that a TableShape describes, through asyncpg.

A session token is found by its digest, so nothing a client sends is ever compared with
a stored secret, byte by byte or otherwise.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg

from handstamp.config import Policy
from handstamp.core.clients import canonical_address
from handstamp.core.records import NewSession, Record, Successor, Touch
from handstamp.errors import LoginRefused, SessionsUnavailable
from handstamp.stores.base import Capabilities, Created, Ended
from handstamp.stores.breaker import Breaker
from handstamp.stores.catalog import read_table
from handstamp.stores.channel import CHANNEL, Channel
from handstamp.stores.database import Database
from handstamp.stores.fitting import Fitted, capabilities_of, fit, is_value
from handstamp.stores.lanes import Connection
from handstamp.stores.listening import QUEUE_USAGE, QUIETLY, SPEAK, PostgresChannel
from handstamp.stores.shapes import PREFIX, ULID_HASHED, TableShape, quoted
from handstamp.stores.statements import Statements, Triggers

logger = logging.getLogger("handstamp")

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
        self._statements: Statements | None = None
        self._database = Database(dsn, width=pool_size, budget=budget, connect=connect)
        self._listening = Database(
            listen_dsn or dsn, width=1, budget=budget, connect=connect
        )
        users = None if shape.users is None else quoted(shape.users.table)
        self._channel = PostgresChannel(
            self._database, self._listening, Triggers((quoted(shape.table), users))
        )
        self._upgrading: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"TableStore(table={self._shape.table!r})"

    @property
    def capabilities(self) -> Capabilities:
        """What the table can do; what the shape says, before the table was looked at."""
        if self._statements is None:
            return capabilities_of(self._shape)
        return self._statements.fitted.capabilities

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
        """Get ready on the running loop. Looks at the table if the database answers.

        Raises :class:`ConfigError` for a table that the shape does not fit.
        """
        self._database.open()
        with suppress(SessionsUnavailable):
            await self.ready()

    async def ready(self) -> Capabilities:
        """See :meth:`Store.ready`; reads the catalog, once."""
        return (await self.statements()).fitted.capabilities

    async def statements(self) -> Statements:
        """The SQL for this table, once its catalog was read. Raises as :meth:`ready`."""
        if self._statements is None:
            self._statements = Statements(await self._fit())
        return self._statements

    async def _fit(self) -> Fitted:
        shape = self._shape
        async with self._database.looking() as connection:
            table = await read_table(connection, quoted(shape.table))
            users = None
            if shape.users is not None:
                users = await read_table(connection, quoted(shape.users.table))
        fitted = fit(shape, table, users)
        if fitted.missing:
            logger.warning(
                "%s has no column for %s: these features are off",
                shape.table,
                ", ".join(fitted.missing),
                extra={"action": "features_off"},
            )
        return fitted

    async def close(self) -> None:
        """Let go of every connection, after at most a second."""
        await self._stop_upgrading()
        await self._listening.close()
        await self._database.close()

    async def _stop_upgrading(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._upgrading if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._upgrading.clear()

    def start_over(self) -> None:
        """See :meth:`Store.start_over`."""
        self._database.start_over()
        self._listening.start_over()

    async def find(
        self, digests: Sequence[str], texts: Sequence[str] = ()
    ) -> Sequence[Record]:
        """See :meth:`Store.find`; a token found in clear is replaced beside the request."""
        sql = await self.statements()
        if self._shape.at_rest == "digest":
            asked = list(digests)
        else:
            asked = [PREFIX + digest for digest in digests]
        if self._shape.at_rest == "plain":
            asked += [text for text in texts if not text.startswith(PREFIX)]
        rows = await self._look_up(sql.find, asked)
        self._replace_plain(rows)
        return list(map(self._record, rows))

    def _replace_plain(self, rows: Sequence[asyncpg.Record]) -> None:
        if self._shape.at_rest != "plain":
            return
        tokens = [str(row["token_digest"]) for row in rows]
        plain = [token for token in tokens if not token.startswith(PREFIX)]
        if plain:
            task = asyncio.get_running_loop().create_task(self._upgrade(plain))
            self._upgrading.add(task)
            task.add_done_callback(self._upgrading.discard)

    async def _upgrade(self, plain: Sequence[str]) -> None:
        sql = await self.statements()
        # A database that may only be read, say: the next use tries again.
        with suppress(SessionsUnavailable):
            async with self._database.working() as connection:
                self._database.queries += 1
                await connection.execute(
                    sql.upgrade, plain, [PREFIX + _digest(token) for token in plain]
                )

    async def find_by_id(self, session_id: str) -> Record | None:
        """See :meth:`Store.find_by_id`."""
        found = await self.find_many([session_id])
        return found[0] if found else None

    async def find_many(self, session_ids: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find_many`."""
        sql = await self.statements()
        ids = [id for id in session_ids if self._is_id(sql, "id", id)]
        rows = await self._look_up(sql.find_many, ids) if ids else []
        return list(map(self._record, rows))

    async def find_by_refresh(self, digest: str) -> Record | None:
        """See :meth:`Store.find_by_refresh`; wants an index on the column."""
        sql = await self.statements()
        if sql.find_by_refresh is None:
            return None
        return self._one(await self._look_up(sql.find_by_refresh, digest))

    @staticmethod
    def _is_id(sql: Statements, field: str, text: str) -> bool:
        """Whether the column could hold this at all: asking for what it could not is an
        error of the database, and whoever sent it is a client."""
        return is_value(sql.fitted.columns[field].cast, text)

    async def new_id(self) -> str | None:
        """See :meth:`Store.new_id`."""
        sql = await self.statements()
        if sql.next_id is None:
            return None
        rows = await self._database.fetch(sql.next_id)
        return str(rows[0][0])

    async def create(self, new: NewSession, policy: Policy) -> Created:
        """See :meth:`Store.create`; one statement where nothing has to make room."""

        async def insert(connection: Connection, loud: bool) -> Created:
            if new.replaces is None and new.limit is None:
                return Created(record=await self._insert(connection, new))
            async with connection.transaction():
                ended = await self._make_room(connection, new, policy, loud)
                return Created(record=await self._insert(connection, new), ended=ended)

        sql = await self.statements()
        if not self._is_id(sql, "user_id", new.user_id):
            raise LoginRefused("unknown_user")
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
                return await _moved(lambda: act(connection, True))
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
        sql = await self.statements()
        leaving = [id for id in leaving if self._is_id(sql, "id", id)]
        rows = await connection.fetch(sql.revoke, leaving, "replaced by a new login", loud)
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
        sql = await self.statements()
        user = _storable(new.user_id)
        await connection.execute(sql.serialise, f"{self._shape.table}:", user)
        rows = await connection.fetch(
            sql.live,
            _storable(new.user_id),
            policy.absolute_ttl,
            policy.idle_ttl,
            policy.end_on_password_change,
            not sql.fitted.capabilities.absolute,
        )
        live = [id for row in rows if (id := row["id"].rstrip()) not in leaving]
        surplus = max(0, len(live) - new.limit + 1)
        if surplus and not new.evict:
            raise LoginRefused("too_many")
        return live[:surplus]

    async def _insert(self, connection: Connection, new: NewSession) -> Record:
        self._database.queries += 1
        sql, client = await self.statements(), new.client
        address = canonical_address(client.address)
        if address is None and sql.fitted.address_is_required:
            address = NOWHERE
        try:
            row = await connection.fetchrow(
                sql.create,
                new.id,
                _storable(new.user_id),
                new.token_digest,
                new.refresh_digest,
                address,
                _storable(client.user_agent_hash)[:LONGEST_HASH],
                _storable(client.fingerprint or "")[:LONGEST_HASH] or None,
                new.session_ttl,
                new.refresh_ttl,
                new.longest,
                client.user_agent and _storable(client.user_agent),
                client.location and _storable(client.location),
            )
        except asyncpg.ForeignKeyViolationError:
            raise LoginRefused("unknown_user") from None
        if row is None:
            raise await self._refusal(connection, sql, new.user_id)
        return self._record(row)

    async def _refusal(
        self, connection: Connection, sql: Statements, user_id: str
    ) -> LoginRefused:
        if sql.refusal is None:
            return LoginRefused("unknown_user")
        self._database.queries += 1
        row = await connection.fetchrow(sql.refusal, _storable(user_id))
        if row is None:
            return LoginRefused("unknown_user")
        return LoginRefused("user_locked" if row["active"] else "user_disabled")

    async def rotate(self, step: Successor) -> Record | None:
        """See :meth:`Store.rotate`."""
        sql = await self.statements()
        if sql.rotate is None or not self._is_id(sql, "id", step.id):
            return None
        return self._one(
            await self._change(
                sql.rotate,
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
        sql = await self.statements()
        if sql.redate is None or not self._is_id(sql, "id", step.id):
            return None
        rows = await self._change(sql.redate, step.id, step.presented, step.session_ttl)
        return self._one(rows)

    async def raise_level(self, session_id: str, level: int) -> Record | None:
        """See :meth:`Store.raise_level`."""
        sql = await self.statements()
        if sql.raise_level is None or not self._is_id(sql, "id", session_id):
            return None
        async with self._database.working() as connection:
            self._database.queries += 1
            return self._one(
                await _moved(lambda: connection.fetch(sql.raise_level, session_id, level))
            )

    async def revoke(
        self, session_id: str, *, reason: str, user_id: str | None = None
    ) -> Ended | None:
        """See :meth:`Store.revoke`."""
        why, sql = _reason(reason), await self.statements()
        if not self._is_id(sql, "id", session_id):
            return None
        if user_id is not None and not self._is_id(sql, "user_id", user_id):
            return None

        async def end(connection: Connection, loud: bool) -> list[asyncpg.Record]:
            self._database.queries += 1
            if user_id is None:
                return await connection.fetch(sql.revoke, [session_id], why, loud)
            return await connection.fetch(sql.revoke_own, session_id, why, loud, user_id)

        async with self._database.working() as connection:
            rows = await self._said(connection, end)
        return _ended(rows[0]) if rows else None

    async def revoke_user(
        self, user_id: str, *, reason: str, keep: str | None = None
    ) -> Sequence[Ended]:
        """See :meth:`Store.revoke_user`; one message, however many sessions end."""
        sql = await self.statements()
        if not self._is_id(sql, "user_id", user_id):
            return []
        if keep is not None and not self._is_id(sql, "id", keep):
            keep = None
        values = user_id, _reason(reason), keep

        async def end(connection: Connection, loud: bool) -> list[asyncpg.Record]:
            self._database.queries += 3
            async with connection.transaction():
                await connection.execute(QUIETLY)
                rows = await connection.fetch(sql.revoke_user, *values)
                if rows and loud:
                    await connection.execute(SPEAK, CHANNEL, f"u:{_ended(rows[0]).user_id}")
                return rows

        async with self._database.working() as connection:
            rows = await self._said(connection, end)
        return [_ended(row) for row in rows]

    async def list_for_user(self, user_id: str) -> Sequence[Record]:
        """See :meth:`Store.list_for_user`; at most a thousand."""
        sql = await self.statements()
        if not self._is_id(sql, "user_id", user_id):
            return []
        return list(map(self._record, await self._fetch(sql.list_for_user, user_id)))

    async def touch(self, touches: Sequence[Touch], policy: Policy) -> int:
        """See :meth:`Store.touch`."""
        sql = await self.statements()
        if sql.touch is None:
            return 0
        able = [t for t in touches if self._is_id(sql, "id", t.session_id)]
        ordered = sorted(able, key=lambda touch: touch.session_id)
        limits = (
            [policy.session_ttl]
            if sql.fitted.capabilities.refresh
            else [policy.refresh_ttl, policy.browser_ttl, policy.absolute_ttl]
        )
        async with self._database.working() as connection:
            self._database.queries += 1
            values = (
                [touch.session_id for touch in ordered],
                [_storable(touch.token_digest) for touch in ordered],
                [touch.at for touch in ordered],
            )
            status = await _moved(lambda: connection.execute(sql.touch, *values, *limits))
        return _count(status)

    async def prune(self, policy: Policy, *, batch: int) -> int:
        """See :meth:`Store.prune`."""
        sql = await self.statements()
        async with self._database.working() as connection:
            self._database.queries += 1
            limits = policy.retention, policy.absolute_ttl, policy.idle_ttl
            status = await _moved(lambda: connection.execute(sql.prune, *limits, batch))
        return _count(status)

    async def ping(self) -> None:
        """See :meth:`Store.ping`."""
        await self._look_up("select 1")

    def _record(self, row: asyncpg.Record) -> Record:
        values = dict(row)
        values.pop("said", None)
        token = str(values["token_digest"])
        if self._shape.at_rest != "digest":
            in_clear = not token.startswith(PREFIX)
            token = _digest(token) if in_clear else token.removeprefix(PREFIX)
        able = self.capabilities
        return Record(
            **values
            | {
                "token_digest": token,
                "address": _address(values["address"]),
                "slides": able.sliding,
                "dateless": not able.absolute,
            }
        )

    def _one(self, rows: Sequence[asyncpg.Record]) -> Record | None:
        return self._record(rows[0]) if rows else None

    async def _fetch(self, sql: str, *values: object) -> list[asyncpg.Record]:
        return await self._database.fetch(sql, *map(_bindable, values))

    async def _change(self, sql: str, *values: object) -> list[asyncpg.Record]:
        """Rows of a write on a condition; none if somebody else was first."""
        try:
            return await self._fetch(sql, *values)
        except SessionsUnavailable as exc:
            if exc.cause != asyncpg.SerializationError.__name__:
                raise
            return []  # the row is in another partition by now, so its token is another

    async def _look_up(self, sql: str, *values: object) -> list[asyncpg.Record]:
        return await self._database.look_up(sql, *map(_bindable, values))


async def _moved(act: Callable[[], Awaitable[T]]) -> T:
    """Do something again whose row moved to another partition meanwhile: it is there."""
    for _ in range(3):
        with suppress(asyncpg.SerializationError):
            return await act()
    return await act()


def _address(value: object) -> str | None:
    text = None if value is None else str(value).partition("/")[0]
    return None if text == NOWHERE else text


def _ended(row: asyncpg.Record) -> Ended:
    return Ended(id=str(row["id"]).rstrip(), user_id=str(row["user_id"]).rstrip())


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


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
