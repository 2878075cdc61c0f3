"""Tokens of ours that the table does not know, remembered briefly.

A genuine signature without a row is rare (a pruned session, a stale tab), so whoever sends
many of them is up to something. They live apart from the cache and can evict nothing there,
they are few, and they live so shortly that a session that appears later, through a slow
commit or a lagging replica, is not shadowed for long.
"""

from __future__ import annotations

from threading import Lock

LIFE = 2.0
MOST = 10_000


class Strangers:
    """A bounded set of digests, each for ``LIFE`` seconds."""

    def __init__(self, *, life: float = LIFE, most: int = MOST) -> None:
        self._life = life
        self._most = most
        self._lock = Lock()
        self._until: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def start_over(self) -> None:
        """Forget everything, in a forked child."""
        self._lock = Lock()
        self._until = {}

    def knows(self, key: bytes, now: float) -> bool:
        """Whether the table did not know this digest a moment ago."""
        return self._until.get(key, now) > now

    def meet(self, key: bytes, now: float) -> None:
        """The table does not know this digest."""
        with self._lock:
            self._until.pop(key, None)
            self._until[key] = now + self._life
            while len(self._until) > self._most:
                del self._until[next(iter(self._until))]

    def forget(self, key: bytes) -> None:
        """This digest has just become a session's."""
        with self._lock:
            self._until.pop(key, None)
