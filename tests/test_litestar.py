"""Litestar: guards, dependencies, `request.user`, its own errors, and its OpenAPI document.

By number where the catalogue of attacks has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from litestar import Litestar, Request, Response, WebSocket, asgi, get, post, websocket
from litestar.config.response_cache import ResponseCacheConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import WebSocketDisconnect
from litestar.handlers import websocket_listener
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.testing import AsyncTestClient, TestClient

from handstamp.core.models import Session
from handstamp.errors import ConfigError, HandstampError
from handstamp.events import CookieOverridden, Refreshed
from handstamp.litestar import (
    CurrentSession,
    Handle,
    SessionAuth,
    SessionAuthPlugin,
    SessionUser,
    dependencies,
    requires_fresh,
    requires_level,
    requires_session,
    session_auth,
    wrap,
)
from tests.support.engines import Engine, listening

WSS = "wss://testserver.local"
NAMES = {"__Host-session", "__Host-refresh"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
AuthRequest = Request[SessionUser, Handle, State]
AuthSocket = WebSocket[SessionUser, Handle, State]


@post("/login", status_code=204, exclude_from_auth=True)
async def login(request: AuthRequest) -> None:
    user = request.query_params.get("user", "alice")
    await request.auth.login(user, remember=True)


@post("/logout", status_code=204, exclude_from_auth=True)
async def logout(session_auth: SessionAuth) -> None:
    await session_auth.logout()


@get("/me", exclude_from_auth=True)
async def me(request: AuthRequest) -> list[Any]:
    return [request.user.is_authenticated, request.user.id, request.user.session is None]


@get("/sync-me", sync_to_thread=True)
def sync_me(request: AuthRequest) -> str | None:
    return request.user.id


@get("/secret", guards=[requires_session])
async def secret(request: AuthRequest) -> str | None:
    return request.user.id


@get("/injected")
async def injected(current_session: CurrentSession) -> str:
    return current_session.user_id


@get("/fresh", guards=[requires_fresh(within=timedelta(minutes=5))])
async def fresh() -> str:
    return "fresh"


@get("/level", guards=[requires_level(2)])
async def level() -> str:
    return "level"


@get("/required")
async def required(request: AuthRequest) -> str:
    return session_auth(request).require().user_id


@get("/public")
async def public() -> str:
    return "hello"


@get("/broken")
async def broken() -> None:
    raise ValueError


@websocket("/ws", guards=[requires_session])
async def socket(socket: AuthSocket) -> None:
    await socket.accept()
    await socket.send_json({"user_id": socket.user.id})
    try:
        await socket.receive_text()
    except WebSocketDisconnect:
        return


@websocket("/ws-late")
async def late_socket(socket: AuthSocket) -> None:
    await socket.accept()
    socket.auth.require(level=9)


@websocket("/ws-injected")
async def injected_socket(socket: AuthSocket, current_session: CurrentSession) -> None:
    await socket.accept()
    await socket.send_text(current_session.user_id)


@websocket_listener("/listener", guards=[requires_session])
async def listener(data: str) -> str:
    return data


HANDLERS = [
    *(login, logout, me, sync_me, secret, injected, fresh, level, required, public, broken),
    *(socket, late_socket, injected_socket, listener),
]
PLUGGED_OUT = "raised by a middleware of the application"


def wrapped(engine: Engine, *more: Any, **settings: Any) -> Any:
    settings = {"dependencies": dependencies, **settings}
    return wrap(Litestar([*HANDLERS, *more], **settings), engine.sessions)


def plugged(engine: Engine, *more: Any, **settings: Any) -> Any:
    return Litestar(
        [*HANDLERS, *more], plugins=[SessionAuthPlugin(engine.sessions)], **settings
    )


def both(engine: Engine, *more: Any, **settings: Any) -> Any:
    return wrap(plugged(engine, *more, **settings), engine.sessions)


Serving = Callable[..., Any]
each_way = pytest.mark.parametrize("serving", [wrapped, plugged, both])


def browser(app: Any, **options: Any) -> TestClient[Any]:
    """Litestar's own test client, over https for Secure cookies."""
    return TestClient(app, base_url="https://testserver.local", **options)


