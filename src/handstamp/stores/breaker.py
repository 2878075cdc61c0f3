"""The circuit breaker: a database that does not answer costs one request its budget, and
the following ones nothing.

Closed, everybody asks. After a fault nobody asks for a moment, and everybody is told at
once that there is no answer. Then one asks, as a probe, while the others are still told:
its answer closes the breaker, its fault opens it again, for longer each time.
"""

from __future__ import annotations

from handstamp.errors import SessionsUnavailable
from handstamp.clock import Clock

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0


class Breaker:
    """Knows whether asking makes sense. Times are seconds on ``clock``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pause = FIRST_PAUSE
        self._open_until: float | None = None
        self._probing_until = float("-inf")
        self.trips = 0

    @property
    def is_open(self) -> bool:
        """Whether requests are told "no answer" without being asked."""
        return self._open_until is not None

    def admit(self, *, budget: float) -> None:
        """Let one question pass, or raise :class:`SessionsUnavailable` at once.

        ``budget`` is how long a probe may stay away before another one is sent; one
        whose asker was cancelled never reports.
        """
        if self._open_until is None:
            return
        now = self._clock()
        if now < self._open_until or now < self._probing_until:
            raise SessionsUnavailable("the database did not answer a moment ago")
        self._probing_until = now + budget

    def answered(self) -> None:
        """There was an answer: everybody may ask again."""
        self._open_until = None
        self._pause = FIRST_PAUSE
        self._probing_until = float("-inf")

    def failed(self) -> None:
        """There was none: nobody asks for a while."""
        if self._open_until is None:
            self.trips += 1
        self._open_until = self._clock() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._probing_until = float("-inf")
