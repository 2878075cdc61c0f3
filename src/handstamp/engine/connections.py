"""Open connections that live and die with a session: WebSockets.

A closer is registered for a session and called, once, when the session ends in this
process, by whichever way. It must not block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

Closer = Callable[[], None]


class Connections:
    """The closers of this process, by session."""

    def __init__(self) -> None:
        self._closers: defaultdict[str, set[Closer]] = defaultdict(set)

    def __len__(self) -> int:
        return sum(map(len, self._closers.values()))

    def add(self, session_id: str, closer: Closer) -> None:
        """Call ``closer`` when this session ends."""
        self._closers[session_id].add(closer)

    def remove(self, session_id: str, closer: Closer) -> None:
        """The connection is gone by itself."""
        closers = self._closers.get(session_id)
        if closers is None:
            return
        closers.discard(closer)
        if not closers:
            del self._closers[session_id]

    def close(self, session_id: str) -> None:
        """This session has ended."""
        for closer in tuple(self._closers.pop(session_id, ())):
            closer()
