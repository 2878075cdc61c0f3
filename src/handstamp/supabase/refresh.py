"""Refreshing by a v1 token: a row of ``auth.refresh_tokens`` and its session, locked.

Refreshing by a v2 token: a signed counter, and the locked session that counts.

Refreshing a session of Supabase Auth in its own database, beside GoTrue.

GoTrue never waits for a lock, and neither does this: what is held by others is asked again
after 10 to 29 ms. When the retry budget is spent there is no answer. That is *unknown*, and
nobody is refused for it: GoTrue's own 409 would sign a browser out.

What both kinds of refresh do with the tables of Supabase Auth.

Rule 1. Nothing waits for a lock. Rows that somebody else holds are skipped, the transaction
ends, and a moment later everything is asked again, from the start.
Rule 2. First everything is judged without a lock, so that what is refused anyway holds
nothing; then once more under the locks, on what is true by then.
Rule 3. A transaction is short: whoever inserts a child row of the session, or updates it,
makes every refresh of it wait, GoTrue's too.

Opening a session in Supabase Auth's own tables, as GoTrue does at a sign-in.
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
    storable,
    token_of,
    user_of,
)
from handstamp.supabase.rules import (
    AuthSession,
    Cause,
    Count,
    HandOut,
    Misused,
    Refusal,
    StoredToken,
    SupabaseRules,
    judge_client,
    judge_rivals,
    judge_session,
    judge_user,
    judge_v1,
    judge_v2,
)
from handstamp.supabase.schema import HIDDEN
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
    """One request: who makes it, and the database's clock when it came. ``notify`` is
    whether the notification queue still takes anything. ``session_id`` is the one session
    that may be refreshed, where that is known."""

    client: Client
    oauth_client_id: str | None
    session_id: str | None = None
    came_at: datetime | None = None
    notify: bool = True

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
        (row,) = await self.database.read(sql, value)
        if row["hidden"]:
            raise SessionsUnavailable(HIDDEN)
        return row

    async def locked(
        self, asked: Asked, step: Callable[[Connection], Awaitable[Outcome]]
    ) -> Outcome | None:
        """Do one step in a transaction; None if somebody holds what it needs."""
        async with self.database.acquire_write() as connection:
            try:
                async with connection.transaction(isolation="read_committed"):
                    if not asked.notify:
                        await connection.execute(SKIP_TRIGGER)
                    return await step(connection)
            except (HeldError, *_HELD):
                return None
            except asyncpg.ProgramLimitExceededError:
                # The notification queue is full. Asking frees what nobody needs; the
                # next time nothing is said, and the staleness bound does the rest.
                await connection.execute(QUEUE_USAGE)
                asked.notify = False
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


async def attempt_v1(work: Work, token: str, asked: Asked) -> Outcome | None:
    """What becomes of a v1 token; None if somebody holds its rows."""
    row = await work.look_up(work.sql.find_v1, token)
    asked.came_at = asked.came_at or row["now"]
    stored, session = token_of(row), session_of(row)
    if stored is None or not row["user_found"]:
        return Refused(refusal=Refusal.NOT_FOUND)
    if session is None:
        return await _refuse_orphan(work, stored, row["banned_until"], asked)
    if stored.user_id != session.user_id or not asked.is_about(session):
        return Refused(refusal=Refusal.NOT_FOUND)
    refusal = work.judge(session, asked)
    if refusal is not None:
        return refused(session, refusal)
    return await work.locked(asked, partial(_refresh_v1, work, token, asked))


async def accepts_v1(work: Work, token: str, session_id: str) -> bool:
    """Whether a v1 token of this session would be accepted, without a lock."""
    row = await work.look_up(work.sql.find_v1, token)
    stored, session = token_of(row), session_of(row)
    if stored is None or session is None or session.id != session_id:
        return False
    if stored.user_id != session.user_id:
        return False
    active = None
    if stored.revoked:
        rows = await work.database.read(work.sql.active, stored.session_id)
        active = token_of(rows[0]) if rows else None
    verdict = judge_v1(stored, active, work.rules, session.read_at)
    return not isinstance(verdict, Misused)


async def _refuse_orphan(
    work: Work, stored: StoredToken, banned_until: datetime | None, asked: Asked
) -> Refused:
    """A token from before there were sessions, which no one can use any more."""
    if banned_until is not None and asked.now < banned_until:
        return Refused(refusal=Refusal.BANNED)
    await work.database.fetch(work.sql.forget_orphan, stored.id)
    return Refused(refusal=Refusal.NO_SESSION)


async def _refresh_v1(
    work: Work, token: str, asked: Asked, connection: Connection
) -> Outcome:
    stored = token_of(await work.row(connection, work.sql.lock_v1, token))
    assert stored is not None  # noqa: S101 - a row that is locked has an id
    row, session = await work.lock_session(connection, stored.session_id)
    session = replace(session, token_updated_at=stored.updated_at)
    refusal = await work.judge_locked(session, asked, connection)
    if refusal is not None:
        return refused(session, refusal)
    active = await _active(work, connection, stored)
    verdict = judge_v1(stored, active, work.rules, session.read_at)
    if isinstance(verdict, Misused):
        return await _refuse_v1(work, connection, session, verdict)
    if isinstance(verdict, HandOut):
        await work.update(connection, session, asked)
        told, v2, counter = verdict.token, False, session.counter
    else:
        told, v2, counter = await _swap(work, connection, session, stored, asked)
    return refreshed(
        row, session, asked, told, v2=v2, counter=counter, causes=verdict.causes
    )


async def _active(
    work: Work, connection: Connection, stored: StoredToken
) -> StoredToken | None:
    if not stored.revoked:
        return None
    work.database.queries += 1
    row = await connection.fetchrow(work.sql.active, stored.session_id)
    return None if row is None else token_of(row)


async def _refuse_v1(
    work: Work, connection: Connection, session: AuthSession, verdict: Misused
) -> Refused:
    """The session stays, and so does the access token that goes with it."""
    if verdict.ends:
        work.database.queries += 1
        await connection.execute(work.sql.revoke_family, session.id)
    return replace(refused(session, Refusal.ALREADY_USED), family_revoked=verdict.ends)


async def _swap(
    work: Work,
    connection: Connection,
    session: AuthSession,
    stored: StoredToken,
    asked: Asked,
) -> tuple[str, bool, int | None]:
    """Write a new token; the text to hand out, whether it is v2, and the counter."""
    fresh = mint_v1(work.entropy(8))
    v2 = work.rules.upgrades and work.sql.knows_v2
    key, counter, told = _upgraded(work, session) if v2 else (None, None, fresh)
    values = session.id, *asked.told(), key, counter, fresh, stored.id, v2
    work.database.queries += 1
    row = await connection.fetchrow(work.sql.swap, *values)
    if row is None or row["made"] is None:
        raise HeldError  # there is such a token: mint another
    return told, v2, session.counter if counter is None else counter


def _upgraded(work: Work, session: AuthSession) -> tuple[str | None, int, str]:
    """The key to write, if any, the counter, and the v2 token to hand out."""
    if session.key is None or session.counter is None:
        plain = new_key(work.entropy(32))
        sealed = work.keys.seal(plain, session.id, work.entropy(12))
        key = work.keys.open(sealed, session.id)
        return sealed, 0, write_v2(session.id, 0, key)
    key, counter = work.keys.open(session.key, session.id), session.counter + 1
    return work.resealed(session), counter, write_v2(session.id, counter, key)


async def attempt_v2(work: Work, claim: CounterToken, asked: Asked) -> Outcome | None:
    """What becomes of what a v2 token claims; None if somebody holds the session."""
    session = session_of(await work.look_up(work.sql.find_v2, claim.session_id))
    if session is None or not asked.is_about(session):
        return Refused(refusal=Refusal.NOT_FOUND)
    if _signing_key(work, session, claim) is None:
        return Refused(refusal=Refusal.NOT_FOUND)
    asked.came_at = asked.came_at or session.read_at
    refusal = work.judge(session, asked)
    if refusal is not None:
        return refused(session, refusal)
    return await work.locked(asked, partial(_refresh_v2, work, claim, asked))


async def accepts_v2(work: Work, claim: CounterToken) -> bool:
    """Whether a v2 token would be accepted, without a lock."""
    session = session_of(await work.look_up(work.sql.find_v2, claim.session_id))
    if session is None or _signing_key(work, session, claim) is None:
        return False
    verdict = judge_v2(session, claim.counter, work.rules, session.read_at)
    return isinstance(verdict, Count)


def _signing_key(work: Work, session: AuthSession, claim: CounterToken) -> bytes | None:
    """The session's key if it made this token. Nobody learns what else was wrong."""
    if session.key is None or session.counter is None:
        return None
    key = work.keys.open(session.key, session.id)
    return key if claim.is_signed_by(key) else None


