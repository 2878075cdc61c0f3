"""A refresh in the tables of Supabase Auth, beside GoTrue: by a v1 token, which is a row of
``auth.refresh_tokens``, or by a v2 token, which is a signed counter.

Rule 1. Nothing waits for a lock, as in GoTrue. Rows that another transaction has locked are
skipped, the transaction ends, and after 10 to 29 ms everything starts again.
Rule 2. When the retry budget is spent there is no answer: the result is *unknown*, and a
session is not refused for it. GoTrue's own 409 would sign a browser out.
Rule 3. Everything is judged first without a lock, so that a refused request holds none;
then once more under the locks, on fresh data.
Rule 4. A transaction is short: an update of the session, or an insert of a row that refers
to it, makes every refresh of it wait, GoTrue's too.
Rule 5. Limits of time are judged by the database's clock at the first read of the request,
however often it tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import asyncpg

from handstamp.core.models import Client
from handstamp.core.requests import canonical_address
from handstamp.engine.clocks import uptime
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Ended
from handstamp.stores.connection import Connection, Database
from handstamp.stores.notify import QUEUE_USAGE
from handstamp.stores.notify.sql import SKIP_TRIGGER
from handstamp.supabase.rows import (
    Outcome,
    Refreshed,
    Refused,
    amr_of,
    session_of,
    text_or_null,
    token_of,
    user_of,
    visible,
)
from handstamp.supabase.rules import (
    AuthSession,
    Count,
    HandOut,
    Misused,
    Refusal,
    StoredToken,
    SupabaseRules,
    judge_rivals,
    judge_session,
    judge_user,
    judge_v1,
    judge_v2,
)
from handstamp.supabase.sql import SupabaseStatements
from handstamp.supabase.tokens import (
    CounterToken,
    KeyRing,
    is_v1,
    mint_v1,
    new_key,
    read_v2,
    write_v2,
)

Entropy = Callable[[int], bytes]
"""Returns this many fresh random bytes, such as ``os.urandom``."""

SHORTEST_PAUSE = 10
PAUSES = 20
"""A pause between two attempts is ``SHORTEST_PAUSE`` ms and up to ``PAUSES`` - 1 more."""

_LOCKED = (
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
    asyncpg.InvalidCachedStatementError,  # a column was added to the table just now
)


class _LockedError(Exception):
    """Another transaction holds a row: roll back, and try again after a pause."""


@dataclass(slots=True, kw_only=True)
class _Request:
    """One refresh: its client, and the database's clock when it came (rule 5).

    ``session_id`` is the only session that may be refreshed, where it is known. ``notify``
    says whether the notification queue has room.
    """

    client: Client
    session_id: str | None = None
    came_at: datetime | None = None
    notify: bool = True

    @property
    def now(self) -> datetime:
        """The time by which limits are judged."""
        assert self.came_at is not None  # noqa: S101 - set at the first read
        return self.came_at

    def may_refresh(self, session: AuthSession) -> bool:
        """Whether the request is for this session."""
        return self.session_id in (None, session.id)

    def client_columns(self) -> tuple[str | None, str | None]:
        """User agent and address, as they are written; None is written as NULL."""
        agent = text_or_null(self.client.user_agent)
        return agent, canonical_address(self.client.address)


@dataclass(frozen=True, slots=True)
class AuthTables:
    """The tables of one database: its connections, their SQL, the rules and the keys."""

    database: Database
    sql: SupabaseStatements
    rules: SupabaseRules
    keys: KeyRing
    entropy: Entropy

    def new_counter_token(self, session_id: str) -> tuple[str, str]:
        """Returns the key to store for a session, and its v2 token of counter 0."""
        plain = new_key(self.entropy(32))
        stored = self.keys.seal(plain, session_id, self.entropy(12))
        return stored, write_v2(session_id, 0, self.keys.open(stored, session_id))

    async def _read(self, sql: str, value: str) -> asyncpg.Record:
        """Reads the one row of a statement that also says whether the table is visible."""
        (row,) = visible(await self.database.read(sql, value))
        return row

    async def _locked_row(
        self, connection: Connection, sql: str, value: object
    ) -> asyncpg.Record:
        """Returns a row that is now locked. A row that is not found is locked by another
        transaction, or deleted, which the next attempt will see."""
        self.database.queries += 1
        row = await connection.fetchrow(sql, value)
        if row is None:
            raise _LockedError
        return row

    async def _locked_session(
        self, connection: Connection, session_id: str | None
    ) -> tuple[asyncpg.Record, AuthSession]:
        """Locks the session and reads it again: its row, which has the user too."""
        await self._locked_row(connection, self.sql.lock_session, session_id)
        row = await self._locked_row(connection, self.sql.read_session, session_id)
        session = session_of(row)
        assert session is not None  # noqa: S101 - a row that is locked has an id
        return row, session

    async def _in_transaction(
        self, request: _Request, step: Callable[[Connection], Awaitable[Outcome]]
    ) -> Outcome | None:
        """Runs one step in a transaction; None if another one holds what it needs."""
        async with self.database.acquire_write() as connection:
            try:
                async with connection.transaction(isolation="read_committed"):
                    if not request.notify:
                        await connection.execute(SKIP_TRIGGER)
                    return await step(connection)
            except (_LockedError, *_LOCKED):
                return None
            except asyncpg.ProgramLimitExceededError:
                # The notification queue is full. This query frees what every listener has
                # read. The next attempt notifies no one, and the staleness bound holds.
                await connection.execute(QUEUE_USAGE)
                request.notify = False
                return None

    async def _write(
        self,
        connection: Connection,
        session: AuthSession,
        request: _Request,
        key: str | None = None,
        counter: int | None = None,
    ) -> None:
        """Writes a refresh that writes no v1 token; None leaves key and counter alone."""
        self.database.queries += 1
        values = session.id, *request.client_columns(), key, counter
        await connection.execute(self.sql.update, *values)

    def _judge(self, session: AuthSession, request: _Request) -> Refusal | None:
        """Judges the user and the limits of time."""
        refusal = judge_user(session, request.now)
        if refusal is not None:
            # For a user who is gone GoTrue answers here as for an unknown token.
            return Refusal.NOT_FOUND if refusal is Refusal.USER_NOT_FOUND else refusal
        verdict = judge_session(session, self.rules, request.now)
        return verdict if isinstance(verdict, Refusal) else None

    async def _judge_locked(
        self, session: AuthSession, request: _Request, connection: Connection
    ) -> Refusal | None:
        """Judges the same again, and what is certain only under the locks."""
        refusal = self._judge(session, request)
        if refusal is None and session.oauth_client_id is not None:
            refusal = Refusal.OAUTH_CLIENT
        if refusal is not None or not self.rules.single_per_user:
            return refusal
        await self._locked_row(connection, self.sql.lock_user, session.user_id)
        self.database.queries += 1
        rows = await connection.fetch(self.sql.rivals, session.user_id)
        others = filter(None, map(session_of, rows))
        return judge_rivals(session, others, self.rules, request.now)

    def _resealed(self, session: AuthSession) -> str | None:
        """Returns the session's key as it is to be stored; None where it stays as it is."""
        assert session.key is not None  # noqa: S101 - a v2 token needs one
        if not self.keys.needs_resealing(session.key):
            return None
        return self.keys.reseal(session.key, session.id, self.entropy(12))


