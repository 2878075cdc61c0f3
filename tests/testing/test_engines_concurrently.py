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


def test_all_threads_are_there_before_one_goes_on() -> None:
    """Each of them can meet all the others, which one after the other never could."""
    meeting = threading.Barrier(8, timeout=10)
    concurrently(8, lambda: meeting.wait())


def test_no_thread_begins_before_the_last_is_there() -> None:
    """However quick a call is: none of the threads is free to make two of them."""
    assert len(set(concurrently(32, lambda: threading.get_ident()))) == 32


async def test_no_task_begins_before_the_last_is_there() -> None:
    """Not even where a task runs as soon as it is made, as it can since Python 3.12."""
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


async def test_all_tasks_are_there_before_one_goes_on() -> None:
    """The same on one event loop."""
    meeting = asyncio.Barrier(8)
    async with asyncio.timeout(10):
        await aconcurrently(8, lambda: meeting.wait())


def test_threads_come_back_in_order_with_what_they_raised() -> None:
    """A result for each number, or the exception itself."""
    one, zero, half = concurrently(3, lambda number: 1 / (1 - number))
    assert (one, half) == (1.0, -1.0)
    assert isinstance(zero, ZeroDivisionError)


async def test_tasks_come_back_in_order_with_what_they_raised() -> None:
    """One that fails ends none of the others."""

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
    """And is called with nothing otherwise."""
    assert concurrently(2, function) == expected


def test_a_mistake_inside_is_not_taken_for_a_missing_argument() -> None:
    """A TypeError of the function's own comes back as its result."""

    def wrong(number: int) -> int:
        raise TypeError("its own")

    assert [str(e) for e in concurrently(2, wrong)] == ["its own"] * 2


async def test_many_tabs_share_one_refresh(
    handstamp_sessions: Sessions, handstamp_events: Recorded, handstamp_clock: FrozenClock
) -> None:
    """What the helper is for: all tabs are signed in, and the token was replaced once."""
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
    """Each of them its own client, on one engine that is open nowhere yet."""
    app = over_asgi(handstamp_sessions)

    def sign_in(number: int) -> str:
        client = TestClient(app, base_url="https://testserver")
        return login_as(
            client, f"user {number}", sessions=handstamp_sessions
        ).session.user_id

    assert concurrently(4, sign_in) == [f"user {n}" for n in range(4)]
    with browser(app) as client:
        assert client.get("/me").status_code == 401
