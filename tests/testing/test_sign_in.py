"""A test client is signed in without its form: bare clients, on ASGI and on WSGI.

The clients of the frameworks are in `test_sign_in_clients.py`.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from werkzeug.test import Client as WerkzeugClient

from handstamp import ConfigError, Cookies, LoginRefused, MemoryStore, Sessions
from handstamp.core.models import Client
from handstamp.events import LoggedIn
from handstamp.stores.memory import MemoryUser
from handstamp.testing import (
    FrozenClock,
    Recorded,
    alogin_as,
    assert_revoked,
    login_as,
    memory_sessions,
    steal,
)
from tests.support.apps import over_asgi, over_wsgi
from tests.support.browsers import TestClient, browser

HTTPS = "https://testserver.local"


def asynchronous(app: Any, base_url: str = HTTPS) -> httpx.AsyncClient:
    """The client of FastAPI's documentation."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base_url)


def plain(app: Any, base_url: str = HTTPS) -> httpx.Client:
    """The same client for WSGI."""
    return httpx.Client(transport=httpx.WSGITransport(app), base_url=base_url)


def test_the_client_is_signed_in(handstamp_sessions: Sessions) -> None:
    """Its next request has the session, whose row is in the store."""
    with browser(over_asgi(handstamp_sessions)) as client:
        assert client.get("/me").status_code == 401
        alice = login_as(client, "alice", sessions=handstamp_sessions)
        assert client.get("/me").text == "alice"
        store = handstamp_sessions.store
        assert isinstance(store, MemoryStore)
        assert store.rows[alice.session.id].user_id == "alice"


def test_a_client_without_a_lifespan_is_signed_in_too(handstamp_sessions: Sessions) -> None:
    """Each of its requests has an event loop of its own."""
    client = TestClient(over_asgi(handstamp_sessions), base_url=HTTPS)
    login_as(client, "alice", sessions=handstamp_sessions)
    assert [client.get("/me").text for _ in range(2)] == ["alice", "alice"]


async def test_a_sync_client_is_signed_in_inside_a_running_loop(
    handstamp_sessions: Sessions,
) -> None:
    """An async test may have a sync client."""
    client = plain(over_wsgi(handstamp_sessions))
    login_as(client, "alice", sessions=handstamp_sessions)
    assert client.get("/me").text == "alice"


async def test_an_async_client_is_signed_in(handstamp_sessions: Sessions) -> None:
    """With `await`, on the loop of the test."""
    async with handstamp_sessions, asynchronous(over_asgi(handstamp_sessions)) as client:
        await alogin_as(client, "alice", sessions=handstamp_sessions)
        assert (await client.get("/me")).text == "alice"


async def test_an_async_client_is_signed_in_before_the_engine_is_open(
    handstamp_sessions: Sessions,
) -> None:
    """The engine is then open, as after a first request."""
    async with asynchronous(over_asgi(handstamp_sessions)) as client:
        await alogin_as(client, "alice", sessions=handstamp_sessions)
        assert (await client.get("/me")).text == "alice"
    await handstamp_sessions.close()


@pytest.mark.parametrize("make", [plain, WerkzeugClient])
def test_a_wsgi_client_is_signed_in(handstamp_sessions: Sessions, make: Any) -> None:
    """The engine runs in a thread of its own, as in production."""
    client = make(over_wsgi(handstamp_sessions))
    login_as(client, "alice", sessions=handstamp_sessions)
    assert client.get("/me").text == "alice"
    login_as(client, "bob", sessions=handstamp_sessions)
    assert client.get("/me").text == "bob"


