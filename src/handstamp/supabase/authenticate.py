"""Who makes this request, by the cookie or the bearer token of Supabase Auth.

Rule 1. An access token is verified once, under the project's keys, and remembered by its
digest; who it is for is judged by the row of the session that it names, read as any other
row is: in groups, behind the fence, invalidated by the bus.
Rule 2. Whoever has fewer than 90 seconds left gets new tokens before the application runs,
as ``@supabase/ssr`` would do it, but in the database and by GoTrue's rules. A refresh token
is looked at only beside an access token that is genuine, whatever its age, and of the same
session: so a flood of made-up ones reaches nothing, and no two sessions become one.
Rule 3. A refresh that is refused, or fails, or has no answer, takes nothing from an access
token that is still live. Where the application's own hook failed, the refresh is written
and its answer alone is lost: at the next request the same token gets the same successor.
Rule 4. A level of assurance counts only as far as both the token and the row have it.
Rule 5. Several cookies of one session are that session; of two sessions they are none, for
one of them may be somebody else's. A session counts while its access token is live, and
while its refresh token would be accepted. Nothing is refreshed before it is certain whose
session it is.
Rule 6. A token of an OAuth client is that client's, with its scopes, and no sign-in to this
application, unless the client is listed. Whose it is say the token and the row, and a
token hook of GoTrue's may have changed the one.
Rule 7. Nobody is refused for the time by a clock that the database has not confirmed
lately: whoever cannot refresh is then judged by a fresh row.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from threading import Lock
from typing import cast

from cachetools import LRUCache

from handstamp.config import Policy
from handstamp.core.cookies import Credentials
from handstamp.core.lifetime import judge_family, may_live
from handstamp.core.models import (
    Authenticated,
    Client,
    Invalid,
    Issued,
    Reason,
    Record,
    Session,
)
from handstamp.engine.activity import Requester
from handstamp.engine.authenticate import Authenticator
from handstamp.engine.batching import BatchLoader, SingleFlight
from handstamp.engine.cache import CacheEntry, Read, refresh_key
from handstamp.engine.invalidation import NotificationListener
from handstamp.engine.refresh import Refresher
from handstamp.engine.state import EngineState
from handstamp.errors import SessionsUnavailable
from handstamp.events import DuplicateCookies, LateRefresh, Refreshed, Reissued, Replayed
from handstamp.stores.base import Ended
from handstamp.supabase.cookies import CookieSession
from handstamp.supabase.jwt import AccessToken, TokenIssuer
from handstamp.supabase.rows import Refreshed as RefreshOutcome
from handstamp.supabase.rows import Refused, bounded
from handstamp.supabase.rules import AuthSession, Refusal
from handstamp.supabase.store import SupabaseStore
from handstamp.supabase.tokens import read_v2, spelled_once

logger = logging.getLogger("handstamp")

MARGIN = timedelta(seconds=90)
"""How much life an access token must have left not to be replaced (``@supabase/ssr``)."""
DELIVERY = 30.0
"""Seconds for which a response may hand out new tokens; whoever misses them gets them
again, one step behind."""
VERIFIED = 10_000
"""Access tokens that are remembered as verified."""


@dataclass(slots=True)
class _Presented:
    """One candidate: the text it is cached under, and what it says."""

    text: bytes = field(repr=False)
    claim: CookieSession
    token: AccessToken


class SupabaseAuthenticator(Authenticator):
    """Credentials in, an answer out, for Supabase Auth."""

    def __init__(
        self,
        state: EngineState,
        refresher: Refresher,
        listener: NotificationListener,
        store: SupabaseStore,
        issuer: TokenIssuer,
        ended: Callable[[Ended, str], None],
        oauth_clients: Container[str] = (),
    ) -> None:
        super().__init__(state, refresher, listener)
        self._auth = store
        self._issuer = issuer
        self._ended = ended
        self._oauth_clients = oauth_clients
        self._connections = state.connections
        self._rows = BatchLoader(state.store)
        self._verified: LRUCache[bytes, AccessToken] = LRUCache(VERIFIED)
        self._verifying = Lock()
        self._single_flight: SingleFlight[bytes, Issued | None] = SingleFlight()

    def _record(self, entry: CacheEntry, now: float, passive: bool = False) -> None:
        """Do not write activity: these tables have no column for it. The next hits record
        nothing until it would be due again."""
        if not passive:
            entry.touched = entry.used = now

    def _observe(self, entry: CacheEntry, now: float, requester: Requester | None) -> None:
        """Do not compare the client: each refresh writes its own into the row."""

    def _may_be_of_others(
        self, credentials: Credentials, found: Container[bytes], entry: CacheEntry
    ) -> bool:
        claims = cast("tuple[CookieSession, ...]", credentials.claims)
        tokens = filter(None, (self._verify(claim.access_token) for claim in claims))
        return any(token.session_id != entry.session.id for token in tokens)

    def is_forged(self, credentials: Credentials) -> bool:
        """Whether no access token of this is genuine: a plain call without I/O, from any
        thread."""
        claims = cast("tuple[CookieSession, ...]", credentials.claims)
        return not credentials.incomplete and not any(
            self._verify(claim.access_token) for claim in claims
        )

    async def _add_presented(
        self, found: dict[str, Session], credentials: Credentials, client: Client
    ) -> None:
        if credentials.incomplete:
            raise SessionsUnavailable("there are too many pieces to find every session")
        claims = cast("tuple[CookieSession, ...]", credentials.claims)
        tokens = [t for claim in claims if (t := self._verify(claim.access_token))]
        owners = {t.session_id: t.user_id for t in tokens if t.session_id not in found}
        for record in await self._rows.load(list(owners)):
            if record.user_id == owners[record.id] and may_live(record, self._policy):
                found.setdefault(record.id, Session.of(record))

    async def _authenticate(
        self, credentials: Credentials, client: Client, passive: bool
    ) -> Authenticated | Invalid:
        claims = cast("tuple[CookieSession, ...]", credentials.claims)
        if not claims:
            return Invalid(Reason.ABSENT)
        hits: dict[str, CacheEntry] = {}
        genuine, shown = 0, list[_Presented]()
        for text, claim in zip(credentials.session, claims, strict=True):
            entry = self.hit(text, passive)
            token = None if entry else self._verify(claim.access_token)
            genuine += entry is not None or token is not None
            if entry is not None:
                hits[entry.session.id] = entry
            elif token is not None:
                shown.append(_Presented(text, claim, token))
        if len(claims) > 1:
            return await self._several(hits, shown, client, passive, genuine)
        if hits:
            return Authenticated(session=next(iter(hits.values())).session)
        if not shown:
            return Invalid(Reason.FORGED)
        return await self._one(shown[0], client, passive)

    async def _several(
        self,
        hits: dict[str, CacheEntry],
        shown: Sequence[_Presented],
        client: Client,
        passive: bool,
        genuine: int,
    ) -> Authenticated | Invalid:
        """Whose session it is by several cookies (rule 5)."""
        standing = await self._standing(shown)
        live = [each for each in standing if self._lives(each)]
        expired = [each for each in standing if not self._lives(each)]
        renewable = [each for each in expired if await self._would_renew(each)]
        ids = {*hits, *(each.token.session_id for each in (*live, *renewable))}
        if not passive:
            ids |= await self._present(expired, ids, client)
        conflict = len(ids) > 1
        if genuine > 1:
            self._dispatcher.publish(
                DuplicateCookies(candidates=genuine, conflict=conflict)
            )
        if conflict:
            return Invalid(Reason.CONFLICT)
        if hits:
            return Authenticated(session=next(iter(hits.values())).session)
        usable = live or ([] if passive else renewable)
        if not usable:
            return Invalid(Reason.NOT_FOUND if shown else Reason.FORGED)
        latest = max(usable, key=lambda each: each.token.expires_at)
        return await self._one(latest, client, passive)

    async def _present(
        self, expired: Sequence[_Presented], known: Container[str], client: Client
    ) -> set[str]:
        """Present the refresh tokens of which no session goes on, as if each came alone: a
        replay ends its session, whatever stands beside it. The ids of those that were
        accepted after all.

        One beside a good token of its session is a forgotten cookie: its holder has both.
        """
        accepted = set[str]()
        for each in expired:
            id = each.token.session_id
            if id not in known and self._is_renewable(each):
                issued = await self._fly(each, client)
                accepted |= set() if issued is None else {id}
        return accepted

    async def _would_renew(self, shown: _Presented) -> bool:
        """Whether this session could go on by its refresh token, here or elsewhere."""
        if not self._names_its_session(shown):
            return False
        if not self._issuer.tokens.can_mint:
            return True  # whoever mints can tell, and may renew it
        token, session_id = shown.claim.refresh_token, shown.token.session_id
        return await self._auth.would_refresh(token, session_id)

    async def _standing(self, shown: Sequence[_Presented]) -> list[_Presented]:
        """Those whose session is not over, whatever became of their access token."""
        found = await self._read(each.token.session_id for each in shown)
        owners = {i: r.user_id for i, r in found.items() if isinstance(r, Record)}
        tokens = ((each, each.token) for each in shown)
        return [each for each, t in tokens if owners.get(t.session_id) == t.user_id]

    async def _read(self, session_ids: Iterable[str]) -> dict[str, Record | Invalid]:
        """The rows of these sessions; in place of one that does not stand, the reason."""
        before = self._clock()
        whys = {i: self._negative_cache.get(i.encode(), before) for i in session_ids}
        found: dict[str, Record | Invalid] = {i: Invalid(w) for i, w in whys.items() if w}
        asked = [i for i in whys if i not in found]
        if not asked:
            return found
        self.misses += 1
        rows = {row.id: row for row in await self._rows.load(asked)}
        after = self._clock()
        for session_id in asked:
            row = rows.get(session_id)
            verdict = _judge(row, self._policy)
            if isinstance(verdict, Invalid):
                self._negative_cache.add(session_id.encode(), after, verdict.reason)
            if row is not None:
                self._database_clock.update(row.read_at, after)
            found[session_id] = verdict
        return found

    async def _one(
        self, shown: _Presented, client: Client, passive: bool
    ) -> Authenticated | Invalid:
        keeps = passive or not self._is_renewable(shown)
        if keeps and not self._database_clock.is_fresh and not self._lives(shown):
            await self._look(shown)  # whatever it finds, it tells the time (rule 7)
        live = self._lives(shown)
        if live and (keeps or self._lives(shown, MARGIN)):
            return await self._look(shown)
        if keeps:
            return Invalid(Reason.EXPIRED)
        return await self._renew(shown, client, live)

    def _lives(self, shown: _Presented, margin: timedelta = timedelta(0)) -> bool:
        return shown.token.is_live(self._database_clock.now() + margin)

    def _is_renewable(self, shown: _Presented) -> bool:
        return self._issuer.tokens.can_mint and self._names_its_session(shown)

    def _names_its_session(self, shown: _Presented) -> bool:
        refresh_token = shown.claim.refresh_token
        if not refresh_token:
            return False
        named = read_v2(refresh_token)
        return named is None or named.session_id == shown.token.session_id

    def _verify(self, text: str) -> AccessToken | None:
        key = sha256(text.encode()).digest()
        with self._verifying:
            known = self._verified.get(key)
        if known is None:
            known = self._issuer.tokens.read(text)
            if known is None or not self._is_for_us(known):
                return None
            with self._verifying:
                self._verified[key] = known
        return known

    def _is_for_us(self, token: AccessToken) -> bool:
        return token.client_id is None or token.client_id in self._oauth_clients

    async def _look(self, shown: _Presented) -> Authenticated | Invalid:
        token, key = shown.token, sha256(shown.text).digest()
        ticket, before = self._cache.ticket(), self._clock()
        row = (await self._read([token.session_id]))[token.session_id]
        if isinstance(row, Invalid):
            self._cache.drop(key)
            return row
        if row.user_id != token.user_id:
            return Invalid(Reason.FORGED)
        # Used from the cache until it has to be refreshed; after that it is read each time.
        # The margin is for refreshing: without a database it shortens nothing.
        margin = MARGIN.total_seconds() if self._is_renewable(shown) else 0.0
        record = bounded(row, token.expires_at, token.aal)
        read = Read(before, self._clock())
        entry = self._state.cache_record(record, key, ticket, read, margin=margin)
        if isinstance(entry, Invalid):
            return entry
        return Authenticated(session=entry.session)

    async def _renew(
        self, shown: _Presented, client: Client, live: bool
    ) -> Authenticated | Invalid:
        # Whoever can do without leaves time to be looked up (rule 3).
        patience = self._budget / 2 if live else None
        try:
            async with asyncio.timeout(patience):
                issued = await self._fly(shown, client)
        except Exception as exc:
            if not live:
                raise
            if not isinstance(exc, (SessionsUnavailable, TimeoutError)):
                logger.exception("a refresh failed", extra={"action": "refresh_failed"})
            issued = None
        if issued is None:
            return await self._look(shown) if live else Invalid(Reason.REFRESH_EXPIRED)
        return Authenticated(session=issued.session, issued=issued)

    async def _fly(self, shown: _Presented, client: Client) -> Issued | None:
        """Whoever presents one token for one session at one time shares one refresh, and
        no client that goes away takes the others along."""
        token, session_id = shown.claim.refresh_token, shown.token.session_id
        whole = f"{session_id}\n{spelled_once(token)}"
        key = refresh_key(sha256(whole.encode()).digest())
        if self._negative_cache.get(key, self._clock()) is not None:
            return None  # refused a moment ago

        async def ask() -> Issued | None:
            issued = await self.refresh(token, client, session_id)
            if issued is None:
                self._negative_cache.add(key, self._clock())
            return issued

        return await self._single_flight.do(key, ask)

    async def refresh(
        self, refresh_token: str, client: Client, session_id: str | None = None
    ) -> Issued | None:
        """New tokens for a refresh token, or None if it was refused, as one that is of
        another session than ``session_id`` is, where that is given."""
        before = self._clock()
        outcome = await self._auth.refresh(refresh_token, client, session_id=session_id)
        if isinstance(outcome, Refused):
            self._report_refusal(outcome, client)
            return None
        session = outcome.session
        self._database_clock.update(session.read_at, self._clock())
        self._report_refresh(outcome, session, client)
        return self._issuer.issue(outcome, before + DELIVERY)

    def _report_refresh(
        self, outcome: RefreshOutcome, session: AuthSession, client: Client
    ) -> None:
        facts = {"session_id": session.id, "user_id": session.user_id}
        self._dispatcher.publish(
            Reissued(**facts, client=client, redated=False)
            if outcome.reused
            else Refreshed(**facts, client=client)
        )

    def _report_refusal(self, refused: Refused, client: Client) -> None:
        session = refused.session
        if refused.refusal is Refusal.ALREADY_USED and session is not None:
            ends = refused.family_revoked or bool(refused.ended)
            report = self._report_replay if ends else self._report_late
            report(session, client)
        if refused.family_revoked and session is not None:
            # The row stays, as GoTrue has it; what hangs on it need not.
            self._cache.doubt_session(session.id)
            self._connections.close(session.id)
        for ended in refused.ended:
            self._ended(ended, "refresh token replayed")

    def _report_replay(self, session: AuthSession, client: Client) -> None:
        signed_in = Client(address=session.address, user_agent=session.user_agent)
        self._dispatcher.publish(
            Replayed(
                session_id=session.id,
                user_id=session.user_id,
                presented_by=client,
                signed_in_by=signed_in,
            )
        )

    def _report_late(self, session: AuthSession, client: Client) -> None:
        """Without GoTrue's rotation an old token is refused, and that is all."""
        facts = {"session_id": session.id, "user_id": session.user_id}
        self._dispatcher.publish(LateRefresh(**facts, client=client))

    def reset_after_fork(self) -> None:
        """In a forked child: no flight of the parent's will ever land here."""
        self._single_flight.clear()
        self._verified, self._verifying = LRUCache(VERIFIED), Lock()


def _judge(row: Record | None, policy: Policy) -> Record | Invalid:
    """The row if its session stands. Nothing but a refresh moves its limits, and a session
    that has reached one is not refreshed."""
    if row is None:
        return Invalid(Reason.NOT_FOUND)
    verdict = judge_family(row, policy)
    return verdict if isinstance(verdict, Invalid) else row
