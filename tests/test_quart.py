"""Quart: `current_session`, `login_required`, signals, its own handlers and its own 503.

By number where the catalogue of attacks has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import quart
from quart import Blueprint, Quart, jsonify, render_template_string, request, websocket
from quart.testing import WebsocketResponseError
from quart.typing import TestClientProtocol as Browser
from werkzeug.exceptions import HTTPException

from handstamp import (
    AuthenticationRequired,
    ConfigError,
    Cookies,
    FreshLoginRequired,
    HandstampError,
    MemoryStore,
    Policy,
    Sessions,
    SessionsUnavailable,
)
from handstamp._connections import Message
from handstamp.core.models import Session
from handstamp.events import Refreshed
from handstamp.quart import (
    SessionAuth,
    current_session,
    fresh_login_required,
    login_required,
    session_auth,
    session_revoked,
    user_logged_in,
    user_logged_out,
)
from tests.support.asgi import socket_scope
from tests.support.engines import SECRET, Engine

NAMES = {"__Host-session", "__Host-refresh"}
PAGE = "{% if current_session %}{{ current_session.user_id }}{% else %}nobody{% endif %}"

views = Blueprint("site", __name__)


@views.post("/login")
async def sign_in() -> tuple[str, int]:
    await session_auth.login(request.args.get("user", "alice"), remember=True)
    return "", 204


@views.post("/logout")
async def sign_out() -> tuple[str, int]:
    await session_auth.logout()
    return "", 204


@views.get("/me")
@login_required
async def me() -> str:
    return current_session.user_id


@views.get("/sync-me")
@login_required
def sync_me() -> str:
    return current_session.user_id


@views.get("/maybe")
async def maybe() -> dict[str, Any]:
    return {"user_id": current_session.user_id if current_session else None}


@views.get("/unguarded")
async def unguarded() -> str:
    return current_session.user_id


@views.get("/required")
async def required() -> str:
    return session_auth.require().user_id


@views.get("/page")
async def page() -> str:
    return await render_template_string(PAGE + "|{{ current_session.user_id }}")


@views.get("/fresh")
@fresh_login_required(within=timedelta(minutes=5))
async def fresh() -> str:
    return current_session.user_id


@views.get("/devices")
async def devices() -> list[str]:
    return [s.id for s in await session_auth.list_sessions() if not s.current]


@views.post("/revoke/<id>")
async def revoke(id: str) -> dict[str, bool]:
    return {"ended": await session_auth.revoke(id)}


@views.post("/revoke-others")
async def revoke_others() -> dict[str, int]:
    return {"ended": await session_auth.revoke_others()}


@views.get("/stream")
async def stream() -> quart.Response:
    @quart.stream_with_context
    async def parts() -> AsyncIterator[str]:
        yield "a"
        yield current_session.user_id

    return quart.Response(parts())


@views.get("/public")
async def public() -> str:
    return "hello"


@views.get("/broken")
async def broken() -> str:
    raise ValueError


@views.websocket("/ws")
@login_required
async def echo() -> None:
    await websocket.send_json({"user_id": current_session.user_id})
    while True:
        await websocket.send(await websocket.receive())


@views.websocket("/fresh-ws")
@fresh_login_required(within=timedelta(minutes=5))
async def fresh_echo() -> None:
    await websocket.send(current_session.user_id)


def site(**config: Any) -> Quart:
    """An application that is not wrapped yet."""
    app = Quart(__name__)
    app.config.update(config)
    app.register_blueprint(views)
    return app


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """One process on a store in memory."""
    engine = Engine()
    yield engine
    await engine.sessions.close()


@pytest.fixture
def app(engine: Engine) -> Quart:
    """The application, wrapped."""
    app = site()
    SessionAuth(app, engine.sessions)
    return app


@pytest.fixture
def client(app: Quart) -> Browser:
    """A browser."""
    return app.test_client()


def cookies(client: Browser) -> dict[str, str | None]:
    """Our cookies that a browser has."""
    jar = client.cookie_jar
    assert jar is not None
    return {cookie.name: cookie.value for cookie in jar if cookie.name in NAMES}


async def login(client: Browser, user: str = "alice") -> None:
    """Sign in, which must succeed."""
    assert (await client.post(f"/login?user={user}")).status_code == 204


async def text(client: Browser, path: str) -> str:
    """The body of a page."""
    return (await (await client.get(path)).get_data()).decode()


async def status(client: Browser, path: str) -> int:
    """The status of a page."""
    return (await client.get(path)).status_code


async def posted(client: Browser, path: str) -> Any:
    """The JSON that a POST is answered with."""
    return await (await client.post(path)).get_json()


async def sessions_of(engine: Engine, user: str = "alice") -> list[str]:
    """The ids of a user's live sessions."""
    return [session.id for session in await engine.sessions.list_for_user(user)]