def test_a_rotation_replaces_both_cookies_in_the_jar(
    handstamp_sessions: Sessions, handstamp_clock: FrozenClock
) -> None:
    """There is one cookie of each name before and after."""
    with browser(over_asgi(handstamp_sessions)) as client:
        login_as(client, "alice", sessions=handstamp_sessions)
        before = sorted((c.name, c.value) for c in client.cookies.jar)
        handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
        assert client.get("/me").text == "alice"
        after = sorted((c.name, c.value) for c in client.cookies.jar)
    assert [name for name, _ in before] == [name for name, _ in after]
    assert {value for _, value in before} & {value for _, value in after} == set()


def test_a_logout_clears_the_jar(handstamp_sessions: Sessions) -> None:
    """Because the cookies have the domain and path of a response."""
    with browser(over_asgi(handstamp_sessions)) as client:
        login_as(client, "alice", sessions=handstamp_sessions)
        client.post("/logout")
        assert list(client.cookies.jar) == []


def test_signing_in_again_replaces_the_user(handstamp_sessions: Sessions) -> None:
    """The jar has the cookies of the second session only."""
    with browser(over_asgi(handstamp_sessions)) as client:
        login_as(client, "alice", sessions=handstamp_sessions)
        login_as(client, "bob", sessions=handstamp_sessions)
        assert client.get("/me").text == "bob"
        assert len(client.cookies.jar) == 2


def test_the_cookies_of_the_application_are_used() -> None:
    """Their names, their path, and no Secure if they have none."""
    cookies = Cookies(
        session_name="sid",
        refresh_name="rid",
        path="/app",
        secure=False,
        same_site="Strict",
    )
    sessions = memory_sessions()
    with browser(
        over_asgi(sessions, cookies=cookies), base_url="http://testserver"
    ) as client:
        login_as(client, "alice", sessions=client.app)
        held = {(c.name, c.path, c.secure) for c in client.cookies.jar}
    assert held == {("sid", "/app", False), ("rid", "/app", False)}


def test_remembered_cookies_outlive_the_browser(handstamp_sessions: Sessions) -> None:
    """Others end with the browser, as after a login form."""
    with browser(over_asgi(handstamp_sessions)) as client:
        assert login_as(client, "alice", sessions=handstamp_sessions).remember is False
        assert {c.discard for c in client.cookies.jar} == {True}
        assert (
            login_as(client, "alice", remember=True, sessions=handstamp_sessions).remember
            is True
        )
        assert {c.discard for c in client.cookies.jar} == {False}


def test_the_client_of_the_login_can_be_given(
    handstamp_sessions: Sessions, handstamp_events: Recorded
) -> None:
    """The row keeps its address, and the event has it."""
    with browser(over_asgi(handstamp_sessions)) as client:
        phone = Client(address="203.0.113.9")
        alice = login_as(client, "alice", signed_in_from=phone, sessions=handstamp_sessions)
    assert alice.session.address == "203.0.113.9"
    assert [e.client for e in handstamp_events.of(LoggedIn)] == [phone]


def test_a_websocket_is_signed_in_too(handstamp_sessions: Sessions) -> None:
    """With its whole address: the client's default is a plain ws, which gets no Secure
    cookie."""
    with browser(over_asgi(handstamp_sessions)) as client:
        login_as(client, "alice", sessions=handstamp_sessions)
        with client.websocket_connect("wss://testserver/ws") as socket:
            assert socket.receive_text() == "alice"


def test_a_disabled_user_is_not_signed_in(handstamp_sessions: Sessions) -> None:
    """The error of the store is raised, and the jar stays empty."""
    store = handstamp_sessions.store
    assert isinstance(store, MemoryStore)
    store.users["mallory"] = MemoryUser(is_active=False)
    with browser(over_asgi(handstamp_sessions)) as client:
        with pytest.raises(LoginRefused):
            login_as(client, "mallory", sessions=handstamp_sessions)
        assert list(client.cookies.jar) == []


