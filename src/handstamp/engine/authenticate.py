"""Which session a request has: the hit, the miss, and several cookies at once.

Rule 1. A hit is a plain function call without I/O and without a lock. An entry is used
until its own limits or ``longest_trust``, while the notification listener is trusted or
while the entry was read within ``max_staleness``.
Rule 2. A miss reads the rows of all session tokens of the request at once, in one query
with all concurrent misses. Tokens that we did not sign are refused before, without I/O.
Rule 3. The session token decides which session it is. A refresh token authenticates only
where no session token is valid, and never merges two sessions.
Rule 4. Two valid tokens of different sessions are a conflict, because one of them may be
another person's cookie: the request is anonymous. A refresh token of another session that
is still alive is a conflict with the session token as well.
Rule 5. A replayed refresh token ends its session, whatever else the request carries.
Rule 6. Without an answer of the database the result is Unknown, unless the cache may still
be used: data inside the staleness bound may allow a request, and never denies one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from handstamp.core.cookies import Credentials
from handstamp.core.lifetime import may_be_alive
from handstamp.core.models import (
    Answer,
    Authenticated,
    Client,
    Invalid,
    Reason,
    Session,
    Unknown,
)
from handstamp.core.tokens import refresh_prefix
from handstamp.engine.activity import Requester
from handstamp.engine.batching import BatchLoader
from handstamp.engine.cache import RECENCY, CacheEntry, Read
from handstamp.engine.invalidation import NotificationListener
from handstamp.engine.refresh import Refresher
from handstamp.engine.state import EngineState
from handstamp.errors import SessionsUnavailable
from handstamp.events import DuplicateCookies, Event, TokenSwapped
from handstamp.stores.shapes import PREFIX

_DIGEST_PREFIX = PREFIX.encode()
"""The beginning of a digest in a column of plain tokens; no token begins like this."""


class Authenticator:
    """Answers which session the credentials of a request belong to."""

    def __init__(
        self, state: EngineState, refresher: Refresher, listener: NotificationListener
    ) -> None:
        self._state = state
        self._policy = state.policy
        self._tokens = state.tokens
        self._cache = state.cache
        self._negative_cache = state.negative_cache
        self._activity = state.activity
        self._dispatcher = state.dispatcher
        self._clock = state.clock
        self._database_clock = state.database_clock
        self._refresher = refresher
        self._listener = listener
        self._store = state.store
        self._loader = BatchLoader(state.store)
        self._budget = state.policy.time_budget.total_seconds()
        self._longest_trust = state.policy.longest_trust.total_seconds()
        self._stale = state.policy.stale_while_down.total_seconds()
        self._interval = state.policy.touch_interval.total_seconds()
        self.hits = 0
        self.misses = 0

    def hit(
        self, token: bytes, passive: bool = False, requester: Requester | None = None
    ) -> CacheEntry | None:
        """Return the cached entry of a session token, or None if a read is needed.

        ``requester`` is the client, which is compared now and then with the one that
        opened the session.
        """
        entry = self._cache.get(sha256(token).digest())
        if entry is None:
            return None
        now = self._clock()
        if now >= entry.deadline:
            return None
        if now >= entry.confirmed and now >= self._listener.trusted_until:
            return None
        self.hits += 1
        if passive:
            self._record(entry, now, passive)
            self._observe(entry, now, requester)
            return entry
        if now >= entry.due:
            self._record(entry, now)
            self._observe(entry, now, requester)
            self._cache.mark_used(entry)
            entry.due = min(entry.touched + self._interval, now + RECENCY)
        entry.used = now
        return entry

    def _record(self, entry: CacheEntry, now: float, passive: bool = False) -> None:
        """Record the use of an entry where that is due: its activity, or that its token
        was seen, which a passive request shows as well."""
        if not passive:
            entry.used = now
            if now - entry.touched >= self._interval or not entry.seen:
                self._activity.touch(entry, now)
        elif not entry.seen:
            entry.seen = True
            self._activity.mark_seen(entry.session.id, entry.digest)

    def _observe(self, entry: CacheEntry, now: float, requester: Requester | None) -> None:
        """Report a client that is not the one that opened the session."""
        if requester is not None:
            self._state.bindings.observe(entry, now, requester)

    async def authenticate(
        self, credentials: Credentials, client: Client, *, passive: bool = False
    ) -> Answer:
        """Return the session of a request, or why it has none.

        Never raises where the database gives no answer: that is :class:`Unknown`.
        """
        try:
            async with asyncio.timeout(self._budget):
                return await self._authenticate(credentials, client, passive)
        except TimeoutError:
            cause = "the time budget is spent"
        except SessionsUnavailable as exc:
            cause = exc.cause
        entry = self._cached_while_down(credentials)
        if entry is None:
            return Unknown(cause)
        self._record(entry, self._clock(), passive)
        return Authenticated(session=entry.session)

    async def _authenticate(
        self, credentials: Credentials, client: Client, passive: bool
    ) -> Authenticated | Invalid:
        answer, genuine = await self._by_session_tokens(
            credentials.session, client, passive
        )
        if isinstance(answer, Authenticated) and not credentials.refresh_matches(
            answer.session.id
        ):
            others = await self._refresher.count_other_sessions(
                answer.session.id, credentials.refresh, client
            )
            genuine += others
            answer = Invalid(Reason.CONFLICT) if others else answer
        conflict = isinstance(answer, Invalid) and answer.reason is Reason.CONFLICT
        if genuine > 1:
            self._dispatcher.publish(
                DuplicateCookies(candidates=genuine, conflict=conflict)
            )
        if conflict or isinstance(answer, Authenticated):
            return answer
        is_session, read_refresh = self._tokens.is_session, self._tokens.read_refresh
        if any(map(read_refresh, credentials.session)) or any(
            map(is_session, credentials.refresh)
        ):
            self._dispatcher.publish(TokenSwapped())
        if not credentials.refresh:
            return answer
        return await self._refresher.refresh(credentials.refresh, client, passive=passive)

    async def _by_session_tokens(
        self, tokens: Sequence[bytes], client: Client, passive: bool
    ) -> tuple[Authenticated | Invalid, int]:
        """Return the answer of the session tokens, and how many of them are genuine:
        signed by us, or in the table."""
        if not tokens:
            return Invalid(Reason.ABSENT), 0
        requester = _Request(client, self._dispatcher.publish)
        found: dict[bytes, CacheEntry | Invalid] = {}
        for token in tokens:
            entry = self.hit(token, passive, requester)
            if entry is not None:
                found[token] = entry
        missed = [text for text in tokens if text not in found]
        signed = {token for token in missed if self._tokens.is_session(token)}
        possible = [t for t in missed if t in signed or self._may_be_unsigned(t)]
        if possible:
            found |= await self._read_rows(possible, requester, passive)
        live = {e.session.id: e for e in found.values() if isinstance(e, CacheEntry)}
        reasons = [
            answer.reason for answer in found.values() if isinstance(answer, Invalid)
        ]
        not_found = Invalid(Reason.NOT_FOUND)
        genuine = sum(1 for t, each in found.items() if t in signed or each != not_found)
        if len(live) > 1:
            return Invalid(Reason.CONFLICT), genuine
        if live:
            return Authenticated(session=next(iter(live.values())).session), genuine
        if not reasons:
            return Invalid(Reason.FORGED), genuine
        # What a row tells comes before that another token has no row.
        known = (reason for reason in reasons if reason is not Reason.NOT_FOUND)
        return Invalid(next(known, Reason.NOT_FOUND)), genuine

    def _may_be_unsigned(self, token: bytes) -> bool:
        """Whether the table may hold a session token that we did not sign."""
        if not self._policy.accept_unsigned and not self._store.capabilities.plain:
            return False
        # In a column of plain tokens, this text would match the stored digest itself.
        is_digest = token.startswith(_DIGEST_PREFIX)
        return not is_digest and self._tokens.read_refresh(token) is None

    async def _read_rows(
        self, tokens: Sequence[bytes], requester: Requester, passive: bool
    ) -> dict[bytes, CacheEntry | Invalid]:
        """Read the rows of these session tokens; cache those that are valid."""
        self.misses += 1
        ticket, before = self._cache.ticket(), self._clock()
        answers: dict[bytes, CacheEntry | Invalid] = {}
        asked: dict[str, bytes] = {}
        for token in tokens:
            key = sha256(token).digest()
            reason = self._negative_cache.get(key, before)
            answers[token] = Invalid(reason or Reason.NOT_FOUND)
            if reason is None:
                asked[key.hex()] = token
        if not asked:
            return answers
        plain = self._plain_tokens(tokens)
        records = await self._loader.load(list(asked), *([plain] if plain else []))
        read = Read(before, self._clock())
        found = {record.token_digest: record for record in records}
        for digest, token in asked.items():
            key, record = bytes.fromhex(digest), found.get(digest)
            if record is None:
                self._negative_cache.add(key, read.after)
                continue
            claim = self._tokens.claim(token)
            entry = self._state.cache_record(record, key, ticket, read, claim=claim)
            answers[token] = entry
            if isinstance(entry, CacheEntry):
                self._record(entry, self._clock(), passive)
                self._observe(entry, read.after, requester)
        return answers

    def _plain_tokens(self, tokens: Iterable[bytes]) -> dict[str, str]:
        """Return by digest the tokens that a row may hold as plaintext, never ours."""
        if not self._store.capabilities.plain:
            return {}
        return {
            sha256(token).hexdigest(): token.decode("ascii")
            for token in tokens
            if not self._tokens.is_session(token)
        }

    def _cached_while_down(self, credentials: Credentials) -> CacheEntry | None:
        """Return the entry that may be used without an answer of the database (rule 6).

        What the listener has proven counts for ``longest_trust`` after the read and no
        longer, because notifications may still arrive while nothing can be read.
        """
        now = self._clock()
        found: dict[bytes, CacheEntry] = {}
        for token in credentials.session:
            entry = self._cache.get(sha256(token).digest())
            if entry is None or now >= min(entry.hard, entry.idle):
                continue
            proven = min(self._listener.proven_until, entry.confirmed + self._longest_trust)
            if now < max(entry.confirmed, proven) + self._stale:
                found[token] = entry
        if len({entry.session.id for entry in found.values()}) != 1:
            return None
        entry = next(iter(found.values()))
        return None if self._may_be_of_others(credentials, found, entry) else entry

    def _may_be_of_others(
        self, credentials: Credentials, found: Container[bytes], entry: CacheEntry
    ) -> bool:
        """Whether a token that cannot be looked up now may be of another session."""
        tokens, session_id = self._tokens, entry.session.id
        unknown = [text for text in credentials.session if text not in found]
        if any(tokens.is_session(t) or self._may_be_unsigned(t) for t in unknown):
            return True
        if credentials.refresh_matches(session_id):
            return False
        prefix = refresh_prefix(session_id)
        others = [text for text in credentials.refresh if not text.startswith(prefix)]
        unsigned = self._policy.accept_unsigned
        return any(unsigned or tokens.read_refresh(text) for text in others)

    def is_forged(self, credentials: Credentials) -> bool:
        """Whether no token of these can be of a session, and no event has to be published.

        A plain call without I/O: it saves a thread the call into the event loop.
        """
        is_session, read_refresh = self._tokens.is_session, self._tokens.read_refresh
        if credentials.refresh and self._policy.accept_unsigned:
            return False
        if any(self._may_be_unsigned(token) for token in credentials.session):
            return False
        tokens = (*credentials.session, *credentials.refresh)
        return not any(is_session(token) or read_refresh(token) for token in tokens)

    async def find_presented(
        self, credentials: Credentials, client: Client, known: Session | None
    ) -> list[Session]:
        """Return the sessions of these tokens that may be alive, and ``known``.

        A login or a logout of their holder ends them, whether or not they count for a
        request. Nothing is refreshed, and nothing is activity; a replayed token ends its
        session here as well. Raises :class:`SessionsUnavailable`.
        """
        found = {} if known is None else {known.id: known}
        try:
            async with asyncio.timeout(self._budget):
                await self._add_presented(found, credentials, client)
        except TimeoutError:
            raise SessionsUnavailable("the time budget is spent") from None
        return list(found.values())

    async def _add_presented(
        self, found: dict[str, Session], credentials: Credentials, client: Client
    ) -> None:
        asked = dict[str, bytes]()
        for token in credentials.session:
            if not self._tokens.is_session(token) and not self._may_be_unsigned(token):
                continue
            key = sha256(token).digest()
            entry = self._cache.get(key)
            if entry is not None and self._clock() < entry.hard:
                found.setdefault(entry.session.id, entry.session)
            else:
                asked[key.hex()] = token
        if asked:
            plain = self._plain_tokens(asked.values())
            for record in await self._loader.load(list(asked), plain):
                if may_be_alive(record, self._policy):
                    found.setdefault(record.id, Session.of(record))
        refresh = credentials.refresh
        for record in await self._refresher.find_presented(refresh, client, found):
            found.setdefault(record.id, Session.of(record))


@dataclass(frozen=True, slots=True)
class _Request:
    """The requester of a request that is answered on the event loop."""

    client: Client
    publish: Callable[[Event], None]

    def report(self, event: Event) -> None:
        self.publish(event)

    def client_key(self) -> int:
        return hash((self.client.address, self.client.user_agent_hash))