async def test_a_user_logs_in_and_out(client: Browser) -> None:
    """`current_session` follows."""
    assert await (await client.get("/maybe")).get_json() == {"user_id": None}
    await login(client)
    assert cookies(client).keys() == NAMES
    assert await (await client.get("/maybe")).get_json() == {"user_id": "alice"}
    assert (await client.post("/logout")).status_code == 204
    assert cookies(client) == {}
    assert await (await client.get("/maybe")).get_json() == {"user_id": None}


@pytest.mark.parametrize("path", ["/me", "/sync-me", "/unguarded", "/required", "/fresh"])
async def test_a_view_for_users_is_a_401_for_everybody_else(
    client: Browser, path: str
) -> None:
    """By decorator, on a sync and on an async view, or by just reading an attribute."""
    response = await client.get(path)
    assert response.status_code == 401
    assert b"sign in first" in await response.get_data()
    await login(client)
    assert await text(client, path) == "alice"


async def test_a_blueprint_is_protected_as_a_whole(app: Quart, client: Browser) -> None:
    """By a function before each of its requests."""
    members = Blueprint("members", __name__)

    @members.before_request
    @login_required
    async def members_only() -> None:
        pass

    @members.get("/club")
    async def club() -> str:
        return "welcome"

    app.register_blueprint(members)
    assert await status(client, "/club") == 401
    await login(client)
    assert await text(client, "/club") == "welcome"


async def test_fresh_login_required_counts_from_the_sign_in(
    client: Browser, engine: Engine
) -> None:
    """A refresh is none."""
    await login(client)
    assert await status(client, "/fresh") == 200
    engine.clock.advance(engine.policy.session_ttl)
    response = await client.get("/fresh")
    assert response.status_code == 401
    assert b"sign in again" in await response.get_data()
    assert len(engine.of(Refreshed)) == 1
    assert await status(client, "/me") == 200


async def test_a_template_knows_the_session(client: Browser) -> None:
    """And shows nothing without a session."""
    assert await text(client, "/page") == "nobody|"
    await login(client)
    assert await text(client, "/page") == "alice|alice"


async def test_a_stream_may_ask_while_it_is_made(client: Browser) -> None:
    """With the request's context kept, as Quart documents it."""
    await login(client)
    assert await text(client, "/stream") == "aalice"


async def test_a_user_lists_and_revokes_their_sessions(app: Quart) -> None:
    """One, then all others, and never another user's."""
    phone, laptop, tablet, bob = (app.test_client() for _ in range(4))
    for client in (phone, laptop, tablet):
        await login(client)
    await login(bob, "bob")
    ids = await (await laptop.get("/devices")).get_json()
    assert len(ids) == 2
    assert await posted(bob, f"/revoke/{ids[0]}") == {"ended": False}
    assert await posted(laptop, f"/revoke/{ids[0]}") == {"ended": True}
    assert await posted(laptop, "/revoke-others") == {"ended": 1}
    statuses = [await status(c, "/me") for c in (phone, tablet, laptop, bob)]
    assert statuses == [401, 401, 200, 200]


async def test_signals_are_sent_by_the_application(app: Quart, engine: Engine) -> None:
    """In the request, to plain functions and to coroutine functions."""
    received: list[tuple[str, dict[str, Any]]] = []

    async def logged_in(sender: Quart, **facts: Any) -> None:
        assert request.path
        received.append(("in", facts))

    def logged_out(sender: Quart, **facts: Any) -> None:
        assert request.path
        received.append(("out", facts))

    async def revoked(sender: Quart, **facts: Any) -> None:
        received.append(("revoked", facts))

    user_logged_in.connect(logged_in, app)
    user_logged_out.connect(logged_out, app)
    session_revoked.connect(revoked, app)
    client, other = app.test_client(), app.test_client()
    await client.post("/logout")
    await login(other)
    [other_id] = await sessions_of(engine)
    await login(client)
    await client.post("/revoke/unknown")
    await client.post(f"/revoke/{other_id}")
    await login(other)
    await client.post("/revoke-others")
    await client.post("/revoke-others")
    await client.post("/logout")
    names = [name for name, _ in received]
    assert names == ["in", "in", "revoked", "in", "revoked", "out"]
    facts = [facts for _, facts in received]
    assert facts[0]["session"].id == other_id
    assert facts[2] == {"user_id": "alice", "session_id": other_id, "count": 1}
    assert facts[4] == {"user_id": "alice", "session_id": None, "count": 1}
    assert facts[5]["session"].id == facts[1]["session"].id


