"""The cache of valid sessions, and the tokens that are known not to be valid.

Rule 1. The key is the digest of a token, never a token.
Rule 2. Only sessions that were judged valid are cached. The cache has no negative entries,
so no denial can hide a session that appears later, and no flood of requests can evict an
entry except by the LRU's own order. One session has at most ``MAX_COPIES`` entries, so
its holder cannot evict the entries of others.
Rule 3. The fence. A read takes a ticket before its query. ``put`` refuses what the read
found if its session, its user or everything was invalidated since. Without the fence a
read that raced a revocation would put the revoked session back, for as long as the entry
lives.
Rule 4. Invalidation comes after the commit: first the table, then the cache.
Rule 5. An entry that has reached its deadline is not denied, it is read again: only fresh
data may deny.
Rule 6. A notification does not end a session, because everyone who may connect to the
database can send one. It puts entries *in doubt*: they are read again before they are used.
Entries in doubt are kept apart. ``get`` does not find them, ``get_any`` does, because they
hold activity that is not written yet. To doubt everything costs the same for any number of
entries. To doubt an entry again that is in doubt costs nothing.
Rule 7. Database time becomes time on our clock in :func:`make_entry` and nowhere else.
``before`` and ``after`` are readings of our clock around the query. The remaining life is
counted from ``before``, so an entry ends early by a round trip, never late. Activity is
dated from ``after``, so it is behind the database's clock by a round trip, never ahead: the
use of an old token is never dated after the rotation that replaced it.
Rule 8. However long notifications are trusted, an entry is read again within
``longest_trust``, because a trigger can miss a change. This limit is no limit of the
session: it does not shorten how long an entry may be used while the database is down.

A hit is one lookup in a plain dict, without a lock. The LRU order is updated at most once
a second and entry (:meth:`Cache.mark_used`): an update for every hit would cost as much as
the hash of the token. One lock guards every change, because another thread may revoke.

The negative cache remembers for a short time, with the reason, that a token is not in the
table or that its session is over. Without it the tokens of a user who has signed out would
cost a query for each request. A token of ours without a row is rare (a pruned session, an
old tab), so many of them are an attack. It is separate from the cache and evicts nothing
there. It is small, and its entries live for so short a time that a session that appears
later (a slow commit, a lagging replica, a row that an operator makes valid again) is not
hidden for long.
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
from handstamp.core.models import Client, Invalid, Reason, Record, Session, Ticket
from handstamp.core.rotation import was_seen
from handstamp.errors import ConfigError

NEVER = float("-inf")
FOREVER = float("inf")
RECENCY = 1.0
"""Seconds within which the LRU order of an entry is not updated again."""
MAX_COPIES = 8
"""Entries of one session. A rotation makes one. Where one cookie holds both tokens, each
text of it around one access token makes one."""
MAX_MARKS = 4096
"""Invalidations that the fence remembers one by one."""
NEGATIVE_LIFE = 2.0
"""Seconds for which a token is known not to be valid."""
MAX_NEGATIVE = 10_000
_SESSION, _USER = "session", "user"
_Index = defaultdict[str, dict[bytes, None]]


@dataclass(frozen=True, slots=True)
class Read:
    """When, on our clock, a query was sent and answered."""

    before: float
    after: float


@dataclass(slots=True, kw_only=True)
class CacheEntry:
    """A session that was judged valid, and how long it may be used without another read.

    Times are readings of the engine's clock, in seconds. ``hard`` is the end that nothing
    moves, ``idle`` the idle limit as it was read. ``deadline`` is when the entry must be
    read again: at the nearest of these, or when ``longest_trust`` is over. Until
    ``confirmed`` the entry may be used because the read itself is recent; after that, only
    while the notification listener is trusted. ``touched`` is when its activity was last
    recorded, ``used`` when it was last active, ``due`` when a hit must record something
    again. ``seen`` says whether its token was presented since it was issued. ``signed_in``
    is the client that opened the session, ``observed`` when a request was last compared
    with it, ``client_key`` identifies the client of that request. ``read_at`` is what the
    database's clock showed when ours showed ``read`` at the latest.
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
        """Return the database's time at ``now``: never ahead, at most a read behind."""
        return self.read_at + timedelta(seconds=now - self.read)


def make_entry(
    record: Record,
    policy: Policy,
    key: bytes,
    read: Read,
    known: CacheEntry | None = None,
    pending: datetime | None = None,
) -> CacheEntry | Invalid:
    """Judge a fresh record; return its cache entry, or why it is invalid (rule 7).

    ``known`` is the entry that the new one replaces, ``pending`` the time of activity that
    is not written yet. Both count before an idle limit denies.
    """
    active_at = pending
    if known is not None and known.used != NEVER:
        used = min(known.database_time(known.used), record.read_at)
        active_at = used if pending is None else max(used, pending)
    verdict = judge(record, policy, active_at=active_at)
    if isinstance(verdict, Invalid):
        return verdict
    hard = read.before + verdict.remaining.total_seconds()
    idle = FOREVER
    if verdict.idle_remaining is not None:
        idle = read.before + verdict.idle_remaining.total_seconds()
    # Whether a token was seen matters only to the refresh token that came before it.
    seen = record.refresh_digest is None or was_seen(record, policy.session_ttl)
    touched = NEVER
    if seen and record.last_activity_at is not None:
        touched = read.after - (record.read_at - record.last_activity_at).total_seconds()
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
        touched=touched,
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


