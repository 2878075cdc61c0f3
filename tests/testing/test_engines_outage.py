"""An outage on demand: what asks gets no answer, what does not ask never notices."""

from __future__ import annotations

from asyncio import to_thread
from typing import Any

import httpx
import pytest
from werkzeug.test import Client as WerkzeugClient

from handstamp import Client, ConfigError, Sessions, SessionsUnavailable
from handstamp.core.models import Unknown
from handstamp.testing import (
    FrozenClock,
    Recorded,
    add_user,
    alogin_as,
    call,
    login_as,
    outage,
)
from tests.support.apps import over_asgi, over_wsgi
from tests.support.browsers import browser
from tests.support.engines import LAPTOP, SECRET, credentials_of
from tests.support.waiting import until


def test_a_request_that_needs_the_session_gets_a_503(handstamp_sessions: Sessions) -> None:
    """Also for a session that is cached. After the outage all is as before."""
    with browser(over_asgi(handstamp_sessions)) as client:
        login_as(client, "alice", sessions=handstamp_sessions)
        assert client.get("/me").text == "alice"
        with outage(handstamp_sessions):
            assert client.get("/me").status_code == 503
            assert client.get("/public").status_code == 200
        assert client.get("/me").text == "alice"


def test_with_just_begun_the_cache_is_trusted(
    handstamp_sessions: Sessions, handstamp_clock: FrozenClock
) -> None:
    """For `max_staleness`, and no longer."""
    with browser(over_asgi(handstamp_sessions)) as client:
        login_as(client, "alice", sessions=handstamp_sessions)
        assert client.get("/me").text == "alice"
        with outage(handstamp_sessions, just_begun=True):
            assert client.get("/me").text == "alice"
            handstamp_clock.advance(handstamp_sessions.policy.max_staleness)
            assert client.get("/me").status_code == 503


def test_logins_and_revocations_raise(
    handstamp_sessions: Sessions, handstamp_events: Recorded
) -> None:
    """No event is published, and the session stays valid."""
    with browser(over_asgi(handstamp_sessions)) as client:
        alice = login_as(client, "alice", sessions=handstamp_sessions)
        handstamp_events.clear()
        with outage(handstamp_sessions):
            with pytest.raises(SessionsUnavailable):
                login_as(client, "bob", sessions=handstamp_sessions)
            with pytest.raises(SessionsUnavailable):
                alice.revoke()
        assert len(handstamp_events) == 0
        assert client.get("/me").text == "alice"


def test_a_wsgi_application_has_the_outage_too(handstamp_sessions: Sessions) -> None:
    """Although its engine runs in another thread."""
    client = WerkzeugClient(over_wsgi(handstamp_sessions))
    login_as(client, "alice", sessions=handstamp_sessions)
    assert client.get("/me").text == "alice"
    with outage(handstamp_sessions):
        assert client.get("/me").status_code == 503
    assert client.get("/me").text == "alice"


def test_outages_may_be_nested(handstamp_sessions: Sessions) -> None:
    """The outer outage lasts until its own end."""
    with outage(handstamp_sessions):
        with outage(handstamp_sessions):
            pass
        with pytest.raises(SessionsUnavailable):
            call(handstamp_sessions.ping)
    call(handstamp_sessions.ping)


async def test_a_real_table_does_not_answer(handstamp_dsn: str) -> None:
    """No read, no write and no heartbeat. Afterwards the engine listens again."""
    user = await to_thread(add_user, handstamp_dsn, "alice")
    async with Sessions(handstamp_dsn, secret=SECRET) as sessions:
        transport = httpx.ASGITransport(over_asgi(sessions))
        base_url = "https://testserver.local"
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
            await alogin_as(client, user, sessions=sessions)
            await until(lambda: sessions.stats().listener == "listening")
            with outage(sessions):
                assert (await client.get("/me")).status_code == 503
                with pytest.raises(SessionsUnavailable):
                    await sessions.create(user, client=Client(address="192.0.2.1"))
                await until(lambda: sessions.stats().listener == "disconnected")
            assert (await client.get("/me")).text == user
            await until(lambda: sessions.stats().listener == "listening")


async def test_a_real_table_does_not_answer_on_any_loop(handstamp_dsn: str) -> None:
    """Also for a client that makes an event loop for every request."""
    sessions = Sessions(handstamp_dsn, secret=SECRET)
    user = await to_thread(add_user, handstamp_dsn, "alice")
    issued = await to_thread(call, sessions.create, user)
    credentials = credentials_of([issued.session_token])
    with outage(sessions):
        answer = await to_thread(call, sessions.authenticate, credentials, LAPTOP)
    assert answer == Unknown("simulated outage")


def test_outages_of_a_real_table_may_be_nested(handstamp_dsn: str) -> None:
    """The same with a real table."""
    sessions = Sessions(handstamp_dsn, secret=SECRET)
    with outage(sessions):
        with outage(sessions):
            pass
        with pytest.raises(SessionsUnavailable):
            call(sessions.ping)
    call(sessions.ping)


def test_an_outage_of_an_unknown_store_is_an_error() -> None:
    """A test must not believe in an outage that does not happen."""

    class Other:
        def __init__(self) -> None:
            self.channel = None

        def reset_after_fork(self) -> None:
            pass

    other: Any = Other()
    with pytest.raises(ConfigError, match="Other"), outage(Sessions(other, secret=SECRET)):
        pass