async def test_a_sign_out_on_an_excluded_path_is_told(engine: Engine) -> None:
    """The request is anonymous there, and the browser's session ends all the same."""
    app = site()
    SessionAuth(app, engine.sessions, exclude=["/logout"])
    received: list[Session] = []

    def receive(sender: Quart, session: Session, **facts: Any) -> None:
        received.append(session)

    user_logged_out.connect(receive, app)
    client = app.test_client()
    await login(client)
    [known] = await sessions_of(engine)
    for _ in range(2):
        assert (await client.post("/logout")).status_code == 204
    assert [session.id for session in received] == [known]


ASKING = ["/me", "/sync-me", "/maybe", "/unguarded", "/required", "/fresh", "/page"]


@pytest.mark.parametrize("path", ASKING)
async def test_p5_reading_the_session_in_an_outage_is_a_503(
    client: Browser, engine: Engine, path: str
) -> None:
    """With Retry-After, whichever way is asked, and the cookies stay."""
    await login(client)
    before = cookies(client)
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    response = await client.get(path)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "set-cookie" not in response.headers
    assert cookies(client) == before
    engine.store.down = False
    assert await status(client, path) in (200, 401)


async def test_p5_not_reading_the_session_in_an_outage_is_a_200(
    client: Browser, engine: Engine
) -> None:
    """And no user is logged out."""
    await login(client)
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    response = await client.get("/public")
    assert (response.status_code, "set-cookie" in response.headers) == (200, False)
    engine.store.down = False
    assert await status(client, "/me") == 200


async def test_c102_public_pages_stay_cacheable(client: Browser) -> None:
    """No Vary for somebody without our cookie on a page that does not ask."""
    assert "vary" not in (await client.get("/public")).headers
    assert (await client.get("/maybe")).headers["vary"] == "Cookie"
    await login(client)
    assert (await client.get("/public")).headers["vary"] == "Cookie"


async def test_c157_a_cookie_leaves_with_an_unhandled_error(
    client: Browser, engine: Engine
) -> None:
    """Quart's own 500 carries the pair that the request was given."""
    await login(client)
    before = cookies(client)
    engine.clock.advance(engine.policy.session_ttl)
    assert await status(client, "/broken") == 500
    after = cookies(client)
    assert all(after[name] != before[name] for name in NAMES)
    assert await text(client, "/me") == "alice"


async def test_a_write_from_another_site_is_refused(client: Browser) -> None:
    """With our cookies in the request, without them in the view."""
    foreign = {"Sec-Fetch-Site": "cross-site"}
    response = await client.post("/logout", headers=foreign)
    assert (response.status_code, response.headers.getlist("Set-Cookie")) == (403, [])
    await login(client)
    response = await client.post("/logout", headers=foreign)
    assert response.status_code == 403
    assert await status(client, "/me") == 200


async def test_the_application_s_own_handlers_answer(app: Quart, client: Browser) -> None:
    """One of all HTTP errors is asked; one of the status before it."""

    @app.errorhandler(HTTPException)
    async def any_error(error: HTTPException) -> Any:
        return jsonify(error=error.name), error.code

    assert await (await client.get("/me")).get_json() == {"error": "Unauthorized"}

    @app.errorhandler(401)
    async def mine(error: HTTPException) -> tuple[str, int]:
        return f"mine: {error.description}", 401

    assert await text(client, "/me") == "mine: sign in first"


@pytest.mark.parametrize("kind", [AuthenticationRequired, HandstampError])
@pytest.mark.parametrize("early", [True, False])
async def test_a_handler_of_the_error_itself_wins(
    engine: Engine, kind: type[Exception], early: bool
) -> None:
    """Whether it was there before the extension or came after it."""

    async def mine(error: Exception) -> tuple[str, int]:
        return "mine", 418

    app = site()
    if not early:
        SessionAuth(app, engine.sessions)
    app.register_error_handler(kind, mine)
    if early:
        SessionAuth(app, engine.sessions)
    assert await status(app.test_client(), "/me") == 418


