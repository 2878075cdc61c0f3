"""What both kinds of refresh do with the tables of Supabase Auth.

Rule 1. Nothing waits for a lock. Rows that somebody else holds are skipped, the transaction
ends, and a moment later everything is asked again, from the start.
Rule 2. First everything is judged without a lock, so that what is refused anyway holds
nothing; then once more under the locks, on what is true by then.
Rule 3. A transaction is short: whoever inserts a child row of the session, or updates it,
makes every refresh of it wait, GoTrue's too.

Opening a session in Supabase Auth's own tables, as GoTrue does at a sign-in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

import asyncpg

from handstamp.core.models import Client
from handstamp.core.requests import canonical_address
from handstamp.errors import LoginRefused, SessionsUnavailable
from handstamp.stores.base import Ended
from handstamp.stores.connection import Connection, Database
from handstamp.stores.notify import QUEUE_USAGE
from handstamp.stores.notify_trigger import QUIETLY
from handstamp.supabase.rows import (
    CreatedAuthSession,
    NewAuthSession,
    Outcome,
    Refreshed,
    Refused,
    amr_of,
    ended_of,
    mint_uuid,
    session_of,
    storable,
    user_of,
    uuids_of,
)
from handstamp.supabase.rules import (
    AuthSession,
    Cause,
    Refusal,
    SupabaseRules,
    judge_client,
    judge_rivals,
    judge_session,
    judge_user,
)
from handstamp.supabase.schema import HIDDEN
from handstamp.supabase.statements import SupabaseStatements
from handstamp.supabase.tokens import KeyRing, mint_v1, new_key, write_v2

Entropy = Callable[[int], bytes]
"""So many fresh random bytes, such as ``os.urandom``."""

_HELD = (
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
    asyncpg.InvalidCachedStatementError,  # the table has just got a column
)


class HeldError(Exception):
    """Somebody else holds a row: roll back, and ask again a moment later."""


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request: who makes it, and the database's clock when it came. ``loud`` is
    whether the notification queue still takes anything. ``session_id`` is the one session
    that may be refreshed, where that is known."""

    client: Client
    oauth_client_id: str | None
    session_id: str | None = None
    came_at: datetime | None = None
    loud: bool = True

    @property
    def now(self) -> datetime:
        """What limits of time are judged by, however often it is tried."""
        assert self.came_at is not None  # noqa: S101 - every look-up comes first
        return self.came_at

    def is_about(self, session: AuthSession) -> bool:
        """Whether this session may be refreshed by it at all."""
        return self.session_id in (None, session.id)

    def told(self) -> tuple[str | None, str | None]:
        """User agent and address; what a client does not tell is written as NULL."""
        agent = storable(self.client.user_agent)
        return agent, canonical_address(self.client.address)


