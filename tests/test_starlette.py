"""Starlette: `request.user`, `request.auth`, `@requires`, and its own 503.

By number where the catalogue of attacks has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from handstamp.errors import ConfigError
from handstamp.events import Refreshed
from handstamp.starlette import (
    SessionAuthMiddleware,
    exception_handlers,
    session_auth,
    wrap,
)
from handstamp.testing import login_as, outage
from tests.support.browsers import DENIED, TestClient, browser
from tests.support.engines import Engine

NAMES = {"__Host-session", "__Host-refresh"}


async def login(request: Request) -> Response:
    user = request.query_params.get("user", "alice")
    await session_auth(request).login(user, remember=True)
    return Response(status_code=204)


async def logout(request: Request) -> Response:
    await session_auth(request).logout()
    return Response(status_code=204)


async def me(request: Request) -> Response:
    user = request.user
    return JSONResponse([user.is_authenticated, user.identity, user.display_name])


def sync_me(request: Request) -> Response:
    return JSONResponse([request.user.identity, list(request.auth.scopes)])


@requires("authenticated")
async def secret(request: Request) -> Response:
    return PlainTextResponse(request.user.session.user_id)


@requires("authenticated")
def sync_secret(request: Request) -> Response:
    return PlainTextResponse(request.user.identity)


@requires("authenticated", redirect="public")
async def redirected(request: Request) -> Response:
    return PlainTextResponse("in")


async def required(request: Request) -> Response:
    return PlainTextResponse(session_auth(request).require().user_id)


async def public(request: Request) -> Response:
    return PlainTextResponse("hello")


async def stream(request: Request) -> Response:
    return StreamingResponse(iter(["a", request.user.identity, "b"]))


async def broken(request: Request) -> Response:
    raise ValueError


@requires("authenticated")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json({"user_id": websocket.user.identity})
    with suppress(WebSocketDisconnect):
        await websocket.receive_text()


async def requiring_socket(websocket: WebSocket) -> None:
    session_auth(websocket).require()
    await websocket.accept()


ROUTES = [
    Route("/login", login, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
    Route("/me", me),
    Route("/sync-me", sync_me),
    Route("/secret", secret),
    Route("/sync-secret", sync_secret),
    Route("/redirected", redirected),
    Route("/required", required),
    Route("/public", public, name="public"),
    Route("/stream", stream),
    Route("/broken", broken),
    Mount("/mounted", routes=[Route("/me", me)]),
    WebSocketRoute("/ws", socket),
    WebSocketRoute("/ws-required", requiring_socket),
]


def outside(engine: Engine, **options: Any) -> Any:
    return wrap(Starlette(routes=ROUTES), engine.sessions, **options)


def inside(engine: Engine, **options: Any) -> Any:
    middleware = [Middleware(SessionAuthMiddleware, sessions=engine.sessions, **options)]
    return Starlette(routes=ROUTES, middleware=middleware)


def inside_with_handlers(engine: Engine) -> Any:
    return Starlette(
        routes=ROUTES,
        middleware=[Middleware(SessionAuthMiddleware, sessions=engine.sessions)],
        exception_handlers=dict(exception_handlers),
    )


Serving = Callable[[Engine], Any]


@pytest.fixture
def engine() -> Engine:
    """One process on a store in memory; the test client's loop opens it."""
    return Engine()


@pytest.fixture(params=[outside, inside, inside_with_handlers])
def client(request: pytest.FixtureRequest, engine: Engine) -> Iterator[TestClient]:
    """A browser, for each way of putting the middleware around the application."""
    with browser(request.param(engine)) as client:
        yield client


def test_a_user_logs_in_and_out(client: TestClient) -> None:
    """`request.user` follows."""
    assert client.get("/me").json() == [False, "", ""]
    assert client.post("/login").status_code == 204
    assert set(client.cookies) == NAMES
    assert client.get("/me").json() == [True, "alice", "alice"]
    assert client.post("/logout").status_code == 204
    assert set(client.cookies) == set()
    assert client.get("/me").json() == [False, "", ""]