@pytest.fixture
def engine() -> Engine:
    """One process on a store in memory; the test client's loop opens it."""
    return Engine()


@pytest.fixture(params=[wrapped, plugged, both])
def client(request: pytest.FixtureRequest, engine: Engine) -> Iterator[TestClient[Any]]:
    """A browser, for each way of putting the sessions around the application."""
    with browser(request.param(engine)) as client:
        yield client


def test_a_user_logs_in_and_out(client: TestClient[Any]) -> None:
    """`request.user` and the client's cookies change."""
    assert client.get("/me").json() == [False, None, True]
    assert client.post("/login").status_code == 204
    assert set(client.cookies) == NAMES
    assert client.get("/me").json() == [True, "alice", False]
    assert client.post("/logout").status_code == 204
    assert set(client.cookies) == set()
    assert client.get("/me").json() == [False, None, True]


def test_a_sync_handler_has_the_user_too(client: TestClient[Any]) -> None:
    """It runs in a thread."""
    client.post("/login")
    assert client.get("/sync-me").text == "alice"


@pytest.mark.parametrize("path", ["/secret", "/injected", "/fresh", "/required"])
def test_a_guard_and_a_dependency_refuse_with_401(
    client: TestClient[Any], path: str
) -> None:
    """Litestar's own answer, and 200 once there is a session."""
    response = client.get(path)
    assert response.status_code == 401
    assert response.json() == {"status_code": 401, "detail": "sign in first"}
    client.post("/login")
    assert client.get(path).status_code == 200


def test_an_old_sign_in_is_not_fresh(client: TestClient[Any], engine: Engine) -> None:
    """The guard counts from the sign-in, whatever was refreshed since."""
    client.post("/login")
    engine.clock.advance(timedelta(minutes=5, seconds=1))
    response = client.get("/fresh")
    assert (response.status_code, client.get("/secret").status_code) == (401, 200)
    assert "sign in again" in response.json()["detail"]


def test_a_guard_requires_a_trust_level(client: TestClient[Any]) -> None:
    """403 for a session without one."""
    assert client.get("/level").status_code == 401
    client.post("/login")
    assert client.get("/level").status_code == 403


@each_way
def test_a_guarded_application_opens_what_opts_out(
    engine: Engine, serving: Serving
) -> None:
    """`exclude_from_auth=True` on a route; every other one is refused."""
    with browser(serving(engine, guards=[requires_session])) as client:
        assert client.get("/me").status_code == 200
        assert client.get("/public").status_code == 401
        client.post("/login")
        assert client.get("/public").status_code == 200


def test_an_expired_session_is_refreshed(client: TestClient[Any], engine: Engine) -> None:
    """The browser has the new pair of cookies, which works; nothing was overridden."""
    client.post("/login")
    old = dict(client.cookies)
    engine.clock.advance(engine.policy.session_ttl)
    response = client.get("/public")
    assert response.headers["cache-control"] == "private, no-store"
    assert len(response.headers.get_list("set-cookie")) == 2
    assert all(client.cookies[name] != old[name] for name in NAMES)
    assert client.get("/me").json()[1] == "alice"
    assert len(engine.of(Refreshed)) == 1
    assert engine.of(CookieOverridden) == []


PATHS = ["/me", "/sync-me", "/secret", "/injected", "/required"]


@pytest.mark.parametrize("path", PATHS)
def test_p5_reading_the_session_in_an_outage_is_a_503(
    client: TestClient[Any], engine: Engine, path: str
) -> None:
    """With Retry-After, whichever way is asked, and the cookies stay."""
    client.post("/login")
    cookies = dict(client.cookies)
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    response = client.get(path)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["detail"] == "temporarily unavailable"
    assert "set-cookie" not in response.headers
    assert dict(client.cookies) == cookies
    engine.store.down = False
    assert client.get(path).status_code == 200


