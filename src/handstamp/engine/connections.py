"""Open connections that live and die with a session: WebSockets and long streams.

A closer is registered for a session and called, once, when the session is over, in
whichever process and by whichever way that was found out. It must not block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from handstamp.core.records import Session

logger = logging.getLogger("handstamp")

Closer = Callable[[], None]
UNCHECKED = float("-inf")


@dataclass(slots=True)
class _Watched:
    user_id: str
    until: float = UNCHECKED
    closers: set[Closer] = field(default_factory=set)


class Connections:
    """The closers of this process, by session. Belongs to the event loop."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}

    def __len__(self) -> int:
        return sum(len(watched.closers) for watched in self._watched.values())

    def start_over(self) -> None:
        """Forget everything, in a forked child: they are its parent's."""
        self._watched = {}

    def add(self, session: Session, closer: Closer) -> None:
        """Call ``closer`` when this session is over."""
        watched = self._watched.setdefault(session.id, _Watched(session.user_id))
        watched.closers.add(closer)

    def remove(self, session_id: str, closer: Closer) -> None:
        """The connection is gone by itself."""
        watched = self._watched.get(session_id)
        if watched is None:
            return
        watched.closers.discard(closer)
        if not watched.closers:
            del self._watched[session_id]

    def close(self, session_id: str) -> None:
        """This session is over."""
        watched = self._watched.pop(session_id, None)
        for closer in () if watched is None else tuple(watched.closers):
            try:
                closer()
            except Exception:
                # It is one connection's; the others still have to go.
                logger.exception("a closer failed", extra={"action": "closer_failed"})

    def due(self, now: float, *, everyone: bool) -> list[str]:
        """The sessions that want checking at ``now``."""
        return [
            session_id
            for session_id, watched in self._watched.items()
            if everyone or watched.until <= now
        ]

    def stands(self, session_id: str, until: float) -> None:
        """This session was checked, and stands until then unless somebody ends it."""
        watched = self._watched.get(session_id)
        if watched is not None:
            watched.until = until

    def doubt(self, user_id: str | None = None) -> None:
        """Check this user's sessions again, or everybody's."""
        for watched in self._watched.values():
            if user_id in (None, watched.user_id):
                watched.until = UNCHECKED
