"""Refresh: what the rotation rules decide is carried out, once for all callers.

Rule 1. In one process, all requests that present the same refresh token at the same time
share one call (SingleFlight). A client that disconnects cancels no other.
Rule 2. Between processes the conditional UPDATE decides. A process that loses it reads and
judges again. It then finds its token one step behind a rotation of a moment ago, derives
the same successor and returns that.
Rule 3. Where a request has several refresh tokens, one that refreshes counts before a
replay, and a replay before a refusal, so that no other cookie hides the replay. Two tokens
that refresh different sessions are a conflict.
Rule 4. A replay ends its session, unless the request also has a good token of that session:
then it is a forgotten cookie, for its holder has both.
Rule 5. A passive request replaces no token. It is authenticated by the refresh token as it
is, and a replaced one is accepted from the cache until grace ends.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

from handstamp.core.lifetime import FINAL, may_be_alive
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
from handstamp.engine.cache import FOREVER, Read, as_passive, refresh_key
from handstamp.engine.state import EngineState
from handstamp.errors import SessionsUnavailable
from handstamp.events import DuplicateCookies, LateRefresh, Refreshed, Reissued, Replayed
from handstamp.stores.base import Ended, RotatingStore, rotating

_MAX_TRIES = 5
"""Each lost UPDATE means that another process won one, so a few tries are enough."""
MAX_UNSIGNED = 32
"""Refresh tokens without a signature that one login or logout looks up, a query each."""
_PRECEDENCE = (Rotate, Reissue, Replay, Refuse)
"""Which of several refresh tokens counts (rule 3)."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """A refresh token, the row of its session, and what the rules decide about it."""

    token: RefreshToken
    record: Record
    verdict: RefreshVerdict
    read: Read
    ticket: Ticket


class Refresher:
    """Exchanges a refresh token for a live session and its new tokens."""

    def __init__(self, state: EngineState, *, ended: Callable[[Ended, str], None]) -> None:
        self._state = state
        self._store = state.store
        self._tokens = state.tokens
        self._policy = state.policy
        self._cache = state.cache
        self._negative_cache = state.negative_cache
        self._dispatcher = state.dispatcher
        self._clock = state.clock
        self._ended = ended
        self._single_flight: SingleFlight[tuple[str, bool], Authenticated | Invalid] = (
            SingleFlight()
        )

    def reset_after_fork(self) -> None:
        """Forget, in a forked child, the calls of its parent: they never end here."""
        self._single_flight.clear()

    async def refresh(
        self, texts: Sequence[bytes], client: Client, *, passive: bool
    ) -> Authenticated | Invalid:
        """Authenticate by one of these refresh tokens, and rotate unless ``passive``.

        Raises :class:`SessionsUnavailable`.
        """
        tokens = self._parse(texts)
        if not tokens:
            return Invalid(Reason.FORGED)
        now = self._clock()
        denied = [self._negative_cache.get(_key(token), now) for token in tokens]
        tokens = [t for t, reason in zip(tokens, denied, strict=True) if reason is None]
        if not tokens:
            return Invalid(next(reason for reason in denied if reason is not None))
        chosen = tokens[0] if len(tokens) == 1 else await self._choose(tokens)
        if chosen is None:
            return Invalid(Reason.CONFLICT)
        entry = self._cache.get(_key(chosen)) if passive else None
        if entry is not None and self._clock() < min(entry.deadline, entry.confirmed):
            return Authenticated(session=entry.session)
        key = (chosen.digest, passive)
        return await self._single_flight.do(
            key, lambda: self._refresh(chosen, client, passive)
        )

    def _parse(self, texts: Sequence[bytes]) -> list[RefreshToken]:
        """Return the tokens that we signed, and all others if unsigned ones may count."""
        tokens = []
        for text in texts:
            token = self._tokens.read_refresh(text)
            if token is None and self._policy.accept_unsigned:
                token = RefreshToken(text=text, session_id=None, state=text, remember=True)
            if token is not None:
                tokens.append(token)
        return tokens

    async def _choose(self, tokens: Sequence[RefreshToken]) -> RefreshToken | None:
        """Return the one of several tokens that counts, or None for a conflict (rule 3).

        Nothing is written.
        """
        judged = [each for t in tokens if (each := await self._judge_row(t)) is not None]
        good = [each for each in judged if isinstance(each.verdict, (Rotate, Reissue))]
        conflict = len({each.record.id for each in good}) > 1
        found = {each.token.digest for each in judged}
        genuine = sum(1 for t in tokens if t.session_id is not None or t.digest in found)
        if genuine > 1:
            self._dispatcher.publish(
                DuplicateCookies(candidates=genuine, conflict=conflict)
            )
        if conflict:
            return None
        judged.sort(key=lambda each: _PRECEDENCE.index(type(each.verdict)))
        return judged[0].token if judged else tokens[0]

    async def count_other_sessions(
        self, session_id: str, texts: Sequence[bytes], client: Client
    ) -> int:
        """Return how many of these refresh tokens are of another session that is alive.

        A replay among them ends its session (rule 4). Tokens that are of no such session
        are not looked up again for a moment. Raises :class:`SessionsUnavailable`.
        """
        others, replayed = list[str](), dict[str, Record]()
        for token in self._parse(texts):
            if token.session_id == session_id:
                continue
            key = digest(refresh_prefix(session_id) + token.text)
            if self._negative_cache.get(key, self._clock()) is not None:
                continue
            judged = await self._judge_row(token)
            if judged is not None and judged.record.id != session_id:
                verdict = judged.verdict
                if isinstance(verdict, (Rotate, Reissue)) or verdict == Refuse(Reason.LATE):
                    others.append(judged.record.id)
                    continue
                if isinstance(verdict, Replay):
                    replayed[judged.record.id] = judged.record
            self._negative_cache.add(key, self._clock())
        for id in replayed.keys() - others:
            await self._end_replayed(replayed[id], client)
        return len(others)

    async def find_presented(
        self, texts: Sequence[bytes], client: Client, known: Container[str]
    ) -> list[Record]:
        """Return the sessions of these refresh tokens that may be alive, except ``known``.

        A token that came late is of its session as well. A replay ends its session (rule
        4). Raises :class:`SessionsUnavailable`.
        """
        tokens = [
            t
            for t in self._parse(texts)
            if t.session_id is None or t.session_id not in known
        ]
        ids = [t.session_id for t in tokens if t.session_id is not None]
        rows = {row.id: row for row in await self._store.find_many(ids)} if ids else {}
        unsigned = [token for token in tokens if token.session_id is None]
        if len(unsigned) > MAX_UNSIGNED:
            raise SessionsUnavailable("too many unsigned refresh tokens to look up")
        found = [(t, rows.get(t.session_id)) for t in tokens if t.session_id is not None]
        found += [(token, await self._find_row(token)) for token in unsigned]
        replayed, alive = dict[str, Record](), dict[str, Record]()
        for token, record in found:
            if record is None:
                continue
            pending = self._state.pending_activity(record)
            if isinstance(self._judge(token, record), Replay):
                replayed[record.id] = record
            elif may_be_alive(record, self._policy, active_at=pending):
                alive[record.id] = record
        for id in replayed.keys() - alive.keys():
            await self._end_replayed(replayed[id], client)
        return [record for id, record in alive.items() if id not in known]

    async def _refresh(
        self, token: RefreshToken, client: Client, passive: bool
    ) -> Authenticated | Invalid:
        """Read, judge and act, until no other process was faster (rule 2)."""
        for _ in range(_MAX_TRIES):
            judged = await self._judge_row(token)
            if judged is None:
                return Invalid(Reason.NOT_FOUND)
            answer = await self._act(judged, client, passive)
            if isinstance(answer, Authenticated):
                record = judged.record
                event = self._state.bindings.changed(
                    Session.of(record), record.client, client
                )
                if event is not None:
                    self._dispatcher.publish(event)
            if answer is not None:
                return answer
        raise SessionsUnavailable("too many others refresh this session")

    async def _judge_row(self, token: RefreshToken) -> _Judged | None:
        """Read the row of a token and judge the token by it; None if there is no row."""
        ticket, before = self._cache.ticket(), self._clock()
        record = await self._find_row(token)
        if record is None:
            self._negative_cache.add(_key(token), self._clock())
            return None
        read = Read(before, self._clock())
        self._state.database_clock.update(record.read_at, read.after)
        verdict = self._judge(token, record)
        if isinstance(verdict, Refuse) and verdict.reason in FINAL:
            self._negative_cache.add(_key(token), read.after, verdict.reason)
        return _Judged(token, record, verdict, read, ticket)

    def _judge(self, token: RefreshToken, record: Record) -> RefreshVerdict:
        return judge_refresh(
            record,
            token.digest,
            self._tokens.successors(token, record.id),
            self._policy,
            active_at=self._state.pending_activity(record),
        )

    async def _find_row(self, token: RefreshToken) -> Record | None:
        if token.session_id is not None:
            return await self._store.find_by_id(token.session_id)
        table = await rotating(self._store)
        if table is None:
            return None
        record = await table.find_by_refresh(token.digest)
        if record is not None:
            return record
        # A token that the application issued before handstamp names no session. After its
        # rotation the row is found by the session token that it led to, whose text does
        # not depend on the id of the session.
        successors = self._tokens.successors(token, "")
        found = await self._store.find([pair.session_digest for pair in successors])
        return found[0] if found else None

    async def _act(
        self, judged: _Judged, client: Client, passive: bool
    ) -> Authenticated | Invalid | None:
        """Do what was decided; None if another process was faster."""
        record = judged.record
        match judged.verdict:
            case Rotate() | Reissue() if passive:
                return self._authenticate_passive(judged)
            case Rotate(pair):
                return await self._rotate(judged, pair, client)
            case Reissue(pair, _, redate):
                return await self._reissue(judged, pair, client, redate)
            case Replay():
                return await self._end_replayed(record, client)
            case Refuse(reason):
                if reason is Reason.LATE:
                    self._dispatcher.publish(
                        LateRefresh(
                            session_id=record.id, user_id=record.user_id, client=client
                        )
                    )
                return Invalid(reason)

    def mark_seen(self, issued: Issued) -> None:
        """See :meth:`Sessions.mark_seen`."""
        able = self._store.capabilities
        if able.refresh and able.activity:
            key = digest(issued.session_token.encode())
            self._state.activity.mark_seen(issued.session.id, key.hex())

    def _authenticate_passive(self, judged: _Judged) -> Authenticated:
        """Authenticate a request that replaces no token (rule 5)."""
        token, record, until = judged.token, judged.record, FOREVER
        if isinstance(judged.verdict, Reissue):
            # After grace, the use of its successor decides, so each request asks.
            until = judged.read.before + self._grace_left(judged)
        elif not was_seen(record, self._policy.session_ttl):
            # The client that presents the current refresh token has received it.
            self._state.activity.mark_seen(record.id, record.token_digest)
        self._state.cache_record(
            as_passive(record),
            _key(token),
            judged.ticket,
            judged.read,
            claim=token.claim,
            until=until,
        )
        return Authenticated(session=Session.of(replace(record, claim=token.claim)))

    async def _rotate(
        self, judged: _Judged, pair: TokenPair, client: Client
    ) -> Authenticated | None:
        ticket, before = self._cache.ticket(), self._clock()
        rotation = self._rotation(judged, pair, presented=judged.token.digest)
        record = await self._rotating.rotate(rotation)
        if record is None:
            return None
        self._dispatcher.publish(
            Refreshed(session_id=record.id, user_id=record.user_id, client=client)
        )
        until = before + self._policy.grace.total_seconds()
        rotated = replace(
            judged, record=record, read=Read(before, self._clock()), ticket=ticket
        )
        answer = self._issue(rotated, pair, until)
        self._cache.retire(record.id, keep=bytes.fromhex(record.token_digest), until=until)
        return answer

    async def _reissue(
        self, judged: _Judged, pair: TokenPair, client: Client, redate: bool
    ) -> Authenticated | None:
        until = judged.read.before + self._grace_left(judged)
        if redate:
            ticket, before = self._cache.ticket(), self._clock()
            rotation = self._rotation(judged, pair, presented=pair.refresh_digest)
            redated = await self._rotating.redate(rotation)
            if redated is None:
                return None
            read = Read(before, self._clock())
            judged = replace(judged, record=redated, read=read, ticket=ticket)
            until = before + self._policy.grace.total_seconds()
        record = judged.record
        self._dispatcher.publish(
            Reissued(
                session_id=record.id, user_id=record.user_id, client=client, redated=redate
            )
        )
        return self._issue(judged, pair, until)

    @property
    def _rotating(self) -> RotatingStore:
        """The store. It rotates, since a row of it has a refresh token."""
        assert isinstance(self._store, RotatingStore)  # noqa: S101
        return self._store

    def _grace_left(self, judged: _Judged) -> float:
        assert isinstance(judged.verdict, Reissue)  # noqa: S101 - the caller matched
        age = judged.record.read_at - judged.verdict.rotated_at
        return (self._policy.grace - age).total_seconds()

    def _rotation(self, judged: _Judged, pair: TokenPair, *, presented: str) -> Rotation:
        policy = self._policy
        return Rotation(
            id=judged.record.id,
            presented=presented,
            token_digest=pair.session_digest,
            refresh_digest=pair.refresh_digest,
            session_ttl=policy.session_ttl,
            refresh_ttl=policy.refresh_ttl,
            longest=policy.lifetime(remember=judged.token.remember),
        )

    def _issue(self, judged: _Judged, pair: TokenPair, until: float) -> Authenticated:
        """Return the tokens of a row that has just become, or still is, ``pair``'s."""
        record = replace(judged.record, claim=pair.claim)
        key = bytes.fromhex(record.token_digest)
        self._state.cache_record(record, key, judged.ticket, judged.read)
        issued = Issued.of(
            record,
            pair,
            remember=judged.token.remember,
            deliver_until=until,
            ticket=judged.ticket,
        )
        return Authenticated(session=issued.session, issued=issued)

    async def _end_replayed(self, record: Record, client: Client) -> Invalid:
        """End a session, because two parties hold its refresh tokens."""
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


def _key(token: RefreshToken) -> bytes:
    return refresh_key(digest(token.text))
