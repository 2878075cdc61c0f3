"""Refreshing a session of Supabase Auth in its own database, beside GoTrue.

GoTrue never waits for a lock, and neither does this: what is held by others is asked again
after 10 to 29 ms. When the retry budget is spent there is no answer. That is *unknown*, and
nobody is refused for it: GoTrue's own 409 would sign a browser out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from handstamp.clock import uptime
from handstamp.core.records import Client
from handstamp.core.supabase_rules import Refusal
from handstamp.errors import SessionsUnavailable
from handstamp.stores.supabase.outcomes import Outcome, Refused
from handstamp.stores.supabase.tokens import is_v1, read_v2
from handstamp.stores.supabase.v1 import accepts_v1, attempt_v1
from handstamp.stores.supabase.v2 import accepts_v2, attempt_v2
from handstamp.stores.supabase.work import Asked, Work

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