async def _refresh_v2(
    work: Work, claim: CounterToken, asked: Asked, connection: Connection
) -> Outcome:
    row, session = await work.lock_session(connection, claim.session_id)
    key = _signing_key(work, session, claim)
    if key is None:
        return Refused(refusal=Refusal.NOT_FOUND)
    refusal = await work.judge_locked(session, asked, connection)
    if refusal is not None:
        return refused(session, refusal)
    verdict = judge_v2(session, claim.counter, work.rules, asked.now)
    if isinstance(verdict, Refusal):
        return refused(session, verdict)
    if isinstance(verdict, Misused):
        return await _refuse_v2(work, connection, session, verdict, asked)
    counter = verdict.counter
    await work.update(connection, session, asked, work.resealed(session), counter)
    token = write_v2(session.id, counter, key)
    return refreshed(
        row, session, asked, token, v2=True, counter=counter, causes=verdict.causes
    )


async def _refuse_v2(
    work: Work,
    connection: Connection,
    session: AuthSession,
    verdict: Misused,
    asked: Asked,
) -> Refused:
    """Two hold one session: it goes, with every token it has."""
    refusal = refused(session, Refusal.ALREADY_USED)
    if not verdict.ends:
        return refusal
    work.database.queries += 1
    await connection.fetch(work.sql.end, asked.notify, [session.id])
    return replace(refusal, ended=(Ended(id=session.id, user_id=session.user_id),))


