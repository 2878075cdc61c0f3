"""The database's clock, as far as its answers let us know it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from handstamp.clock import Clock

FRESH = 60.0
"""Seconds for which an answer may be counted on."""


class DatabaseClock:
    """The database's clock between its answers, counted on ours.

    Before the first answer it is the system's, for want of anything better.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: tuple[datetime, float] | None = None

    def saw(self, read_at: datetime, after: float) -> None:
        """An answer arrived when ours showed ``after``, and bore this time."""
        self._seen = read_at, after

    @property
    def is_fresh(self) -> bool:
        """Whether an answer came lately: a clock may be put right at any time."""
        return self._seen is not None and self._clock() - self._seen[1] < FRESH

    def now(self) -> datetime:
        """The database's clock now, at most a round trip behind."""
        if self._seen is None:
            return datetime.now(UTC)
        read_at, after = self._seen
        return read_at + timedelta(seconds=self._clock() - after)