def test_p5_not_reading_the_session_in_an_outage_is_a_200(
    client: TestClient[Any], engine: Engine
) -> None:
    """And no user is logged out."""
    client.post("/login")
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    response = client.get("/public")
    assert (response.status_code, "set-cookie" in response.headers) == (200, False)
    engine.store.down = False


def test_c102_public_pages_stay_cacheable(client: TestClient[Any]) -> None:
    """No Vary for somebody without our cookie on a page that does not ask."""
    assert "vary" not in client.get("/public").headers
    assert client.get("/me").headers["vary"] == "Cookie"
    client.post("/login")
    assert client.get("/public").headers["vary"] == "Cookie"


def test_a_socket_has_the_user(client: TestClient[Any]) -> None:
    """And its handshake is refused with 4401 without one."""
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        client.websocket_connect(WSS + "/ws"),
    ):
        pass
    assert refused.value.code == 4401
    client.post("/login")
    with client.websocket_connect(WSS + "/ws") as ws:
        assert ws.receive_json() == {"user_id": "alice"}
        ws.send_text("bye")
    with client.websocket_connect(WSS + "/ws-injected") as ws:
        assert ws.receive_text() == "alice"


@pytest.mark.parametrize("path", ["/ws", "/listener"])
def test_a_revoked_session_closes_its_socket(client: TestClient[Any], path: str) -> None:
    """4401, after a logout in the same browser, and without a log line."""
    client.post("/login")
    with client.websocket_connect(WSS + path) as ws:
        if path == "/ws":
            ws.receive_json()
        client.post("/logout")
        with pytest.raises(WebSocketDisconnect) as closed:
            ws.receive_text()
    assert closed.value.code == 4401


def test_a_socket_in_an_outage_is_closed_with_1013(
    client: TestClient[Any], engine: Engine
) -> None:
    """1013, by the guard, and no crash."""
    client.post("/login")
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        client.websocket_connect(WSS + "/ws"),
    ):
        pass
    assert refused.value.code == 1013
    engine.store.down = False


def test_an_accepted_socket_is_closed_with_the_code_of_the_error(
    client: TestClient[Any],
) -> None:
    """By its own code, and not with Litestar's 4500."""
    for code in (4401, 1008):
        with client.websocket_connect(WSS + "/ws-late") as ws:
            with pytest.raises(WebSocketDisconnect) as closed:
                ws.receive_text()
            assert closed.value.code == code
        client.post("/login")


@each_way
def test_c157_a_cookie_on_an_unhandled_error(engine: Engine, serving: Serving) -> None:
    """It is on Litestar's 500, and is used."""
    with browser(serving(engine), raise_server_exceptions=False) as client:
        client.post("/login")
        engine.clock.advance(engine.policy.session_ttl)
        response = client.get("/broken")
        assert response.status_code == 500
        assert len(response.headers.get_list("set-cookie")) == 2
        assert client.get("/me").json()[1] == "alice"
        assert len(engine.of(Refreshed)) == 1


def failing(app: Any) -> Any:
    """A middleware of the application that fails after what is inside has run."""

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/public":
            raise ValueError(PLUGGED_OUT)
        await app(scope, receive, send)

    return middleware


@each_way
def test_c157_a_cookie_on_an_error_of_another_middleware(
    engine: Engine, serving: Serving
) -> None:
    """Litestar makes this 500 outside of all middleware, and the pair is on it."""
    app = serving(engine, middleware=[failing])
    with browser(app, raise_server_exceptions=False) as client:
        client.post("/login")
        engine.clock.advance(engine.policy.session_ttl)
        response = client.get("/public")
        assert response.status_code == 500
        assert len(response.headers.get_list("set-cookie")) == 2
        assert engine.of(CookieOverridden) == []


