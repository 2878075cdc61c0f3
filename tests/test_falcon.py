"""Falcon under ASGI and WSGI: hooks, `auth` on a resource, `req.context`, its own errors.

By number where the catalogue of attacks has one.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, ClassVar

import falcon
import falcon.asgi
import falcon.testing
import pytest

from handstamp.errors import AuthenticationRequired, ConfigError, HandstampError
from handstamp.events import CookieOverridden, Refreshed
from handstamp.falcon import SessionContext, requires_session, session_auth, wrap
from tests.support.asgi import serve, socket_scope
from tests.support.engines import Engine

NAMES = {"__Host-session", "__Host-refresh"}
SOON = timedelta(minutes=5)
Body = Callable[[Any, Any], Any]


def login(req: Any, resp: Any) -> Any:
    return session_auth(req).login(req.get_param("user") or "alice", remember=True)


def logout(req: Any, resp: Any) -> Any:
    return session_auth(req).logout()


def me(req: Any, resp: Any) -> None:
    resp.media = [req.context.user_id, req.context.session is None]


def required(req: Any, resp: Any) -> None:
    resp.text = req.context.handstamp.require().user_id


def name(req: Any, resp: Any) -> None:
    resp.text = req.context.user_id


def public(req: Any, resp: Any) -> None:
    resp.text = "hello"


def broken(req: Any, resp: Any) -> None:
    raise ValueError("nobody's business")


def misconfigured(req: Any, resp: Any) -> None:
    raise ConfigError("the operator should know")


def cookies(req: Any, resp: Any) -> None:
    resp.set_cookie("theme", "dark")
    resp.append_header("Set-Cookie", "lang=en; Path=/")
    resp.unset_cookie("old")


class Socket:
    auth: ClassVar = {"auth_disabled": False}

    async def on_websocket(self, req: Any, ws: Any) -> None:
        await ws.accept()
        try:
            await ws.send_media({"user_id": req.context.user_id})
            await ws.receive_text()
        except falcon.WebSocketDisconnected:
            return


class ReadingSocket(Socket):
    auth: ClassVar = {"exempt_methods": ["GET", "OPTIONS"]}

    async def on_get(self, req: Any, resp: Any) -> None:
        resp.media = "open"


class OpenSocket(Socket):
    auth: ClassVar = {"exempt_methods": ["WEBSOCKET"]}


class LateSocket:
    async def on_websocket(self, req: Any, ws: Any) -> None:
        await ws.accept()
        session_auth(req).require(level=9)


BODIES = {
    "/login": login,
    "/logout": logout,
    "/me": me,
    "/required": required,
    "/public": public,
    "/broken": broken,
    "/misconfigured": misconfigured,
    "/cookies": cookies,
}
RULES: dict[str, Any] = {
    "/ruled": {"auth_disabled": False},
    "/ruled-empty": {},
    "/open": {"auth_disabled": True},
    "/reading": {"exempt_methods": ["GET"]},
    "/ruled-level": {"level": 2},
    "/ruled-fresh": {"fresh_within": SOON},
    "/foreign": object(),
}
MISTAKES: dict[str, Any] = {
    "/typo": {"auth_disable": True},
    "/true": True,
    "/false": False,
    "/falcon-auth": {"backend": object()},
}
ASKING = [
    "/me",
    "/required",
    "/hooked",
    "/hooked-class",
    "/fresh",
    "/ruled",
    "/ruled-empty",
]
REFUSING = [path for path in ASKING if path != "/me"]


def sync_responder(body: Body) -> Any:
    def respond(self: Any, req: Any, resp: Any) -> None:
        body(req, resp)

    return respond


def async_responder(body: Body) -> Any:
    async def respond(self: Any, req: Any, resp: Any) -> None:
        answer = body(req, resp)
        if inspect.isawaitable(answer):
            await answer

    return respond


def populate(app: Any, responder: Callable[[Body], Any]) -> Any:
    """The same resources with responders of either kind, hooks and rules."""

    def resource(on: Any, **members: Any) -> type:
        methods = dict.fromkeys(["on_get", "on_post", "on_options"], on)
        return type("Resource", (), methods | members)

    signed_in = falcon.before(requires_session)
    for path, body in BODIES.items():
        app.add_route(path, resource(responder(body))())
    for path, auth in (RULES | MISTAKES).items():
        app.add_route(path, resource(responder(public), auth=auth)())
    app.add_route("/hooked", resource(signed_in(responder(name)))())
    app.add_route("/hooked-class", signed_in(resource(responder(name)))())
    fresh = falcon.before(requires_session, fresh_within=SOON)
    app.add_route("/fresh", resource(fresh(responder(public)))())
    level = falcon.before(requires_session, level=2)
    app.add_route("/level", resource(level(responder(public)))())
    return app


def sync_site(**options: Any) -> Any:
    return populate(falcon.App(**options), sync_responder)


def async_site(**options: Any) -> Any:
    app = populate(falcon.asgi.App(**options), async_responder)
    app.add_route("/ws", Socket())
    app.add_route("/ws-late", LateSocket())
    app.add_route("/ws-reading", ReadingSocket())
    app.add_route("/ws-open", OpenSocket())
    return app


Site = Callable[..., Any]


class Browser:
    """Falcon's own test client, which here keeps cookies."""

    def __init__(self, app: Any) -> None:
        self._client = falcon.testing.TestClient(app)
        self.cookies: dict[str, str] = {}

    def get(self, path: str, **options: Any) -> falcon.testing.Result:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> falcon.testing.Result:
        return self.request("POST", path, **options)

    def request(self, method: str, path: str, **options: Any) -> falcon.testing.Result:
        """One request with the cookies so far; keeps those that it sets."""
        header = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        headers = {"Cookie": header} if header else {}
        headers |= options.pop("headers", {})
        result = self._client.simulate_request(method, path, headers=headers, **options)
        for cookie in result.cookies.values():
            self.cookies.pop(cookie.name, None)
            if cookie.max_age != 0:
                self.cookies[cookie.name] = cookie.value
        return result


