"""Every framework's own test client is signed in, refreshed, stolen from and signed out.

Each application here answers `/me` with the user's id or a 401. Django's clients are in
`test_testing_page.py`: its settings are those of a whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from handstamp import ConfigError, Cookies, Sessions
from handstamp.testing import (
    FrozenClock,
    alogin_as,
    assert_revoked,
    login_as,
    outage,
    steal,
)
from tests.support.apps import over_wsgi
from tests.support.clients import (
    ASYNC,
    SYNC,
    Make,
    Seen,
    aget,
    bottle,
    falcon_wsgi,
    flask,
    get,
    litestar_async,
    quart,
    quarted,
    starlette,
)

NAMES = {"__Host-session", "__Host-refresh"}


@pytest.fixture(params=SYNC, ids=lambda make: make.__name__)
def client(request: pytest.FixtureRequest, handstamp_sessions: Sessions) -> Iterator[Any]:
    """A client of each kind, served from its startup to its shutdown where it has one."""
    client = request.param(handstamp_sessions)
    with ExitStack() as ending:
        yield ending.enter_context(client) if hasattr(client, "__enter__") else client


@pytest.fixture(params=ASYNC, ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    """How to make a client of each kind whose requests are awaited."""
    made: Make = request.param
    return made


def test_a_client_is_signed_in_refreshed_and_signed_out(
    client: Any, handstamp_sessions: Sessions, handstamp_clock: FrozenClock
) -> None:
    """One session from its login to its revocation, with each test client."""
    assert get(client).status == 401
    alice = login_as(client, "alice", sessions=handstamp_sessions)
    assert get(client) == Seen(200, "alice")
    handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
    assert get(client) == Seen(200, "alice")
    handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
    assert get(client) == Seen(200, "alice")
    assert alice.revoke(reason="lost") is True
    assert get(client).status == 401
    assert_revoked(alice, reason="lost")


async def test_an_async_client_is_signed_in_refreshed_and_signed_out(
    make: Make, handstamp_sessions: Sessions, handstamp_clock: FrozenClock
) -> None:
    """The same with `await`."""
    async with (
        make(handstamp_sessions)
        if make is not quart
        else quarted(handstamp_sessions) as client
    ):
        assert (await aget(client)).status == 401
        alice = await alogin_as(client, "alice", sessions=handstamp_sessions)
        assert await aget(client) == Seen(200, "alice")
        handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
        assert await aget(client) == Seen(200, "alice")
        handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
        assert await aget(client) == Seen(200, "alice")
        assert await alice.arevoke(reason="lost") is True
        assert (await aget(client)).status == 401
    await handstamp_sessions.close()


def test_a_client_s_cookies_can_be_stolen(
    client: Any, handstamp_sessions: Sessions
) -> None:
    """Both are read from the client's own kind of jar, and put back into one."""
    alice = login_as(client, "alice", sessions=handstamp_sessions)
    stolen = steal(client, sessions=handstamp_sessions)
    assert stolen.session_token == alice.session_token
    assert stolen.refresh_token == alice.refresh_token
    login_as(client, "bob", sessions=handstamp_sessions)
    assert get(client) == Seen(200, "bob")
    stolen.into(client)
    assert get(client) == Seen(200, "alice")


def test_p5_a_client_sees_an_outage_as_a_503(
    client: Any, handstamp_sessions: Sessions
) -> None:
    """It is the framework's own answer. After the outage all is as before."""
    login_as(client, "alice", sessions=handstamp_sessions)
    assert get(client).status == 200
    with outage(handstamp_sessions):
        assert get(client).status == 503
    assert get(client) == Seen(200, "alice")


def test_two_users_at_once_are_two_clients(handstamp_sessions: Sessions) -> None:
    """Each client of one application keeps its own user."""
    flask_client = flask(handstamp_sessions)
    other = flask_client.application.test_client()
    login_as(flask_client, "alice", sessions=handstamp_sessions)
    login_as(other, "bob", sessions=handstamp_sessions)
    assert [get(c).text for c in (flask_client, other, flask_client)] == [
        "alice",
        "bob",
        "alice",
    ]


def test_flask_s_cookies_are_set_for_the_server_name(
    handstamp_sessions: Sessions,
) -> None:
    """The name has a host and a port."""
    client = flask(handstamp_sessions)
    client.application.config["SERVER_NAME"] = "shop.example:8443"
    login_as(client, "alice", sessions=handstamp_sessions)
    assert get(client) == Seen(200, "alice")


async def test_litestar_s_async_client_is_signed_in_without_a_lifespan(
    handstamp_sessions: Sessions,
) -> None:
    """Each of its requests has an event loop of its own, not that of the test."""
    client = litestar_async(handstamp_sessions)
    await alogin_as(client, "alice", sessions=handstamp_sessions)
    handstamp_sessions._state.cache.doubt()  # so that the engine has to open
    assert await aget(client) == Seen(200, "alice")