@each_way
def test_a_cached_response_carries_no_cookie_of_somebody_else(
    engine: Engine, serving: Serving
) -> None:
    """Litestar's response cache is inside of the middleware, and never has our cookies."""

    @get("/cached", cache=60)
    async def cached() -> str:
        return "the same for all"

    config = ResponseCacheConfig(default_expiration=60)
    with browser(serving(engine, cached, response_cache_config=config)) as client:
        client.post("/login")
        engine.clock.advance(engine.policy.session_ttl)
        assert "set-cookie" in client.get("/cached").headers
        client.cookies.clear()
        response = client.get("/cached")
        assert (response.text, "set-cookie" in response.headers) == (
            "the same for all",
            False,
        )


@each_way
def test_c156_litestars_own_sessions_stay_theirs(engine: Engine, serving: Serving) -> None:
    """No clash of keys or cookies, and an id that was planted there is none of ours."""

    @get("/count")
    async def count(request: AuthRequest) -> list[Any]:
        request.session["n"] = request.session.get("n", 0) + 1
        return [request.session["n"], request.user.id]

    theirs = ServerSideSessionConfig(secure=True)
    with browser(serving(engine, count, middleware=[theirs.middleware])) as client:
        client.cookies.set("session", "planted", domain="testserver.local")
        client.post("/login")
        assert [client.get("/count").json() for _ in range(2)] == [
            [1, "alice"],
            [2, "alice"],
        ]
        assert {*NAMES, "session"} == set(client.cookies)
        assert "planted" not in {client.cookies[name] for name in NAMES}
        assert "planted" not in str(engine.store.rows)
        client.post("/logout")
        assert client.get("/count").json() == [3, None]


@each_way
def test_litestars_own_sessions_may_not_have_our_cookie(
    engine: Engine, serving: Serving
) -> None:
    """Both would write it; the application does not start."""
    theirs = ServerSideSessionConfig(key="__Host-session")
    with pytest.raises(ConfigError, match="another key"):
        serving(engine, middleware=[theirs.middleware])


@each_way
def test_a_handler_of_the_application_wins(engine: Engine, serving: Serving) -> None:
    """Who has an answer of their own for an error of ours keeps it."""

    def mine(request: AuthRequest, exc: HandstampError) -> Response[str]:
        return Response("mine", status_code=418)

    app = serving(engine, exception_handlers={HandstampError: mine})
    with browser(app) as client:
        assert client.get("/required").status_code == 418


@each_way
def test_a_dependency_of_the_application_wins(engine: Engine, serving: Serving) -> None:
    """Theirs of the same name is used, in the way Litestar documents it."""

    theirs = Session(
        id="1", user_id="theirs", created_at=NOW, expires_at=NOW, last_activity_at=None
    )
    provided = {"current_session": Provide(lambda: theirs, sync_to_thread=False)}

    @get("/named", dependencies=provided)
    async def named(current_session: CurrentSession) -> str:
        return current_session.user_id

    with browser(serving(engine, named)) as client:
        assert client.get("/named").text == "theirs"


def test_without_a_middleware_the_error_says_what_to_do() -> None:
    """On Litestar's page for developers, and nothing of it to clients."""
    for debug in (True, False):
        with browser(Litestar(HANDLERS, dependencies=dependencies, debug=debug)) as client:
            response = client.get("/required")
        assert response.status_code == 500
        assert ("wrap the application" in response.text) is debug


@each_way
def test_an_error_with_status_500_reaches_the_server(
    engine: Engine, serving: Serving
) -> None:
    """No answer of ours hides it, and its text does not reach the client."""

    @get("/misconfigured")
    async def misconfigured() -> None:
        raise ConfigError("the operator should know")

    app = serving(engine, misconfigured)
    with browser(app) as client, pytest.raises(ConfigError):
        client.get("/misconfigured")


