"""The clock that deadlines are counted down on.

It never jumps when somebody sets the time, and it counts while the machine is suspended:
a laptop that slept for an hour wakes to a cache that is an hour old.

The database's clock, as far as its answers let us know it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

Clock = Callable[[], float]
"""Seconds since a fixed moment, as a float."""


uptime: Clock = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)
"""``CLOCK_BOOTTIME`` where there is one, otherwise the monotonic clock."""


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
