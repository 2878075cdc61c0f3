"""The cache that may be believed.

Rule 1. Keyed by the digest of a token, never by a token.
Rule 2. Only sessions that were judged valid enter. There is no negative entry here, so
no answer can shadow a session that appears later, and no flood of any kind can evict a
live entry except by the LRU's own order. One session has at most ``COPIES`` entries, so
that its holder pushes nobody else's out.
Rule 3. The fence. A read takes a ticket before its query; what it found is put only if
its session, its user or everything was not invalidated since. Without it a read that
raced a revocation would put the revoked session back, for as long as the entry lives.
Rule 4. Invalidation comes after the commit: first the table, then the cache.
Rule 5. An entry that has reached its deadline is not denied, it is read again: only
fresh data may deny.
Rule 6. A notification is a doubt and no verdict, because anybody who may connect to the
database can send one. Entries in doubt are kept apart: they are found no more by ``get``,
and tell the next read of activity that is not written yet. To doubt everything costs the
same however many entries there are, and to doubt again what is in doubt costs nothing: only
what was read again in between is moved once more.

A hit is one lookup in a plain dict, without a lock. The LRU behind it learns of a use at
most once a second and entry (:meth:`Cache.freshen`): asking it every time would cost as
much as the hash of the token. One lock guards every change, because another thread may
revoke.

From a row to a cache entry: where database time becomes time on our clock.

``before`` and ``after`` are readings of our clock around the query. What is left of a
life is counted from ``before``, so an entry ends early by a round trip, never late.
Activity is dated from ``after``, so it lies behind the database's clock by a round trip,
never ahead: use of an old token is never dated after the rotation that replaced it.

However long notifications are trusted, an entry is read again within ``longest_trust``: a
trigger can miss a change. That is a reason to ask and no limit of the session, so it does
not shorten what may be believed while there is nobody to ask.

Tokens that open nothing, remembered briefly with the reason: the table does not know
them, or their session is over.

The tokens of a signed-out user would cost a query for each request otherwise. A genuine
signature without a row is rare (a pruned session, a stale tab), so a client that sends many
of them is up to something. They live apart from the cache and can evict nothing there. They
are few, and they live so shortly that a session that appears later (a slow commit, a
lagging replica, a row that an operator makes valid again) is not shadowed for long.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from threading import Lock

from cachetools import LRUCache

from handstamp.config import Policy
from handstamp.core.lifetime import judge
from handstamp.core.models import Client, Invalid, Reason, Record, Session, Ticket, Valid
from handstamp.core.rotation import was_seen
from handstamp.errors import ConfigError

NEVER = float("-inf")
FOREVER = float("inf")
RECENCY = 1.0
"""Seconds within which the order of use is not kept."""
COPIES = 8
"""Entries of one session: a rotation makes one, and for Supabase every text of a cookie
that its holder writes around one access token."""


@dataclass(slots=True, kw_only=True)
class CacheEntry:
    """A session that was judged valid, and until when that may be believed.

    Times are readings of the engine's clock, in seconds. ``hard`` is the end that
    nothing moves, ``idle`` the idle limit as it was read, ``deadline`` when the entry must
    be read again: at the nearest of these, or when ``longest_trust`` is over. Until
    ``confirmed`` the entry may be believed by its own age alone, whatever the bus has
    proven. ``touched`` is when its activity was last noted, ``used`` when it was last
    active; ``seen`` says whether its token is known to have been presented since it was
    made. ``signed_in`` is the client that opened the session, ``observed`` when a request
    was last compared with it, ``client_key`` stands for the client of that request.
    ``read_at`` is the database's clock when ours showed ``read`` at the latest.
    """

    key: bytes = field(repr=False)
    digest: str = field(repr=False)
    session: Session
    hard: float
    deadline: float
    confirmed: float
    read: float
    read_at: datetime
    touched: float
    used: float
    seen: bool
    idle: float = FOREVER
    due: float = NEVER
    signed_in: Client = field(default_factory=Client, repr=False)
    observed: float = NEVER
    client_key: int | None = field(default=None, repr=False)

    def database_time(self, now: float) -> datetime:
        """The database's clock at ``now``: never ahead of it, at most a read behind."""
        return self.read_at + timedelta(seconds=now - self.read)


