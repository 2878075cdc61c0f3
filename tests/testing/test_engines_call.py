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


def test_an_engine_that_is_not_open_is_closed_again(
    handstamp_sessions: Sessions,
) -> None:
    """It is opened for one call, on a loop of its own."""
    issued = call(handstamp_sessions.create, "alice")
    assert handstamp_sessions._loop is None
    listed = call(handstamp_sessions.list_for_user, "alice")
    assert [session.id for session in listed] == [issued.session.id]


def test_an_engine_is_called_on_the_loop_of_a_test_client(
    handstamp_sessions: Sessions,
) -> None:
    """It stays open on that loop."""
    with browser(over_asgi(handstamp_sessions)) as client:
        loop = handstamp_sessions._loop
        call(handstamp_sessions.create, "alice")
        assert handstamp_sessions._loop is loop is not None
        login_as(client, "alice", sessions=handstamp_sessions)
        assert client.get("/me").text == "alice"


def test_an_engine_is_called_on_the_loop_of_a_wsgi_process(
    handstamp_sessions: Sessions,
) -> None:
    """It stays open on that loop, in which WSGI answers a miss."""
    client = WerkzeugClient(over_wsgi(handstamp_sessions))
    login_as(client, "alice", sessions=handstamp_sessions)
    handstamp_sessions._state.cache.doubt()
    client.get("/me")  # opens it
    loop = handstamp_sessions._loop
    call(handstamp_sessions.revoke_user, "alice")
    assert handstamp_sessions._loop is loop is not None
    assert client.get("/me").status_code == 401


async def test_an_async_test_opens_the_engine_on_its_own_loop(
    handstamp_sessions: Sessions,
) -> None:
    """`acall` opens it and leaves it open."""
    issued = await acall(handstamp_sessions.create, "alice")
    assert handstamp_sessions._loop is asyncio.get_running_loop()
    assert await acall(handstamp_sessions.revoke, issued.session.id) is True
    await handstamp_sessions.close()


async def test_an_async_test_reaches_an_engine_on_another_loop(
    handstamp_sessions: Sessions,
) -> None:
    """`acall` works if a client's own loop opened the engine."""
    with browser(over_asgi(handstamp_sessions)) as client:
        issued = await acall(handstamp_sessions.create, "alice")
        login_as(client, "bob", sessions=handstamp_sessions)
        assert await acall(handstamp_sessions.revoke, issued.session.id) is True


async def test_call_on_the_engine_s_own_loop_is_an_error(
    handstamp_sessions: Sessions,
) -> None:
    """It would wait for ever, so it raises."""
    async with handstamp_sessions:
        with pytest.raises(ConfigError, match="await"):
            call(handstamp_sessions.ping)


def test_call_raises_what_the_engine_raises(handstamp_sessions: Sessions) -> None:
    """On a loop of its own and on a client's."""
    wrong: Any = 7
    with pytest.raises(TypeError):
        call(handstamp_sessions.revoke, wrong)
    with browser(over_asgi(handstamp_sessions)), pytest.raises(TypeError):
        call(handstamp_sessions.revoke, wrong)


def test_call_takes_methods_of_an_engine_only() -> None:
    """Any other function is an error, which says what to give."""

    async def other() -> Session | None:
        return None

    with pytest.raises(ConfigError, match=r"sessions\.revoke"):
        call(other)


def test_two_threads_never_share_a_loop_that_one_of_them_closes(
    handstamp_sessions: Sessions,
) -> None:
    """The second call waits, because its work would end with the loop of the first."""
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
        begun.wait(60)
        return run(handstamp_sessions, second)

    loops = concurrently(2, one)
    assert loops[0] is not loops[1]
    assert all(isinstance(loop, asyncio.AbstractEventLoop) for loop in loops)