@pytest.fixture
def engine() -> Engine:
    """One process on a store in memory."""
    return Engine()


@pytest.fixture(params=[sync_site, async_site], ids=["wsgi", "asgi"])
def site(request: pytest.FixtureRequest) -> Site:
    """What makes the application, of either transport."""
    return request.param


@pytest.fixture
def client(site: Site, engine: Engine) -> Browser:
    """A browser on the application, of either transport."""
    return Browser(wrap(site(), engine.sessions))


def test_a_user_logs_in_and_out(client: Browser) -> None:
    """`req.context` and the client's cookies change."""
    assert client.get("/me").json == [None, True]
    assert client.post("/login").status_code == 200
    assert set(client.cookies) == NAMES
    assert client.get("/me").json == ["alice", False]
    assert client.post("/logout").status_code == 200
    assert set(client.cookies) == set()
    assert client.get("/me").json == [None, True]


@pytest.mark.parametrize("path", REFUSING)
def test_a_protected_resource_is_a_401_without_a_session(
    client: Browser, path: str
) -> None:
    """A hook on a responder or a class, `auth`, the handle: Falcon's own 401 by each."""
    response = client.get(path)
    assert response.status_code == 401
    assert response.json == {"title": "401 Unauthorized", "description": "sign in first"}
    client.post("/login")
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/fresh", "/ruled-fresh"])
def test_an_old_sign_in_is_not_fresh(client: Browser, engine: Engine, path: str) -> None:
    """By the hook and by the rule, whatever was refreshed since."""
    client.post("/login")
    assert client.get(path).status_code == 200
    engine.clock.advance(SOON + timedelta(seconds=1))
    assert (client.get(path).status_code, client.get("/ruled").status_code) == (401, 200)


@pytest.mark.parametrize("path", ["/level", "/ruled-level"])
def test_a_resource_requires_a_trust_level(client: Browser, path: str) -> None:
    """403 for a session without one."""
    assert client.get(path).status_code == 401
    client.post("/login")
    assert client.get(path).status_code == 403


