"""Carrying out what the rotation rules decide, so that all who ask get one answer.

Within a process, everyone who presents the same refresh token at the same time shares
one flight; a client that goes away cancels nobody's. Between processes the conditional
UPDATE decides, and whoever lost it reads and judges again: it then finds itself one step
behind a rotation of a moment ago, derives the same successor and hands that out.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from handstamp.core.lifetime import FINAL, may_live
from handstamp.core.models import (
    Authenticated,
    Client,
    Invalid,
    Issued,
    Reason,
    Record,
    Rotation,
    Session,
    Ticket,
)
from handstamp.core.rotation import (
    RefreshVerdict,
    Refuse,
    Reissue,
    Replay,
    Rotate,
    judge_refresh,
    was_seen,
)
from handstamp.core.tokens import RefreshToken, TokenPair, digest, refresh_prefix
from handstamp.engine.batching import SingleFlight
from handstamp.engine.cache import Read, make_entry, outlived, refresh_key
from handstamp.engine.state import EngineState
from handstamp.errors import SessionsUnavailable
from handstamp.events import DuplicateCookies, LateRefresh, Refreshed, Reissued, Replayed
from handstamp.stores.base import Ended, RotatingStore, rotating

_TRIES = 5
"""Each lost race means that another process made progress, so a few are plenty."""
MOST_UNSIGNED = 32
"""Refresh tokens without a signature that one login or logout asks for, a query each. With
more of them nobody can say whose they are."""
_ORDER = (Rotate, Reissue, Replay, Refuse)
"""Which of several cookies counts."""


@dataclass(frozen=True, slots=True)
class _Finding:
    token: RefreshToken
    record: Record
    verdict: RefreshVerdict
    read: Read
    ticket: Ticket


class Refresher:
    """Refresh tokens in, one live session and its tokens out."""

    def __init__(self, state: EngineState, *, ended: Callable[[Ended, str], None]) -> None:
        self._store = state.store
        self._tokens = state.tokens
        self._policy = state.policy
        self._cache = state.cache
        self._negative_cache = state.negative_cache
        self._activity = state.activity
        self._dispatcher = state.dispatcher
        self._bindings = state.bindings
        self._clock = state.clock
        self._database_clock = state.database_clock
        self._ended = ended
        self._single_flight: SingleFlight[tuple[str, bool], Authenticated | Invalid] = (
            SingleFlight()
        )

    def reset_after_fork(self) -> None:
        """In a forked child: no flight of the parent's will ever land here."""
        self._single_flight.clear()

    async def refresh(
        self, texts: Sequence[bytes], client: Client, *, passive: bool
    ) -> Authenticated | Invalid:
        """Authenticate by whichever of these refresh tokens stands; rotate unless
        ``passive``. Raises :class:`SessionsUnavailable`."""
        tokens = [token for text in texts if (token := self._read(text)) is not None]
        if not tokens:
            return Invalid(Reason.FORGED)
        now = self._clock()
        whys = {
            token.digest: self._negative_cache.why(_key(token), now) for token in tokens
        }
        tokens = [token for token in tokens if whys[token.digest] is None]
        if not tokens:
            return Invalid(next(why for why in whys.values() if why is not None))
        chosen = tokens[0] if len(tokens) == 1 else await self._choose(tokens)
        if chosen is None:
            return Invalid(Reason.CONFLICT)
        if passive and (known := self._known(chosen)) is not None:
            return Authenticated(session=known)
        return await self._fly(chosen, client, passive)

    def _read(self, text: bytes) -> RefreshToken | None:
        token = self._tokens.read_refresh(text)
        if token is not None or not self._policy.accept_unsigned:
            return token
        return RefreshToken(text=text, session_id=None, state=text, remember=True)

    async def _choose(self, tokens: Sequence[RefreshToken]) -> RefreshToken | None:
        """Among several cookies, the one that stands; None if they contradict. If none
        stands, a replay goes before what ends nothing, so that no other cookie hides it.

        Nothing is written on the way. A stale token beside the current one of the same
        session is a forgotten cookie and no theft: its holder has both.
        """
        findings = [f for t in tokens if (f := await self._find(t)) is not None]
        standing = [f for f in findings if isinstance(f.verdict, (Rotate, Reissue))]
        conflict = len({f.record.id for f in standing}) > 1
        found = {f.token.digest for f in findings}
        genuine = sum(1 for t in tokens if t.session_id is not None or t.digest in found)
        if genuine > 1:
            self._dispatcher.publish(
                DuplicateCookies(candidates=genuine, conflict=conflict)
            )
        if conflict:
            return None
        findings.sort(key=lambda f: _ORDER.index(type(f.verdict)))
        return findings[0].token if findings else tokens[0]

    async def sessions_beside(
        self, session_id: str, texts: Sequence[bytes], client: Client
    ) -> int:
        """How many of these refresh tokens are of another session that goes on.

        A replay among them ends its session, as it would alone, unless another of these
        tokens is good for that one. What is worth nothing is not asked for again for a
        moment. Raises :class:`SessionsUnavailable`.
        """
        others, replayed = list[str](), dict[str, Record]()
        for token in filter(None, map(self._read, texts)):
            if token.session_id == session_id:
                continue
            key = digest(refresh_prefix(session_id) + token.text)
            if self._negative_cache.why(key, self._clock()) is not None:
                continue
            finding = await self._find(token)
            if finding is not None and finding.record.id != session_id:
                if _goes_on(finding.verdict):
                    others.append(finding.record.id)
                    continue
                if isinstance(finding.verdict, Replay):
                    replayed[finding.record.id] = finding.record
            self._negative_cache.meet(key, self._clock())
        for id in replayed.keys() - others:
            await self._revoke(replayed[id], client)
        return len(others)

    async def find_presented(
        self, texts: Sequence[bytes], client: Client, known: Container[str]
    ) -> list[Record]:
        """The sessions of these refresh tokens, but for the ``known``, that may be alive.

        A token that came late is its session's all the same. Where all that is presented
        of a session is a replay, that ends it. Raises :class:`SessionsUnavailable`.
        """
        tokens = [t for text in texts if (t := self._read(text)) is not None]
        others = [t for t in tokens if t.session_id is None or t.session_id not in known]
        rows = await self._rows(others)
        replayed, held = dict[str, Record](), dict[str, Record]()
        for token, record in rows:
            verdict = self._judge(token, record)
            if isinstance(verdict, Replay):
                replayed[record.id] = record
            elif may_live(record, self._policy, active_at=self._noted(record)):
                held[record.id] = record
        for id in replayed.keys() - held.keys():
            await self._revoke(replayed[id], client)
        return [record for id, record in held.items() if id not in known]

    async def _rows(
        self, tokens: Sequence[RefreshToken]
    ) -> list[tuple[RefreshToken, Record]]:
        """Each token with the row of its session, if there is one: in one query for those
        that name it."""
        ids = [t.session_id for t in tokens if t.session_id is not None]
        named = await self._store.find_many(ids) if ids else ()
        rows = {record.id: record for record in named}
        found = [(t, rows.get(t.session_id)) for t in tokens if t.session_id is not None]
        unsigned = [t for t in tokens if t.session_id is None]
        if len(unsigned) > MOST_UNSIGNED:
            raise SessionsUnavailable("too many unsigned refresh tokens to ask for")
        found += [(token, await self._row(token)) for token in unsigned]
        return [(token, record) for token, record in found if record is not None]

    def _known(self, token: RefreshToken) -> Session | None:
        entry = self._cache.get(_key(token))
        now = self._clock()
        if entry is None or now >= entry.deadline or now >= entry.confirmed:
            return None
        return entry.session

    async def _fly(
        self, token: RefreshToken, client: Client, passive: bool
    ) -> Authenticated | Invalid:
        key = (token.digest, passive)
        return await self._single_flight.do(
            key, lambda: self._settle(token, client, passive)
        )

    async def _settle(
        self, token: RefreshToken, client: Client, passive: bool
    ) -> Authenticated | Invalid:
        for _ in range(_TRIES):
            finding = await self._find(token)
            if finding is None:
                return Invalid(Reason.NOT_FOUND)
            answer = await self._act(finding, client, passive)
            if isinstance(answer, Authenticated):
                self._observe(finding.record, client)
            if answer is not None:
                return answer
        raise SessionsUnavailable("too many others refresh this session")

    def _observe(self, record: Record, client: Client) -> None:
        """Report a session that is refreshed from elsewhere."""
        event = self._bindings.changed(Session.of(record), record.client, client)
        if event is not None:
            self._dispatcher.publish(event)

    async def _find(self, token: RefreshToken) -> _Finding | None:
        ticket, before = self._cache.ticket(), self._clock()
        record = await self._row(token)
        if record is None:
            self._negative_cache.meet(_key(token), self._clock())
            return None
        read = Read(before, self._clock())
        self._database_clock.update(record.read_at, read.after)
        verdict = self._judge(token, record)
        if isinstance(verdict, Refuse) and verdict.reason in FINAL:
            self._negative_cache.meet(_key(token), read.after, verdict.reason)
        return _Finding(token, record, verdict, read, ticket)

    def _judge(self, token: RefreshToken, record: Record) -> RefreshVerdict:
        successors, policy = self._tokens.successors(token, record.id), self._policy
        active_at = self._noted(record)
        return judge_refresh(record, token.digest, successors, policy, active_at=active_at)

    def _noted(self, record: Record) -> datetime | None:
        return self._activity.noted(record.id, record.token_digest)

    async def _row(self, token: RefreshToken) -> Record | None:
        if token.session_id is not None:
            return await self._store.find_by_id(token.session_id)
        table = await rotating(self._store)
        if table is None:
            return None
        record = await table.find_by_refresh(token.digest)
        if record is not None:
            return record
        # One from before handstamp names no session. Once it has rotated it is found by
        # the session token it led to, whose text does not depend on the session's id.
        successors = self._tokens.successors(token, "")
        found = await self._store.find([pair.session_digest for pair in successors])
        return found[0] if found else None

    async def _act(
        self, finding: _Finding, client: Client, passive: bool
    ) -> Authenticated | Invalid | None:
        """Do what was decided; None if somebody else was first."""
        match finding.verdict:
            case Rotate(pair):
                if passive:
                    self._mark_seen(finding.record)
                    return self._vouch(finding)
                return await self._rotate(finding, pair, client)
            case Reissue(pair, _, redate):
                if passive:
                    return self._vouch(finding)
                return await self._reissue(finding, pair, client, redate)
            case Replay():
                return await self._revoke(finding.record, client)
            case Refuse(reason):
                return self._refuse(finding.record, reason, client)

    def mark_seen(self, issued: Issued) -> None:
        """See :meth:`Sessions.mark_seen`."""
        able = self._store.capabilities
        if able.refresh and able.activity:
            key = digest(issued.session_token.encode())
            self._activity.mark_seen(issued.session.id, key.hex())

    def _mark_seen(self, record: Record) -> None:
        """Whoever presents the row's own refresh token got the answer that carried it."""
        if not was_seen(record, self._policy.session_ttl):
            self._activity.mark_seen(record.id, record.token_digest)

    def _vouch(self, finding: _Finding) -> Authenticated:
        """A passive request: the refresh token as it stands, and nothing is replaced.

        A replaced token is believed until grace ends. After that, use of its successor
        decides about it, and each request asks.
        """
        key = _key(finding.token)
        record, policy = replace(finding.record, claim=finding.token.claim), self._policy
        entry = make_entry(outlived(record), policy, key, finding.read)
        if isinstance(finding.verdict, Reissue) and not isinstance(entry, Invalid):
            until = finding.read.before + self._grace_left(finding)
            entry.hard, entry.deadline = min(entry.hard, until), min(entry.deadline, until)
        if not isinstance(entry, Invalid):
            self._cache.put(finding.ticket, entry)
        return Authenticated(session=Session.of(record))

    async def _rotate(
        self, finding: _Finding, pair: TokenPair, client: Client
    ) -> Authenticated | None:
        token, policy, before = finding.token, self._policy, self._clock()
        ticket = self._cache.ticket()
        record = await self._rotating.rotate(self._step(finding, pair, token.digest))
        if record is None:
            return None
        self._dispatcher.publish(
            Refreshed(session_id=record.id, user_id=record.user_id, client=client)
        )
        until = before + policy.grace.total_seconds()
        read = Read(before, self._clock())
        answer = self._answer(record, pair, token.remember, until, ticket, read)
        self._cache.retire(record.id, keep=bytes.fromhex(record.token_digest), until=until)
        return answer

    async def _reissue(
        self, finding: _Finding, pair: TokenPair, client: Client, redate: bool
    ) -> Authenticated | None:
        record, read, ticket = finding.record, finding.read, finding.ticket
        until = read.before + self._grace_left(finding)
        if redate:
            before, ticket = self._clock(), self._cache.ticket()
            step = self._step(finding, pair, pair.refresh_digest)
            redated = await self._rotating.redate(step)
            if redated is None:
                return None
            record, read = redated, Read(before, self._clock())
            until = before + self._policy.grace.total_seconds()
        self._dispatcher.publish(
            Reissued(
                session_id=record.id, user_id=record.user_id, client=client, redated=redate
            )
        )
        remember = finding.token.remember
        return self._answer(record, pair, remember, until, ticket, read)

    @property
    def _rotating(self) -> RotatingStore:
        """The store. It rotates, since a row of it has a refresh token."""
        assert isinstance(self._store, RotatingStore)  # noqa: S101
        return self._store

    def _grace_left(self, finding: _Finding) -> float:
        assert isinstance(finding.verdict, Reissue)  # noqa: S101 - the caller matched
        age = finding.record.read_at - finding.verdict.rotated_at
        return (self._policy.grace - age).total_seconds()

    def _answer(
        self,
        record: Record,
        pair: TokenPair,
        remember: bool,
        until: float,
        ticket: Ticket,
        read: Read,
    ) -> Authenticated:
        key, record = bytes.fromhex(record.token_digest), replace(record, claim=pair.claim)
        self._negative_cache.forget(key)
        entry = make_entry(record, self._policy, key, read, self._cache.get_any(key))
        if not isinstance(entry, Invalid):
            self._cache.put(ticket, entry)
        issued = Issued.of(
            record, pair, remember=remember, deliver_until=until, ticket=ticket
        )
        return Authenticated(session=issued.session, issued=issued)

    async def _revoke(self, record: Record, client: Client) -> Invalid:
        reason = "refresh token replayed"
        ended = await self._store.revoke(record.id, reason=reason)
        if ended is not None:
            self._dispatcher.publish(
                Replayed(
                    session_id=record.id,
                    user_id=record.user_id,
                    presented_by=client,
                    signed_in_by=record.client,
                )
            )
            self._ended(ended, reason)
        self._cache.doubt_session(record.id)
        return Invalid(Reason.REPLAYED)

    def _refuse(self, record: Record, reason: Reason, client: Client) -> Invalid:
        if reason is Reason.LATE:
            self._dispatcher.publish(
                LateRefresh(session_id=record.id, user_id=record.user_id, client=client)
            )
        return Invalid(reason)

    def _step(self, finding: _Finding, pair: TokenPair, presented: str) -> Rotation:
        policy = self._policy
        return Rotation(
            id=finding.record.id,
            presented=presented,
            token_digest=pair.session_digest,
            refresh_digest=pair.refresh_digest,
            session_ttl=policy.session_ttl,
            refresh_ttl=policy.refresh_ttl,
            longest=policy.lifetime(remember=finding.token.remember),
        )


def _goes_on(verdict: RefreshVerdict) -> bool:
    """Whether the session of a refresh token stands, though this one may have come late."""
    return isinstance(verdict, (Rotate, Reissue)) or verdict == Refuse(Reason.LATE)


def _key(token: RefreshToken) -> bytes:
    return refresh_key(digest(token.text))