@each_way
def test_the_document_shows_the_cookie_where_it_is_required(
    engine: Engine, serving: Serving
) -> None:
    """Beside the schemes that the application has; not on routes without a guard."""
    theirs = Components(
        security_schemes={"key": SecurityScheme(type="http", scheme="basic")}
    )
    config = OpenAPIConfig(title="t", version="1", components=theirs)
    with browser(serving(engine, openapi_config=config)) as client:
        document = client.get("/schema/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert set(schemes) == {"key", "session"}
    described = {k: schemes["session"][k] for k in ("type", "name", "in")}
    assert described == {"type": "apiKey", "name": "__Host-session", "in": "cookie"}
    assert document["paths"]["/secret"]["get"]["security"] == [{"session": []}]
    assert document["paths"]["/fresh"]["get"]["security"] == [{"session": []}]
    assert "security" not in document["paths"]["/public"]["get"]


@each_way
def test_the_document_shows_what_a_guarded_application_leaves_open(
    engine: Engine, serving: Serving
) -> None:
    """A route with the opt asks for no cookie; every other one does."""
    with browser(serving(engine, guards=[requires_session])) as client:
        client.post("/login")  # the document is guarded as well
        paths = client.get("/schema/openapi.json").json()["paths"]
    assert paths["/public"]["get"]["security"] == [{"session": []}]
    assert "security" not in paths["/me"]["get"]


@each_way
def test_a_document_is_not_needed(engine: Engine, serving: Serving) -> None:
    """An application without OpenAPI works as well."""
    with browser(serving(engine, openapi_config=None)) as client:
        client.post("/login")
        assert client.get("/secret").text == "alice"


@each_way
def test_a_mounted_application_has_the_handle(engine: Engine, serving: Serving) -> None:
    """An ASGI application below Litestar finds it in its scope."""

    @asgi("/mounted", is_mount=True, copy_scope=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        user = scope["handstamp"].user_id
        await Response(user).to_asgi_response(None, Request(scope))(scope, receive, send)

    with browser(serving(engine, mounted)) as client:
        client.post("/login")
        assert "alice" in client.get("/mounted/").text


@each_way
async def test_the_asynchronous_test_client_works(engine: Engine, serving: Serving) -> None:
    """It opens the engine on the loop of the test."""
    app = serving(engine)
    async with AsyncTestClient(app, base_url="https://testserver.local") as client:
        await client.post("/login")
        assert (await client.get("/secret")).text == "alice"
        response = await client.get("/secret", headers={"Cookie": ""})
        assert response.status_code == 401


@each_way
def test_the_engine_is_open_while_the_application_is(
    engine: Engine, serving: Serving
) -> None:
    """The lifespan opens and closes it, the application's own hooks within."""
    seen = []

    async def at_the_end() -> None:
        await listening(engine)
        seen.append(await engine.sessions.list_for_user("alice"))

    with browser(serving(engine, on_shutdown=[at_the_end])) as client:
        client.post("/login")
    assert [session.user_id for session in seen[0]] == ["alice"]
    assert engine.sessions._loop is None


@each_way
def test_a_write_of_another_site_is_refused(engine: Engine, serving: Serving) -> None:
    """With our cookies before anything of the application runs, without them in it."""
    with browser(serving(engine)) as client:
        headers = {"Sec-Fetch-Site": "cross-site"}
        response = client.post("/logout", headers=headers)
        assert (response.status_code, "set-cookie" in response.headers) == (403, False)
        client.post("/login")
        assert client.post("/logout", headers=headers).status_code == 403


def test_c147_two_browsers_are_two_users(client: TestClient[Any]) -> None:
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


def test_two_engines_around_one_application_are_refused(engine: Engine) -> None:
    """A plugin and a wrapping with another Sessions are a mistake of the operator's."""
    app = wrap(plugged(engine), Engine().sessions)
    with browser(app) as client, pytest.raises(ConfigError, match="same Sessions"):
        client.get("/me")
