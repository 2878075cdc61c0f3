"""Calls that are released together: all of them run, and none of them is lost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

from handstamp import Sessions
from handstamp.events import Refreshed
from handstamp.testing import (
    FrozenClock,
    Recorded,
    aconcurrently,
    alogin_as,
    concurrently,
    login_as,
)
from tests.support.apps import over_asgi
from tests.support.browsers import TestClient, browser


def test_all_threads_run_at_the_same_time() -> None:
    """Eight threads pass one barrier, which would fail if they ran one after the other."""
    meeting = threading.Barrier(8, timeout=60)
    concurrently(8, lambda: meeting.wait())


def test_no_thread_starts_before_the_last_is_ready() -> None:
    """No thread makes two of the calls, however short a call is."""
    assert len(set(concurrently(32, lambda: threading.get_ident()))) == 32


async def test_no_task_starts_before_the_last_is_ready() -> None:
    """Not even if a task runs as soon as it is made, as it can since Python 3.12."""
    made: list[object] = []
    make: Any = getattr(asyncio, "eager_task_factory", None) or (
        lambda loop, work, **options: asyncio.Task(work, loop=loop, **options)
    )

    def factory(loop: Any, work: Any, **options: Any) -> Any:
        made.append(work)
        return make(loop, work, **options)

    async def count() -> int:
        return len(made)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        assert await aconcurrently(8, count) == [8] * 8
    finally:
        loop.set_task_factory(None)


async def test_all_tasks_run_at_the_same_time() -> None:
    """Eight tasks pass one barrier."""
    meeting = asyncio.Barrier(8)
    async with asyncio.timeout(60):
        await aconcurrently(8, lambda: meeting.wait())


def test_results_of_threads_are_in_order() -> None:
    """Each is the result of its number, or the exception that was raised."""
    one, zero, half = concurrently(3, lambda number: 1 / (1 - number))
    assert (one, half) == (1.0, -1.0)
    assert isinstance(zero, ZeroDivisionError)


async def test_results_of_tasks_are_in_order() -> None:
    """A task that fails ends none of the others."""

    async def work(number: int) -> float:
        await asyncio.sleep(0)
        return 1 / (1 - number)

    one, zero, half = await aconcurrently(3, work)
    assert (one, half) == (1.0, -1.0)
    assert isinstance(zero, ZeroDivisionError)


@pytest.mark.parametrize(
    ("function", "expected"),
    [(lambda: "x", ["x", "x"]), (lambda n: -n, [0, -1]), (lambda n, m=5: n + m, [5, 6])],
)
def test_a_function_gets_its_number_if_it_takes_one(
    function: Any, expected: list[object]
) -> None:
    """A function without parameters is called without arguments."""
    assert concurrently(2, function) == expected


def test_a_type_error_of_the_function_is_its_result() -> None:
    """It is not taken for a missing parameter."""

    def wrong(number: int) -> int:
        raise TypeError("its own")

    assert [str(e) for e in concurrently(2, wrong)] == ["its own"] * 2


async def test_many_tabs_share_one_refresh(
    handstamp_sessions: Sessions, handstamp_events: Recorded, handstamp_clock: FrozenClock
) -> None:
    """All twelve requests are authenticated, and the token was rotated once."""
    transport = httpx.ASGITransport(over_asgi(handstamp_sessions))
    base_url = "https://testserver.local"
    async with (
        handstamp_sessions,
        httpx.AsyncClient(transport=transport, base_url=base_url) as client,
    ):
        await alogin_as(client, "alice", sessions=handstamp_sessions)
        handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
        answers = await aconcurrently(12, lambda: client.get("/me"))
    assert [getattr(answer, "text", answer) for answer in answers] == ["alice"] * 12
    assert len(handstamp_events.of(Refreshed)) == 1


def test_many_threads_sign_in_at_once(handstamp_sessions: Sessions) -> None:
    """Each signs in its own client, on one engine that is not open yet."""
    app = over_asgi(handstamp_sessions)

    def sign_in(number: int) -> str:
        client = TestClient(app, base_url="https://testserver")
        return login_as(
            client, f"user {number}", sessions=handstamp_sessions
        ).session.user_id

    assert concurrently(4, sign_in) == [f"user {n}" for n in range(4)]
    with browser(app) as client:
        assert client.get("/me").status_code == 401