class Cache:
    """A bounded LRU of entries, indexed by session and by user, behind a fence."""

    def __init__(self, maxsize: int, *, marks: int = 4096) -> None:
        if maxsize < 1:
            raise ConfigError(f"cache_size must be at least 1, not {maxsize}")
        self._maxsize = maxsize
        self._fence = _Fence(marks)
        self._empty()

    def _empty(self) -> None:
        self._lock = Lock()
        self._live: dict[bytes, CacheEntry] = {}
        self._doubted: dict[bytes, CacheEntry] = {}
        self._order = _Order(self._maxsize, self._leave)
        self._by_session: _Index = defaultdict(dict)
        # Of a user's entries, those that may be live: doubt them once and they leave it.
        self._by_user: _Index = defaultdict(dict)

        self.get = self._live.get
        """The entry of a digest if it is not in doubt, or None: a dict's own ``get``, for
        the hot path. Another one after :meth:`doubt`, so it is not to be kept."""

    def __len__(self) -> int:
        return len(self._live) + len(self._doubted)

    @property
    def believed(self) -> int:
        """How many entries are not in doubt."""
        return len(self._live)

    def get_any(self, key: bytes) -> CacheEntry | None:
        """The entry of a digest, in doubt or not: for what it knows of activity."""
        return self._live.get(key) or self._doubted.get(key)

    def mark_used(self, entry: CacheEntry) -> None:
        """Tell the LRU that this entry is in use; worth it once in ``RECENCY`` seconds."""
        with self._lock:
            self._order.get(entry.key)

    def ticket(self) -> Ticket:
        """Take this before a query whose answer may be put (rule 3)."""
        return self._fence.ticket()

    def admits(self, ticket: Ticket, session: Session) -> bool:
        """Whether the session was not invalidated since this ticket was taken."""
        with self._lock:
            return self._fence.admits(ticket, session.id, session.user_id)

    def may_have_changed(self, ticket: Ticket | None, session_id: str) -> bool:
        """Whether this very session, or everything, was invalidated since this ticket was
        taken."""
        with self._lock:
            return ticket is not None and self._fence.has_mark(ticket, session_id)

    def put(self, ticket: Ticket, entry: CacheEntry) -> bool:
        """Store what a read found, unless it raced an invalidation; whether it did."""
        session = entry.session
        with self._lock:
            if not self._fence.admits(ticket, session.id, session.user_id):
                return False
            self._make_room(entry)
            self._order[entry.key] = None
            self._live[entry.key] = entry
            self._doubted.pop(entry.key, None)
            self._by_session[session.id][entry.key] = None
            self._by_user[session.user_id][entry.key] = None
            return True

    def _make_room(self, entry: CacheEntry) -> None:
        """Have one session's oldest entry leave for a new one, or one of another owner."""
        known, session = self.get_any(entry.key), entry.session
        if known is not None:
            before = known.session
            if (before.id, before.user_id) != (session.id, session.user_id):
                self._order.pop(entry.key)
            return
        siblings = self._by_session.get(session.id, ())
        if len(siblings) >= COPIES:
            self._order.pop(next(iter(siblings)))

    def retire(self, session_id: str, *, keep: bytes, until: float) -> None:
        """A rotation replaced these tokens: requests under way may use them until."""
        with self._lock:
            for key in self._by_session.get(session_id, ()):
                entry = self.get_any(key)
                if entry is not None and key != keep:
                    entry.hard = min(entry.hard, until)
                    entry.deadline = min(entry.deadline, until)

    def drop(self, key: bytes) -> None:
        """Forget one digest, without a fence: fresh data said so."""
        with self._lock:
            self._order.pop(key, None)

    def forget_session(self, session_id: str) -> None:
        """This session is over, and whatever read it before now is void."""
        with self._lock:
            self._fence.raise_for((_SESSION, session_id))
            for key in list(self._by_session.get(session_id, ())):
                self._order.pop(key, None)

    def doubt_session(self, session_id: str) -> None:
        """This session may be over, or changed: read it again before it is believed."""
        with self._lock:
            self._fence.raise_for((_SESSION, session_id))
            for key in self._by_session.get(session_id, ()):
                self._doubt(key)

    def doubt_user(self, user_id: str) -> None:
        """Every session of this user may be over."""
        with self._lock:
            self._fence.raise_for((_USER, user_id))
            for key in self._by_user.pop(user_id, ()):
                self._doubt(key)

    def doubt(self) -> None:
        """Anything may be over: believe no entry before it was read again (rule 6)."""
        with self._lock:
            self._fence.raise_for_all()
            live, self._live = self._live, {}
            self.get = self._live.get
            # Another thread may hold the other ``get``: what was in doubt before must not
            # be found by it, so it is never moved to where that one looks.
            if self._doubted:
                self._doubted.update(live)
            else:
                self._doubted = live

    def reset_after_fork(self) -> None:
        """Forget everything, in a forked child: its parent hears of revocations, and may
        have held the lock at that moment. A read that began before the fork is void."""
        self._empty()
        self._fence.raise_for_all()

    def _doubt(self, key: bytes) -> None:
        entry = self._live.pop(key, None)
        if entry is not None:
            self._doubted[key] = entry

    def _leave(self, key: bytes) -> None:
        entry = self._live.pop(key, None) or self._doubted.pop(key)
        session = entry.session
        _discard(self._by_session, session.id, key)
        _discard(self._by_user, session.user_id, key)


