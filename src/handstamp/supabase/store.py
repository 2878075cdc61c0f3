"""Knowing one database of Supabase Auth: looked up at the first use, and kept.

What it has and allows is looked up again after a question that it could not answer, and
until a complaint is mended; a complaint is logged once, and is no answer to anybody.

The tables of Supabase Auth: ``auth.sessions`` and what hangs on it, beside GoTrue.

What a store keeps (:mod:`handstamp.stores.base`) holds here too. The differences lie in the
tables: a session ends when its row is deleted, so a reason has no place to be written; a
refresh is decided under GoTrue's own locks, so it is one method; nothing records activity.

No column is added and no table need be ours. The role is the tables' owner, or has
BYPASSRLS and these grants: usage on the schema; select, insert, update, delete on sessions
and refresh_tokens, with usage on the sequence of the latter; select, insert on
mfa_amr_claims; insert on audit_log_entries; select, update on users; with
``allow_low_aal`` also select on mfa_factors. Select on sessions and users is enough to
read, and the columns that are used are enough.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg

from handstamp.core.models import Client
from handstamp.core.requests import canonical_address
from handstamp.errors import ConfigError, LoginRefused, SessionsUnavailable
from handstamp.stores.base import STILL_LIVE, Capabilities, Ended
from handstamp.stores.connection import Connection, Database
from handstamp.stores.notify import commit_with_notify, send
from handstamp.stores.notify.sql import SKIP_TRIGGER, Kind, NotifyTrigger
from handstamp.stores.postgres import PostgresStore, count_of
from handstamp.supabase.refresh import Entropy, Work, refresh, would_refresh
from handstamp.supabase.rows import (
    CreatedAuthSession,
    NewAuthSession,
    Outcome,
    amr_of,
    ended_of,
    mint_uuid,
    seen,
    session_of,
    storable,
    user_of,
    uuid_of,
    uuids_of,
)
from handstamp.supabase.rules import (
    AuthSession,
    SupabaseRules,
)
from handstamp.supabase.schema import (
    ALWAYS,
    HIDDEN,
    LOOK,
    TABLES,
    WATCHED,
    WHOLE,
    Schema,
    read_schema,
    supabase_triggers,
)
from handstamp.supabase.sql import SupabaseStatements
from handstamp.supabase.tokens import KeyRing, mint_v1, new_key, write_v2

T = TypeVar("T")
logger = logging.getLogger("handstamp")

_UNQUERYABLE = (
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
    asyncpg.InsufficientPrivilegeError,
)


class SupabaseKnowledge:
    """The statements for the schema ``name`` of one database under one set of rules."""

    def __init__(self, database: Database, name: str, rules: SupabaseRules) -> None:
        self._database = database
        self._name = name
        self._rules = rules
        self._known: tuple[Schema, SupabaseStatements] | None = None
        self._complained: str | None = None

    async def check(self) -> Schema:
        """Look again. Raises :class:`ConfigError` for what must be mended first."""
        schema, _ = await self._look()
        if schema.unwritable is not None:
            raise ConfigError(schema.unwritable)
        return schema

    @property
    def capabilities(self) -> Capabilities:
        """What the tables can do; what a whole database could, before anyone looked."""
        return WHOLE if self._known is None else self._known[0].capabilities

    async def ready(self) -> Capabilities:
        """What the tables can do, once that is certain.

        Raises :class:`ConfigError` where no session could be read, and
        :class:`SessionsUnavailable` without an answer.
        """
        schema, _ = self._known or await self._look()
        if schema.unreadable is not None:
            schema, _ = await self._look()  # it may have been mended
        if schema.unreadable is not None:
            raise ConfigError(schema.unreadable)
        return schema.capabilities

    async def schema(self) -> Schema:
        """What is there, whatever may be done with it. Raises
        :class:`SessionsUnavailable` without an answer."""
        schema, _ = self._known or await self._look()
        return schema

    async def reading(self, act: Callable[[SupabaseStatements], Awaitable[T]]) -> T:
        """Do something that only reads sessions."""
        return await self._doing(lambda schema: schema.unreadable, act)

    async def writing(self, act: Callable[[SupabaseStatements], Awaitable[T]]) -> T:
        """Do something that needs every grant."""
        return await self._doing(lambda schema: schema.unwritable, act)

    async def _doing(
        self,
        complaint: Callable[[Schema], str | None],
        act: Callable[[SupabaseStatements], Awaitable[T]],
    ) -> T:
        schema, sql = self._known or await self._look()
        if complaint(schema) is not None:
            schema, sql = await self._look()  # it may have been mended
            self._complain(complaint(schema))
        try:
            return await act(sql)
        except SessionsUnavailable as exc:
            if exc.cause == HIDDEN or isinstance(exc.__cause__, _UNQUERYABLE):
                self._known = None
            raise

    async def _look(self) -> tuple[Schema, SupabaseStatements]:
        rows = await self._database.read(LOOK, self._name, list(TABLES))
        schema = read_schema(self._name, rows, self._rules)
        known = schema, SupabaseStatements(self._name, schema, self._rules)
        if schema.unwritable is None:
            self._complained = None
        self._known = known
        return known

    def _complain(self, complaint: str | None) -> None:
        if complaint is None:
            return
        if complaint != self._complained:
            self._complained = complaint
            logger.error(complaint, extra={"action": "schema_refused"})
        raise SessionsUnavailable(complaint)


_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")


class SupabaseStore(PostgresStore):
    """The sessions in the schema ``auth`` of one database of Supabase Auth.

    ``rules`` are the settings of the GoTrue that writes the same tables, ``keys`` its
    database encryption keys. ``entropy`` gives so many fresh random bytes: ``os.urandom``.
    The rest is as for :class:`handstamp.stores.table.TableStore`. Opens no connection
    before it needs one; what the database has and allows is looked up at the first use.
    Raises :class:`ConfigError` for what is no PostgreSQL URI.
    """

    def __init__(
        self,
        dsn: str,
        *,
        entropy: Entropy,
        rules: SupabaseRules | None = None,
        keys: KeyRing | None = None,
        schema: str = "auth",
        pool_size: int = 10,
        budget: timedelta = timedelta(seconds=1),
        connect: Mapping[str, Any] | None = None,
        listen_dsn: str | None = None,
    ) -> None:
        self._entropy = entropy
        self._rules = rules or SupabaseRules()
        self._keys = keys or KeyRing()
        if not _IDENTIFIER.fullmatch(schema):
            raise ConfigError(f"schema={schema!r} is no SQL name handstamp accepts")
        self._name = schema
        super().__init__(
            dsn,
            self._triggers,
            pool_size=pool_size,
            budget=budget,
            connect=connect,
            listen_dsn=listen_dsn,
        )
        self._knowledge = SupabaseKnowledge(self._database, schema, self._rules)

    def __repr__(self) -> str:
        return f"SupabaseStore(schema={self._name!r})"

    @property
    def rules(self) -> SupabaseRules:
        """The settings this store goes by."""
        return self._rules

    @property
    def capabilities(self) -> Capabilities:
        """Assurance levels, but no activity and no fingerprint; less in an older database,
        once it was looked at."""
        return self._knowledge.capabilities

    async def open(self) -> None:
        """Get ready on the running loop; connects nowhere."""
        self._database.open()

    async def ready(self) -> Capabilities:
        """See :meth:`Store.ready`; being able to read is enough."""
        return await self._knowledge.ready()

    async def check(self) -> Schema:
        """Look again what the database has and what the role may do.

        For a start that fails early, and for diagnosis; ``missing`` of the answer lists
        what an older Supabase lacks. Raises :class:`ConfigError` naming the first grant or
        setting to mend, and :class:`SessionsUnavailable` without an answer.
        """
        return await self._knowledge.check()

    async def find_many(self, session_ids: Sequence[str]) -> Sequence[AuthSession]:
        """The sessions with these ids, any order. What is no uuid names none."""
        known = uuids_of(session_ids)
        if not known:
            return []
        return await self._sessions(lambda sql: sql.find_many, known)

    async def find_by_id(self, session_id: str) -> AuthSession | None:
        """The session with this id."""
        found = await self.find_many([session_id])
        return found[0] if found else None

    async def list_for_user(self, user_id: str) -> Sequence[AuthSession]:
        """A user's sessions, refreshed last first, at most a thousand; also those that
        are over by a rule of time, for their rows are still there."""
        known = uuid_of(user_id)
        if known is None:
            return []
        return await self._sessions(lambda sql: sql.list_for_user, known)

    async def _sessions(
        self, pick: Callable[[SupabaseStatements], str], value: object
    ) -> Sequence[AuthSession]:
        async def ask(sql: SupabaseStatements) -> Sequence[AuthSession]:
            rows = await self._database.read(pick(sql), value)
            return list(filter(None, map(session_of, seen(rows))))

        return await self._knowledge.reading(ask)

    async def create(
        self, user_id: str, client: Client, new: NewAuthSession | None = None
    ) -> CreatedAuthSession:
        """Insert a session with its first refresh token, as GoTrue does at a sign-in.

        Raises :class:`LoginRefused` (``unknown_user``; ``user_disabled`` for a banned or
        deleted one), in which case nothing was written.
        """
        owner = uuid_of(user_id)
        if owner is None:
            raise LoginRefused("unknown_user")
        asked = new or NewAuthSession()

        async def act(sql: SupabaseStatements) -> CreatedAuthSession:
            work = self._work(sql)

            async def insert(connection: Connection, notify: bool) -> CreatedAuthSession:
                async with connection.transaction():
                    return await create(
                        work, connection, owner, client, asked, notify=notify
                    )

            async with self._database.acquire_write() as connection:
                return await commit_with_notify(self._database, connection, insert)

        return await self._knowledge.writing(act)

    async def refresh(
        self,
        token: str,
        client: Client,
        *,
        oauth_client_id: str | None = None,
        session_id: str | None = None,
    ) -> Outcome:
        """Refresh a session by the text of a refresh token, v1 or v2.

        ``oauth_client_id`` is the authenticated OAuth client that asks, if one does. With
        ``session_id`` a token of another session is refused, and nothing is written. What
        comes back is committed. Raises :class:`SessionsUnavailable` without an answer,
        also when others held the session for all of ``rules.retry_budget``.
        """
        asking = None if oauth_client_id is None else oauth_client_id.lower()

        async def act(sql: SupabaseStatements) -> Outcome:
            return await refresh(self._work(sql), token, client, asking, session_id)

        return await self._knowledge.writing(act)

    async def would_refresh(self, token: str, session_id: str) -> bool:
        """Whether :meth:`refresh` would accept this token of this session, as far as can
        be seen without a lock; the session itself stands. Nothing is written.

        Raises :class:`SessionsUnavailable` without an answer.
        """

        async def ask(sql: SupabaseStatements) -> bool:
            return await would_refresh(self._work(sql), token, session_id)

        return await self._knowledge.writing(ask)

    async def _triggers(self) -> Sequence[NotifyTrigger]:
        schema = await self._knowledge.schema()
        tables = ALWAYS if self._rules.allow_low_aal is None else WATCHED
        return supabase_triggers(self._name, schema.columns, tables)

    def _work(self, sql: SupabaseStatements) -> Work:
        return Work(self._database, sql, self._rules, self._keys, self._entropy)

    async def revoke(
        self, session_id: str, *, reason: str, user_id: str | None = None
    ) -> Ended | None:
        """Delete one session, only if it is ``user_id``'s where that is given.

        ``reason`` is for events and logs; these tables have no place for it.
        """
        ids, owner = uuids_of([session_id]), uuid_of(user_id)
        if not ids or (user_id is not None and owner is None):
            return None

        async def act(sql: SupabaseStatements) -> tuple[Ended, ...]:
            async def end(connection: Connection, notify: bool) -> list[asyncpg.Record]:
                self._database.queries += 1
                if owner is None:
                    return await connection.fetch(sql.revoke, notify, ids)
                return await connection.fetch(sql.revoke_own, notify, ids, owner)

            async with self._database.acquire_write() as connection:
                return ended_of(await commit_with_notify(self._database, connection, end))

        ended = await self._knowledge.writing(act)
        if not ended:
            await self._check_ended(ids, owner)
            return None
        return ended[0]

    async def _check_ended(self, ids: Sequence[str], owner: str | None = None) -> None:
        """Raise where one of these sessions stands, although we deleted it."""
        for session in await self.find_many(ids):
            if owner in (None, session.user_id):
                raise ConfigError(STILL_LIVE.format(table="sessions"))

    async def revoke_user(
        self, user_id: str, *, reason: str, keep: str | None = None
    ) -> Sequence[Ended]:
        """Delete every session of a user but ``keep``: GoTrue's scopes ``global`` and
        ``others``. One message, however many sessions end."""
        owner = uuid_of(user_id)
        if owner is None:
            return []
        kept = uuid_of(keep)

        async def act(sql: SupabaseStatements) -> tuple[tuple[Ended, ...], set[str]]:
            async def end(
                connection: Connection, notify: bool
            ) -> tuple[tuple[Ended, ...], set[str]]:
                self._database.queries += 4
                async with connection.transaction():
                    await connection.execute(SKIP_TRIGGER)
                    there = await connection.fetch(sql.ids_of_user, owner, kept)
                    rows = await connection.fetch(sql.revoke_user, False, owner, kept)
                    gone = ended_of(rows)
                    if gone and notify:
                        await send(connection, Kind.USER.payload(owner))
                    return gone, {row["id"] for row in there} - {one.id for one in gone}

            async with self._database.acquire_write() as connection:
                return await commit_with_notify(self._database, connection, end)

        gone, left = await self._knowledge.writing(act)
        await self._check_ended(sorted(left))
        return gone

    async def prune(self, *, batch: int = 100) -> int:
        """Once each of GoTrue's own cleanups of sessions and refresh tokens, with its
        limits and at most ``batch`` rows in all; how many rows were touched.

        Nothing without ``rules.cleanup``. Skips what anybody holds. GoTrue's cleanup of
        anonymous users is left to GoTrue: this library deletes no users.
        """
        if not self._rules.cleanup:
            return 0

        async def act(sql: SupabaseStatements) -> int:
            left = batch
            for statement, most in sql.prunes:
                if not left:
                    break
                async with self._database.acquire_write() as connection:
                    self._database.queries += 1
                    status = await connection.execute(statement, min(left, most))
                left -= count_of(status)
            return batch - left

        return await self._knowledge.writing(act)


async def create(
    work: Work,
    connection: Connection,
    owner: str,
    client: Client,
    new: NewAuthSession,
    *,
    notify: bool,
) -> CreatedAuthSession:
    """Insert a session for the user with the uuid ``owner``, in the transaction that the
    connection is in, and say what ends with it if ``notify``.

    Raises :class:`LoginRefused`, in which case nothing was inserted.
    """
    ended = await _make_room(work, connection, new, notify)
    session_id = mint_uuid(work.entropy(16))
    v2 = work.sql.knows_v2 and work.rules.algorithm_version == 2
    sealed, token = _first_token(work, session_id, v2)
    work.database.queries += 1
    row = await connection.fetchrow(
        work.sql.create,
        session_id,
        owner,
        storable(client.user_agent),
        canonical_address(client.address),
        new.not_after,
        storable(new.tag),
        new.oauth_client_id,
        storable(new.scopes),
        sealed,
        0 if v2 else None,
        storable(new.method),
        None if v2 else token,
    )
    if row is None:
        raise await _refusal(work, connection, owner)
    session = session_of(row)
    assert session is not None  # noqa: S101 - it has just been inserted
    return CreatedAuthSession(
        session=session,
        user=user_of(row),
        amr=amr_of(row),
        refresh_token=token,
        v2=v2,
        ended=ended,
    )


async def _make_room(
    work: Work, connection: Connection, new: NewAuthSession, notify: bool
) -> tuple[Ended, ...]:
    if not new.replaces:
        return ()
    work.database.queries += 1
    ids = uuids_of(new.replaces)
    return ended_of(await connection.fetch(work.sql.revoke, notify, ids))


def _first_token(work: Work, session_id: str, v2: bool) -> tuple[str | None, str]:
    """The key to store, for v2, and the refresh token to hand out."""
    if not v2:
        return None, mint_v1(work.entropy(8))
    plain = new_key(work.entropy(32))
    sealed = work.keys.seal(plain, session_id, work.entropy(12))
    return sealed, write_v2(session_id, 0, work.keys.open(sealed, session_id))


async def _refusal(
    work: Work, connection: Connection, owner: str
) -> LoginRefused | SessionsUnavailable:
    work.database.queries += 1
    (row,) = await connection.fetch(work.sql.refusal, owner)
    if row["hidden"]:
        return SessionsUnavailable(HIDDEN)
    return LoginRefused("user_disabled" if row["found"] else "unknown_user")