def test_a_sync_endpoint_has_the_user_too(client: TestClient, engine: Engine) -> None:
    """It runs in a thread."""
    login_as(client, "alice", remember=True, sessions=engine.sessions)
    assert client.get("/sync-me").json() == ["alice", ["authenticated"]]


@pytest.mark.parametrize("path", ["/secret", "/sync-secret"])
def test_requires_authenticated(client: TestClient, path: str, engine: Engine) -> None:
    """The framework's own 403 without a session."""
    assert client.get(path).status_code == 403
    login_as(client, "alice", remember=True, sessions=engine.sessions)
    assert (client.get(path).status_code, client.get(path).text) == (200, "alice")


def test_requires_may_redirect(client: TestClient) -> None:
    """As Starlette documents it."""
    response = client.get("/redirected")
    assert (response.status_code, response.headers["location"].split("?")[0]) == (
        303,
        "https://testserver/public",
    )


def test_require_is_a_401(client: TestClient, engine: Engine) -> None:
    """Raised by the handle, answered by us."""
    assert client.get("/required").status_code == 401
    login_as(client, "alice", remember=True, sessions=engine.sessions)
    assert client.get("/required").text == "alice"


def test_a_mounted_application_has_the_user(client: TestClient, engine: Engine) -> None:
    """The scope of a mount is a copy with the same handle."""
    login_as(client, "alice", remember=True, sessions=engine.sessions)
    assert client.get("/mounted/me").json()[1] == "alice"


def test_a_stream_is_streamed(client: TestClient, engine: Engine) -> None:
    """With the user asked while it is made."""
    login_as(client, "alice", remember=True, sessions=engine.sessions)
    assert client.get("/stream").text == "aaliceb"


def test_an_expired_session_is_refreshed(client: TestClient, engine: Engine) -> None:
    """The browser has the new pair of cookies, which works."""
    login_as(client, "alice", remember=True, sessions=engine.sessions)
    old = dict(client.cookies)
    engine.clock.advance(engine.policy.session_ttl)
    assert client.get("/public").headers["cache-control"] == "private, no-store"
    assert all(client.cookies[name] != old[name] for name in NAMES)
    assert client.get("/me").json()[1] == "alice"
    assert len(engine.of(Refreshed)) == 1


@pytest.mark.parametrize(
    "path", ["/me", "/sync-me", "/secret", "/sync-secret", "/required"]
)
def test_p5_reading_the_session_in_an_outage_is_a_503(
    client: TestClient, engine: Engine, path: str
) -> None:
    """With Retry-After, whichever way is asked, and the cookies stay."""
    login_as(client, "alice", remember=True, sessions=engine.sessions)
    cookies = dict(client.cookies)
    engine.clock.advance(engine.policy.session_ttl)
    with outage(engine.sessions):
        response = client.get(path)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "set-cookie" not in response.headers
        assert dict(client.cookies) == cookies
    assert client.get(path).status_code == 200


def test_p5_not_reading_the_session_in_an_outage_is_a_200(
    client: TestClient, engine: Engine
) -> None:
    """And no user is logged out."""
    login_as(client, "alice", remember=True, sessions=engine.sessions)
    engine.clock.advance(engine.policy.session_ttl)
    with outage(engine.sessions):
        response = client.get("/public")
        assert (response.status_code, "set-cookie" in response.headers) == (200, False)


def test_c102_public_pages_stay_cacheable(client: TestClient) -> None:
    """No Vary for somebody without our cookie on a page that does not ask."""
    assert "vary" not in client.get("/public").headers
    assert client.get("/me").headers["vary"] == "Cookie"
    client.post("/login")
    assert client.get("/public").headers["vary"] == "Cookie"


def test_a_socket_has_the_user(client: TestClient, engine: Engine) -> None:
    """And is refused without one."""
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("wss://testserver/ws"),
    ):
        pass
    login_as(client, "alice", remember=True, sessions=engine.sessions)
    with client.websocket_connect("wss://testserver/ws") as ws:
        assert ws.receive_json() == {"user_id": "alice"}
        ws.send_text("bye")