_SESSION, _USER = "session", "user"
_Index = defaultdict[str, dict[bytes, None]]


def _discard(index: _Index, owner: str, key: bytes) -> None:
    keys = index.get(owner)
    if keys is not None:
        keys.pop(key, None)
        if not keys:
            del index[owner]


class _Fence:
    """When what was last invalidated, for as far back as it fits.

    Time is the count of invalidations. Marks that are pushed out raise the floor, below
    which every ticket is refused: forgetting is always on the safe side.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = 0
        self._floor = 0
        self._marks: dict[tuple[str, str], int] = {}

    def ticket(self) -> Ticket:
        return Ticket(self._now)

    def admits(self, ticket: Ticket, session_id: str, user_id: str) -> bool:
        return (
            ticket >= self._floor
            and self._marks.get((_SESSION, session_id), 0) <= ticket
            and self._marks.get((_USER, user_id), 0) <= ticket
        )

    def has_mark(self, ticket: Ticket, session_id: str) -> bool:
        return ticket < self._floor or ticket < self._marks.get((_SESSION, session_id), 0)

    def raise_for(self, key: tuple[str, str]) -> None:
        self._now += 1
        self._marks.pop(key, None)
        self._marks[key] = self._now
        if len(self._marks) > self._most:
            self._floor = self._marks.pop(next(iter(self._marks)))

    def raise_for_all(self) -> None:
        self._now += 1
        self._floor = self._now
        self._marks.clear()


class _Order(LRUCache[bytes, None]):
    """The order of use; says what leaves, evicted or deleted."""

    def __init__(self, maxsize: int, leave: Callable[[bytes], None]) -> None:
        super().__init__(maxsize)
        self._leave = leave

    def __delitem__(self, key: bytes) -> None:
        super().__delitem__(key)
        self._leave(key)


@dataclass(frozen=True, slots=True)
class Read:
    """When, on our clock, a query was made and answered."""

    before: float
    after: float


def make_entry(
    record: Record,
    policy: Policy,
    key: bytes,
    read: Read,
    known: CacheEntry | None = None,
    noted: datetime | None = None,
) -> CacheEntry | Invalid:
    """Judge a fresh record and put the verdict into seconds.

    ``known`` is the entry that this one replaces, ``noted`` the time of activity that is
    not written yet: both count before an idle limit denies.
    """
    verdict = judge(record, policy, active_at=_active_at(record, known, noted))
    if isinstance(verdict, Invalid):
        return verdict
    hard = read.before + verdict.remaining.total_seconds()
    idle = _idle_limit(verdict, read.before)
    # Without a refresh token there is no predecessor for which it could matter.
    seen = record.refresh_digest is None or was_seen(record, policy.session_ttl)
    entry = CacheEntry(
        key=key,
        digest=record.token_digest,
        session=Session.of(record),
        hard=hard,
        idle=idle,
        deadline=min(hard, idle, read.before + trusted_for(key, policy)),
        confirmed=read.before + policy.max_staleness.total_seconds(),
        read=read.after,
        read_at=record.read_at,
        touched=_touched(record, read.after) if seen else NEVER,
        used=NEVER,
        seen=seen,
        signed_in=record.client,
    )
    if known is not None:
        entry.touched = max(entry.touched, known.touched)
        entry.used = known.used
        entry.seen = entry.seen or known.seen
        entry.observed, entry.client_key = known.observed, known.client_key
    return entry


def _idle_limit(verdict: Valid, before: float) -> float:
    if verdict.idle_remaining is None:
        return FOREVER
    return before + verdict.idle_remaining.total_seconds()


def trusted_for(key: bytes, policy: Policy) -> float:
    """Seconds for which notifications are trusted in place of another read: at most
    ``longest_trust``, at least half of it, and never less than ``max_staleness``.

    ``key`` is a digest, whose first bytes decide where in between: so sessions that were
    read together are not read again together.
    """
    longest = policy.longest_trust.total_seconds()
    shortest = max(longest / 2, policy.max_staleness.total_seconds())
    return shortest + (longest - shortest) * (int.from_bytes(key[:2]) / 0xFFFF)


def _touched(record: Record, after: float) -> float:
    if record.last_activity_at is None:
        return NEVER
    return after - (record.read_at - record.last_activity_at).total_seconds()


def _active_at(
    record: Record, known: CacheEntry | None, noted: datetime | None
) -> datetime | None:
    """Activity that the row does not know of yet."""
    if known is None or known.used == NEVER:
        return noted
    used = min(known.database_time(known.used), record.read_at)
    return used if noted is None else max(used, noted)


def refresh_key(digest: bytes) -> bytes:
    """The cache key under which a refresh token vouches for passive requests: it can
    never be taken for a session token's."""
    return digest + b"r"