def trusted_for(key: bytes, policy: Policy) -> float:
    """Return for how many seconds notifications are trusted in place of another read.

    At most ``longest_trust``, at least half of it, and never less than ``max_staleness``.
    ``key`` is a digest. Its first bytes choose a value between these limits, so that
    sessions that were read together are not read again together.
    """
    longest = policy.longest_trust.total_seconds()
    shortest = max(longest / 2, policy.max_staleness.total_seconds())
    return shortest + (longest - shortest) * (int.from_bytes(key[:2]) / 0xFFFF)


def refresh_key(digest: bytes) -> bytes:
    """Return the cache key under which a refresh token authenticates passive requests.

    It is longer than a digest, so it is never the key of a session token.
    """
    return digest + b"r"


def as_passive(record: Record) -> Record:
    """Return the record as a passive request is judged by it: the refresh token stands in
    for a session token that has expired, so only the limits of the session count."""
    return replace(record, expires_at=record.refresh_expires_at or record.expires_at)


class Cache:
    """A bounded LRU of entries, indexed by session and by user, behind a fence."""

    def __init__(self, maxsize: int, *, max_marks: int = MAX_MARKS) -> None:
        if maxsize < 1:
            raise ConfigError(f"cache_size must be at least 1, not {maxsize}")
        self._maxsize = maxsize
        self._fence = _Fence(max_marks)
        self._clear()

    def _clear(self) -> None:
        self._lock = Lock()
        self._live: dict[bytes, CacheEntry] = {}
        self._doubted: dict[bytes, CacheEntry] = {}
        self._order = _Order(self._maxsize, self._on_removed)
        self._by_session: _Index = defaultdict(dict)
        # The entries of a user that may be live: `doubt_user` takes them out of here.
        self._by_user: _Index = defaultdict(dict)

        self.get = self._live.get
        """The entry of a digest if it is not in doubt, or None: the ``get`` of a dict, for
        the fast path. :meth:`doubt` replaces it, so callers must not keep it."""

    def __len__(self) -> int:
        return len(self._live) + len(self._doubted)

    @property
    def live(self) -> int:
        """How many entries are not in doubt."""
        return len(self._live)

    def get_any(self, key: bytes) -> CacheEntry | None:
        """Return the entry of a digest, in doubt or not: for the activity that it holds."""
        return self._live.get(key) or self._doubted.get(key)

    def mark_used(self, entry: CacheEntry) -> None:
        """Record a use in the LRU order; call it at most once in ``RECENCY`` and entry."""
        with self._lock:
            self._order.get(entry.key)

    def ticket(self) -> Ticket:
        """Return a ticket; take it before a query whose result may be put (rule 3)."""
        return self._fence.ticket()

    def allows(self, ticket: Ticket, session: Session) -> bool:
        """Whether the session was not invalidated since the ticket was taken (rule 3)."""
        with self._lock:
            return self._fence.allows(ticket, session.id, session.user_id)

    def may_have_changed(self, ticket: Ticket | None, session_id: str) -> bool:
        """Whether this session itself, or everything, was invalidated since the ticket."""
        with self._lock:
            return ticket is not None and self._fence.has_mark(ticket, session_id)

    def put(self, ticket: Ticket, entry: CacheEntry) -> bool:
        """Cache an entry; return False where it raced an invalidation (rule 3)."""
        session = entry.session
        with self._lock:
            if not self._fence.allows(ticket, session.id, session.user_id):
                return False
            known = self.get_any(entry.key)
            siblings = self._by_session.get(session.id, ())
            if known is None:
                if len(siblings) >= MAX_COPIES:
                    self._order.pop(next(iter(siblings)))
            elif (known.session.id, known.session.user_id) != (session.id, session.user_id):
                self._order.pop(entry.key)
            self._order[entry.key] = None
            self._live[entry.key] = entry
            self._doubted.pop(entry.key, None)
            self._by_session[session.id][entry.key] = None
            self._by_user[session.user_id][entry.key] = None
            return True

    def retire(self, session_id: str, *, keep: bytes, until: float) -> None:
        """After a rotation: the replaced tokens of a session may be used until ``until``,
        for requests that are under way."""
        with self._lock:
            for key in self._by_session.get(session_id, ()):
                entry = self.get_any(key)
                if entry is not None and key != keep:
                    entry.hard = min(entry.hard, until)
                    entry.deadline = min(entry.deadline, until)

    def drop(self, key: bytes) -> None:
        """Remove one entry that fresh data denies; reads that are under way may put it."""
        with self._lock:
            self._order.pop(key, None)

    def forget_session(self, session_id: str) -> None:
        """Remove the entries of a session that is over, and refuse every earlier read."""
        with self._lock:
            self._fence.mark((_SESSION, session_id))
            for key in list(self._by_session.get(session_id, ())):
                self._order.pop(key, None)

    def doubt_session(self, session_id: str) -> None:
        """Put one session in doubt: it may be over, or changed (rule 6)."""
        with self._lock:
            self._fence.mark((_SESSION, session_id))
            for key in self._by_session.get(session_id, ()):
                self._doubt(key)

    def doubt_user(self, user_id: str) -> None:
        """Put every session of a user in doubt (rule 6)."""
        with self._lock:
            self._fence.mark((_USER, user_id))
            for key in self._by_user.pop(user_id, ()):
                self._doubt(key)

    def doubt(self) -> None:
        """Put everything in doubt, at the same cost for any number of entries (rule 6)."""
        with self._lock:
            self._fence.mark_all()
            live, self._live = self._live, {}
            self.get = self._live.get
            # Another thread may still hold the old `get`. So entries that were in doubt
            # before are never moved into the dict that the old `get` reads.
            if self._doubted:
                self._doubted.update(live)
            else:
                self._doubted = live

    def reset_after_fork(self) -> None:
        """Remove everything in a forked child: only its parent gets the notifications, and
        the lock may have been held at the fork. Reads that began before are refused."""
        self._clear()
        self._fence.mark_all()

    def _doubt(self, key: bytes) -> None:
        entry = self._live.pop(key, None)
        if entry is not None:
            self._doubted[key] = entry

    def _on_removed(self, key: bytes) -> None:
        entry = self._live.pop(key, None) or self._doubted.pop(key)
        session = entry.session
        for index, owner in (
            (self._by_session, session.id),
            (self._by_user, session.user_id),
        ):
            keys = index.get(owner)
            if keys is not None:
                keys.pop(key, None)
                if not keys:
                    del index[owner]


