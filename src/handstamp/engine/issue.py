"""New tokens that derive from no older ones: for a login, a step-up, another claim.

Rule 1. A login always creates a new session. Nothing that the client presented becomes
part of it.
Rule 2. A higher trust level never goes to tokens that may have been copied before: it comes
with a new pair in the same write, and the old pair is invalid from then on. (OWASP Session
Management: renew the session id after any privilege level change.)
Rule 3. The new pair is random and no successor. The holder of an old refresh token could
derive a successor, or get it within grace. To the rules of rotation an old refresh token
is then of another lineage: late within grace, a replay after it.
Rule 4. A level that the session has already brings no new pair: its tokens have the level,
and nobody gains anything. Otherwise two requests at once would replace each other's tokens,
and the browser would keep the ones that came last.
Rule 5. A random pair exists once. If the response with it is lost, the user signs in again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from ulid import ULID

from handstamp.core.lifetime import is_remembered, judge_family
from handstamp.core.models import (
    LOWEST,
    Authenticated,
    Client,
    Invalid,
    Issued,
    NewSession,
    Record,
    Session,
    StepUp,
    shift,
)
from handstamp.core.tokens import ENTROPY, TokenPair, ids_of
from handstamp.engine.cache import Read
from handstamp.engine.state import EngineState
from handstamp.errors import ConfigError, LoginRefused, SessionsUnavailable
from handstamp.events import LoggedIn, LoginWasRefused
from handstamp.stores.base import Capabilities, CreatingStore, Ended, StepUpStore

_MAX_TRIES = 5
"""Each lost write means that another process changed the session: a few are enough."""
_NOT_WRITTEN = (
    "the database keeps the trust level or the tokens of this session as they were: a "
    "policy of row level security or a BEFORE trigger stands in the way of new ones"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Creates sessions, and replaces the tokens of a session by random ones."""

    state: EngineState
    entropy: Callable[[int], bytes]
    new_id: Callable[[], str]
    ended: Callable[[Ended, str], None]

    async def create(
        self,
        user_id: str,
        client: Client,
        *,
        remember: bool,
        replaces: str | Iterable[str] | None,
        claim: str | None,
    ) -> Issued:
        """See :meth:`Sessions.create`."""
        state, policy = self.state, self.state.policy
        able = await state.store.ready()
        store = state.store
        if not isinstance(store, CreatingStore):
            raise ConfigError("this store opens no sessions: it has no create()")
        session_id = await store.new_id(self.new_id)
        if session_id is None:
            raise ConfigError(
                "the id made for a new session is no value of its column, or has more than "
                f"{able.longest_id} characters: change the default of the column, or "
                "new_id="
            )
        pair = self._mint(session_id, remember, claim)
        ticket, before = state.cache.ticket(), state.clock()
        new = NewSession.of(
            (session_id, user_id, client),
            pair,
            policy,
            remember=remember,
            replaces=ids_of(replaces),
            refreshes=able.refresh,
        )
        try:
            created = await store.create(new, policy)
        except LoginRefused as exc:
            state.dispatcher.publish(LoginWasRefused(user_id=user_id, reason=exc.reason))
            raise
        for ended in created.ended:
            self.ended(ended, "replaced by a new login")
        record = replace(created.record, claim=claim)
        read = Read(before, state.clock())
        state.cache_record(record, bytes.fromhex(record.token_digest), ticket, read)
        state.dispatcher.publish(
            LoggedIn(
                session_id=record.id, user_id=user_id, client=client, remember=remember
            )
        )
        return Issued.of(
            record,
            pair,
            remember=remember,
            deliver_until=before + policy.session_ttl.total_seconds(),
            longest=new.longest if able.sliding else None,
        )

    async def replace_tokens(
        self,
        session_id: str,
        *,
        level: int | None,
        refresh: Sequence[bytes],
        claim: str | None,
    ) -> Authenticated | None:
        """See :meth:`Sessions.step_up`, and :meth:`Sessions.renew` for no level."""
        store, policy = self.state.store, self.state.policy
        able = await store.ready()
        if level is not None and not able.level:
            raise ConfigError("this table has no trust level: name it, TableShape(level=…)")
        if not isinstance(store, StepUpStore):
            raise ConfigError("this store replaces no tokens: it has no replace_tokens()")
        before: Record | None = None
        for _ in range(_MAX_TRIES):
            record = await store.find_by_id(session_id)
            if record is None:
                return None
            pending = self.state.pending_activity(record)
            if isinstance(judge_family(record, policy, active_at=pending), Invalid):
                return None
            if level is not None and (record.level or LOWEST) >= level:  # rule 4
                return Authenticated(session=Session.of(replace(record, claim=claim)))
            if before is not None and replace(before, read_at=record.read_at) == record:
                raise ConfigError(_NOT_WRITTEN)  # no other process was faster
            read_refresh = self.state.tokens.read_refresh
            tokens = (t for text in refresh if (t := read_refresh(text)) is not None)
            remember = next(
                (token.remember for token in tokens if token.session_id == record.id),
                is_remembered(record, policy),
            )
            pair = self._mint(record.id, remember, claim)
            issued = await self._write(store, record, level, pair, remember, able)
            if issued is not None:
                return Authenticated(session=issued.session, issued=issued)
            before = record
        raise SessionsUnavailable("too many others change this session")

    def _mint(self, session_id: str, remember: bool, claim: str | None) -> TokenPair:
        entropy = self.entropy(2 * ENTROPY)
        return self.state.tokens.mint(session_id, entropy, remember=remember, claim=claim)

    async def _write(
        self,
        store: StepUpStore,
        record: Record,
        level: int | None,
        pair: TokenPair,
        remember: bool,
        able: Capabilities,
    ) -> Issued | None:
        """Write the level and the new tokens; None if the row was changed meanwhile."""
        state, policy = self.state, self.state.policy
        before, lifetime = state.clock(), policy.lifetime(remember=remember)
        try:
            written = await store.replace_tokens(
                StepUp(
                    id=record.id,
                    level=level,
                    token_digest=pair.session_digest,
                    refresh_digest=pair.refresh_digest if able.refresh else None,
                    session_ttl=policy.session_ttl,
                    refresh_ttl=policy.refresh_ttl,
                    longest=lifetime,
                )
            )
        finally:
            # Without an answer as well: the write may have been committed.
            state.cache.forget_session(record.id)
        if written is None:
            return None
        is_lower = (written.level or LOWEST) < (level or LOWEST)
        if written.token_digest != pair.session_digest or is_lower:
            raise ConfigError(_NOT_WRITTEN)
        if written.id != record.id:
            state.connections.close(record.id)
        longest: timedelta | None = None
        if able.sliding and written.created_at is not None:
            longest = shift(written.created_at, lifetime) - written.read_at
        return Issued.of(
            replace(written, claim=pair.claim),
            pair,
            remember=remember,
            deliver_until=before + policy.session_ttl.total_seconds(),
            longest=longest,
        )


def make_id(kind: str, entropy: Callable[[int], bytes]) -> str:
    """Return a ULID, or a random UUID of ``entropy``."""
    if kind == "ulid":
        return str(ULID())
    raw = bytearray(entropy(16))
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80  # RFC 9562, section 5.4
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