async def refresh(
    tables: AuthTables, token: str, client: Client, session_id: str | None = None
) -> Outcome:
    """Refreshes a session by a refresh token of either kind.

    ``session_id`` is the session that the token must be of, where that is known. Raises
    :class:`SessionsUnavailable` without an answer, also when other transactions held the
    session for the whole retry budget.
    """
    claim = None if is_v1(token) else read_v2(token)
    if claim is None and not is_v1(token):
        return Refused(refusal=Refusal.MALFORMED)
    request = _Request(client=client, session_id=session_id)
    deadline = uptime() + tables.rules.retry_budget.total_seconds()
    while True:
        if claim is None:
            outcome = await _attempt_v1(tables, token, request)
        else:
            outcome = await _attempt_v2(tables, claim, request)
        if outcome is not None:
            return outcome
        await asyncio.sleep((SHORTEST_PAUSE + tables.entropy(1)[0] % PAUSES) / 1000)
        if uptime() >= deadline:
            raise SessionsUnavailable("too many refresh one session at once")


async def would_refresh(tables: AuthTables, token: str, session_id: str) -> bool:
    """Whether the rules of rotation would accept this refresh token of ``session_id``.

    Locks nothing and writes nothing. The limits of the session itself are not judged.
    """
    if not is_v1(token):
        claim = read_v2(token)
        if claim is None or claim.session_id != session_id:
            return False
        session = session_of(await tables._read(tables.sql.find_v2, session_id))
        if session is None or _signing_key(tables, session, claim) is None:
            return False
        counted = judge_v2(session, claim.counter, tables.rules, session.read_at)
        return isinstance(counted, Count)
    row = await tables._read(tables.sql.find_v1, token)
    stored, session = token_of(row), session_of(row)
    if stored is None or session is None or session.id != session_id:
        return False
    if stored.user_id != session.user_id:
        return False
    active = None
    if stored.revoked:
        rows = await tables.database.read(tables.sql.active, stored.session_id)
        active = token_of(rows[0]) if rows else None
    verdict = judge_v1(stored, active, tables.rules, session.read_at)
    return not isinstance(verdict, Misused)


