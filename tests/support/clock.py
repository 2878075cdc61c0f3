"""A clock that a test moves by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


class FakeClock:
    """One time under two readings: the engine's (call it) and a database's (``now``).

    ``Sessions(store, clock=clock)`` and ``MemoryStore(clock.now)`` then agree. Move
    ``database`` alone to make a database whose clock was set.
    """

    def __init__(self, start: datetime = START) -> None:
        self.uptime = 1000.0
        self.database = start

    def __call__(self) -> float:
        return self.uptime

    def now(self) -> datetime:
        """The database's reading."""
        return self.database

    def advance(self, by: timedelta | float) -> None:
        """Let time pass, in seconds or as a duration."""
        passed = by if isinstance(by, timedelta) else timedelta(seconds=by)
        self.uptime += passed.total_seconds()
        self.database += passed
