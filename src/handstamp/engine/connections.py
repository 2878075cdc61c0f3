"""Open connections that end with their session: WebSockets and long streams.

A callback is registered for a session. It is called once, when the session has ended, in
whichever process and however that was found out. It must not block.

A doubt about one session, about a user or about everything is a mark that costs the same
however many connections there are. The marks are taken by :meth:`Connections.take_doubted`
and :meth:`Connections.take_due` when the sessions are checked. A mark that is made during a
check counts for the next one.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from handstamp.core.models import Session

logger = logging.getLogger("handstamp")

CloseCallback = Callable[[], None]
UNCHECKED = float("-inf")


@dataclass(slots=True)
class _Entry:
    """The connections of one session, which was found valid until ``until``."""

    user_id: str
    until: float = UNCHECKED
    callbacks: set[CloseCallback] = field(default_factory=set)


@dataclass(slots=True)
class _Doubts:
    """What is to be checked: ids of sessions and users that have connections."""

    sessions: set[str] = field(default_factory=set)
    users: set[str] = field(default_factory=set)
    everything: bool = False


class Connections:
    """The connections of this process, by session. Belongs to the event loop."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Forget everything; in a forked child, the connections are its parent's."""
        self._entries: dict[str, _Entry] = {}
        self._by_user: defaultdict[str, set[str]] = defaultdict(set)
        self._doubts = _Doubts()

    def __len__(self) -> int:
        return sum(len(entry.callbacks) for entry in self._entries.values())

    def add(self, session: Session, close: CloseCallback) -> None:
        """Call ``close`` when this session has ended."""
        entry = self._entries.get(session.id)
        if entry is None:
            entry = self._entries[session.id] = _Entry(session.user_id)
            self._by_user[session.user_id].add(session.id)
        entry.callbacks.add(close)

    def remove(self, session_id: str, close: CloseCallback) -> None:
        """Forget a connection that ended by itself; one that is not there is ignored."""
        entry = self._entries.get(session_id)
        if entry is None:
            return
        entry.callbacks.discard(close)
        if not entry.callbacks:
            self._remove_entry(session_id)

    def close(self, session_id: str) -> None:
        """The session has ended: call its callbacks, and forget them."""
        entry = self._remove_entry(session_id)
        for close in () if entry is None else tuple(entry.callbacks):
            try:
                close()
            except Exception:
                # One connection failed; the others still have to be closed.
                logger.exception(
                    "a connection could not be closed",
                    extra={"action": "close_callback_failed"},
                )

    def _remove_entry(self, session_id: str) -> _Entry | None:
        entry = self._entries.pop(session_id, None)
        if entry is None:
            return None
        self._doubts.sessions.discard(session_id)
        siblings = self._by_user[entry.user_id]
        siblings.discard(session_id)
        if not siblings:
            del self._by_user[entry.user_id]
        return entry

    def doubt_session(self, session_id: str) -> bool:
        """This session may have ended; returns whether it has connections here."""
        if session_id not in self._entries:
            return False
        self._doubts.sessions.add(session_id)
        return True

    def doubt_user(self, user_id: str) -> bool:
        """This user's sessions may have ended; returns whether any has connections here."""
        if user_id not in self._by_user:
            return False
        self._doubts.users.add(user_id)
        return True

    def doubt(self) -> bool:
        """Every session may have ended; returns whether there are connections at all."""
        self._doubts.everything = bool(self._entries)
        return self._doubts.everything

    def take_doubted(self) -> list[str]:
        """Returns the sessions that are doubted, and takes their marks away."""
        taken, self._doubts = self._doubts, _Doubts()
        if taken.everything:
            found = list(self._entries)
        else:
            of_users = (self._by_user.get(user_id, ()) for user_id in taken.users)
            found = list(taken.sessions.union(*of_users))
        for session_id in found:
            self._entries[session_id].until = UNCHECKED
        return found

    def take_due(self, now: float, *, all_sessions: bool) -> list[str]:
        """Returns the doubted sessions, and those whose check is due at ``now``, or all
        others too."""
        self.take_doubted()
        return [
            session_id
            for session_id, entry in self._entries.items()
            if all_sessions or entry.until <= now
        ]

    def mark_checked(self, session_id: str, until: float) -> None:
        """The session was checked, and is valid until then unless it is ended. A doubt
        that came during the check still counts."""
        entry = self._entries.get(session_id)
        if entry is not None:
            entry.until = until
