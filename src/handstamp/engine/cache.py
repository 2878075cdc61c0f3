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
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Lock
from typing import NewType

from cachetools import LRUCache

from handstamp.core.records import Client, Session
from handstamp.errors import ConfigError

Ticket = NewType("Ticket", int)
"""The moment a read began, in invalidations."""

NEVER = float("-inf")
FOREVER = float("inf")
RECENCY = 1.0
"""Seconds within which the order of use is not kept."""
COPIES = 8
"""Entries of one session: a rotation makes one, and for Supabase every text of a cookie
that its holder writes around one access token."""


@dataclass(slots=True, kw_only=True)
class Entry:
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
        self._live: dict[bytes, Entry] = {}
        self._doubted: dict[bytes, Entry] = {}
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

    def get_any(self, key: bytes) -> Entry | None:
        """The entry of a digest, in doubt or not: for what it knows of activity."""
        return self._live.get(key) or self._doubted.get(key)

    def freshen(self, entry: Entry) -> None:
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

    def put(self, ticket: Ticket, entry: Entry) -> bool:
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

    def _make_room(self, entry: Entry) -> None:
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

    def start_over(self) -> None:
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
