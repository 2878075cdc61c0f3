"""A clock that a test moves by hand, under a whole engine or under one that runs already.

Rule 1. One time, two readings: the engine's own (call it) and a database's (``now``). They
move together, as they do in life.
Rule 2. It never goes back. To see what happens earlier, start earlier.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from handstamp.clock import Clock
from handstamp.engine.sessions import Sessions
from handstamp.stores.memory import MemoryStore


class FrozenClock:
    """Time that stands still until :meth:`advance`.

    Built into a new engine: ``Sessions(MemoryStore(clock.now), clock=clock, …)``, which is
    what ``memory_sessions(clock=clock)`` does. ``start`` is an aware datetime.
    """

    def __init__(self, start: datetime | None = None, *, uptime: float = 1000.0) -> None:
        self._uptime = uptime
        self._database = start or datetime.now(UTC)

    def __call__(self) -> float:
        """The engine's reading, in seconds."""
        return self._uptime

    def __repr__(self) -> str:
        return f"FrozenClock({self._database.isoformat()})"

    def now(self) -> datetime:
        """The database's reading."""
        return self._database

    def advance(self, by: timedelta) -> None:
        """Let this much time pass at once. Raises :class:`ValueError` below zero."""
        if by < timedelta(0):
            raise ValueError("time does not go back; start the clock earlier")
        self._uptime += by.total_seconds()
        self._database += by


@contextmanager
def frozen_clock(sessions: Sessions) -> Iterator[FrozenClock]:
    """Stop the time of ``sessions``, and give the clock that moves it.

    For an engine that an application made by itself. Over a :class:`MemoryStore` the
    database's time stops too; a real database keeps its own, so there only what the engine
    counts down moves: how long it believes its cache, and how old a sign-in is. At the
    end time runs again from where it would have been, and nothing cached is believed.
    """
    if isinstance(sessions.clock, FrozenClock):
        yield sessions.clock
        return
    real, store = sessions.clock, sessions.store
    clock = FrozenClock(sessions.database_now(), uptime=real())
    if isinstance(store, MemoryStore):
        clock = FrozenClock(store._now(), uptime=real())
    now = _set_now(store, clock.now)
    _set_clock(sessions, clock)
    try:
        yield clock
    finally:
        _set_clock(sessions, real)
        _set_now(store, now)
        sessions._parts.cache.doubt()


def _set_now(store: object, now: object) -> object:
    """Give a store in memory another clock; what it had."""
    if not isinstance(store, MemoryStore):
        return None
    was = store._now
    store.__dict__["_now"] = now
    return was


def _set_clock(sessions: Sessions, clock: Clock) -> None:
    """Replace the clock wherever the engine keeps it."""
    sessions.clock = clock
    object.__setattr__(sessions._parts, "clock", clock)
    for part in (
        sessions._parts.database_clock,
        sessions._parts.reports,
        sessions._bus,
        sessions._watch,
        sessions._refreshing,
        sessions._authentication,
    ):
        part._clock = clock
