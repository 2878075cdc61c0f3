"""The cache that may be believed.

Rule 1. Keyed by the digest of a token, never by a token.
Rule 2. Only sessions that were judged valid enter. There is no negative entry here, so
no answer can shadow a session that appears later, and no flood of any kind can evict a
live entry except by the LRU's own order.
Rule 3. The fence. A read takes a ticket before its query; what it found is put only if
its session, its user or everything was not invalidated since. Without it a read that
raced a revocation would put the revoked session back, for as long as the entry lives.
Rule 4. Invalidation comes after the commit: first the table, then the cache.
Rule 5. An entry that has reached its deadline is not denied, it is read again: only
fresh data may deny.

A hit is one lookup in a plain dict, without a lock. The LRU behind it learns of a use at
most once a second and entry (:meth:`Cache.freshen`): asking it every time would cost as
much as the hash of the token. One lock guards every change, because another thread may
revoke.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Lock
from typing import NewType

from cachetools import LRUCache

from handstamp.core.records import Session
from handstamp.errors import ConfigError

Ticket = NewType("Ticket", int)
"""The moment a read began, in invalidations."""

NEVER = float("-inf")
FOREVER = float("inf")
RECENCY = 1.0
"""Seconds within which the order of use is not kept."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """A session that was judged valid, and until when that may be believed.

    Times are readings of the engine's clock, in seconds. ``hard`` is the end that
    nothing moves, ``idle`` the idle limit as it was read, ``deadline`` when the entry must
    be read again: at the nearest of these, or when ``longest_trust`` is over. Until
    ``confirmed`` the entry may be believed by its own age alone, whatever the bus has
    proven. ``touched`` is when its
    activity was last noted, ``used`` when it was last active; ``seen`` says whether its
    token is known to have been presented since it was made; ``origin`` is the network and
    the browser of the last request that was compared with the sign-in. ``read_at`` is the
    database's clock when ours showed ``read`` at the latest.
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
    ordered: float = NEVER
    due: float = NEVER
    origin: tuple[str, str] | None = field(default=None, repr=False)

    def database_time(self, now: float) -> datetime:
        """The database's clock at ``now``: never ahead of it, at most a read behind."""
        return self.read_at + timedelta(seconds=now - self.read)


class Cache:
    """A bounded LRU of entries, indexed by session and by user, behind a fence."""

    def __init__(self, maxsize: int, *, marks: int = 4096) -> None:
        if maxsize < 1:
            raise ConfigError(f"cache_size must be at least 1, not {maxsize}")
        self._lock = Lock()
        self._live: dict[bytes, Entry] = {}
        self._order = _Order(maxsize, self._leave)
        self._by_session: defaultdict[str, set[bytes]] = defaultdict(set)
        self._by_user: defaultdict[str, set[str]] = defaultdict(set)
        self._fence = _Fence(marks)

        self.get = self._live.get
        """The entry of a digest, or None: a dict's own ``get``, for the hot path."""

    def __len__(self) -> int:
        return len(self._live)

    def freshen(self, entry: Entry, now: float) -> None:
        """Tell the LRU that this entry is in use; worth it once in ``RECENCY`` seconds."""
        entry.ordered = now
        with self._lock:
            self._order.get(entry.key)

    def ticket(self) -> Ticket:
        """Take this before a query whose answer may be put (rule 3)."""
        return self._fence.ticket()

    def admits(self, ticket: Ticket, session: Session) -> bool:
        """Whether the session was not invalidated since this ticket was taken."""
        with self._lock:
            return self._fence.admits(ticket, session.id, session.user_id)

    def put(self, ticket: Ticket, entry: Entry) -> bool:
        """Store what a read found, unless it raced an invalidation; whether it did."""
        session = entry.session
        with self._lock:
            if not self._fence.admits(ticket, session.id, session.user_id):
                return False
            self._order[entry.key] = None
            self._live[entry.key] = entry
            self._by_session[session.id].add(entry.key)
            self._by_user[session.user_id].add(session.id)
            return True

    def retire(self, session_id: str, *, keep: bytes, until: float) -> None:
        """A rotation replaced these tokens: requests under way may use them until."""
        with self._lock:
            for key in self._by_session.get(session_id, ()):
                if key != keep:
                    entry = self._live[key]
                    entry.hard = min(entry.hard, until)
                    entry.deadline = min(entry.deadline, until)

    def thin(self, session_id: str, *, keep: bytes, most: int) -> None:
        """Leave room for ``keep`` among at most ``most`` entries of one session."""
        with self._lock:
            others = [k for k in self._by_session.get(session_id, ()) if k != keep]
            for key in others[most - 1 :]:
                self._order.pop(key, None)

    def drop(self, key: bytes) -> None:
        """Forget one digest, without a fence: fresh data said so."""
        with self._lock:
            self._order.pop(key, None)

    def forget_session(self, session_id: str) -> None:
        """This session is over, and whatever read it before now is void."""
        with self._lock:
            self._fence.raise_for((_SESSION, session_id))
            self._discard([session_id])

    def forget_user(self, user_id: str) -> None:
        """Every session of this user may be over."""
        with self._lock:
            self._fence.raise_for((_USER, user_id))
            self._discard(list(self._by_user.get(user_id, ())))

    def doubt_session(self, session_id: str) -> None:
        """Do not believe this session's entries before they were read again."""
        with self._lock:
            for key in self._by_session.get(session_id, ()):
                self._live[key].deadline = NEVER

    def doubt(self) -> None:
        """Anything may be over: believe no entry before it was read again.

        They stay, for they know of activity that is not written yet.
        """
        with self._lock:
            self._fence.raise_for_all()
            for entry in self._live.values():
                entry.deadline = NEVER

    def start_over(self) -> None:
        """Forget everything, in a forked child: its parent hears of revocations, and may
        have held the lock at that moment."""
        self._lock = Lock()
        self._live.clear()
        self._order = _Order(int(self._order.maxsize), self._leave)
        self._by_session.clear()
        self._by_user.clear()
        self._fence.raise_for_all()

    def _discard(self, session_ids: Iterable[str]) -> None:
        for session_id in session_ids:
            for key in list(self._by_session.get(session_id, ())):
                self._order.pop(key, None)

    def _leave(self, key: bytes) -> None:
        session = self._live.pop(key).session
        keys = self._by_session[session.id]
        keys.discard(key)
        if keys:
            return
        del self._by_session[session.id]
        siblings = self._by_user[session.user_id]
        siblings.discard(session.id)
        if not siblings:
            del self._by_user[session.user_id]


_SESSION, _USER = "session", "user"


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
