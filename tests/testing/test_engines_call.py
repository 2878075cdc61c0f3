"""From a test into the engine: on the loop it lives on, or on one of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from werkzeug.test import Client as WerkzeugClient

from handstamp import ConfigError, Session, Sessions
from handstamp.testing import acall, call, concurrently, login_as
from handstamp.testing.engines import run
from tests.support.apps import over_asgi, over_wsgi
from tests.support.browsers import browser


def test_an_engine_that_is_open_nowhere_is_left_as_it_was(
    handstamp_sessions: Sessions,
) -> None:
    """Opened for one call and closed again."""
    issued = call(handstamp_sessions.create, "alice")
    assert handstamp_sessions._loop is None
    listed = call(handstamp_sessions.list_for_user, "alice")
    assert [session.id for session in listed] == [issued.session.id]


def test_an_engine_on_a_test_client_s_loop_is_asked_there(
    handstamp_sessions: Sessions,
) -> None:
    """And stays open on it."""
    with browser(over_asgi(handstamp_sessions)) as client:
        loop = handstamp_sessions._loop
        call(handstamp_sessions.create, "alice")
        assert handstamp_sessions._loop is loop is not None
        login_as(client, "alice", sessions=handstamp_sessions)
        assert client.get("/me").text == "alice"


def test_an_engine_on_the_loop_of_a_wsgi_process_is_asked_there(
    handstamp_sessions: Sessions,
) -> None:
    """Where its requests are answered."""
    client = WerkzeugClient(over_wsgi(handstamp_sessions))
    login_as(client, "alice", sessions=handstamp_sessions)
    handstamp_sessions._state.cache.doubt()
    client.get("/me")  # opens it
    loop = handstamp_sessions._loop
    call(handstamp_sessions.revoke_user, "alice")
    assert handstamp_sessions._loop is loop is not None
    assert client.get("/me").status_code == 401


async def test_an_async_test_has_its_own_engine_awaited(
    handstamp_sessions: Sessions,
) -> None:
    """On this loop, opened if it is not."""
    issued = await acall(handstamp_sessions.create, "alice")
    assert handstamp_sessions._loop is asyncio.get_running_loop()
    assert await acall(handstamp_sessions.revoke, issued.session.id) is True
    await handstamp_sessions.close()


async def test_an_async_test_reaches_an_engine_on_another_loop(
    handstamp_sessions: Sessions,
) -> None:
    """One that a client of its own loop opened."""
    with browser(over_asgi(handstamp_sessions)) as client:
        issued = await acall(handstamp_sessions.create, "alice")
        login_as(client, "bob", sessions=handstamp_sessions)
        assert await acall(handstamp_sessions.revoke, issued.session.id) is True


async def test_waiting_for_one_s_own_loop_is_an_error(handstamp_sessions: Sessions) -> None:
    """It would be for ever."""
    async with handstamp_sessions:
        with pytest.raises(ConfigError, match="await"):
            call(handstamp_sessions.ping)


def test_what_the_engine_raises_comes_through(handstamp_sessions: Sessions) -> None:
    """From a loop of its own as from another's."""
    wrong: Any = 7
    with pytest.raises(TypeError):
        call(handstamp_sessions.revoke, wrong)
    with browser(over_asgi(handstamp_sessions)), pytest.raises(TypeError):
        call(handstamp_sessions.revoke, wrong)


def test_only_an_engine_is_called() -> None:
    """Anything else is a mistake, and said to be one."""

    async def other() -> Session | None:
        return None

    with pytest.raises(ConfigError, match=r"sessions\.revoke"):
        call(other)


def test_two_threads_never_share_a_loop_that_one_of_them_closes(
    handstamp_sessions: Sessions,
) -> None:
    """The second waits for its turn, or its work would end with the first one's loop."""
    begun, second_ran = threading.Event(), threading.Event()

    async def first() -> asyncio.AbstractEventLoop:
        begun.set()
        await asyncio.to_thread(second_ran.wait, 0.2)  # in vain
        return asyncio.get_running_loop()

    async def second() -> asyncio.AbstractEventLoop:
        second_ran.set()
        return asyncio.get_running_loop()

    def one(number: int) -> asyncio.AbstractEventLoop:
        if number == 0:
            return run(handstamp_sessions, first)
        begun.wait(10)
        return run(handstamp_sessions, second)

    loops = concurrently(2, one)
    assert loops[0] is not loops[1]
    assert all(isinstance(loop, asyncio.AbstractEventLoop) for loop in loops)
