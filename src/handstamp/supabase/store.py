"""The tables of Supabase Auth as a store: ``auth.sessions`` and the tables that belong to
it.

The rules of a store (:mod:`handstamp.stores.base`) hold here too, with these differences,
because GoTrue writes the same tables:

- The access token names its session, so the ``token_digest`` of a record is the id.
- A session ends when its row is deleted, so a reason cannot be written. GoTrue's rules end
  a session, and no limit of a ``Policy``.
- Of the optional protocols these tables have one, notifications.
  :meth:`SupabaseStore.sign_in` opens a session and :meth:`SupabaseStore.refresh` replaces
  its tokens, under GoTrue's own locks, because the tables have tokens of their own. GoTrue
  alone raises the level of a session.
- Nothing records activity. ``last_activity_at`` is the last refresh, or else the creation.
- ``prune`` deletes nothing: rows of sessions that are over are deleted by GoTrue's cleanup.

No column is added and no table need be ours. The role is the tables' owner, or has
BYPASSRLS and the grants that docs/supabase.md lists. Select on sessions and users is enough
to read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg

from handstamp.config import Policy
from handstamp.core.models import Client, Record
from handstamp.core.requests import canonical_address
from handstamp.errors import ConfigError, LoginRefused, SessionsUnavailable
from handstamp.stores.base import STILL_LIVE, Capabilities, Ended
from handstamp.stores.connection import Connection, Database
from handstamp.stores.notify import commit_with_notify, send
from handstamp.stores.notify.sql import SKIP_TRIGGER, Kind, NotifyTrigger
from handstamp.stores.postgres import PostgresStore
from handstamp.supabase.refresh import AuthTables, Entropy, refresh, would_refresh
from handstamp.supabase.rows import (
    CreatedAuthSession,
    Outcome,
    amr_of,
    ended_of,
    record_of,
    session_of,
    text_or_null,
    user_of,
    uuid_of,
    uuids_of,
    visible,
)
from handstamp.supabase.rules import AuthSession, SupabaseRules
from handstamp.supabase.schema import (
    ALWAYS,
    HIDDEN,
    INSPECT,
    TABLES,
    WATCHED,
    WHOLE,
    Schema,
    read_schema,
    supabase_triggers,
)
from handstamp.supabase.sql import SupabaseStatements
from handstamp.supabase.tokens import KeyRing, mint_uuid, mint_v1

T = TypeVar("T")
logger = logging.getLogger("handstamp")

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
_SCHEMA_CHANGED = (
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
    asyncpg.InsufficientPrivilegeError,
)


class SchemaCache:
    """What one database of Supabase Auth has and allows, and the SQL for that.

    It is read at the first use and kept. It is read again after a statement that failed
    because of it, and before each use while something is missing. A defect is logged once
    and answers no request: it is :class:`SessionsUnavailable` and no refusal.
    """

    def __init__(self, database: Database, name: str, rules: SupabaseRules) -> None:
        self._database = database
        self._name = name
        self._rules = rules
        self._cached: tuple[Schema, SupabaseStatements] | None = None
        self._logged: str | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What the tables can do; before the first read, what a complete schema could."""
        return WHOLE if self._cached is None else self._cached[0].capabilities

    async def ready(self) -> Capabilities:
        """Returns what the tables can do, once that is certain.

        Raises :class:`ConfigError` where no session can be read, and
        :class:`SessionsUnavailable` without an answer.
        """
        schema = await self.schema()
        if schema.unreadable is not None:
            schema, _ = await self._read()  # it may have been corrected
        if schema.unreadable is not None:
            raise ConfigError(schema.unreadable)
        return schema.capabilities

    async def schema(self) -> Schema:
        """Returns the schema, also where the role may not use it. Raises
        :class:`SessionsUnavailable` without an answer."""
        schema, _ = self._cached or await self._read()
        return schema

    async def run_read(self, act: Callable[[SupabaseStatements], Awaitable[T]]) -> T:
        """Calls ``act``, which only reads sessions, with the statements."""
        return await self._run(lambda schema: schema.unreadable, act)

    async def run_write(self, act: Callable[[SupabaseStatements], Awaitable[T]]) -> T:
        """Calls ``act``, which needs every grant, with the statements."""
        return await self._run(lambda schema: schema.unwritable, act)

    async def _run(
        self,
        defect_of: Callable[[Schema], str | None],
        act: Callable[[SupabaseStatements], Awaitable[T]],
    ) -> T:
        schema, sql = self._cached or await self._read()
        if defect_of(schema) is not None:
            schema, sql = await self._read()  # it may have been corrected
            defect = defect_of(schema)
            if defect is not None:
                if defect != self._logged:
                    self._logged = defect
                    logger.error(defect, extra={"action": "schema_refused"})
                raise SessionsUnavailable(defect)
        try:
            return await act(sql)
        except SessionsUnavailable as exc:
            if exc.cause == HIDDEN or isinstance(exc.__cause__, _SCHEMA_CHANGED):
                self._cached = None
            raise

    async def _read(self) -> tuple[Schema, SupabaseStatements]:
        rows = await self._database.read(INSPECT, self._name, list(TABLES))
        schema = read_schema(self._name, rows, self._rules)
        cached = schema, SupabaseStatements(self._name, schema, self._rules)
        if schema.unwritable is None:
            self._logged = None
        self._cached = cached
        return cached