def test_secure_cookies_over_plain_http_are_an_error(handstamp_sessions: Sessions) -> None:
    """The error says how to make the client, and no session was created."""
    client = TestClient(over_asgi(handstamp_sessions))
    with pytest.raises(ConfigError, match=r"base_url='https://testserver\.local'"):
        login_as(client, "alice", sessions=handstamp_sessions)
    assert list(client.cookies.jar) == []
    store = handstamp_sessions.store
    assert isinstance(store, MemoryStore)
    assert store.rows == {}


def test_cookies_of_another_domain_are_an_error() -> None:
    """The client would never send them."""
    cookies = Cookies(session_name="s", refresh_name="r", domain="example.com")
    app = over_asgi(memory_sessions(), cookies=cookies)
    with pytest.raises(ConfigError, match=r"outside of the cookies' domain"):
        login_as(TestClient(app, base_url=HTTPS), "alice", sessions=app)
    client = TestClient(app, base_url="https://app.example.com")
    login_as(client, "alice", sessions=app)
    assert client.get("/me").text == "alice"


async def test_a_client_without_a_host_is_an_error(handstamp_sessions: Sessions) -> None:
    """A cookie needs the domain of a host."""
    client = asynchronous(over_asgi(handstamp_sessions), base_url="")
    with pytest.raises(ConfigError, match="no host"):
        await alogin_as(client, "alice", sessions=handstamp_sessions)


async def test_login_as_and_alogin_as_are_not_interchangeable(
    handstamp_sessions: Sessions,
) -> None:
    """The error names the other one."""
    with pytest.raises(ConfigError, match="await alogin_as"):
        login_as(
            asynchronous(over_asgi(handstamp_sessions)),
            "alice",
            sessions=handstamp_sessions,
        )
    with pytest.raises(ConfigError, match="call login_as"):
        await alogin_as(
            plain(over_wsgi(handstamp_sessions)), "alice", sessions=handstamp_sessions
        )


def test_an_object_that_is_not_a_test_client_is_an_error(
    handstamp_sessions: Sessions,
) -> None:
    """The error names its type."""
    with pytest.raises(ConfigError, match="object is not a test client"):
        login_as(object(), "alice", sessions=handstamp_sessions)


def test_the_middleware_names_the_engine_and_the_cookies() -> None:
    """For ASGI and for WSGI; `cookies=` replaces those of the middleware."""
    cookies = Cookies(session_name="sid", refresh_name="rid")
    sessions = memory_sessions()
    for app in (over_wsgi(sessions, cookies=cookies), over_asgi(sessions, cookies=cookies)):
        client = WerkzeugClient(over_wsgi(sessions, cookies=cookies))
        login_as(client, "alice", sessions=app)
        assert client.get("/me").text == "alice"
        assert steal(client, sessions=sessions, cookies=cookies).session_token
        with pytest.raises(ConfigError, match="sign it in"):
            steal(client, sessions=app, cookies=Cookies())


def test_the_session_can_be_revoked(handstamp_sessions: Sessions) -> None:
    """By the object that `login_as` returned."""
    with browser(over_asgi(handstamp_sessions)) as client:
        alice = login_as(client, "alice", sessions=handstamp_sessions)
        assert alice.revoke(reason="lost phone") is True
        assert client.get("/me").status_code == 401
        assert_revoked(alice, reason="lost phone")


async def test_the_session_can_be_revoked_with_await(handstamp_sessions: Sessions) -> None:
    """The same for an async test."""
    async with handstamp_sessions, asynchronous(over_asgi(handstamp_sessions)) as client:
        alice = await alogin_as(client, "alice", sessions=handstamp_sessions)
        assert await alice.arevoke() is True
        assert (await client.get("/me")).status_code == 401


def test_no_token_is_in_the_repr(handstamp_sessions: Sessions) -> None:
    """A failing assertion prints it."""
    with browser(over_asgi(handstamp_sessions)) as client:
        alice = login_as(client, "alice", sessions=handstamp_sessions)
    assert alice.session_token not in repr(alice)
    assert alice.refresh_token not in repr(alice)
