"""Open connections that live and die with a session: WebSockets and long streams.

A closer is registered for a session and called, once, when the session is over, in
whichever process and by whichever way that was found out. It must not block.

A doubt about one session, about a user or about everything is a mark that costs the same
however many connections there are. It is worked off when the connections are looked at:
:meth:`Connections.take_doubted` and :meth:`Connections.take_due` take the marks along, and
a mark that is made while a look is under way counts for the next one.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from handstamp.core.models import Session

logger = logging.getLogger("handstamp")

Closer = Callable[[], None]
UNCHECKED = float("-inf")


@dataclass(slots=True)
class _Watched:
    user_id: str
    until: float = UNCHECKED
    closers: set[Closer] = field(default_factory=set)


@dataclass(slots=True)
class _Doubts:
    """What is to be looked at: ids of sessions and users that have connections."""

    sessions: set[str] = field(default_factory=set)
    users: set[str] = field(default_factory=set)
    everything: bool = False


class Connections:
    """The closers of this process, by session. Belongs to the event loop."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}
        self._by_user: defaultdict[str, set[str]] = defaultdict(set)
        self._doubts = _Doubts()

    def __len__(self) -> int:
        return sum(len(watched.closers) for watched in self._watched.values())

    def reset_after_fork(self) -> None:
        """Forget everything, in a forked child: they are its parent's."""
        self._watched = {}
        self._by_user = defaultdict(set)
        self._doubts = _Doubts()

    def add(self, session: Session, closer: Closer) -> None:
        """Call ``closer`` when this session is over."""
        watched = self._watched.get(session.id)
        if watched is None:
            watched = self._watched[session.id] = _Watched(session.user_id)
            self._by_user[session.user_id].add(session.id)
        watched.closers.add(closer)

    def remove(self, session_id: str, closer: Closer) -> None:
        """The connection is gone by itself."""
        watched = self._watched.get(session_id)
        if watched is None:
            return
        watched.closers.discard(closer)
        if not watched.closers:
            self._leave(session_id)

    def close(self, session_id: str) -> None:
        """This session is over."""
        watched = self._leave(session_id)
        for closer in () if watched is None else tuple(watched.closers):
            try:
                closer()
            except Exception:
                # It is one connection's; the others still have to go.
                logger.exception(
                    "a closer failed", extra={"action": "close_callback_failed"}
                )

    def _leave(self, session_id: str) -> _Watched | None:
        watched = self._watched.pop(session_id, None)
        if watched is None:
            return None
        self._doubts.sessions.discard(session_id)
        siblings = self._by_user[watched.user_id]
        siblings.discard(session_id)
        if not siblings:
            del self._by_user[watched.user_id]
        return watched

    def doubt_session(self, session_id: str) -> bool:
        """This session may be over; whether it has connections here."""
        return _mark(session_id, self._watched, self._doubts.sessions)

    def doubt_user(self, user_id: str) -> bool:
        """This user's sessions may be over; whether one has connections here."""
        return _mark(user_id, self._by_user, self._doubts.users)

    def doubt(self) -> bool:
        """Every session may be over; whether there are connections at all."""
        self._doubts.everything = bool(self._watched)
        return self._doubts.everything

    def take_doubted(self) -> list[str]:
        """The sessions that want checking now, because somebody said something."""
        taken, self._doubts = self._doubts, _Doubts()
        if taken.everything:
            found = list(self._watched)
        else:
            of_users = (self._by_user.get(user_id, ()) for user_id in taken.users)
            found = list(taken.sessions.union(*of_users))
        for session_id in found:
            self._watched[session_id].until = UNCHECKED
        return found

    def take_due(self, now: float, *, everyone: bool) -> list[str]:
        """The same, with those whose own limit has come at ``now``, or with all others."""
        self.take_doubted()
        return [
            session_id
            for session_id, watched in self._watched.items()
            if everyone or watched.until <= now
        ]

    def stands(self, session_id: str, until: float) -> None:
        """This session was checked, and stands until then unless somebody ends it. A doubt
        that came meanwhile still counts."""
        watched = self._watched.get(session_id)
        if watched is not None:
            watched.until = until


def _mark(name: str, known: Container[str], doubted: set[str]) -> bool:
    if name not in known:
        return False
    doubted.add(name)
    return True