def test_a_resource_says_which_methods_are_open(client: Browser) -> None:
    """`exempt_methods`; OPTIONS never needs a session."""
    assert client.get("/reading").status_code == 200
    assert client.post("/reading").status_code == 401
    assert client.request("OPTIONS", "/ruled").status_code == 200
    client.post("/login")
    assert client.post("/reading").status_code == 200


def test_a_resource_without_a_rule_is_open_unless_all_are_protected(
    site: Site, engine: Engine
) -> None:
    """`protect=True` turns the default round; `auth_disabled` is the way out, and an
    `auth` that is no rule changes nothing."""
    answers = {}
    for protect in (False, True):
        client = Browser(wrap(site(), engine.sessions, protect=protect))
        answers[protect] = [
            client.get(path).status_code for path in ("/public", "/foreign", "/open")
        ]
    assert answers == {False: [200, 200, 200], True: [401, 401, 200]}


@pytest.mark.parametrize("path", MISTAKES)
def test_an_invalid_rule_is_refused(client: Browser, path: str) -> None:
    """A typo must not open a resource."""
    with pytest.raises(ConfigError, match="auth_disabled"):
        client.get(path)


def test_several_cookies_stay_several_lines(client: Browser, engine: Engine) -> None:
    """The application's own three and our pair in one response."""
    client.post("/login")
    engine.clock.advance(engine.policy.session_ttl)
    response = client.get("/cookies")
    assert set(response.cookies) == {"theme", "lang", "old", *NAMES}
    assert response.cookies["lang"].value == "en"
    assert engine.of(CookieOverridden) == []


def test_an_expired_session_is_refreshed(client: Browser, engine: Engine) -> None:
    """The browser has the new pair of cookies, which works."""
    client.post("/login")
    old = dict(client.cookies)
    engine.clock.advance(engine.policy.session_ttl)
    assert client.get("/public").headers["cache-control"] == "private, no-store"
    assert all(client.cookies[name] != old[name] for name in NAMES)
    assert client.get("/me").json == ["alice", False]
    assert len(engine.of(Refreshed)) == 1


@pytest.mark.parametrize("path", ASKING)
def test_p5_reading_the_session_in_an_outage_is_a_503(
    client: Browser, engine: Engine, path: str
) -> None:
    """With Retry-After, whichever way is asked, and the cookies stay."""
    client.post("/login")
    cookies = dict(client.cookies)
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    response = client.get(path)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json["description"] == "temporarily unavailable"
    assert response.cookies == {}
    assert client.cookies == cookies
    engine.store.down = False


def test_p5_not_reading_the_session_in_an_outage_is_a_200(
    client: Browser, engine: Engine
) -> None:
    """And no user is logged out."""
    client.post("/login")
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    response = client.get("/public")
    assert (response.status_code, response.cookies) == (200, {})
    engine.store.down = False


def test_c102_public_pages_stay_cacheable(client: Browser) -> None:
    """No Vary for somebody without our cookie on a page that does not ask."""
    assert "vary" not in client.get("/public").headers
    assert client.get("/me").headers["vary"] == "Cookie"
    client.post("/login")
    assert client.get("/public").headers["vary"] == "Cookie"


def test_c157_a_cookie_on_an_unhandled_error(client: Browser, engine: Engine) -> None:
    """It is on Falcon's own 500, which does not contain the error."""
    client.post("/login")
    engine.clock.advance(engine.policy.session_ttl)
    response = client.get("/broken")
    assert (response.status_code, set(response.cookies)) == (500, NAMES)
    assert "nobody" not in response.text
    assert client.get("/me").json == ["alice", False]
    assert len(engine.of(Refreshed)) == 1


def test_an_error_with_status_500_reaches_the_server(client: Browser) -> None:
    """No answer of ours hides it."""
    with pytest.raises(ConfigError, match="operator"):
        client.get("/misconfigured")


def answering(status: str) -> Any:
    """An error handler of the application's own, for both transports."""

    async def for_both(req: Any, resp: Any, exc: Any, params: Any) -> None:
        resp.status = status

    def for_wsgi(req: Any, resp: Any, exc: Any, params: Any) -> None:
        resp.status = status

    return {sync_site: for_wsgi, async_site: for_both}