async def test_a_stale_sign_in_may_have_its_own_answer(
    app: Quart, client: Browser, engine: Engine
) -> None:
    """`FreshLoginRequired` can have another handler than a missing session."""

    @app.errorhandler(FreshLoginRequired)
    async def again(error: FreshLoginRequired) -> tuple[str, int]:
        return "again", 401

    assert await text(client, "/fresh") != "again"
    await login(client)
    engine.clock.advance(timedelta(minutes=6))
    assert await text(client, "/fresh") == "again"


async def test_a_503_of_the_application_s_own(
    app: Quart, client: Browser, engine: Engine
) -> None:
    """It has the number of seconds to wait."""

    @app.errorhandler(SessionsUnavailable)
    async def busy(error: SessionsUnavailable) -> Any:
        return jsonify(again=error.retry_after), 503

    await login(client)
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    assert await (await client.get("/me")).get_json() == {"again": 1}
    engine.store.down = False


async def test_an_operator_s_error_is_a_500_and_a_log_line(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns nothing of it."""
    app = site()
    SessionAuth(app, engine.sessions, cookies=Cookies.insecure())
    app.logger.addHandler(caplog.handler)
    headers = {"Host": "app.example.com"}
    response = await app.test_client().post("/login", headers=headers)
    assert response.status_code == 500
    assert b"https" not in await response.get_data()
    assert "cookies without Secure are for" in caplog.text


async def test_c156_quart_s_own_session_stays_its_own(engine: Engine) -> None:
    """Its cookie and its test helper work beside ours."""
    app = site(SECRET_KEY="of quart")
    SessionAuth(app, engine.sessions)

    @app.get("/count")
    async def count() -> list[Any]:
        quart.session["n"] = quart.session.get("n", 0) + 1
        return [quart.session["n"], current_session.user_id]

    client = app.test_client()
    await login(client)
    pages = [await (await client.get("/count")).get_json() for _ in range(2)]
    assert pages == [[1, "alice"], [2, "alice"]]
    async with client.session_transaction() as session:
        assert session["n"] == 2
    await client.post("/logout")
    await login(client)
    assert await (await client.get("/count")).get_json() == [3, "alice"]


async def test_quart_s_session_gets_no_cookie_of_ours(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """One name for two cookies is refused, whichever is configured first."""
    insecure = Cookies.insecure()
    with pytest.raises(ConfigError, match="SESSION_COOKIE_NAME"):
        SessionAuth(site(SECRET_KEY="of quart"), engine.sessions, cookies=insecure)
    late = site()
    SessionAuth(late, engine.sessions, cookies=insecure)
    late.secret_key = "of quart"
    late.logger.addHandler(caplog.handler)
    assert (await late.test_client().post("/login")).status_code == 500
    assert "set SESSION_COOKIE_NAME to another name" in caplog.text


async def test_a_socket_has_the_session(client: Browser) -> None:
    """From its handshake on."""
    await login(client)
    async with client.websocket("/ws") as socket:
        assert await socket.receive_json() == {"user_id": "alice"}
        await socket.send("hello")
        assert await socket.receive() == "hello"


@pytest.mark.parametrize("path", ["/ws", "/fresh-ws"])
async def test_a_socket_without_a_session_is_denied(client: Browser, path: str) -> None:
    """With the 401 that a view would have given."""
    with pytest.raises(WebsocketResponseError) as denied:
        async with client.websocket(path) as socket:
            await socket.receive()
    assert denied.value.response.status_code == 401


async def test_a_socket_may_need_a_fresh_sign_in(client: Browser, engine: Engine) -> None:
    """As a view may."""
    await login(client)
    async with client.websocket("/fresh-ws") as socket:
        assert await socket.receive() == "alice"
    engine.clock.advance(timedelta(minutes=6))
    with pytest.raises(WebsocketResponseError) as denied:
        async with client.websocket("/fresh-ws") as socket:
            await socket.receive()
    assert denied.value.response.status_code == 401


async def test_p5_a_socket_in_an_outage_is_denied_with_a_503(
    client: Browser, engine: Engine
) -> None:
    """And logs no user out."""
    await login(client)
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    with pytest.raises(WebsocketResponseError) as denied:
        async with client.websocket("/ws") as socket:
            await socket.receive()
    assert denied.value.response.status_code == 503
    assert denied.value.response.headers["retry-after"] == "1"
    engine.store.down = False
    assert await status(client, "/me") == 200


async def test_a_revoked_session_closes_its_socket(app: Quart, client: Browser) -> None:
    """With code 4401, and Quart's own tasks for it end."""
    await login(client)
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    outgoing: asyncio.Queue[Message] = asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    cookie = "; ".join(f"{name}={value}" for name, value in cookies(client).items())
    scope = socket_scope("/ws", headers=[(b"cookie", cookie.encode())])
    serving = asyncio.create_task(app(scope, incoming.get, outgoing.put))
    async with asyncio.timeout(30):
        assert (await outgoing.get())["type"] == "websocket.accept"
        assert "alice" in (await outgoing.get())["text"]
        await client.post("/logout")
        closed = await outgoing.get()
        await serving
    assert (closed["type"], closed["code"]) == ("websocket.close", 4401)
    assert outgoing.empty()


async def test_one_extension_serves_two_applications(engine: Engine) -> None:
    """Each with its own sessions, and each only once."""
    other = Engine()
    auth = SessionAuth(outage="refuse")
    one, two = site(), site()
    auth.init_app(one, engine.sessions)
    auth.init_app(two, other.sessions)
    assert one.extensions["handstamp"].sessions is engine.sessions
    assert two.extensions["handstamp"].sessions is other.sessions
    await login(one.test_client())
    assert (len(engine.store.rows), len(other.store.rows)) == (1, 0)
    with pytest.raises(ConfigError, match="already"):
        auth.init_app(one, engine.sessions)


async def test_a_test_request_context_has_no_session(app: Quart) -> None:
    """It has no session, and a login is refused."""
    async with app.test_request_context("/"):
        assert not current_session
        with pytest.raises(AuthenticationRequired):
            _ = current_session.user_id
        with pytest.raises(ConfigError, match="test_client"):
            await session_auth.login("alice")


@pytest.mark.parametrize("path", ["/me", "/maybe"])
async def test_without_the_extension_the_log_says_what_to_do(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is no error of the client's."""
    app = site()
    app.logger.addHandler(caplog.handler)
    assert await status(app.test_client(), path) == 500
    assert "wrap the application with SessionAuth(app)" in caplog.text


def test_the_engine_is_made_of_the_configuration() -> None:
    """What is given in code wins over it."""
    policy = Policy(session_ttl=timedelta(minutes=5))
    app = site(
        HANDSTAMP_DATABASE_URL="postgresql://localhost/app",
        HANDSTAMP_SECRET=SECRET,
        HANDSTAMP_POLICY=policy,
        HANDSTAMP_OUTAGE="anonymous",
        HANDSTAMP_INSECURE_COOKIES=True,
    )
    SessionAuth(app, outage="refuse")
    options = app.asgi_app._options
    assert options.sessions.policy is policy
    assert (options.outage, options.cookies) == ("refuse", Cookies.insecure())
    with pytest.raises(ConfigError, match="no option HANDSTAMP_SECERT: did you mean"):
        SessionAuth(site(HANDSTAMP_SECERT="x"))


async def test_the_engine_lives_as_long_as_the_server() -> None:
    """Opened and closed with Quart's own startup and shutdown, and with the hooks that
    an application has there."""
    app = site()
    sessions = Sessions(MemoryStore(), secret="x" * 32)
    SessionAuth(app, sessions)
    seen: list[str] = []

    @app.before_serving
    async def ready() -> None:
        seen.append(sessions.stats().listener)

    @app.after_serving
    async def still_open() -> None:
        seen.append((await sessions.create("bob")).session.user_id)

    async with app.test_app() as served:
        client = served.test_client()
        await login(client)
        assert await text(client, "/me") == "alice"
    assert len(seen) == 2
    assert seen[1] == "bob"
    assert sessions._loop is None


async def test_c147_many_requests_at_once_are_each_their_own(app: Quart) -> None:
    """Two browsers, in one loop, at the same time."""
    alice, bob = app.test_client(), app.test_client()
    await login(alice)
    await login(bob, "bob")
    asked = [alice, bob] * 20
    answers = await asyncio.gather(*(text(client, "/me") for client in asked))
    assert answers == ["alice", "bob"] * 20
