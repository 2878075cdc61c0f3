"""Sessions that are used from another network or browser than they were opened from.

Reported once for each change, and no verdict. A cached session is looked at once a second
at most, with the request that comes then: comparing every request would cost a hit more
than all the rest of it. Requests that come in between are not looked at.

Rule 1. Networks are compared, as logs show them. What the row does not know is not
compared: a table may keep no user agent, or no more than its beginning.
Rule 2. Only sessions that have moved are remembered, so that each change is reported once
in a process whatever becomes of the session's tokens. They are few, and the oldest are
forgotten first; what was forgotten is reported again.
"""

from __future__ import annotations

from threading import Lock
from typing import Protocol

from handstamp.core.models import Client, Session, masked
from handstamp.events import BindingChanged, Event

INTERVAL = 1.0
"""Seconds within which a cached session is not looked at again."""
MOST = 10_000
_NO_AGENT = Client().user_agent_hash


class Requester(Protocol):
    """Who makes a request: asked seldom, and only for what is needed."""

    @property
    def client(self) -> Client:
        """The client of the request."""
        ...

    def client_key(self) -> int:
        """The same number for requests of the same client, at little cost."""
        ...

    def report(self, event: Event) -> None:
        """Publish an event, whatever thread this is."""
        ...


class Bindings:
    """Where sessions that have moved were used from last. For any thread."""

    def __init__(self, *, most: int = MOST) -> None:
        self._most = most
        self._lock = Lock()
        self._last: dict[str, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self._last)

    def reset_after_fork(self) -> None:
        """Forget everything, in a forked child."""
        self._lock = Lock()
        self._last = {}

    def changed(self, session: Session, was: Client, now: Client) -> BindingChanged | None:
        """The event of a session that was opened by ``was`` and is used by ``now``, or
        None where there is nothing new to report."""
        moved, other = _has_moved(was, now), _is_other_agent(was, now)
        if not self._is_new(session.id, now, away=moved or other):
            return None
        return BindingChanged(
            session_id=session.id,
            user_id=session.user_id,
            was=was,
            now=now,
            address_changed=moved,
            user_agent_changed=other,
        )

    def _is_new(self, session_id: str, now: Client, *, away: bool) -> bool:
        if not away and session_id not in self._last:
            return False
        origin = masked(now.address), now.user_agent_hash
        with self._lock:
            known = self._last.pop(session_id, None)
            if not away:
                return False
            self._last[session_id] = origin
            while len(self._last) > self._most:
                del self._last[next(iter(self._last))]
        return known != origin


def _has_moved(was: Client, now: Client) -> bool:
    return was.address is not None and masked(was.address) != masked(now.address)


def _is_other_agent(was: Client, now: Client) -> bool:
    if was.user_agent_hash in (now.user_agent_hash, _NO_AGENT):
        return False
    # Of a text, a table may keep the beginning.
    return not was.user_agent or not (now.user_agent or "").startswith(was.user_agent)