@pytest.mark.parametrize("kind", [HandstampError, AuthenticationRequired])
@pytest.mark.parametrize("early", [True, False])
def test_a_handler_of_the_application_wins(
    site: Site, engine: Engine, kind: type[Exception], early: bool
) -> None:
    """Registered before or after the wrapping, for all errors or one of them."""
    app, handler = site(), answering(falcon.HTTP_418)[site]
    if early:
        app.add_error_handler(kind, handler)
    wrapped = wrap(app, engine.sessions)
    if not early:
        app.add_error_handler(kind, handler)
    assert Browser(wrapped).get("/required").status_code == 418


class Earlier:
    """A middleware of the application's own, for both transports."""

    def process_request(self, req: Any, resp: Any) -> None:
        req.context.session = "a session of theirs"
        req.context.trace = "7"

    async def process_request_async(self, req: Any, resp: Any) -> None:
        self.process_request(req, resp)


def test_c156_what_the_application_keeps_in_its_context_stays(
    site: Site, engine: Engine
) -> None:
    """Also where it calls something of its own `session`."""
    app = site(middleware=[Earlier()])
    seen = []

    def look(req: Any, resp: Any) -> None:
        context = req.context
        seen.append([context.session, context["trace"], context.user_id])
        context.session = "set later"
        seen.append([context.session, context.handstamp.session.user_id])

    kind = sync_responder if site is sync_site else async_responder
    app.add_route("/look", type("Look", (), {"on_get": kind(look)})())
    client = Browser(wrap(app, engine.sessions))
    client.post("/login")
    assert client.get("/look").status_code == 200
    assert seen == [["a session of theirs", "7", "alice"], ["set later", "alice"]]


class OwnContext:
    pass


class DerivedContext(SessionContext):
    pass


@pytest.mark.parametrize("kind", [OwnContext, DerivedContext, dict])
def test_a_context_type_of_the_application_is_kept(
    site: Site, engine: Engine, kind: type
) -> None:
    """It gets the handle, and the rest where it derives from ours."""
    transport = falcon if site is sync_site else falcon.asgi
    request_type = type("OwnRequest", (transport.Request,), {"context_type": kind})
    app = site(request_type=request_type)
    seen = []

    def look(req: Any, resp: Any) -> None:
        context = req.context
        handle = context["handstamp"] if kind is dict else context.handstamp
        seen.append([type(context), handle.user_id, getattr(context, "user_id", None)])

    responder = sync_responder if site is sync_site else async_responder
    app.add_route("/look", type("Look", (), {"on_get": responder(look)})())
    client = Browser(wrap(app, engine.sessions))
    client.post("/login")
    client.get("/look")
    assert seen == [[kind, "alice", "alice" if kind is DerivedContext else None]]


def test_without_a_middleware_the_error_says_what_to_do(site: Site) -> None:
    """The exception names the call that is missing."""
    app = site()
    seen = []
    responder = sync_responder if site is sync_site else async_responder

    def ask(req: Any, resp: Any) -> None:
        with pytest.raises(ConfigError, match="wrap") as caught:
            session_auth(req)
        seen.append(caught.value)

    app.add_route("/ask", type("Ask", (), {"on_get": responder(ask)})())
    assert Browser(app).get("/ask").status_code == 200
    assert len(seen) == 1


def test_a_write_of_another_site_is_refused(client: Browser) -> None:
    """With our cookies before anything of the application runs, without them in it."""
    headers = {"Sec-Fetch-Site": "cross-site"}
    response = client.post("/logout", headers=headers)
    assert (response.status_code, dict(response.cookies)) == (403, {})
    client.post("/login")
    assert client.post("/logout", headers=headers).status_code == 403
    assert client.get("/me").json == ["alice", False]


def test_c147_two_browsers_are_two_users(client: Browser) -> None:
    """On one server, in turns."""
    client.post("/login", params={"user": "alice"})
    alice, client.cookies = client.cookies, {}
    client.post("/login", params={"user": "bob"})
    bob = client.cookies
    for cookies, user in [(alice, "alice"), (bob, "bob")] * 3:
        client.cookies = dict(cookies)
        assert client.get("/me").json == [user, False]