def test_flask_s_cookies_are_set_for_their_path(handstamp_sessions: Sessions) -> None:
    """The jar finds them under that path only."""
    flask = pytest.importorskip("flask")
    from handstamp.flask import SessionAuth

    app = flask.Flask("tests", root_path=".")
    cookies = Cookies(session_name="s", refresh_name="r", path="/app")
    SessionAuth(app, handstamp_sessions, cookies=cookies)
    client = app.test_client()
    login_as(client, "alice", sessions=app.wsgi_app)  # type: ignore[arg-type]
    assert client.get_cookie("s", path="/app") is not None
    assert client.get_cookie("s") is None


async def test_quart_s_cookies_are_set_for_the_server_name(
    handstamp_sessions: Sessions, handstamp_clock: FrozenClock
) -> None:
    """Otherwise a rotation would add cookies beside them."""
    async with quarted(handstamp_sessions) as client:
        client.app.config["SERVER_NAME"] = "shop.example"
        await alogin_as(client, "alice", sessions=handstamp_sessions)
        handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
        assert await aget(client) == Seen(200, "alice")
        assert sorted(cookie.name for cookie in client.cookie_jar) == sorted(NAMES)


def test_a_client_without_a_jar_is_an_error(handstamp_sessions: Sessions) -> None:
    """For example the client of Flask with use_cookies=False."""
    client = flask(handstamp_sessions)
    cookieless = client.application.test_client(use_cookies=False)
    with pytest.raises((ConfigError, TypeError), match="ookies"):
        login_as(cookieless, "alice", sessions=handstamp_sessions)


def test_webtest_over_plain_http_is_an_error(handstamp_sessions: Sessions) -> None:
    """Its jar does not send Secure cookies; the error says how to make the client."""
    webtest = pytest.importorskip("webtest")
    client = webtest.TestApp(over_wsgi(handstamp_sessions))
    with pytest.raises(ConfigError, match=r"wsgi\.url_scheme"):
        login_as(client, "alice", sessions=handstamp_sessions)


def test_falcon_s_default_headers_are_kept(handstamp_sessions: Sessions) -> None:
    """The Cookie header is added to them."""
    client = falcon_wsgi(handstamp_sessions)
    login_as(client, "alice", sessions=handstamp_sessions)
    assert client._default_headers["Accept"] == "text/plain"
    assert set(client._default_headers) == {"Accept", "Cookie"}


WRAPPED = "Write sessions=app, where app is what wrap"
ADVICE = {
    **dict.fromkeys(("starlette", "starlette_inside", "fastapi", "litestar"), WRAPPED),
    **dict.fromkeys(("litestar_plugin", "litestar_async"), WRAPPED),
    **dict.fromkeys(("falcon_wsgi", "falcon_asgi", "falcon_conductor"), WRAPPED),
    "flask": r"Write sessions=app\.wsgi_app",
    "quart": r"Write sessions=app\.asgi_app",
    **dict.fromkeys(("pyramid", "bottle", "bare_wsgi"), "SessionAuthPlugin"),
    **dict.fromkeys(("httpx_wsgi", "httpx_asgi"), "app is the SessionAuthMiddleware"),
}
"""What the error says, for each client of `SYNC` and `ASYNC`."""


@pytest.mark.parametrize("given", [None, "app"])
@pytest.mark.parametrize("make", SYNC + ASYNC, ids=lambda make: make.__name__)
async def test_without_an_engine_the_error_says_what_to_write(
    make: Make, given: Any, handstamp_sessions: Sessions
) -> None:
    """For the framework of the client, in each function that needs the engine."""
    client, advice = make(handstamp_sessions), ADVICE[make.__name__]
    with pytest.raises(ConfigError, match=advice):
        steal(client, sessions=given)
    signing_in: Any = alogin_as if make in ASYNC else login_as
    with pytest.raises(ConfigError, match=advice):
        await signing_in(client, "alice", sessions=given)


@pytest.mark.parametrize("make", [flask, bottle, falcon_wsgi, starlette])
def test_what_the_error_says_to_write_works(
    make: Make, handstamp_sessions: Sessions
) -> None:
    """The middleware is public where these frameworks keep it."""
    client = make(handstamp_sessions)
    where = {
        flask: lambda: client.application.wsgi_app,
        bottle: lambda: handstamp_sessions,
        falcon_wsgi: lambda: client.app,
        starlette: lambda: client.app,
    }
    login_as(client, "alice", sessions=where[make]())
    assert get(client) == Seen(200, "alice")


async def test_what_the_error_says_to_write_works_for_quart(
    handstamp_sessions: Sessions,
) -> None:
    """The same with await."""
    async with quarted(handstamp_sessions) as client:
        await alogin_as(client, "alice", sessions=client.app.asgi_app)
        assert await aget(client) == Seen(200, "alice")