@dataclass(frozen=True, slots=True)
class Work:
    """One database whose statements are known, and what goes for it."""

    database: Database
    sql: SupabaseStatements
    rules: SupabaseRules
    keys: KeyRing
    entropy: Entropy

    async def look_up(self, sql: str, value: str) -> asyncpg.Record:
        """The one row of a question that says whether anything could be seen."""
        (row,) = await self.database.look_up(sql, value)
        if row["hidden"]:
            raise SessionsUnavailable(HIDDEN)
        return row

    async def locked(
        self, asked: Asked, step: Callable[[Connection], Awaitable[Outcome]]
    ) -> Outcome | None:
        """Do one step in a transaction; None if somebody holds what it needs."""
        async with self.database.working() as connection:
            try:
                async with connection.transaction(isolation="read_committed"):
                    if not asked.loud:
                        await connection.execute(QUIETLY)
                    return await step(connection)
            except (HeldError, *_HELD):
                return None
            except asyncpg.ProgramLimitExceededError:
                # The notification queue is full. Asking frees what nobody needs; the
                # next time nothing is said, and the staleness bound does the rest.
                await connection.execute(QUEUE_USAGE)
                asked.loud = False
                return None

    async def row(self, connection: Connection, sql: str, value: object) -> asyncpg.Record:
        """A row that is now locked. What is not there is held by somebody, or gone, as
        the next attempt will see."""
        self.database.queries += 1
        row = await connection.fetchrow(sql, value)
        if row is None:
            raise HeldError
        return row

    async def lock_session(
        self, connection: Connection, session_id: str | None
    ) -> tuple[asyncpg.Record, AuthSession]:
        """The session as it is by now, locked, and its row, which tells the user too."""
        await self.row(connection, self.sql.lock_session, session_id)
        row = await self.row(connection, self.sql.read_session, session_id)
        session = session_of(row)
        assert session is not None  # noqa: S101 - a row that is locked has an id
        return row, session

    async def update(
        self,
        connection: Connection,
        session: AuthSession,
        asked: Asked,
        key: str | None = None,
        counter: int | None = None,
    ) -> None:
        """Write a refresh that writes no v1 token; None leaves key and counter alone."""
        self.database.queries += 1
        values = session.id, *asked.told(), key, counter
        await connection.execute(self.sql.update, *values)

    def judge(self, session: AuthSession, asked: Asked) -> Refusal | None:
        """What speaks against refreshing it, by its user and by time."""
        refusal = judge_user(session, asked.now)
        if refusal is not None:
            # A user who is gone is told as GoTrue tells it here.
            return Refusal.NOT_FOUND if refusal is Refusal.USER_NOT_FOUND else refusal
        verdict = judge_session(session, self.rules, asked.now)
        return verdict if isinstance(verdict, Refusal) else None

    async def judge_locked(
        self, session: AuthSession, asked: Asked, connection: Connection
    ) -> Refusal | None:
        """The same once more, and what may be asked under the locks only."""
        refusal = self.judge(session, asked)
        refusal = refusal or judge_client(session, asked.oauth_client_id)
        if refusal is not None or not self.rules.single_per_user:
            return refusal
        await self.row(connection, self.sql.lock_user, session.user_id)
        self.database.queries += 1
        rows = await connection.fetch(self.sql.rivals, session.user_id)
        others = filter(None, map(session_of, rows))
        return judge_rivals(session, others, self.rules, asked.now)

    def resealed(self, session: AuthSession) -> str | None:
        """The key as it is to be stored from now on; None where it stays as it is."""
        assert session.key is not None  # noqa: S101 - asked where there is one
        if not self.keys.needs_resealing(session.key):
            return None
        return self.keys.reseal(session.key, session.id, self.entropy(12))


def refused(session: AuthSession, refusal: Refusal) -> Refused:
    """A refusal that wrote nothing."""
    return Refused(refusal=refusal, session=replace(session, key=None))


def refreshed(
    row: asyncpg.Record,
    session: AuthSession,
    asked: Asked,
    token: str,
    *,
    v2: bool,
    counter: int | None,
    causes: tuple[Cause, ...],
) -> Refreshed:
    """A refresh that was written just now."""
    agent, address = asked.told()
    now = replace(
        session,
        refreshed_at=session.read_at,
        updated_at=session.read_at,
        token_updated_at=None,
        user_agent=agent,
        address=address,
        key=None,
        counter=counter,
    )
    return Refreshed(
        session=now,
        user=user_of(row),
        amr=amr_of(row),
        refresh_token=token,
        v2=v2,
        causes=causes,
    )


async def create(
    work: Work,
    connection: Connection,
    owner: str,
    client: Client,
    new: NewAuthSession,
    *,
    loud: bool,
) -> CreatedAuthSession:
    """Insert a session for the user with the uuid ``owner``, in the transaction that the
    connection is in, and say what ends with it if ``loud``.

    Raises :class:`LoginRefused`, in which case nothing was inserted.
    """
    ended = await _make_room(work, connection, new, loud)
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
    work: Work, connection: Connection, new: NewAuthSession, loud: bool
) -> tuple[Ended, ...]:
    if not new.replaces:
        return ()
    work.database.queries += 1
    ids = uuids_of(new.replaces)
    return ended_of(await connection.fetch(work.sql.revoke, loud, ids))


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
