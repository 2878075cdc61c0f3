"""Time that a test moves, under a new engine and under one that runs already."""

from __future__ import annotations

import gc
from asyncio import to_thread
from datetime import UTC, datetime, timedelta

import pytest

from handstamp import MemoryStore, Sessions
from handstamp.engine.clocks import uptime
from handstamp.testing import (
    FrozenClock,
    add_user,
    frozen_clock,
    login_as,
    memory_sessions,
)
from tests.support.apps import over_asgi
from tests.support.browsers import browser
from tests.support.engines import LAPTOP, SECRET, credentials_of, session_of

DAY = timedelta(days=1)


def holders(sessions: Sessions, clock: object) -> list[str]:
    """The kinds of handstamp's own objects around ``sessions`` that hold ``clock``."""
    seen: set[int] = set()
    waiting: list[object] = [sessions]
    found = []
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or not type(thing).__module__.startswith("handstamp"):
            continue
        seen.add(id(thing))
        for held in gc.get_referents(thing):
            if held is clock:
                found.append(type(thing).__name__)
            waiting += gc.get_referents(held) if isinstance(held, dict) else [held]
        values = getattr(thing, "__dict__", {}).values()
        found += [type(thing).__name__ for value in values if value is clock]
    return sorted(set(found))


def test_both_readings_move_together() -> None:
    """`advance` moves the engine's seconds and the database's date by the same step."""
    clock = FrozenClock(datetime(2026, 1, 1, tzinfo=UTC), uptime=5.0)
    clock.advance(DAY)
    assert (clock(), clock.now()) == (86_405.0, datetime(2026, 1, 2, tzinfo=UTC))


def test_time_does_not_go_back() -> None:
    """A negative step is refused, and nothing moves."""
    clock = FrozenClock()
    before = clock(), clock.now()
    with pytest.raises(ValueError, match="back"):
        clock.advance(-DAY)
    assert (clock(), clock.now()) == before


def test_a_session_expires_by_the_frozen_clock(
    handstamp_sessions: Sessions, handstamp_clock: FrozenClock
) -> None:
    """The refresh limit ends it, and not an hour sooner."""
    with browser(over_asgi(handstamp_sessions)) as client:
        login_as(client, "alice", sessions=handstamp_sessions)
        handstamp_clock.advance(handstamp_sessions.policy.browser_ttl - DAY / 24)
        assert client.get("/me").status_code == 200
        handstamp_clock.advance(DAY / 24)
        assert client.get("/me").status_code == 401


def test_the_clock_of_a_running_engine_is_replaced() -> None:
    """Its cache and its store in memory then use the frozen clock."""
    sessions = memory_sessions()
    with browser(over_asgi(sessions)) as client:
        login_as(client, "alice", remember=True, sessions=sessions)
        assert client.get("/me").status_code == 200
        with frozen_clock(sessions) as clock:
            clock.advance(timedelta(days=31))
            assert client.get("/me").status_code == 401


def test_time_runs_again_at_the_end() -> None:
    """The engine and the store have their clocks again, and the session is as it was."""
    sessions = memory_sessions()
    store = sessions.store
    assert isinstance(store, MemoryStore)
    now = store._now
    with browser(over_asgi(sessions)) as client:
        login_as(client, "alice", sessions=sessions)
        with frozen_clock(sessions) as clock:
            clock.advance(timedelta(minutes=10))
            assert client.get("/me").status_code == 200
        assert client.get("/me").status_code == 200
    assert (sessions.clock, store._now) == (uptime, now)
    assert holders(sessions, clock) == []


def test_every_part_of_the_engine_gets_the_frozen_clock() -> None:
    """Every object that holds the real clock holds the frozen one instead."""
    sessions = Sessions(MemoryStore(), secret=SECRET)
    keepers = holders(sessions, uptime)
    assert {"Sessions", "EngineState", "NotificationListener", "DatabaseClock"} <= set(
        keepers
    )
    with frozen_clock(sessions) as clock:
        assert holders(sessions, uptime) == []
        assert holders(sessions, clock) == keepers


def test_a_frozen_engine_keeps_its_clock() -> None:
    """`frozen_clock` yields the clock that the engine has already."""
    clock = FrozenClock()
    with frozen_clock(memory_sessions(clock=clock)) as same:
        assert same is clock


async def test_on_a_real_table_the_engine_s_time_moves_alone(
    handstamp_dsn: str,
) -> None:
    """A login gets older, and the dates in the table are judged by the database's clock."""
    user = await to_thread(add_user, handstamp_dsn, "alice")
    async with Sessions(handstamp_dsn, secret=SECRET) as sessions:
        with frozen_clock(sessions) as clock:
            issued = await sessions.create(user)
            clock.advance(DAY)
            assert sessions.database_now() - issued.session.created_at >= DAY
            answer = await sessions.authenticate(
                credentials_of([issued.session_token]), LAPTOP
            )
            assert session_of(answer).id == issued.session.id
