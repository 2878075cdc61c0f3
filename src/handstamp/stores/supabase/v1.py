"""Refreshing by a v1 token: a row of ``auth.refresh_tokens`` and its session, locked."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial

from handstamp.core.supabase_records import AuthSession, StoredToken
from handstamp.core.supabase_rotation import HandOut, Misused, judge_v1
from handstamp.core.supabase_rules import Refusal
from handstamp.stores.lanes import Connection
from handstamp.stores.supabase.outcomes import Outcome, Refused
from handstamp.stores.supabase.rows import session_of, token_of
from handstamp.stores.supabase.tokens import mint_v1, new_key, write_v2
from handstamp.stores.supabase.work import Asked, HeldError, Work, refreshed, refused


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
    return await work.locked(asked, partial(_refresh, work, token, asked))


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
        rows = await work.database.look_up(work.sql.active, stored.session_id)
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


async def _refresh(work: Work, token: str, asked: Asked, connection: Connection) -> Outcome:
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
        return await _refuse(work, connection, session, verdict)
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


async def _refuse(
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
