"""Tokens that open nothing, remembered briefly with the reason: the table does not know
them, or their session is over.

The tokens of a signed-out user would cost a query for each request otherwise. A genuine
signature without a row is rare (a pruned session, a stale tab), so a client that sends many
of them is up to something. They live apart from the cache and can evict nothing there. They
are few, and they live so shortly that a session that appears later (a slow commit, a
lagging replica, a row that an operator makes valid again) is not shadowed for long.
"""

from __future__ import annotations

from threading import Lock

from handstamp.core.lifetime import Reason

LIFE = 2.0
MOST = 10_000


class Strangers:
    """A bounded set of digests, each for ``LIFE`` seconds."""

    def __init__(self, *, life: float = LIFE, most: int = MOST) -> None:
        self._life = life
        self._most = most
        self._lock = Lock()
        self._known: dict[bytes, tuple[float, Reason]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def start_over(self) -> None:
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
