"""New tokens for a session: with a higher trust level, or with another claim.

Rule 1. A higher level never goes to tokens that somebody may have copied before: it comes
with a new pair, in the same write, and the old pair is dead from then on. (OWASP, Session
Management: renew the session id after any privilege level change.)
Rule 2. The new pair is random and no successor: whoever holds an old refresh token could
derive that one, or be given it within grace. To the rules of rotation an old refresh token
is then of another lineage: late within grace, a replay afterwards.
Rule 3. A level that is there already brings no new pair: the tokens that are out have it,
and nobody gains anything. Otherwise two confirmations sent at once would replace each
other's tokens, and the browser would keep whichever came last.
Rule 4. A random pair exists once. If the response with it is lost, its user signs in again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from handstamp.core.lifetime import is_remembered, judge_family
from handstamp.core.models import (
    LOWEST,
    Authenticated,
    Invalid,
    Issued,
    Record,
    Session,
    StepUp,
    shift,
)
from handstamp.core.tokens import ENTROPY, TokenPair
from handstamp.engine.state import EngineState
from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.base import Capabilities, StepUpStore

_TRIES = 5
"""Each lost race means that somebody else changed the session, so a few are plenty."""
_KEPT = (
    "the database keeps the trust level or the tokens of this session as they were: a "
    "policy of row level security or a BEFORE trigger stands in the way of new ones"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppingUp:
    """What replaces the tokens of sessions of one engine."""

    state: EngineState
    entropy: Callable[[int], bytes]

    async def step_up(
        self,
        session_id: str,
        level: int | None,
        refresh: Sequence[bytes],
        claim: str | None,
    ) -> Authenticated | None:
        """See :meth:`Sessions.step_up`, and :meth:`Sessions.renew` for no level."""
        able = await self.state.store.ready()
        store = self.state.store
        if level is not None and not able.level:
            raise ConfigError("this table has no trust level: name it, TableShape(level=…)")
        if not isinstance(store, StepUpStore):
            raise ConfigError("this store replaces no tokens: it has no replace_tokens()")
        before: Record | None = None
        for _ in range(_TRIES):
            record = await self._find(session_id)
            if record is None:
                return None
            if level is not None and (record.level or LOWEST) >= level:
                record = replace(record, claim=claim)
                return Authenticated(session=Session.of(record))  # rule 3
            if before is not None and replace(before, read_at=record.read_at) == record:
                raise ConfigError(_KEPT)  # nobody was faster
            remember = self._is_remembered(record, refresh)
            issued = await self._raise(store, record, level, remember, able, claim)
            if issued is not None:
                return Authenticated(session=issued.session, issued=issued)
            before = record
        raise SessionsUnavailable("too many others change this session")

    async def _find(self, session_id: str) -> Record | None:
        """The row of a session that stands."""
        record = await self.state.store.find_by_id(session_id)
        if record is None:
            return None
        noted = self.state.activity.noted(record.id, record.token_digest)
        verdict = judge_family(record, self.state.policy, active_at=noted)
        return None if isinstance(verdict, Invalid) else record

    def _is_remembered(self, record: Record, refresh: Sequence[bytes]) -> bool:
        for text in refresh:
            token = self.state.tokens.read_refresh(text)
            if token is not None and token.session_id == record.id:
                return token.remember
        return is_remembered(record, self.state.policy)

    async def _raise(
        self,
        store: StepUpStore,
        record: Record,
        level: int | None,
        remember: bool,
        able: Capabilities,
        claim: str | None,
    ) -> Issued | None:
        """The session with its new tokens; None if it was changed meanwhile."""
        state, policy = self.state, self.state.policy
        entropy = self.entropy(2 * ENTROPY)
        pair = state.tokens.mint(record.id, entropy, remember=remember, claim=claim)
        before = state.clock()
        try:
            raised = await store.replace_tokens(
                StepUp(
                    id=record.id,
                    level=level,
                    token_digest=pair.session_digest,
                    refresh_digest=pair.refresh_digest if able.refresh else None,
                    session_ttl=policy.session_ttl,
                    refresh_ttl=policy.refresh_ttl,
                    longest=policy.lifetime(remember=remember),
                )
            )
        finally:
            # Also if there was no answer: it may have been committed.
            state.cache.forget_session(record.id)
        if raised is None:
            return None
        is_lower = (raised.level or LOWEST) < (level or LOWEST)
        if raised.token_digest != pair.session_digest or is_lower:
            raise ConfigError(_KEPT)
        if raised.id != record.id:
            state.connections.close(record.id)
        return self._issued(raised, pair, remember, before, able)

    def _issued(
        self,
        record: Record,
        pair: TokenPair,
        remember: bool,
        before: float,
        able: Capabilities,
    ) -> Issued:
        policy = self.state.policy
        longest: timedelta | None = None
        if able.sliding and record.created_at is not None:
            ends = shift(record.created_at, policy.lifetime(remember=remember))
            longest = ends - record.read_at
        until = before + policy.session_ttl.total_seconds()
        record = replace(record, claim=pair.claim)
        return Issued.of(
            record, pair, remember=remember, deliver_until=until, longest=longest
        )