def test_a_revoked_session_closes_its_socket(client: TestClient, engine: Engine) -> None:
    """4401, from a logout in the same browser."""
    login_as(client, "alice", remember=True, sessions=engine.sessions)
    with client.websocket_connect("wss://testserver/ws") as ws:
        ws.receive_json()
        client.post("/logout")
        with pytest.raises(WebSocketDisconnect) as closed:
            ws.receive_json()
    assert closed.value.code == 4401


@pytest.mark.parametrize("down", [False, True])
def test_a_socket_without_a_session_is_denied(
    client: TestClient, engine: Engine, down: bool
) -> None:
    """Without a session, and in an outage: a refused handshake and no crash."""
    if down:
        login_as(client, "alice", remember=True, sessions=engine.sessions)
        engine.clock.advance(engine.policy.session_ttl)
        engine.store.down = True
    refused = pytest.raises(DENIED)
    with refused as denial, client.websocket_connect("wss://testserver/ws-required"):
        pass
    code = getattr(denial.value, "code", None)
    status = getattr(denial.value, "status_code", None)
    assert (code, status) in (
        [(1013, None), (None, 503)] if down else [(4401, None), (None, 401)]
    )
    engine.store.down = False


def test_c157_a_cookie_on_an_unhandled_error(engine: Engine) -> None:
    """Wrapped from outside it leaves with the 500; from inside it is lost and unseen,
    so the next request is given the same pair again."""
    for make in (outside, inside):
        engine = Engine()
        with browser(make(engine), raise_server_exceptions=False) as client:
            login_as(client, "alice", remember=True, sessions=engine.sessions)
            engine.clock.advance(engine.policy.session_ttl)
            response = client.get("/broken")
            assert response.status_code == 500
            assert ("set-cookie" in response.headers) is (make is outside)
            assert client.get("/me").json()[1] == "alice"
            assert len(engine.of(Refreshed)) == 1


def test_c156_starlettes_own_sessions_stay_theirs(engine: Engine) -> None:
    """No clash of keys, cookies or Vary."""

    async def count(request: Request) -> Response:
        request.session["n"] = request.session.get("n", 0) + 1
        return JSONResponse([request.session["n"], request.user.identity])

    app = Starlette(
        routes=[*ROUTES, Route("/count", count)],
        middleware=[Middleware(SessionMiddleware, secret_key="x" * 32)],
    )
    with browser(wrap(app, engine.sessions)) as client:
        login_as(client, "alice", remember=True, sessions=engine.sessions)
        assert [client.get("/count").json() for _ in range(2)] == [
            [1, "alice"],
            [2, "alice"],
        ]
        assert set(client.cookies) == {*NAMES, "session"}


def test_a_handler_of_the_application_wins(engine: Engine) -> None:
    """Who has an answer of their own for an error of ours keeps it."""
    kind = next(iter(exception_handlers))

    async def mine(request: Request, exc: Exception) -> Response:
        return PlainTextResponse("mine", status_code=418)

    app = Starlette(routes=ROUTES, exception_handlers={kind: mine})
    with browser(wrap(app, engine.sessions)) as client:
        assert client.get("/required").status_code == 418


def test_without_a_middleware_the_error_says_what_to_do() -> None:
    """And is no error of the client's."""
    with (
        browser(Starlette(routes=ROUTES)) as client,
        pytest.raises(ConfigError, match="wrap"),
    ):
        client.get("/required")


def test_c147_two_browsers_are_two_users(client: TestClient, engine: Engine) -> None:
    """On one server, in turns."""
    client.post("/login?user=alice")
    alice = dict(client.cookies)
    client.cookies.clear()
    client.post("/login?user=bob")
    bob = dict(client.cookies)
    for cookies, name in [(alice, "alice"), (bob, "bob")] * 3:
        client.cookies.clear()
        client.cookies.update(cookies)
        assert client.get("/me").json()[1] == name
