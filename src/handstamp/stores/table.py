"""The sessions in one PostgreSQL table that a TableShape describes, through asyncpg.

A session token is found by its digest, so no text of a client is ever compared with a
stored secret. Ids are checked before they are bound: an id that a column cannot hold would
be an error of the database, and any client can send one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import asyncpg

from handstamp.config import Policy
from handstamp.core.models import NewSession, Record, Rotation, StepUp, Touch
from handstamp.core.requests import canonical_address
from handstamp.core.tokens import normalize
from handstamp.errors import ConfigError, LoginRefused, SessionsUnavailable
from handstamp.stores.base import STILL_LIVE, Capabilities, Created, Ended
from handstamp.stores.connection import Connection
from handstamp.stores.notify import commit_with_notify, retry_if_row_moved, send
from handstamp.stores.notify.sql import SKIP_TRIGGER, Kind, NotifyTrigger, triggers_of
from handstamp.stores.plaintext import TokenUpgrader
from handstamp.stores.postgres import (
    LONGEST_HASH,
    LONGEST_REASON,
    UNKNOWN_ADDRESS,
    PostgresStore,
    bindable,
    count_of,
    ended_of,
    record_of,
    storable,
)
from handstamp.stores.resolve import capabilities_of, read_table, refuse_long_ids, resolve
from handstamp.stores.shapes import PREFIX, ULID_HASHED, TableShape, quoted
from handstamp.stores.statements import Statements

logger = logging.getLogger("handstamp")

ID_SAMPLE = 1000
"""Rows whose ids are measured, if the column has no limit of its own."""


class TableStore(PostgresStore):
    """The sessions in one PostgreSQL table.

    ``dsn`` is a PostgreSQL URI. ``pool_size`` is the most connections for writes; reads
    have four more, and the listener one. ``budget`` is the longest time for one statement.
    ``connect`` are options of ``asyncpg.connect`` (``ssl``, ``server_settings``,
    ``statement_cache_size`` and so on). ``listen_dsn`` is where to listen for
    notifications, if ``dsn`` is the address of a pooler. No connection is opened before it
    is needed. Raises :class:`ConfigError` if ``dsn`` is no PostgreSQL URI.
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
        self._capabilities = capabilities_of(shape)
        super().__init__(
            dsn,
            self._triggers,
            pool_size=pool_size,
            budget=budget,
            connect=connect,
            listen_dsn=listen_dsn,
        )
        self._upgrader = TokenUpgrader(self._database, self.statements)

    def __repr__(self) -> str:
        return f"TableStore(table={self._shape.table!r})"

    @property
    def capabilities(self) -> Capabilities:
        """What the table can do; before its catalog was read, what the shape says."""
        return self._capabilities

    async def open(self) -> None:
        """Prepare for the running loop. Reads the catalog if the database answers.

        Raises :class:`ConfigError` for a table that does not fit the shape.
        """
        self._database.open()
        with suppress(SessionsUnavailable):
            await self.ready()

    async def ready(self) -> Capabilities:
        """See :meth:`Store.ready`; reads the catalog, once."""
        await self.statements()
        return self._capabilities

    async def statements(self) -> Statements:
        """The SQL for this table. Reads the catalog at the first call, and logs which
        columns are missing. Raises as :meth:`ready` does."""
        if self._statements is None:
            async with self._database.acquire_read() as connection:
                shape, users = self._shape, None
                table = await read_table(connection, quoted(shape.table))
                if shape.users is not None:
                    users = await read_table(connection, quoted(shape.users.table))
                sql = Statements(resolve(shape, table, users))
                if sql.longest_ids is not None:
                    (longest,) = await connection.fetch(sql.longest_ids, ID_SAMPLE)
                    refuse_long_ids(shape, dict(longest))
            if sql.resolved.missing:
                logger.warning(
                    "%s has no column for %s: these features are off",
                    self._shape.table,
                    ", ".join(sql.resolved.missing),
                    extra={"action": "features_off"},
                )
            self._statements, self._capabilities = sql, sql.resolved.capabilities
        return self._statements

    async def _triggers(self) -> Sequence[NotifyTrigger]:
        return triggers_of((await self.statements()).resolved)

    async def close(self) -> None:
        """See :meth:`Store.close`; takes at most a second."""
        await self._upgrader.stop()
        await super().close()

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find`."""
        sql = await self.statements()
        if self._shape.at_rest != "digest":
            digests = [PREFIX + digest for digest in digests]
        return list(map(self._record, await self._read(sql.find, list(digests))))

    async def find_plaintext(
        self, digests: Sequence[str], tokens: Sequence[str]
    ) -> Sequence[Record]:
        """See :meth:`PlaintextStore.find_plaintext`. A token that is found in plaintext is
        replaced by its digest in a task of its own; the caller does not wait for it."""
        sql = await self.statements()
        stored = [PREFIX + digest for digest in digests]
        stored += [token for token in tokens if not token.startswith(PREFIX)]
        rows = await self._read(sql.find, stored)
        self._upgrader.start(str(row["token_digest"]) for row in rows)
        return list(map(self._record, rows))

    async def find_by_id(self, session_id: str) -> Record | None:
        """See :meth:`Store.find_by_id`."""
        found = await self.find_many([session_id])
        return found[0] if found else None

    async def find_many(self, session_ids: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find_many`."""
        sql = await self.statements()
        known = (self._normalize(sql, "id", id) for id in session_ids)
        ids = [id for id in known if id is not None]
        rows = await self._read(sql.find_many, ids) if ids else []
        return list(map(self._record, rows))

    async def find_by_refresh(self, digest: str) -> Record | None:
        """See :meth:`RotatingStore.find_by_refresh`; the column should have an index."""
        sql = await self.statements()
        return self._one(await self._read(sql.find_by_refresh, digest))

    async def normalize_session_id(self, session_id: str) -> str | None:
        """See :meth:`Store.normalize_session_id`."""
        return self._normalize(await self.statements(), "id", session_id)

    async def normalize_user_id(self, user_id: str) -> str | None:
        """See :meth:`Store.normalize_user_id`."""
        return self._normalize(await self.statements(), "user_id", user_id)

    @staticmethod
    def _normalize(sql: Statements, field: str, text: str | None) -> str | None:
        """An id in the form of its column; None for a text that the column cannot hold."""
        column = sql.resolved.columns[field]
        known = None if text is None else normalize(column.cast, text)
        return known if known is not None and column.takes(known) else None

    async def new_id(self, make: Callable[[], str]) -> str | None:
        """See :meth:`CreatingStore.new_id`."""
        sql = await self.statements()
        if sql.next_id is None:
            return self._normalize(sql, "id", make())
        rows = await self._database.fetch(sql.next_id)
        return self._normalize(sql, "id", str(rows[0][0]))

    async def create(self, new: NewSession, policy: Policy) -> Created:
        """See :meth:`CreatingStore.create`; one statement, if no session has to end."""

        async def insert(connection: Connection, notify: bool) -> Created:
            if not new.replaces and new.limit is None:
                return Created(record=await self._insert(connection, new))
            async with connection.transaction():
                ended = await self._make_room(connection, new, policy, notify)
                return Created(record=await self._insert(connection, new), ended=ended)

        sql = await self.statements()
        if self._normalize(sql, "user_id", new.user_id) is None:
            raise LoginRefused("unknown_user")
        async with self._database.acquire_write() as connection:
            return await commit_with_notify(self._database, connection, insert)

    async def _make_room(
        self, connection: Connection, new: NewSession, policy: Policy, notify: bool
    ) -> tuple[Ended, ...]:
        sql = await self.statements()
        known = (self._normalize(sql, "id", id) for id in new.replaces)
        ending = [id for id in known if id is not None]
        if new.limit is not None:
            ending += await self._surplus(connection, new, policy, ending)
        if not ending:
            return ()
        self._database.queries += 1
        rows = await connection.fetch(sql.revoke, ending, "replaced by a new login", notify)
        return tuple(map(ended_of, rows))

    async def _surplus(
        self,
        connection: Connection,
        new: NewSession,
        policy: Policy,
        ending: Sequence[str],
    ) -> list[str]:
        """The oldest sessions, which must end. A lock makes logins of one user wait for
        each other."""
        assert new.limit is not None  # noqa: S101 - the caller asked
        self._database.queries += 2
        sql = await self.statements()
        user = storable(new.user_id)
        await connection.execute(sql.lock_user, f"{self._shape.table}:", user)
        rows = await connection.fetch(
            sql.live,
            storable(new.user_id),
            policy.absolute_ttl,
            policy.idle_ttl,
            policy.end_on_password_change,
            not self._capabilities.absolute,
        )
        live = [id for row in rows if (id := str(row["id"])) not in ending]
        surplus = max(0, len(live) - new.limit + 1)
        if surplus and not new.evict:
            raise LoginRefused("too_many")
        return live[:surplus]

    async def _insert(self, connection: Connection, new: NewSession) -> Record:
        self._database.queries += 1
        sql, client = await self.statements(), new.client
        address = canonical_address(client.address)
        if address is None and sql.resolved.address_is_required:
            address = UNKNOWN_ADDRESS
        try:
            row = await connection.fetchrow(
                sql.create,
                new.id,
                storable(new.user_id),
                new.token_digest,
                new.refresh_digest,
                address,
                storable(client.user_agent_hash)[:LONGEST_HASH],
                storable(client.fingerprint or "")[:LONGEST_HASH] or None,
                new.session_ttl,
                new.refresh_ttl,
                new.longest,
                client.user_agent and storable(client.user_agent),
                client.location and storable(client.location),
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
        row = await connection.fetchrow(sql.refusal, storable(user_id))
        if row is None:
            return LoginRefused("unknown_user")
        return LoginRefused("user_locked" if row["active"] else "user_disabled")

    async def rotate(self, step: Rotation) -> Record | None:
        """See :meth:`RotatingStore.rotate`."""
        sql = await self.statements()
        if self._normalize(sql, "id", step.id) is None:
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

    async def redate(self, step: Rotation) -> Record | None:
        """See :meth:`RotatingStore.redate`."""
        sql = await self.statements()
        if self._normalize(sql, "id", step.id) is None:
            return None
        rows = await self._change(sql.redate, step.id, step.presented, step.session_ttl)
        return self._one(rows)

    async def replace_tokens(self, step: StepUp) -> Record | None:
        """See :meth:`StepUpStore.replace_tokens`."""
        sql = await self.statements()
        text = sql.replace_tokens if step.level is None else sql.raise_level
        known = self._normalize(sql, "id", step.id)
        if known is None:
            return None
        values: list[object] = [known, step.level, step.token_digest]
        if sql.resolved.shape.rotates:
            values += [step.refresh_digest, step.session_ttl, step.refresh_ttl]
            values.append(step.longest)

        async def replace(connection: Connection, notify: bool) -> list[asyncpg.Record]:
            self._database.queries += 3
            async with connection.transaction():
                # To the trigger, another token is the end of the session.
                await connection.execute(SKIP_TRIGGER)
                rows = await connection.fetch(text, *values)
                if rows and notify:
                    ended = self._shape.id_is_token
                    kind = Kind.SESSION_ENDED if ended else Kind.SESSION_CHANGED
                    await send(connection, kind.payload(known))
                return rows

        async with self._database.acquire_write() as connection:
            return self._one(await commit_with_notify(self._database, connection, replace))

    async def revoke(
        self, session_id: str, *, reason: str, user_id: str | None = None
    ) -> Ended | None:
        """See :meth:`Store.revoke`."""
        why, sql = storable(reason)[:LONGEST_REASON], await self.statements()
        known = self._normalize(sql, "id", session_id)
        owner = self._normalize(sql, "user_id", user_id)
        if known is None or (user_id is not None and owner is None):
            return None

        async def end(connection: Connection, notify: bool) -> list[asyncpg.Record]:
            self._database.queries += 1
            if owner is None:
                return await connection.fetch(sql.revoke, [known], why, notify)
            return await connection.fetch(sql.revoke_own, known, why, notify, owner)

        async with self._database.acquire_write() as connection:
            rows = await commit_with_notify(self._database, connection, end)
        if not rows:
            await self._check_ended([known], owner)
            return None
        return ended_of(rows[0])

    async def _check_ended(self, ids: Sequence[str], owner: str | None = None) -> None:
        """Raise :class:`ConfigError` if one of these sessions is still live (rule 9)."""
        for record in await self.find_many(ids):
            if record.is_active and owner in (None, record.user_id):
                raise ConfigError(STILL_LIVE.format(table=self._shape.table))

    async def revoke_user(
        self, user_id: str, *, reason: str, keep: str | None = None
    ) -> Sequence[Ended]:
        """See :meth:`Store.revoke_user`; one notification, however many sessions end."""
        sql = await self.statements()
        owner = self._normalize(sql, "user_id", user_id)
        if owner is None:
            return []
        kept = self._normalize(sql, "id", keep)
        values = owner, storable(reason)[:LONGEST_REASON], kept

        async def end(connection: Connection, notify: bool) -> tuple[list[Ended], set[str]]:
            self._database.queries += 4
            async with connection.transaction():
                await connection.execute(SKIP_TRIGGER)
                live = await connection.fetch(sql.live_ids, owner, kept)
                rows = await connection.fetch(sql.revoke_user, *values)
                ended = [ended_of(row) for row in rows]
                for user in sorted({one.user_id for one in ended}) if notify else ():
                    await send(connection, Kind.USER.payload(user))
                left = {str(row["id"]) for row in live} - {one.id for one in ended}
                return ended, left

        async with self._database.acquire_write() as connection:
            ended, left = await commit_with_notify(self._database, connection, end)
        await self._check_ended(sorted(left))
        return ended

    async def list_for_user(self, user_id: str) -> Sequence[Record]:
        """See :meth:`Store.list_for_user`; at most a thousand rows."""
        sql = await self.statements()
        owner = self._normalize(sql, "user_id", user_id)
        if owner is None:
            return []
        return list(map(self._record, await self._fetch(sql.list_for_user, owner)))

    async def touch(self, touches: Sequence[Touch], policy: Policy) -> int:
        """See :meth:`ActivityStore.touch`."""
        sql = await self.statements()
        able = [t for t in touches if self._normalize(sql, "id", t.session_id) is not None]
        ordered = sorted(able, key=lambda touch: touch.session_id)
        limits = (
            [policy.session_ttl]
            if self._capabilities.refresh
            else [policy.refresh_ttl, policy.browser_ttl, policy.absolute_ttl]
        )
        async with self._database.acquire_write() as connection:
            self._database.queries += 1
            values = (
                [touch.session_id for touch in ordered],
                [storable(touch.token_digest) for touch in ordered],
                [touch.at for touch in ordered],
            )
            status = await retry_if_row_moved(
                lambda: connection.execute(sql.touch, *values, *limits)
            )
        return count_of(status)

    async def prune(self, policy: Policy, *, batch: int) -> int:
        """See :meth:`Store.prune`."""
        sql = await self.statements()
        async with self._database.acquire_write() as connection:
            self._database.queries += 1
            limits = policy.retention, policy.absolute_ttl, policy.idle_ttl
            status = await retry_if_row_moved(
                lambda: connection.execute(sql.prune, *limits, batch)
            )
        return count_of(status)

    def _record(self, row: asyncpg.Record) -> Record:
        return record_of(row, self._shape.at_rest, self._capabilities)

    def _one(self, rows: Sequence[asyncpg.Record]) -> Record | None:
        return self._record(rows[0]) if rows else None

    async def _fetch(self, sql: str, *values: object) -> list[asyncpg.Record]:
        return await self._database.fetch(sql, *map(bindable, values))

    async def _change(self, sql: str, *values: object) -> list[asyncpg.Record]:
        """The rows of a conditional write; none if another write was first."""
        try:
            return await self._fetch(sql, *values)
        except SessionsUnavailable as exc:
            if exc.cause != asyncpg.SerializationError.__name__:
                raise
            return []  # its row was moved to another partition, so it has another token

    async def _read(self, sql: str, *values: object) -> list[asyncpg.Record]:
        return await self._database.read(sql, *map(bindable, values))
