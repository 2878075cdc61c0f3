"""Who makes this request: the hit, the miss, and what several cookies mean.

A hit is a plain function call without I/O and without a lock: an entry is believed until
its own limits or ``longest_trust``, as long as the bus vouches for it or it was read within
``max_staleness``.
A miss asks the table once for all session tokens of the request, together with whoever else
misses at that moment, after the gate has thrown out what we never made.
The session token decides identity; a refresh token authenticates only when no session
token is alive, and never merges two sessions. One of another session that goes on than the
session token's is a conflict: one of them may be somebody else's cookie. A replayed one
ends its session, whatever stands beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from handstamp.core.cookies import Credentials
from handstamp.core.lifetime import FINAL, may_live
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
from handstamp.engine.batching import BatchLoader
from handstamp.engine.bindings import INTERVAL, Requester
from handstamp.engine.cache import RECENCY, CacheEntry, Read, make_entry
from handstamp.engine.invalidation import NotificationListener
from handstamp.engine.refresh import Refresher
from handstamp.engine.state import EngineState
from handstamp.errors import SessionsUnavailable
from handstamp.events import DuplicateCookies, Event, TokenSwapped

PREFIX = b"sha256:"
"""A stored digest begins so; no token does."""
NONE = Reason.NOT_FOUND
Found = dict[bytes, CacheEntry | Invalid]
"""What became of each text that was looked for."""


class Authenticator:
    """Credentials in, an answer out."""

    def __init__(
        self, state: EngineState, refresher: Refresher, listener: NotificationListener
    ) -> None:
        self._policy = state.policy
        self._tokens = state.tokens
        self._cache = state.cache
        self._activity = state.activity
        self._dispatcher = state.dispatcher
        self._bindings = state.bindings
        self._clock = state.clock
        self._database_clock = state.database_clock
        self._refresher = refresher
        self._listener = listener
        self._store = state.store
        self._loader = BatchLoader(state.store)
        self._negative_cache = state.negative_cache
        self._budget = state.policy.time_budget.total_seconds()
        self._longest_trust = state.policy.longest_trust.total_seconds()
        self._stale = state.policy.stale_while_down.total_seconds()
        self._interval = state.policy.touch_interval.total_seconds()
        self.hits = 0
        self.misses = 0

    def hit(
        self, token: bytes, passive: bool = False, requester: Requester | None = None
    ) -> CacheEntry | None:
        """The cached entry of this session token while it may be believed, else None.

        ``requester`` is asked now and then who it is."""
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
            self._pass(entry, now)
            self._observe(entry, now, requester)
            return entry
        if now >= entry.due:
            self._attend(entry, now, requester)
        entry.used = now
        return entry

    def _attend(self, entry: CacheEntry, now: float, requester: Requester | None) -> None:
        """What a hit does once in a while, and when the next one has to."""
        self._note(entry, now)
        self._observe(entry, now, requester)
        self._cache.mark_used(entry)
        entry.due = min(entry.touched + self._interval, now + RECENCY)

    def _note(self, entry: CacheEntry, now: float) -> None:
        if now - entry.touched >= self._interval or not entry.seen:
            self._activity.notice(entry, now)

    def _pass(self, entry: CacheEntry, now: float) -> None:
        if not entry.seen:
            self._activity.notice_seen(entry, now)

    def _observe(self, entry: CacheEntry, now: float, requester: Requester | None) -> None:
        """Report a session that is used from elsewhere; looks at few requests."""
        if requester is None or now - entry.observed < INTERVAL:
            return
        entry.observed = now
        key = requester.client_key()
        if key == entry.client_key:
            return
        entry.client_key = key
        event = self._bindings.changed(entry.session, entry.signed_in, requester.client)
        if event is not None:
            requester.report(event)

    async def authenticate(
        self, credentials: Credentials, client: Client, *, passive: bool = False
    ) -> Answer:
        """Whose request this is. Never raises for want of a database: that is
        :class:`Unknown`."""
        try:
            async with asyncio.timeout(self._budget):
                return await self._ask(credentials, client, passive)
        except TimeoutError:
            cause = "the time budget is spent"
        except SessionsUnavailable as exc:
            cause = exc.cause
        entry = self._still_believed(credentials)
        if entry is None:
            return Unknown(cause)
        self._admit(entry, passive)  # activity during an outage is activity
        return Authenticated(session=entry.session)

    async def _ask(
        self, credentials: Credentials, client: Client, passive: bool
    ) -> Authenticated | Invalid:
        answer, genuine = await self._by_session(credentials.session, client, passive)
        if isinstance(answer, Authenticated):
            others = await self._sessions_beside(answer.session, credentials, client)
            genuine += others
            answer = Invalid(Reason.CONFLICT) if others else answer
        conflict = isinstance(answer, Invalid) and answer.reason is Reason.CONFLICT
        if genuine > 1:
            self._dispatcher.publish(
                DuplicateCookies(candidates=genuine, conflict=conflict)
            )
        if conflict or isinstance(answer, Authenticated):
            return answer
        self._notice_swap(credentials)
        if not credentials.refresh:
            return answer
        return await self._refresher.refresh(credentials.refresh, client, passive=passive)

    async def _sessions_beside(
        self, session: Session, credentials: Credentials, client: Client
    ) -> int:
        """How many refresh tokens are of another session that goes on."""
        if credentials.agrees(session.id):
            return 0
        return await self._refresher.sessions_beside(
            session.id, credentials.refresh, client
        )

    def _ends(self, entry: CacheEntry) -> float:
        """How long an entry may serve where there is nobody to ask: to the session's own
        limits."""
        return min(entry.hard, entry.idle)

    def _still_believed(self, credentials: Credentials) -> CacheEntry | None:
        """During an outage: what data inside the staleness bound says, and within
        ``stale_while_down`` of it. It may allow; it never denies.

        What was proven counts for ``longest_trust`` after the read and no longer, for the
        bus may go on proving while nothing can be read.
        """
        now = self._clock()
        found: dict[bytes, CacheEntry] = {}
        for text in credentials.session:
            entry = self._cache.get(sha256(text).digest())
            if entry is None or now >= self._ends(entry):
                continue
            proven = min(self._listener.proven_until, entry.confirmed + self._longest_trust)
            bound = max(entry.confirmed, proven)
            if now < bound + self._stale:
                found[text] = entry
        if len({entry.session.id for entry in found.values()}) != 1:
            return None
        entry = next(iter(found.values()))
        return None if self._may_be_of_others(credentials, found, entry) else entry

    def _may_be_of_others(
        self, credentials: Credentials, found: Container[bytes], entry: CacheEntry
    ) -> bool:
        """Whether a genuine token may be of another session, which nobody can look up."""
        tokens = self._tokens
        unknown = [text for text in credentials.session if text not in found]
        if any(tokens.is_session(t) or self._may_be_unsigned(t) for t in unknown):
            return True
        if credentials.agrees(entry.session.id):
            return False
        prefix = refresh_prefix(entry.session.id)
        others = [text for text in credentials.refresh if not text.startswith(prefix)]
        unsigned = self._policy.accept_unsigned
        return any(unsigned or tokens.read_refresh(text) for text in others)

    async def _by_session(
        self, texts: Sequence[bytes], client: Client, passive: bool
    ) -> tuple[Authenticated | Invalid, int]:
        """The answer by the session tokens, and how many of them are genuine: signed by
        us, or in the table."""
        if not texts:
            return Invalid(Reason.ABSENT), 0
        requester = _Request(client, self._dispatcher.publish)
        hits = ((text, self.hit(text, passive, requester)) for text in texts)
        found: Found = {text: entry for text, entry in hits if entry is not None}
        asked = [text for text in texts if text not in found]
        signed = {text for text in asked if self._tokens.is_session(text)}
        genuine = [t for t in asked if t in signed or self._may_be_unsigned(t)]
        if genuine:
            found |= await self._find(genuine, requester, passive)
        live = {e.session.id: e for e in found.values() if isinstance(e, CacheEntry)}
        known = sum(1 for t, a in found.items() if t in signed or a != Invalid(NONE))
        if len(live) > 1:
            return Invalid(Reason.CONFLICT), known
        if not live:
            return Invalid(_reason_of(found)), known
        return Authenticated(session=next(iter(live.values())).session), known

    def _may_be_unsigned(self, text: bytes) -> bool:
        """Whether the table has to be asked for a session token that we did not sign."""
        if not self._policy.accept_unsigned and not self._store.capabilities.plain:
            return False
        # In a column that holds tokens in clear this would find the digest itself.
        return not text.startswith(PREFIX) and self._tokens.read_refresh(text) is None

    async def _find(
        self, texts: Sequence[bytes], requester: Requester, passive: bool
    ) -> Found:
        """What the table says of each of these texts."""
        self.misses += 1
        ticket, before = self._cache.ticket(), self._clock()
        digests = {sha256(text).digest(): text for text in texts}
        whys = {key: self._negative_cache.why(key, before) for key in digests}
        answers: Found = {digests[k]: Invalid(why or NONE) for k, why in whys.items()}
        keys = {key.hex(): key for key, why in whys.items() if why is None}
        if not keys:
            return answers
        in_clear = self._in_clear(texts)
        if in_clear:
            records = await self._loader.load(list(keys), in_clear)
        else:
            records = await self._loader.load(list(keys))
        read = Read(before, self._clock())
        if records:
            self._database_clock.update(records[0].read_at, read.after)
        known_digests = {record.token_digest for record in records}
        for text, key in keys.items():
            if text not in known_digests:
                self._negative_cache.meet(key, read.after)
        for record in records:
            # A row nobody asked for means that answers got mixed up below us.
            asked = keys.get(record.token_digest)
            if asked is None:
                continue
            known = self._cache.get_any(asked)
            noted = self._activity.noted(record.id, record.token_digest)
            claim = self._tokens.claim(digests[asked])
            record = record if claim is None else replace(record, claim=claim)
            answer = make_entry(record, self._policy, asked, read, known, noted)
            answers[digests[asked]] = answer
            if isinstance(answer, Invalid):
                self._cache.drop(asked)
                if answer.reason in FINAL:
                    self._negative_cache.meet(asked, read.after, answer.reason)
                continue
            self._admit(answer, passive)
            self._observe(answer, read.after, requester)
            self._cache.put(ticket, answer)
        return answers

    def _in_clear(self, texts: Sequence[bytes]) -> dict[str, str]:
        """Those tokens that a row may hold as they are: none that we made."""
        if not self._store.capabilities.plain:
            return {}
        return {
            sha256(text).hexdigest(): text.decode("ascii")
            for text in texts
            if not self._tokens.is_session(text)
        }

    def _admit(self, entry: CacheEntry, passive: bool) -> None:
        now = self._clock()
        if passive:
            self._pass(entry, now)
        else:
            self._note(entry, now)
            entry.used = now

    def is_forged(self, credentials: Credentials) -> bool:
        """Whether nothing of this can be a session, and there is nothing to report about
        it: a plain call without I/O, for callers that would have to cross a thread."""
        is_session, read_refresh = self._tokens.is_session, self._tokens.read_refresh
        if credentials.refresh and self._policy.accept_unsigned:
            return False
        if any(self._may_be_unsigned(text) for text in credentials.session):
            return False
        texts = (*credentials.session, *credentials.refresh)
        return not any(is_session(text) or read_refresh(text) for text in texts)

    async def find_presented(
        self, credentials: Credentials, client: Client, known: Session | None
    ) -> list[Session]:
        """The sessions of these tokens, ``known`` among them, that may be alive: those that
        a login or a logout of their holder ends, whether or not they count for a request.

        Nothing is replaced, and nothing is activity; a replayed token is one here as well.
        Raises :class:`SessionsUnavailable`.
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
        for text in self._possible(credentials.session):
            key = sha256(text).digest()
            entry = self._cache.get(key)
            if entry is not None and self._clock() < entry.hard:
                found.setdefault(entry.session.id, entry.session)
            else:
                asked[key.hex()] = text
        if asked:
            in_clear = self._in_clear(list(asked.values()))
            for record in await self._loader.load(list(asked), in_clear):
                if may_live(record, self._policy):
                    found.setdefault(record.id, Session.of(record))
        refresh = credentials.refresh
        for record in await self._refresher.find_presented(refresh, client, found):
            found.setdefault(record.id, Session.of(record))

    def _possible(self, texts: Sequence[bytes]) -> list[bytes]:
        """What may be a session token: all that we signed, and every other text where the
        table may know one that we did not sign. They are asked for in one query."""
        is_session, may_be_unsigned = self._tokens.is_session, self._may_be_unsigned
        return [text for text in texts if is_session(text) or may_be_unsigned(text)]

    def _notice_swap(self, credentials: Credentials) -> None:
        tokens = self._tokens
        if any(tokens.read_refresh(text) for text in credentials.session) or any(
            tokens.is_session(text) for text in credentials.refresh
        ):
            self._dispatcher.publish(TokenSwapped())


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that is answered on the event loop, whose client is known already."""

    client: Client
    publish: Callable[[Event], None]

    def report(self, event: Event) -> None:
        self.publish(event)

    def client_key(self) -> int:
        return hash((self.client.address, self.client.user_agent_hash))


def _reason_of(found: Found) -> Reason:
    """Why none of these is a session: what a row says comes before that there is none."""
    reasons = [answer.reason for answer in found.values() if isinstance(answer, Invalid)]
    if not reasons:
        return Reason.FORGED
    return next((reason for reason in reasons if reason is not NONE), NONE)