class _Fence:
    """When each session and user was last invalidated, for the newest ``max_marks``.

    Time is the number of invalidations. A mark that is pushed out raises the floor, and
    every ticket below the floor is refused: to forget a mark is always safe.
    """

    def __init__(self, max_marks: int) -> None:
        self._max_marks = max_marks
        self._now = 0
        self._floor = 0
        self._marks: dict[tuple[str, str], int] = {}

    def ticket(self) -> Ticket:
        return Ticket(self._now)

    def allows(self, ticket: Ticket, session_id: str, user_id: str) -> bool:
        return (
            ticket >= self._floor
            and self._marks.get((_SESSION, session_id), 0) <= ticket
            and self._marks.get((_USER, user_id), 0) <= ticket
        )

    def has_mark(self, ticket: Ticket, session_id: str) -> bool:
        return ticket < self._floor or ticket < self._marks.get((_SESSION, session_id), 0)

    def mark(self, key: tuple[str, str]) -> None:
        self._now += 1
        self._marks.pop(key, None)
        self._marks[key] = self._now
        if len(self._marks) > self._max_marks:
            self._floor = self._marks.pop(next(iter(self._marks)))

    def mark_all(self) -> None:
        self._now += 1
        self._floor = self._now
        self._marks.clear()


class _Order(LRUCache[bytes, None]):
    """The order of use; calls back for each key that is evicted or removed."""

    def __init__(self, maxsize: int, on_removed: Callable[[bytes], None]) -> None:
        super().__init__(maxsize)
        self._on_removed = on_removed

    def __delitem__(self, key: bytes) -> None:
        super().__delitem__(key)
        self._on_removed(key)


class NegativeCache:
    """A bounded set of digests of tokens that are not valid, each for a short time."""

    def __init__(
        self, *, life: float = NEGATIVE_LIFE, max_digests: int = MAX_NEGATIVE
    ) -> None:
        self._life = life
        self._max_digests = max_digests
        self._lock = Lock()
        self._until: dict[bytes, tuple[float, Reason]] = {}

    def __len__(self) -> int:
        return len(self._until)

    def reset_after_fork(self) -> None:
        """Remove everything, in a forked child."""
        self._lock = Lock()
        self._until = {}

    def get(self, key: bytes, now: float) -> Reason | None:
        """Return why this token was not valid a moment ago, or None if that is unknown."""
        until, reason = self._until.get(key, (now, None))
        return reason if now < until else None

    def add(self, key: bytes, now: float, reason: Reason = Reason.NOT_FOUND) -> None:
        """Remember that this token is not valid, because fresh data denied it."""
        with self._lock:
            self._until.pop(key, None)
            self._until[key] = now + self._life, reason
            while len(self._until) > self._max_digests:
                del self._until[next(iter(self._until))]

    def remove(self, key: bytes) -> None:
        """Forget this digest: it has become the digest of a session."""
        with self._lock:
            self._until.pop(key, None)