SHORTEST_PAUSE = 10
PAUSES = 20


async def refresh(
    work: Work,
    token: str,
    client: Client,
    oauth_client_id: str | None,
    session_id: str | None = None,
) -> Outcome:
    """What becomes of the refresh token ``token``, of either kind, if it is one of
    ``session_id``, where that is given.

    Raises :class:`SessionsUnavailable` without an answer, also when others held the
    session for the whole retry budget.
    """
    attempt = _attempt(work, token)
    if attempt is None:
        return Refused(refusal=Refusal.MALFORMED)
    asked = Asked(client=client, oauth_client_id=oauth_client_id, session_id=session_id)
    ends = uptime() + work.rules.retry_budget.total_seconds()
    while True:
        outcome = await attempt(asked)
        if outcome is not None:
            return outcome
        await asyncio.sleep((SHORTEST_PAUSE + work.entropy(1)[0] % PAUSES) / 1000)
        if uptime() >= ends:
            raise SessionsUnavailable("too many refresh one session at once")


async def would_refresh(work: Work, token: str, session_id: str) -> bool:
    """Whether the refresh token ``token`` of ``session_id`` would be accepted by the rules
    of rotation. Locks nothing and writes nothing."""
    if is_v1(token):
        return await accepts_v1(work, token, session_id)
    claim = read_v2(token)
    if claim is None or claim.session_id != session_id:
        return False
    return await accepts_v2(work, claim)


def _attempt(work: Work, token: str) -> Callable[[Asked], Awaitable[Outcome | None]] | None:
    if is_v1(token):
        return partial(attempt_v1, work, token)
    claim = read_v2(token)
    return None if claim is None else partial(attempt_v2, work, claim)