@asynccontextmanager
async def conducted(engine: Engine) -> AsyncIterator[Any]:
    """Falcon's own client for WebSockets, on the ASGI application."""
    app = wrap(async_site(), engine.sessions)
    async with falcon.testing.ASGIConductor(app) as conductor:
        yield conductor


async def signed_in(engine: Engine) -> dict[str, str]:
    """The headers of a browser that signed in."""
    issued = await engine.login()
    pair = f"__Host-session={issued.session_token}; __Host-refresh={issued.refresh_token}"
    return {"Cookie": pair}


async def closing(conductor: Any, path: str, headers: dict[str, str]) -> int | None:
    """The code that a socket is closed or denied with."""
    with pytest.raises(falcon.WebSocketDisconnected) as closed:
        async with conductor.simulate_ws(path, headers=headers) as ws:
            await ws.receive_text()
    return closed.value.code


async def denial(engine: Engine, headers: dict[str, str], path: str = "/ws") -> int:
    """The code that a handshake is denied with, which Falcon's client does not show."""
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    app = wrap(async_site(), engine.sessions)
    scope = socket_scope(path, headers=raw)
    answer = await serve(app, scope, [{"type": "websocket.connect"}])
    [message] = answer.messages
    assert message["type"] == "websocket.close"
    return message["code"]


async def test_a_socket_has_the_user(engine: Engine) -> None:
    """And its handshake is refused with 4401 without one."""
    async with conducted(engine) as conductor:
        assert await denial(engine, {}) == 4401
        headers = await signed_in(engine)
        async with conductor.simulate_ws("/ws", headers=headers) as ws:
            assert await ws.receive_json() == {"user_id": "alice"}
        assert (await conductor.simulate_get("/me", headers=headers)).json[0] == "alice"


async def test_an_exemption_of_get_opens_no_socket(engine: Engine) -> None:
    """Though Falcon says GET for a handshake; its router says WEBSOCKET, and so does the
    exemption of one."""
    async with conducted(engine) as conductor:
        assert (await conductor.simulate_get("/ws-reading")).json == "open"
        assert await denial(engine, {}, "/ws-reading") == 4401
        async with conductor.simulate_ws("/ws-open") as ws:
            assert await ws.receive_json() == {"user_id": None}
        headers = await signed_in(engine)
        async with conductor.simulate_ws("/ws-reading", headers=headers) as ws:
            assert await ws.receive_json() == {"user_id": "alice"}


def test_an_exemption_of_get_opens_no_handshake(client: Browser) -> None:
    """Where a server hands a handshake to `on_get`, as under WSGI."""
    upgrade = {"Upgrade": "websocket"}
    assert client.get("/reading", headers=upgrade).status_code == 401
    client.post("/login")
    assert client.get("/reading", headers=upgrade).status_code == 200


async def test_a_revoked_session_closes_its_socket(engine: Engine) -> None:
    """4401, from a logout in the same browser."""
    async with conducted(engine) as conductor:
        headers = await signed_in(engine)
        async with conductor.simulate_ws("/ws", headers=headers) as ws:
            await ws.receive_text()
            await conductor.simulate_post("/logout", headers=headers)
            with pytest.raises(falcon.WebSocketDisconnected) as closed:
                await ws.receive_text()
    assert closed.value.code == 4401


async def test_a_socket_in_an_outage_is_closed_with_1013(
    engine: Engine,
) -> None:
    """1013, by the rule, and no crash."""
    async with engine.sessions:
        headers = await signed_in(engine)
        engine.clock.advance(engine.policy.session_ttl)
        engine.store.down = True
        assert await denial(engine, headers) == 1013
        engine.store.down = False


async def test_an_accepted_socket_is_closed_with_the_code_of_the_error(
    engine: Engine,
) -> None:
    """By our code, and not with Falcon's 3500 or 1011."""
    async with conducted(engine) as conductor:
        assert await closing(conductor, "/ws-late", {}) == 4401
        assert await closing(conductor, "/ws-late", await signed_in(engine)) == 1008
