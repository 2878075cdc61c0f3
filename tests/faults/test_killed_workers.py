"""P10 under signals: a worker that ends writes its buffered activity; one that is killed
loses at most one interval.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from anyio import to_thread

from handstamp.testing.postgres import EmbeddedPostgres
from tests.faults.conftest import tables
from tests.faults.fleet import Fleet, fleet, traffic, until

pytestmark = pytest.mark.multiprocess


@contextmanager
def _two_workers(
    server: EmbeddedPostgres, folder: Path, **settings: float
) -> Iterator[Fleet]:
    with (
        tables(server, trigger=True) as dsn,
        fleet(dsn, folder, count=2, **settings) as workers,
    ):
        yield workers


@pytest.fixture
def lazy_workers(own_postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Fleet]:
    """Two workers that write what they noted once in 25 seconds."""
    with _two_workers(own_postgres, tmp_path, flush_every=25) as workers:
        yield workers


@pytest.fixture
async def lazy(lazy_workers: Fleet) -> AsyncIterator[Fleet]:
    """The same, listening."""
    async with lazy_workers.ready() as fleet:
        yield fleet


async def test_P10_C133_N15_a_worker_that_is_asked_to_end_writes_what_it_noted(
    lazy: Fleet,
) -> None:
    """SIGTERM loses no activity, although no flush was due."""
    sessions = [await lazy.sign_in() for _ in range(20)]
    began = datetime.now(UTC)
    for session in sessions:
        assert await lazy.workers[0].accepts(session)
    assert (await lazy.workers[0].stats())["pending_touches"] == 20
    assert await _active_since(lazy, began) == 0
    lazy.workers[0].process.terminate()
    await to_thread.run_sync(lazy.workers[0].process.wait)
    assert await _active_since(lazy, began) == 20
    assert await lazy.workers[1].accepts(sessions[0])


@pytest.fixture
def busy_workers(own_postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Fleet]:
    """Two workers that note and write activity several times a second."""
    times = {"flush_every": 0.5, "touch_every": 0.2}
    with _two_workers(own_postgres, tmp_path, **times) as workers:
        yield workers


@pytest.fixture
async def busy(busy_workers: Fleet) -> AsyncIterator[Fleet]:
    """The same, listening."""
    async with busy_workers.ready() as fleet:
        yield fleet


async def test_P10_C132_N15_a_killed_worker_loses_its_last_moment_and_no_more(
    busy: Fleet, record_property: Callable[[str, object], None]
) -> None:
    """Everything noted before the last flush is in the table after SIGKILL, and the other
    worker goes on with the same sessions."""
    sessions = [await busy.sign_in() for _ in range(5)]
    began, victim = datetime.now(UTC), busy.workers[0]
    async with traffic([victim], *sessions) as flow:
        await until(lambda: _all_active_since(busy, began, 5), "a first flush")
        flushed = datetime.now(UTC)
        await until(lambda: _all_active_since(busy, flushed, 5), "a later flush")
        await flow.flows_on(3)
    victim.process.kill()
    killed = datetime.now(UTC)
    await to_thread.run_sync(victim.process.wait)
    written = await busy.sql("select min(last_activity_at) as oldest from user_sessions")
    lost = killed - written[0]["oldest"]
    record_property("seconds of activity lost", lost.total_seconds())
    policy = busy.policy
    assert lost < policy.flush_every + policy.touch_every + timedelta(seconds=2)
    for session in sessions:
        assert await busy.workers[1].accepts(session)


async def _active_since(fleet: Fleet, moment: datetime) -> int:
    sql = "select count(*) as n from user_sessions where last_activity_at > $1"
    return (await fleet.sql(sql, moment))[0]["n"]


async def _all_active_since(fleet: Fleet, moment: datetime, number: int) -> bool:
    return await _active_since(fleet, moment) == number
