"""A clock that only the test moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


class FakeClock:
    """One time with two readings: the engine's (call it) and the database's (``now``).

    ``Sessions(store, clock=clock)`` and ``MemoryStore(clock.now)`` then agree. Move
    ``database`` alone to simulate a database server whose clock was set.
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
        """Move both readings ahead, by seconds or by a duration."""
        passed = by if isinstance(by, timedelta) else timedelta(seconds=by)
        self.uptime += passed.total_seconds()
        self.database += passed
