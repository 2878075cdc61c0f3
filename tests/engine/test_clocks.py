"""The two clocks: ours never jumps, the database's is counted on ours."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from handstamp.engine.clocks import DatabaseClock, uptime
from tests.support.clock import FakeClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has none")
def test_p15_the_clock_counts_suspended_time() -> None:
    """It is CLOCK_BOOTTIME where there is one, read between two readings of it."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    shown = uptime()
    assert before <= shown <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_the_database_clock_is_counted_on_from_its_last_answer() -> None:
    """From its last answer on; a later answer corrects it, back as well."""
    clock = FakeClock()
    database = DatabaseClock(clock)
    database.update(NOW, clock())
    clock.advance(10)
    assert database.now() == NOW + timedelta(seconds=10)
    database.update(NOW, clock())
    assert database.now() == NOW


def test_before_the_first_answer_the_system_clock_counts() -> None:
    """For want of anything better."""
    before = datetime.now(UTC)
    assert before <= DatabaseClock(FakeClock()).now() <= datetime.now(UTC)