def outlived(record: Record) -> Record:
    """The record as a passive request sees it: judged by its family alone, for the
    refresh token stands in for a session token that has expired."""
    return replace(record, expires_at=record.refresh_expires_at or record.expires_at)


LIFE = 2.0
MOST = 10_000


class NegativeCache:
    """A bounded set of digests, each for ``LIFE`` seconds."""

    def __init__(self, *, life: float = LIFE, most: int = MOST) -> None:
        self._life = life
        self._most = most
        self._lock = Lock()
        self._known: dict[bytes, tuple[float, Reason]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def reset_after_fork(self) -> None:
        """Forget everything, in a forked child."""
        self._lock = Lock()
        self._known = {}

    def why(self, key: bytes, now: float) -> Reason | None:
        """Why this token opened nothing a moment ago, or None if that is not known."""
        until, reason = self._known.get(key, (now, None))
        return reason if now < until else None

    def meet(self, key: bytes, now: float, reason: Reason = Reason.NOT_FOUND) -> None:
        """This token opens nothing, as fresh data said."""
        with self._lock:
            self._known.pop(key, None)
            self._known[key] = now + self._life, reason
            while len(self._known) > self._most:
                del self._known[next(iter(self._known))]

    def forget(self, key: bytes) -> None:
        """This digest has just become a session's."""
        with self._lock:
            self._known.pop(key, None)
