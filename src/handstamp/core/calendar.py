"""The times that a record may hold: those that every Python date can show.

A database has times that Python has not: infinite ones, years beyond 9999 and before
Christ. A store reads such a time as the nearest of these two, and arithmetic stops at them:
what is too far away to be a date is as good as never, or as always.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)
"""A day within what a ``datetime`` holds, so that every time zone can show them."""


def shift(time: datetime, by: timedelta) -> datetime:
    """``time`` moved by a duration, but not out of the calendar."""
    try:
        return time + by
    except OverflowError:
        return LATEST if by > timedelta(0) else EARLIEST
