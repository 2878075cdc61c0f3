"""Which session a request belongs to, by the cookie or the bearer token of Supabase Auth.

Rule 1. An access token is verified once, under the project's keys, and kept by its digest.
Its session is judged by the row that it names, which is read as any other row is: in
batches, behind the fence, invalidated by notifications.
Rule 2. A session whose access token has fewer than 90 seconds left gets new tokens before
the application runs, as ``@supabase/ssr`` does it, but in the database and by GoTrue's
rules. A refresh token is used only beside an access token that is genuine, whatever its
age, and of the same session. So a flood of forged ones reaches nothing, and no two sessions
are merged.
Rule 3. A refresh that is refused, or fails, or has no answer, takes nothing from an access
token that is still valid. Where the application's own hook failed, the refresh is committed
and only its response is lost: at the next request the same token gets the same successor.
Rule 4. The assurance level is the lower one of those in the token and in the row.
Rule 5. Several cookies of one session are that session. Cookies of two sessions
authenticate none of them, because one may be set by somebody else. A session counts while
its access token is valid, and while its refresh token would be accepted. Nothing is
refreshed before it is certain which session it is.
Rule 6. A token of an OAuth client belongs to that client, with its scopes, and signs nobody
in here, unless the client is listed. The token and the row both say to which client it
belongs, because a token hook of GoTrue's may have changed the token.
Rule 7. An access token is not refused as expired by a clock that the database has not
confirmed lately: a session that cannot be refreshed is then judged by a fresh row.
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
from handstamp.core.lifetime import judge_family, may_be_alive
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
from handstamp.supabase.rows import Refused, limited_to_token
from handstamp.supabase.rules import AuthSession, Refusal
from handstamp.supabase.store import SupabaseStore
from handstamp.supabase.tokens import canonical_text, read_v2

logger = logging.getLogger("handstamp")

MARGIN = timedelta(seconds=90)
"""How long an access token must still be valid not to be replaced (as
``@supabase/ssr``)."""
DELIVERY = 30.0
"""Seconds for which a response may deliver new tokens. A client that misses them gets them
again, one step behind."""
VERIFIED = 10_000
"""Verified access tokens that are kept."""


@dataclass(slots=True)
class _Candidate:
    """One candidate that is not in the cache: its key there, and its two tokens."""

    key: bytes = field(repr=False)
    claim: CookieSession
    token: AccessToken


class SupabaseAuthenticator(Authenticator):
    """Decides which session a request belongs to, for Supabase Auth."""

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
            if record.user_id == owners[record.id] and may_be_alive(record, self._policy):
                found.setdefault(record.id, Session.of(record))

    async def _authenticate(
        self, credentials: Credentials, client: Client, passive: bool
    ) -> Authenticated | Invalid:
        claims = cast("tuple[CookieSession, ...]", credentials.claims)
        if not claims:
            return Invalid(Reason.ABSENT)
        hits: dict[str, CacheEntry] = {}
        genuine, shown = 0, list[_Candidate]()
        for text, claim in zip(credentials.session, claims, strict=True):
            entry = self.hit(text, passive)
            token = None if entry else self._verify(claim.access_token)
            genuine += entry is not None or token is not None
            if entry is not None:
                hits[entry.session.id] = entry
            elif token is not None:
                shown.append(_Candidate(text, claim, token))
        if len(claims) > 1:
            return await self._judge_several(hits, shown, client, passive, genuine)
        if hits:
            return Authenticated(session=next(iter(hits.values())).session)
        if not shown:
            return Invalid(Reason.FORGED)
        return await self._judge_one(shown[0], client, passive)

    async def _judge_several(
        self,
        hits: dict[str, CacheEntry],
        shown: Sequence[_Candidate],
        client: Client,
        passive: bool,
        genuine: int,
    ) -> Authenticated | Invalid:
        """Judges several cookies (rule 5)."""
        found = await self._read(each.token.session_id for each in shown)
        owners = {i: row.user_id for i, row in found.items() if isinstance(row, Record)}
        tokens = ((each, each.token) for each in shown)
        current = [each for each, t in tokens if owners.get(t.session_id) == t.user_id]
        live = [each for each in current if self._is_valid(each)]
        expired = [each for each in current if not self._is_valid(each)]
        renewable = [each for each in expired if await self._could_refresh(each)]
        ids = {*hits, *(each.token.session_id for each in (*live, *renewable))}
        if not passive:
            ids |= await self._present_expired(expired, ids, client)
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
        return await self._judge_one(latest, client, passive)

    async def _present_expired(
        self, expired: Sequence[_Candidate], known: Container[str], client: Client
    ) -> set[str]:
        """Presents the refresh tokens that no valid session has, as if each came alone: a
        replay ends its session, whatever other cookies there are. Returns the ids of the
        sessions whose token was accepted after all.

        A token beside a good one of the same session is a forgotten cookie, and no replay.
        """
        accepted = set[str]()
        for each in expired:
            id = each.token.session_id
            if id not in known and self._can_refresh(each):
                issued = await self._refresh_once(each, client)
                accepted |= set() if issued is None else {id}
        return accepted

    async def _could_refresh(self, shown: _Candidate) -> bool:
        """Whether the refresh token would be accepted, here or by another server."""
        if not self._names_its_session(shown):
            return False
        if not self._issuer.tokens.can_mint:
            return True  # only a server that mints knows, and it may refresh the session
        token, session_id = shown.claim.refresh_token, shown.token.session_id
        return await self._auth.would_refresh(token, session_id)

    async def _read(self, session_ids: Iterable[str]) -> dict[str, Record | Invalid]:
        """Returns the rows of these sessions, or the reason for one that is over."""
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

    async def _judge_one(
        self, shown: _Candidate, client: Client, passive: bool
    ) -> Authenticated | Invalid:
        keeps = passive or not self._can_refresh(shown)
        if keeps and not self._database_clock.is_fresh and not self._is_valid(shown):
            await self._judge_by_row(shown)  # any result confirms the time (rule 7)
        live = self._is_valid(shown)
        if live and (keeps or self._is_valid(shown, MARGIN)):
            return await self._judge_by_row(shown)
        if keeps:
            return Invalid(Reason.EXPIRED)
        return await self._refresh_before_app(shown, client, live)

    def _is_valid(self, shown: _Candidate, margin: timedelta = timedelta(0)) -> bool:
        return shown.token.is_live(self._database_clock.now() + margin)

    def _can_refresh(self, shown: _Candidate) -> bool:
        return self._issuer.tokens.can_mint and self._names_its_session(shown)

    def _names_its_session(self, shown: _Candidate) -> bool:
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
            if known is None or (
                known.client_id is not None and known.client_id not in self._oauth_clients
            ):
                return None
            with self._verifying:
                self._verified[key] = known
        return known

    async def _judge_by_row(self, shown: _Candidate) -> Authenticated | Invalid:
        token, key = shown.token, sha256(shown.key).digest()
        ticket, before = self._cache.ticket(), self._clock()
        row = (await self._read([token.session_id]))[token.session_id]
        if isinstance(row, Invalid):
            self._cache.drop(key)
            return row
        if row.user_id != token.user_id:
            return Invalid(Reason.FORGED)
        # Used from the cache until it has to be refreshed; after that it is read each time.
        # The margin is for refreshing: in an outage it shortens nothing.
        margin = MARGIN.total_seconds() if self._can_refresh(shown) else 0.0
        record = limited_to_token(row, token.expires_at, token.aal)
        read = Read(before, self._clock())
        entry = self._state.cache_record(record, key, ticket, read, margin=margin)
        if isinstance(entry, Invalid):
            return entry
        return Authenticated(session=entry.session)

    async def _refresh_before_app(
        self, shown: _Candidate, client: Client, live: bool
    ) -> Authenticated | Invalid:
        # A session that is still valid leaves time to read its row (rule 3).
        limit = self._budget / 2 if live else None
        try:
            async with asyncio.timeout(limit):
                issued = await self._refresh_once(shown, client)
        except Exception as exc:
            if not live:
                raise
            if not isinstance(exc, (SessionsUnavailable, TimeoutError)):
                logger.exception("a refresh failed", extra={"action": "refresh_failed"})
            issued = None
        if issued is None:
            return (
                await self._judge_by_row(shown) if live else Invalid(Reason.REFRESH_EXPIRED)
            )
        return Authenticated(session=issued.session, issued=issued)

    async def _refresh_once(self, shown: _Candidate, client: Client) -> Issued | None:
        """Refreshes once for all requests that present one token for one session at the
        same time. A client that disconnects cancels nothing for the others."""
        token, session_id = shown.claim.refresh_token, shown.token.session_id
        whole = f"{session_id}\n{canonical_text(token)}"
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
        """Returns new tokens for a refresh token, or None if it was refused.

        With ``session_id``, a token of another session is refused. Raises
        :class:`SessionsUnavailable` without an answer, and what the claims hook raises.
        """
        before = self._clock()
        outcome = await self._auth.refresh(refresh_token, client, session_id=session_id)
        if isinstance(outcome, Refused):
            self._report_refusal(outcome, client)
            return None
        session = outcome.session
        self._database_clock.update(session.read_at, self._clock())
        ids = {"session_id": session.id, "user_id": session.user_id}
        self._dispatcher.publish(
            Reissued(**ids, client=client, redated=False)
            if outcome.reused
            else Refreshed(**ids, client=client)
        )
        return self._issuer.issue(outcome, before + DELIVERY)

    def _report_refusal(self, refused: Refused, client: Client) -> None:
        session = refused.session
        if refused.refusal is Refusal.ALREADY_USED and session is not None:
            if refused.family_revoked or refused.ended:
                self._report_replay(session, client)
            else:  # without GoTrue's rotation, an old token is refused and nothing ends
                ids = {"session_id": session.id, "user_id": session.user_id}
                self._dispatcher.publish(LateRefresh(**ids, client=client))
        if refused.family_revoked and session is not None:
            # The row stays, as in GoTrue; its open sockets end.
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

    def reset_after_fork(self) -> None:
        """See :meth:`Sessions.reset_after_fork`: calls of the parent never return here."""
        self._single_flight.clear()
        self._verified, self._verifying = LRUCache(VERIFIED), Lock()


def _judge(row: Record | None, policy: Policy) -> Record | Invalid:
    """Returns the row if its session is valid. Only a refresh moves its limits, and a
    session that has reached one is not refreshed."""
    if row is None:
        return Invalid(Reason.NOT_FOUND)
    verdict = judge_family(row, policy)
    return verdict if isinstance(verdict, Invalid) else row
