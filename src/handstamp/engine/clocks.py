"""Two clocks: the one that deadlines are counted on, and the database's.

The first never jumps when the time is set, and it counts while the machine is suspended: a
laptop that slept for an hour wakes up with a cache that is an hour old.

The second is the time in the last answer of the database, counted on with the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

Clock = Callable[[], float]
"""Returns seconds since a fixed moment."""


uptime: Clock = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)
"""``CLOCK_BOOTTIME`` where there is one, otherwise the monotonic clock."""


FRESH = 60.0
"""Seconds for which an answer is relied on: the database's clock can be set at any time."""


class DatabaseClock:
    """The database's clock between two answers. Before the first one, the system's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answer: tuple[datetime, float] | None = None

    def update(self, read_at: datetime, received_at: float) -> None:
        """An answer with the time ``read_at`` arrived at ``received_at`` on our clock."""
        self._answer = read_at, received_at

    @property
    def is_fresh(self) -> bool:
        """Whether the last answer is at most ``FRESH`` seconds old."""
        return self._answer is not None and self._clock() - self._answer[1] < FRESH

    def now(self) -> datetime:
        """The database's clock now, at most a round trip behind."""
        if self._answer is None:
            return datetime.now(UTC)
        read_at, received_at = self._answer
        return read_at + timedelta(seconds=self._clock() - received_at)