class SupabaseStore(PostgresStore):
    """The sessions in the schema ``auth`` of one database of Supabase Auth.

    ``rules`` are the settings of the GoTrue that writes the same tables, ``keys`` its
    database encryption keys. ``entropy`` returns this many fresh random bytes:
    ``os.urandom``. Sessions of an OAuth client are found by an access token only if the
    client is in ``oauth_clients``: they are not sign-ins of the user's own. The rest is as
    for :class:`handstamp.stores.table.TableStore`. Opens no connection before it needs one.
    Raises :class:`ConfigError` for an address that is not a PostgreSQL URI.
    """

    def __init__(
        self,
        dsn: str,
        *,
        entropy: Entropy,
        rules: SupabaseRules | None = None,
        keys: KeyRing | None = None,
        oauth_clients: Container[str] = (),
        schema: str = "auth",
        pool_size: int = 10,
        budget: timedelta = timedelta(seconds=1),
        connect: Mapping[str, Any] | None = None,
        listen_dsn: str | None = None,
    ) -> None:
        if not _IDENTIFIER.fullmatch(schema):
            raise ConfigError(f"schema={schema!r} is no SQL name handstamp accepts")
        self._name = schema
        self.rules = rules or SupabaseRules()
        self._keys = keys or KeyRing()
        self._oauth_clients = oauth_clients
        self._entropy = entropy
        super().__init__(
            dsn,
            self._triggers,
            pool_size=pool_size,
            budget=budget,
            connect=connect,
            listen_dsn=listen_dsn,
        )
        self._schema = SchemaCache(self._database, schema, self.rules)

    def __repr__(self) -> str:
        return f"SupabaseStore(schema={self._name!r})"

    @property
    def capabilities(self) -> Capabilities:
        """See :attr:`Store.capabilities`; fewer in an older database, once it was read."""
        return self._schema.capabilities

    async def open(self) -> None:
        """See :meth:`Store.open`. Reads the schema if the database answers.

        Raises :class:`ConfigError` where no session can be read.
        """
        self._database.open()
        with suppress(SessionsUnavailable):
            await self.ready()

    async def ready(self) -> Capabilities:
        """See :meth:`Store.ready`; the grants to read are enough."""
        return await self._schema.ready()

    async def _triggers(self) -> Sequence[NotifyTrigger]:
        schema = await self._schema.schema()
        tables = ALWAYS if self.rules.allow_low_aal is None else WATCHED
        return supabase_triggers(self._name, schema.columns, tables)

    async def normalize_session_id(self, session_id: str) -> str | None:
        """See :meth:`Store.normalize_session_id`; ids are uuids here."""
        return uuid_of(session_id)

    async def normalize_user_id(self, user_id: str) -> str | None:
        """See :meth:`Store.normalize_user_id`."""
        return uuid_of(user_id)

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find`; a digest is the id of a session here, in its one
        spelling."""
        found = await self.read_sessions([id for id in digests if uuid_of(id) == id])
        return [
            record_of(session, self.rules)
            for session in found
            if session.oauth_client_id is None
            or session.oauth_client_id in self._oauth_clients
        ]

    async def find_by_id(self, session_id: str) -> Record | None:
        """See :meth:`Store.find_by_id`."""
        found = await self.find_many([session_id])
        return found[0] if found else None

    async def find_many(self, session_ids: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find_many`."""
        found = await self.read_sessions(session_ids)
        return [record_of(session, self.rules) for session in found]

    async def list_for_user(self, user_id: str) -> Sequence[Record]:
        """See :meth:`Store.list_for_user`: last refreshed first, at most a thousand; also
        those that a limit of time has ended, because their rows are still there."""
        known = uuid_of(user_id)
        if known is None:
            return []
        found = await self._select(lambda sql: sql.list_for_user, known)
        return [record_of(session, self.rules) for session in found]

    async def read_sessions(self, session_ids: Sequence[str]) -> Sequence[AuthSession]:
        """Returns the rows with these ids, in any order. A text that is no uuid is ignored.

        Raises :class:`SessionsUnavailable` without an answer.
        """
        known = uuids_of(session_ids)
        return await self._select(lambda sql: sql.find_many, known) if known else []

    async def _select(
        self, pick: Callable[[SupabaseStatements], str], value: object
    ) -> Sequence[AuthSession]:
        async def ask(sql: SupabaseStatements) -> Sequence[AuthSession]:
            rows = visible(await self._database.read(pick(sql), value))
            return list(filter(None, map(session_of, rows)))

        return await self._schema.run_read(ask)

    def _tables(self, sql: SupabaseStatements) -> AuthTables:
        return AuthTables(self._database, sql, self.rules, self._keys, self._entropy)

    async def sign_in(
        self,
        user_id: str,
        client: Client,
        *,
        method: str = "password",
        replaces: Iterable[str] = (),
    ) -> CreatedAuthSession:
        """Inserts a session with its first refresh token, as GoTrue does at a sign-in.

        ``method`` is how the user signed in, in GoTrue's words (``password``, ``otp``,
        ``oauth``, ``sso/saml`` and so on): it becomes the session's first AMR claim.
        ``replaces`` are sessions that end in the same transaction. Raises
        :class:`LoginRefused` (``unknown_user``; ``user_disabled`` for a banned or deleted
        one), in which case nothing was written, and :class:`SessionsUnavailable` without an
        answer.
        """
        if not method:
            raise ConfigError("method must say how the user signed in")
        owner, replaced = uuid_of(user_id), uuids_of(list(replaces))
        if owner is None:
            raise LoginRefused("unknown_user")

        async def act(sql: SupabaseStatements) -> CreatedAuthSession:
            async def insert(connection: Connection, notify: bool) -> CreatedAuthSession:
                async with connection.transaction():
                    return await self._insert(
                        sql, connection, owner, client, method, replaced, notify=notify
                    )

            async with self._database.acquire_write() as connection:
                return await commit_with_notify(self._database, connection, insert)

        return await self._schema.run_write(act)

    async def _insert(
        self,
        sql: SupabaseStatements,
        connection: Connection,
        owner: str,
        client: Client,
        method: str,
        replaced: Sequence[str],
        *,
        notify: bool,
    ) -> CreatedAuthSession:
        ended: tuple[Ended, ...] = ()
        if replaced:
            self._database.queries += 1
            ended = ended_of(await connection.fetch(sql.revoke, notify, replaced, None))
        session_id, key, counter, row_token = mint_uuid(self._entropy(16)), None, None, None
        if sql.has_v2 and self.rules.algorithm_version == 2:
            key, token = self._tables(sql).new_counter_token(session_id)
            counter = 0
        else:
            token = row_token = mint_v1(self._entropy(8))
        agent, address = text_or_null(client.user_agent), canonical_address(client.address)
        values = session_id, owner, agent, address, key, counter, text_or_null(method)
        self._database.queries += 1
        row = await connection.fetchrow(sql.create, *values, row_token)
        if row is None:
            self._database.queries += 1
            (why,) = visible(await connection.fetch(sql.refusal, owner))
            raise LoginRefused("user_disabled" if why["found"] else "unknown_user")
        session = session_of(row)
        assert session is not None  # noqa: S101 - it has just been inserted
        return CreatedAuthSession(
            session=session,
            user=user_of(row),
            amr=amr_of(row),
            refresh_token=token,
            ended=ended,
        )

    async def refresh(
        self, token: str, client: Client, *, session_id: str | None = None
    ) -> Outcome:
        """Refreshes a session by the text of a refresh token, v1 or v2.

        With ``session_id``, a token of another session is refused, and nothing is written.
        What is returned has been committed. Raises :class:`SessionsUnavailable` without an
        answer, also when other transactions held the session for all of
        ``rules.retry_budget``.
        """

        async def act(sql: SupabaseStatements) -> Outcome:
            return await refresh(self._tables(sql), token, client, session_id)

        return await self._schema.run_write(act)

    async def would_refresh(self, token: str, session_id: str) -> bool:
        """Whether :meth:`refresh` would accept this token of this session, as far as that
        is known without a lock. Writes nothing; the session itself is not judged.

        Raises :class:`SessionsUnavailable` without an answer.
        """

        async def ask(sql: SupabaseStatements) -> bool:
            return await would_refresh(self._tables(sql), token, session_id)

        return await self._schema.run_write(ask)

    async def revoke(
        self, session_id: str, *, reason: str, user_id: str | None = None
    ) -> Ended | None:
        """See :meth:`Store.revoke`. ``reason`` is not written: there is no column for
        it."""
        ids, owner = uuids_of([session_id]), uuid_of(user_id)
        if not ids or (user_id is not None and owner is None):
            return None

        async def act(sql: SupabaseStatements) -> tuple[Ended, ...]:
            async def end(connection: Connection, notify: bool) -> list[asyncpg.Record]:
                self._database.queries += 1
                return await connection.fetch(sql.revoke, notify, ids, owner)

            async with self._database.acquire_write() as connection:
                return ended_of(await commit_with_notify(self._database, connection, end))

        ended = await self._schema.run_write(act)
        if not ended:
            await self._check_ended(ids, owner)
            return None
        return ended[0]

    async def revoke_user(
        self, user_id: str, *, reason: str, keep: str | None = None
    ) -> Sequence[Ended]:
        """See :meth:`Store.revoke_user`: GoTrue's scopes ``global`` and, with ``keep``,
        ``others``. One notification, however many sessions end."""
        owner, kept = uuid_of(user_id), uuid_of(keep)
        if owner is None:
            return []

        async def act(sql: SupabaseStatements) -> tuple[tuple[Ended, ...], set[str]]:
            async def end(
                connection: Connection, notify: bool
            ) -> tuple[tuple[Ended, ...], set[str]]:
                self._database.queries += 4
                async with connection.transaction():
                    await connection.execute(SKIP_TRIGGER)
                    there = await connection.fetch(sql.ids_of_user, owner, kept)
                    rows = await connection.fetch(sql.revoke_user, False, owner, kept)
                    ended = ended_of(rows)
                    if ended and notify:
                        await send(connection, Kind.USER.payload(owner))
                    return ended, {row["id"] for row in there} - {one.id for one in ended}

            async with self._database.acquire_write() as connection:
                return await commit_with_notify(self._database, connection, end)

        ended, left = await self._schema.run_write(act)
        await self._check_ended(sorted(left))
        return ended

    async def _check_ended(self, ids: Sequence[str], owner: str | None = None) -> None:
        """Raises :class:`ConfigError` where a session is still there that we deleted."""
        for session in await self.read_sessions(ids):
            if owner in (None, session.user_id):
                raise ConfigError(STILL_LIVE.format(table="sessions"))

    async def prune(self, policy: Policy, *, batch: int) -> int:
        """See :meth:`Store.prune`; GoTrue's own cleanup deletes rows here."""
        return 0