async def _attempt_v1(tables: AuthTables, token: str, request: _Request) -> Outcome | None:
    """One attempt with a v1 token; None if another transaction holds its rows."""
    row = await tables._read(tables.sql.find_v1, token)
    request.came_at = request.came_at or row["now"]
    stored, session = token_of(row), session_of(row)
    if stored is None or not row["user_found"]:
        return Refused(refusal=Refusal.NOT_FOUND)
    if session is None:
        # A token from before there were sessions: nothing can be refreshed by it.
        banned_until = row["banned_until"]
        if banned_until is not None and request.now < banned_until:
            return Refused(refusal=Refusal.BANNED)
        await tables.database.fetch(tables.sql.forget_orphan, stored.id)
        return Refused(refusal=Refusal.NO_SESSION)
    if stored.user_id != session.user_id or not request.may_refresh(session):
        return Refused(refusal=Refusal.NOT_FOUND)
    refusal = tables._judge(session, request)
    if refusal is not None:
        return _refused(session, refusal)
    step = partial(_refresh_v1, tables, token, request)
    return await tables._in_transaction(request, step)


async def _refresh_v1(
    tables: AuthTables, token: str, request: _Request, connection: Connection
) -> Outcome:
    stored = token_of(await tables._locked_row(connection, tables.sql.lock_v1, token))
    assert stored is not None  # noqa: S101 - a row that is locked has an id
    row, session = await tables._locked_session(connection, stored.session_id)
    session = replace(session, token_updated_at=stored.updated_at)
    refusal = await tables._judge_locked(session, request, connection)
    if refusal is not None:
        return _refused(session, refusal)
    active = None
    if stored.revoked:
        tables.database.queries += 1
        found = await connection.fetchrow(tables.sql.active, stored.session_id)
        active = None if found is None else token_of(found)
    verdict = judge_v1(stored, active, tables.rules, session.read_at)
    if isinstance(verdict, Misused):
        # The session stays, and so does its access token.
        if verdict.ends:
            tables.database.queries += 1
            await connection.execute(tables.sql.revoke_family, session.id)
        refused = _refused(session, Refusal.ALREADY_USED)
        return replace(refused, family_revoked=verdict.ends)
    if isinstance(verdict, HandOut):
        await tables._write(connection, session, request)
        return _refreshed(row, session, request, verdict.token, reused=True)
    new, counter = await _swap(tables, connection, session, stored, request)
    return _refreshed(row, session, request, new, reused=verdict.reused, counter=counter)


