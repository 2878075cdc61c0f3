"""The tasks beside the requests: they start late, all end, and survive faults."""

from __future__ import annotations

import asyncio
import logging

import pytest

from handstamp.config import Policy
from handstamp.engine import activity
from handstamp.errors import SessionsUnavailable
from tests.support.engines import Engine, running, seconds
from tests.support.waiting import until

BUSY = Policy(flush_every=seconds(0.01))


def tasks() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def used(engine: Engine) -> None:
    """Log in and make one request that is worth a touch."""
    issued = await engine.login()
    engine.clock.advance(seconds(61))
    await engine.ask(issued)
    assert engine.sessions.stats().pending_touches == 1


async def test_c135_nothing_runs_before_the_first_request() -> None:
    """A server without a lifespan is served as well: the first request starts them."""
    before = tasks()
    engine = Engine()
    assert tasks() == before
    issued = await engine.login()
    await engine.ask(issued)
    assert len(tasks() - before) == 4  # the listener, two of the invalidator, the flush
    await engine.sessions.close()
    assert tasks() == before


async def test_closing_leaves_no_task() -> None:
    """However often it opens and closes, and when it closes twice."""
    before = tasks()
    engine = Engine()
    for _ in range(3):
        await engine.sessions.open()
        await engine.sessions.close()
        await engine.sessions.close()
        assert tasks() == before


def test_c141_each_loop_has_tasks_of_its_own() -> None:
    """A loop that ended without closing is forgotten, and the next one listens again."""
    engine = Engine(policy=BUSY)

    async def serve() -> int:
        await used(engine)
        await until(lambda: engine.sessions.stats().listener == "listening")
        await until(lambda: engine.sessions.stats().pending_touches == 0)
        return len(tasks())

    assert [asyncio.run(serve()) for _ in range(3)] == [4, 4, 4]


async def test_p10_activity_is_written_by_itself() -> None:
    """Every `flush_every`, without a request and without a close."""
    async with running(policy=BUSY) as engine:
        await used(engine)
        await until(lambda: engine.sessions.stats().written_touches == 1)


@pytest.mark.parametrize("fault", [SessionsUnavailable("down"), RuntimeError("a bug")])
async def test_p10_a_failed_flush_is_not_the_last(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch is kept, the fault is logged, and flushing goes on."""
    async with running(policy=BUSY) as engine:
        touch, tried = engine.store.touch, asyncio.Event()

        async def failing(*_: object) -> int:
            tried.set()
            raise fault

        engine.store.touch = failing  # type: ignore[assignment,method-assign]
        await used(engine)
        await tried.wait()
        engine.store.touch = touch  # type: ignore[method-assign]
        await until(lambda: engine.sessions.stats().written_touches == 1)
        assert engine.sessions.stats().dropped_touches == 0
    assert "flush_failed" in {getattr(r, "action", "") for r in caplog.records}


async def test_c133_a_graceful_stop_writes_what_is_pending() -> None:
    """Though the next flush was an hour away."""
    engine = Engine(policy=Policy(flush_every=seconds(20)))
    await used(engine)
    await engine.sessions.close()
    assert engine.sessions.stats().written_touches == 1


@pytest.mark.parametrize("how", ["down", "frozen"])
async def test_c134_a_stop_without_a_database_ends_and_logs_what_is_lost(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for the timeout of the last flush at most, and logs the number."""
    monkeypatch.setattr(activity, "STOP_TIMEOUT", 0.01)
    engine = Engine()
    await used(engine)
    engine.store.down = how == "down"
    if how == "frozen":
        engine.store.touch = lambda *_: asyncio.Event().wait()  # type: ignore[assignment,method-assign]
    with caplog.at_level(logging.WARNING, "handstamp"):
        await engine.sessions.close()
    logged = {getattr(r, "action", ""): r.getMessage() for r in caplog.records}
    assert logged["touches_lost"] == "1 touches could not be written"


async def test_c133_a_stop_during_a_flush_loses_nothing() -> None:
    """What a cancelled flush did not write, the last flush writes."""
    engine = Engine(policy=BUSY)
    touch, begun = engine.store.touch, asyncio.Event()

    async def slow(*_: object) -> int:
        begun.set()
        await asyncio.Event().wait()
        return 0

    engine.store.touch = slow  # type: ignore[assignment,method-assign]
    await used(engine)
    await begun.wait()
    engine.store.touch = touch  # type: ignore[method-assign]
    await engine.sessions.close()
    assert engine.sessions.stats().written_touches == 1
