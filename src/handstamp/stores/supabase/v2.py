"""Refreshing by a v2 token: a signed counter, and the locked session that counts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from handstamp.core.supabase_records import AuthSession
from handstamp.core.supabase_rotation import Count, Misused, judge_v2
from handstamp.core.supabase_rules import Refusal
from handstamp.stores.base import Ended
from handstamp.stores.lanes import Connection
from handstamp.stores.supabase.outcomes import Outcome, Refused
from handstamp.stores.supabase.rows import session_of
from handstamp.stores.supabase.tokens import CounterToken, write_v2
from handstamp.stores.supabase.work import Asked, Work, refreshed, refused


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
    return await work.locked(asked, partial(_refresh, work, claim, asked))


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


async def _refresh(
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
        return await _refuse(work, connection, session, verdict, asked)
    counter = verdict.counter
    await work.update(connection, session, asked, work.resealed(session), counter)
    token = write_v2(session.id, counter, key)
    return refreshed(
        row, session, asked, token, v2=True, counter=counter, causes=verdict.causes
    )


async def _refuse(
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
    await connection.fetch(work.sql.end, asked.loud, [session.id])
    return replace(refusal, ended=(Ended(id=session.id, user_id=session.user_id),))