async def _swap(
    tables: AuthTables,
    connection: Connection,
    session: AuthSession,
    stored: StoredToken,
    request: _Request,
) -> tuple[str, int | None]:
    """Writes a new token. Returns its text, which is v2 where the session is upgraded, and
    the counter of the session."""
    new = fresh = mint_v1(tables.entropy(8))
    key, counter = None, None
    v2 = tables.rules.upgrades and tables.sql.has_v2
    if v2:
        key, counter, new = _upgraded(tables, session)
    values = session.id, *request.client_columns(), key, counter, fresh, stored.id, v2
    tables.database.queries += 1
    row = await connection.fetchrow(tables.sql.swap, *values)
    if row is None or row["made"] is None:
        raise _LockedError  # there is a token of this text: mint another one
    return new, session.counter if counter is None else counter


def _upgraded(tables: AuthTables, session: AuthSession) -> tuple[str | None, int, str]:
    """Returns the key to write (None to keep it), the counter, and the v2 token."""
    if session.key is None or session.counter is None:
        stored, token = tables.new_counter_token(session.id)
        return stored, 0, token
    key, counter = tables.keys.open(session.key, session.id), session.counter + 1
    return tables._resealed(session), counter, write_v2(session.id, counter, key)


async def _attempt_v2(
    tables: AuthTables, claim: CounterToken, request: _Request
) -> Outcome | None:
    """One attempt with a v2 token; None if another transaction holds its session."""
    session = session_of(await tables._read(tables.sql.find_v2, claim.session_id))
    if session is None or not request.may_refresh(session):
        return Refused(refusal=Refusal.NOT_FOUND)
    if _signing_key(tables, session, claim) is None:
        return Refused(refusal=Refusal.NOT_FOUND)
    request.came_at = request.came_at or session.read_at
    refusal = tables._judge(session, request)
    if refusal is not None:
        return _refused(session, refusal)
    step = partial(_refresh_v2, tables, claim, request)
    return await tables._in_transaction(request, step)


async def _refresh_v2(
    tables: AuthTables, claim: CounterToken, request: _Request, connection: Connection
) -> Outcome:
    row, session = await tables._locked_session(connection, claim.session_id)
    key = _signing_key(tables, session, claim)
    if key is None:
        return Refused(refusal=Refusal.NOT_FOUND)
    refusal = await tables._judge_locked(session, request, connection)
    if refusal is not None:
        return _refused(session, refusal)
    verdict = judge_v2(session, claim.counter, tables.rules, request.now)
    if isinstance(verdict, Refusal):
        return _refused(session, verdict)
    if isinstance(verdict, Misused):
        # Two clients hold one session: it ends, with every token that it has.
        refused = _refused(session, Refusal.ALREADY_USED)
        if not verdict.ends:
            return refused
        tables.database.queries += 1
        await connection.fetch(tables.sql.end, request.notify, [session.id])
        return replace(refused, ended=(Ended(id=session.id, user_id=session.user_id),))
    counter, stored = verdict.counter, tables._resealed(session)
    await tables._write(connection, session, request, stored, counter)
    token = write_v2(session.id, counter, key)
    return _refreshed(row, session, request, token, reused=verdict.reused, counter=counter)


def _signing_key(
    tables: AuthTables, session: AuthSession, claim: CounterToken
) -> bytes | None:
    """Returns the session's key if it signed this token, otherwise None."""
    if session.key is None or session.counter is None:
        return None
    key = tables.keys.open(session.key, session.id)
    return key if claim.is_signed_by(key) else None


def _refused(session: AuthSession, refusal: Refusal) -> Refused:
    """A refusal of a known session, without its key."""
    return Refused(refusal=refusal, session=replace(session, key=None))


def _refreshed(
    row: asyncpg.Record,
    session: AuthSession,
    request: _Request,
    token: str,
    *,
    reused: bool,
    counter: int | None = None,
) -> Refreshed:
    """A refresh that was written just now. None for ``counter`` keeps the session's."""
    agent, address = request.client_columns()
    now = replace(
        session,
        refreshed_at=session.read_at,
        token_updated_at=None,
        user_agent=agent,
        address=address,
        key=None,
        counter=session.counter if counter is None else counter,
    )
    return Refreshed(
        session=now,
        user=user_of(row),
        amr=amr_of(row),
        refresh_token=token,
        reused=reused,
    )
