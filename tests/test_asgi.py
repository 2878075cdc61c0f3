"""The ASGI middleware: what it adds to a response, and that it adds nothing else.

By number where the catalogue of attacks has one. C-94 is about WSGI; C-103 and C-104 need
real caches; C-30 and C-34 are about reading headers, in `tests/core`.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from handstamp._connections import ASGIApp, Message, Receive, Scope, Send
from handstamp.asgi import SCOPE_KEY, Handle, SessionAuthMiddleware
from handstamp.config import Cookies, Policy, TrustedProxies
from handstamp.core.models import Issued
from handstamp.errors import (
    AuthenticationRequired,
    ConfigError,
    CrossSiteRequest,
    LoginRefused,
    SessionsUnavailable,
)
from handstamp.events import CookieOverridden, CrossSiteRefused, Refreshed
from handstamp.stores.memory import MemoryUser
from tests.support.asgi import (
    Answer,
    cookie_header,
    get,
    http_scope,
    responding,
    serve,
    socket_scope,
)
from tests.support.engines import ALICE, Engine, running

CACHES = [b"cache-control", b"expires", b"pragma", b"surrogate-control"]
NO_STORE = b"private, no-store"
DENIALS = {"websocket.http.response": {}}
NAMES = {b"__Host-session", b"__Host-refresh"}


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """One process on a store in memory."""
    async with running() as engine:
        yield engine


def wrapped(engine: Engine, app: ASGIApp | None = None, **options: Any) -> ASGIApp:
    return SessionAuthMiddleware(app or responding(), engine.sessions, **options)


def asking(
    ask: Callable[[Handle], Any] = lambda handle: handle.user_id, **options: Any
) -> ASGIApp:
    """An application that responds with what it reads from its handle."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        value = ask(scope[SCOPE_KEY])
        if hasattr(value, "__await__"):
            value = await value
        await responding(body=repr(value).encode(), **options)(scope, receive, send)

    return app


def both(issued: Issued) -> tuple[bytes, bytes]:
    return cookie_header(issued.session_token, issued.refresh_token)


def carried(answer: Answer) -> set[bytes]:
    return set(answer.cookies)


# What a request costs.


async def test_p1_a_cached_session_reaches_the_app_without_a_pause(engine: Engine) -> None:
    """No await and no query: the app is entered before the coroutine first suspends."""
    issued = await engine.login()
    entered: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entered.append(scope[SCOPE_KEY].user_id)
        await receive()

    class Paused:
        def __await__(self) -> Iterator[str]:
            yield "the app's own pause"

    async def pausing(*message: Message) -> Any:
        await Paused()

    queries = engine.store.queries
    scope = http_scope(headers=[both(issued)])
    coroutine = wrapped(engine, app)(scope, pausing, pausing)
    assert coroutine.send(None) == "the app's own pause"  # type: ignore[attr-defined]
    assert entered == [ALICE]
    assert engine.store.queries == queries
    coroutine.close()  # type: ignore[attr-defined]


async def test_p2_a_forged_cookie_costs_nothing(engine: Engine) -> None:
    """No query, no cookie cleared, and the request is anonymous."""
    answer = await get(wrapped(engine, asking()), "/", cookie_header("A" * 80, "B" * 80))
    assert (answer.body, carried(answer)) == (b"None", set())
    assert engine.store.queries == 0


async def test_p3_an_anonymous_request_costs_nothing(engine: Engine) -> None:
    """No I/O, no Set-Cookie, no Vary: the response is the app's, byte for byte."""
    headers = [(b"content-type", b"text/plain"), (b"cache-control", b"public, max-age=60")]
    app = responding(headers=headers)
    assert (await get(wrapped(engine, app))).messages == (await get(app)).messages
    other = (b"cookie", b"theme=dark; sessionid=1")
    assert (await get(wrapped(engine, app), "/", other)).messages == (
        await get(app)
    ).messages
    assert engine.store.queries == 0


async def test_p5_a_route_that_does_not_read_the_session_is_not_affected_by_an_outage(
    engine: Engine,
) -> None:
    """200, no Set-Cookie, although the cookie could not be checked."""
    issued = await engine.login()
    await engine.expire()
    engine.store.down = True
    answer = await get(wrapped(engine), "/", both(issued))
    assert (answer.status, carried(answer)) == (200, set())


async def test_p5_c96_reading_the_session_in_an_outage_is_a_503(engine: Engine) -> None:
    """With Retry-After and no Set-Cookie: no user is logged out."""
    issued = await engine.login()
    await engine.expire()
    engine.store.down = True
    answer = await get(wrapped(engine, asking()), "/", both(issued))
    assert (answer.status, answer.body) == (503, b"temporarily unavailable\n")
    assert answer.one(b"retry-after") == b"1"
    assert carried(answer) == set()
    engine.store.down = False
    answer = await get(wrapped(engine, asking()), "/", both(issued))
    assert answer.body == b"'alice'"


# Vary and Cache-Control.


def looks(handle: Handle) -> object:
    return handle.session


@pytest.mark.parametrize(
    ("sent", "looked", "vary"),
    [
        (False, False, None),
        (False, True, b"Cookie"),
        (True, False, b"Cookie"),
        (True, True, b"Cookie"),
    ],
)
async def test_c102_vary_names_what_the_response_may_depend_on(
    engine: Engine, sent: bool, looked: bool, vary: bytes | None
) -> None:
    """Our cookie came, or the app looked at the session; otherwise nothing is said."""
    issued = await engine.login()
    app = asking() if looked else responding()
    answer = await get(wrapped(engine, app), "/", *([both(issued)] if sent else []))
    assert answer.one(b"vary") == vary


@pytest.mark.parametrize(
    "look",
    [
        lambda h: h.session,
        lambda h: h.user_id,
        lambda h: h.is_authenticated,
        lambda h: "x" if h.require else None,
    ],
    ids=["session", "user_id", "is_authenticated", "nothing"],
)
async def test_c102_every_way_of_reading_the_session_counts(
    engine: Engine, look: Callable[[Handle], object]
) -> None:
    """Naming a method without calling it is no look."""
    answer = await get(wrapped(engine, asking(look)))
    expected = None if look(Handle(None, (), None)) == "x" else b"Cookie"  # type: ignore[arg-type]
    assert answer.one(b"vary") == expected


@pytest.mark.parametrize(
    ("there", "merged"),
    [
        ([(b"vary", b"Accept")], [b"Accept, Cookie"]),
        ([(b"Vary", b"Accept"), (b"vary", b"Origin")], [b"Accept, Origin, Cookie"]),
        ([(b"vary", b"accept, COOKIE")], [b"accept, COOKIE"]),
        ([(b"vary", b"*")], [b"*"]),
    ],
)
async def test_c102_vary_is_merged(
    engine: Engine, there: list[tuple[bytes, bytes]], merged: list[bytes]
) -> None:
    """No duplicate, and a star stays a star."""
    issued = await engine.login()
    answer = await get(wrapped(engine, responding(headers=there)), "/", both(issued))
    assert answer.all(b"vary") == merged


async def test_c100_a_response_with_our_cookie_is_uncacheable(engine: Engine) -> None:
    """Whatever the application said to any cache is replaced."""
    issued = await engine.login()
    await engine.expire()
    said = [(name, b"max-age=3600") for name in CACHES]
    answer = await get(wrapped(engine, responding(headers=said)), "/", both(issued))
    assert carried(answer) == NAMES
    assert [answer.all(name) for name in CACHES] == [[NO_STORE], [], [], []]
    assert answer.one(b"vary") == b"Cookie"


@pytest.mark.parametrize("status", [200, 204, 301, 304, 404, 500])
async def test_c101_every_status_is_uncacheable_with_our_cookie(
    engine: Engine, status: int
) -> None:
    """Some statuses are cached without a Cache-Control header."""
    issued = await engine.login()
    await engine.expire()
    answer = await get(wrapped(engine, responding(status)), "/", both(issued))
    assert (answer.status, answer.one(b"cache-control")) == (status, NO_STORE)


async def test_a_cached_session_does_not_change_cache_control(engine: Engine) -> None:
    """Without a cookie of ours to set, caching is the application's business."""
    issued = await engine.login()
    said = [(b"cache-control", b"public, max-age=60")]
    answer = await get(wrapped(engine, responding(headers=said)), "/", both(issued))
    assert answer.one(b"cache-control") == b"public, max-age=60"


# Refresh.


async def test_c71_an_expired_session_is_refreshed_before_the_app_runs(
    engine: Engine,
) -> None:
    """The app sees a live session; both cookies leave with this response."""
    issued = await engine.login()
    await engine.expire()
    navigation = [
        (b"sec-fetch-site", b"cross-site"),
        (b"sec-fetch-mode", b"navigate"),
        (b"sec-fetch-dest", b"document"),
    ]
    answer = await get(wrapped(engine, asking()), "/", both(issued), *navigation)
    assert answer.body == b"'alice'"
    assert carried(answer) == NAMES
    session, refresh = (answer.cookies[name].decode() for name in sorted(NAMES)[::-1])
    again = await get(wrapped(engine, asking()), "/", cookie_header(session, refresh))
    assert (again.body, carried(again)) == (b"'alice'", set())


async def test_c74_head_is_like_get(engine: Engine) -> None:
    """Including the cookies, which browsers store."""
    issued = await engine.login()
    await engine.expire()
    answer = await get(wrapped(engine), "/", both(issued), method="HEAD")
    assert carried(answer) == NAMES


async def test_c73_a_preflight_is_anonymous(engine: Engine) -> None:
    """OPTIONS: no query, no session, no cookie, no Vary, even with our cookies on it."""
    issued = await engine.login()
    await engine.expire()
    before = engine.store.queries
    app = asking(lambda handle: handle._session)
    answer = await get(wrapped(engine, app), "/", both(issued), method="OPTIONS")
    assert (answer.body, carried(answer), answer.one(b"vary")) == (b"None", set(), None)
    assert engine.store.queries == before


@pytest.mark.parametrize(
    "headers",
    [
        [(b"sec-purpose", b"prefetch;prerender")],
        [(b"purpose", b"prefetch")],
        [(b"x-passive-request", b"1")],
    ],
    ids=["sec-purpose", "purpose", "passive"],
)
async def test_c72_what_may_never_arrive_rotates_nothing(
    engine: Engine, headers: list[tuple[bytes, bytes]]
) -> None:
    """A prefetch or a poll is authenticated, and carries no cookie."""
    issued = await engine.login()
    await engine.expire()
    answer = await get(wrapped(engine, asking()), "/", both(issued), *headers)
    assert (answer.body, carried(answer)) == (b"'alice'", set())
    assert engine.of(Refreshed) == []


@pytest.mark.parametrize("same_site", ["Lax", "None"])
async def test_c70_a_cross_site_subresource_rotates_nothing(
    engine: Engine, same_site: Any
) -> None:
    """Its answer could not set a cookie; the refresh token counts only if it must."""
    issued = await engine.login()
    await engine.expire()
    headers = [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"no-cors")]
    app = wrapped(engine, asking(), cookies=Cookies(same_site=same_site))
    answer = await get(app, "/", both(issued), *headers)
    assert answer.body == (b"'alice'" if same_site == "None" else b"None")
    assert carried(answer) == set()
    assert engine.of(Refreshed) == []


async def test_c76_a_late_response_sets_no_cookies(engine: Engine) -> None:
    """Once grace is over, a newer pair may be on its way: this one must not replace it."""
    issued = await engine.login()
    await engine.expire()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        engine.clock.advance(engine.policy.grace + timedelta(milliseconds=1))
        await responding()(scope, receive, send)

    late = await get(wrapped(engine, slow), "/", both(issued))
    assert (late.status, carried(late), late.one(b"cache-control")) == (200, set(), None)
    assert late.one(b"vary") == b"Cookie"
    again = await get(wrapped(engine, asking()), "/", both(issued))
    assert (again.body, carried(again)) == (b"'alice'", NAMES)


async def test_c90_failed_authentication_clears_nothing(engine: Engine) -> None:
    """Dead tokens may come in while another tab logs in: only logout clears."""
    issued = await engine.login()
    await engine.sessions.revoke(issued.session.id)
    answer = await get(wrapped(engine, asking()), "/", both(issued))
    assert (answer.body, answer.all(b"set-cookie")) == (b"None", [])
    denied = await get(wrapped(engine, asking(lambda h: h.require())), "/", both(issued))
    assert (denied.status, denied.all(b"set-cookie")) == (401, [])


async def test_c91_the_decision_is_made_before_the_app_runs(engine: Engine) -> None:
    """A token that dies while a response streams rotates nothing."""
    issued = await engine.login()

    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await engine.expire()
        assert scope[SCOPE_KEY].user_id == ALICE
        await send({"type": "http.response.body", "body": b"done"})

    answer = await get(wrapped(engine, streaming), "/", both(issued))
    assert (answer.body, carried(answer)) == (b"done", set())
    assert engine.of(Refreshed) == []


@pytest.mark.parametrize(
    "failure",
    [KeyboardInterrupt, SystemExit, asyncio.CancelledError, MemoryError, ValueError],
)
async def test_c92_c148_what_the_app_raises_passes_through(
    engine: Engine, failure: type[BaseException]
) -> None:
    """Whatever it is; and a rotation whose answer was thus lost is given again."""
    issued = await engine.login()
    await engine.expire()

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise failure

    with pytest.raises(failure):
        await get(wrapped(engine, failing), "/", both(issued))
    assert len(engine.of(Refreshed)) == 1
    answer = await get(wrapped(engine, asking()), "/", both(issued))
    assert (answer.body, carried(answer)) == (b"'alice'", NAMES)


@pytest.mark.parametrize("rotated", [True, False])
async def test_c93_a_cookie_of_our_name_that_the_app_sets(
    engine: Engine, rotated: bool
) -> None:
    """Ours wins where we set one; otherwise theirs is untouched. Both are reported."""
    issued = await engine.login()
    if rotated:
        await engine.expire()
    theirs = [(b"set-cookie", b"__Host-session=theirs; Path=/"), (b"set-cookie", b"a=b")]
    answer = await get(wrapped(engine, responding(headers=theirs)), "/", both(issued))
    values = [v for v in answer.all(b"set-cookie") if v.startswith(b"__Host-session=")]
    assert len(values) == 1
    assert (values[0] == b"__Host-session=theirs; Path=/") is not rotated
    assert b"a=b" in answer.all(b"set-cookie")
    assert [e.dropped for e in engine.of(CookieOverridden)] == [rotated]


async def test_c95_messages_after_the_start_are_not_changed(engine: Engine) -> None:
    """Early hints, trailers, paths and whatever comes next: the same objects."""
    issued = await engine.login()
    await engine.expire()
    messages: list[Message] = [
        {"type": "http.response.early_hint", "links": [b"</a.css>"]},
        {"type": "http.response.start", "status": 200, "headers": [], "trailers": True},
        {"type": "http.response.pathsend", "path": "/etc/motd"},
        {"type": "http.response.zerocopysend", "file": 3},
        {"type": "http.response.body", "body": b"x", "more_body": True},
        {"type": "http.response.trailers", "headers": [(b"a", b"b")]},
        {"type": "http.response.future", "anything": object()},
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    answer = await get(wrapped(engine, app), "/", both(issued))
    pairs = list(zip(messages, answer.messages, strict=True))
    assert [a is b for a, b in pairs] == [True, False, True, True, True, True, True]
    start = {**answer.messages[1], "headers": []}
    assert start == messages[1]
    assert messages[1]["headers"] == []  # the app's own object is not edited


async def test_a_stream_passes_chunk_by_chunk(engine: Engine) -> None:
    """Each chunk is on its way before the app makes the next one, both ways."""
    issued = await engine.login()
    arrived: list[Message] = []
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for n in range(3):
            seen.append(len(arrived))
            chunk = (await receive())["body"]
            await send({"type": "http.response.body", "body": chunk, "more_body": n < 2})

    chunks = iter([b"a", b"b", b"c"])

    async def receive() -> Message:
        return {"type": "http.request", "body": next(chunks), "more_body": True}

    async def send(message: Message) -> None:
        arrived.append(message)

    await wrapped(engine, app)(http_scope(headers=[both(issued)]), receive, send)
    assert seen == [1, 2, 3]
    assert [m["body"] for m in arrived[1:]] == [b"a", b"b", b"c"]


async def test_the_apps_receive_is_the_servers(engine: Engine) -> None:
    """An HTTP request's body is none of our business."""
    given: list[Receive] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given.append(receive)

    async def receive() -> Message:
        raise AssertionError

    await wrapped(engine, app)(http_scope(), receive, receive)  # type: ignore[arg-type]
    assert given == [receive]


# Login and logout.


async def log_in(handle: Handle) -> object:
    return (await handle.login("bob", remember=True)).user_id


async def test_c31_a_login_replaces_what_the_browser_had(engine: Engine) -> None:
    """New cookies, and the session it came with is dead."""
    issued = await engine.login()
    answer = await get(wrapped(engine, asking(log_in)), "/", both(issued), method="POST")
    assert (answer.body, carried(answer)) == (b"'bob'", NAMES)
    assert answer.one(b"cache-control") == NO_STORE
    assert not engine.row(issued.session.id).is_active


async def test_a_session_is_there_right_after_the_login(engine: Engine) -> None:
    """The same handle answers with it."""

    async def ask(handle: Handle) -> object:
        await handle.login("bob")
        return handle.user_id, handle.is_authenticated

    assert (await get(wrapped(engine, asking(ask)), method="POST")).body == b"('bob', True)"


async def test_a_login_without_remember_sets_cookies_that_end_with_the_browser(
    engine: Engine,
) -> None:
    """No Max-Age on either."""
    app = asking(lambda handle: handle.login("bob"))
    answer = await get(wrapped(engine, app), method="POST")
    assert not any(b"Max-Age" in value for value in answer.all(b"set-cookie"))
    assert all(b"HttpOnly" in value for value in answer.all(b"set-cookie"))


@pytest.mark.parametrize("signed_in", [True, False])
async def test_a_logout_ends_the_session_and_clears_both_cookies(
    engine: Engine, signed_in: bool
) -> None:
    """Also when there was none any more."""
    issued = await engine.login()
    if not signed_in:
        await engine.sessions.revoke(issued.session.id)
    app = asking(lambda handle: handle.logout())
    answer = await get(wrapped(engine, app), "/", both(issued), method="POST")
    assert answer.cookies == dict.fromkeys(NAMES, b"")
    assert all(b"Max-Age=0" in value for value in answer.all(b"set-cookie"))
    assert not engine.row(issued.session.id).is_active


async def test_a_logout_after_a_refresh_in_the_same_request(engine: Engine) -> None:
    """One Set-Cookie of each name, and it is that of the logout."""
    issued = await engine.login()
    await engine.expire()
    app = asking(lambda handle: handle.logout())
    answer = await get(wrapped(engine, app), "/", both(issued), method="POST")
    assert len(answer.all(b"set-cookie")) == 2
    assert answer.cookies == dict.fromkeys(NAMES, b"")


async def test_a_logout_is_delivered_however_late(engine: Engine) -> None:
    """Clearing cookies can overwrite nothing that should live."""
    issued = await engine.login()
    await engine.expire()

    async def ask(handle: Handle) -> None:
        await handle.logout()
        engine.clock.advance(3600)

    answer = await get(wrapped(engine, asking(ask)), "/", both(issued), method="POST")
    assert answer.cookies == dict.fromkeys(NAMES, b"")


async def test_a_logout_in_an_outage_is_no_logout(engine: Engine) -> None:
    """503, and the cookies stay, for the session does."""
    issued = await engine.login()
    engine.store.down = True
    app = asking(lambda handle: handle.logout())
    answer = await get(wrapped(engine, app), "/", both(issued), method="POST")
    assert (answer.status, carried(answer)) == (503, set())


async def test_a_refused_login_is_a_403(engine: Engine) -> None:
    """And carries no cookie."""
    engine.store.users["bob"] = MemoryUser(is_active=False)
    answer = await get(wrapped(engine, asking(log_in)), method="POST")
    assert (answer.status, carried(answer)) == (403, set())


FOREIGN = [
    [(b"sec-fetch-site", b"cross-site")],
    [(b"sec-fetch-site", b"same-site")],
    [(b"origin", b"https://evil.example"), (b"host", b"app.example")],
    [(b"origin", b"null"), (b"host", b"app.example")],
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_a_write_of_another_site_is_refused(
    engine: Engine, headers: list[tuple[bytes, bytes]]
) -> None:
    """403 before the app runs, with an event; reads are answered."""
    issued = await engine.login()
    app = wrapped(engine, asking())
    refused = await get(app, "/", both(issued), *headers, method="POST")
    assert (refused.status, len(engine.of(CrossSiteRefused))) == (403, 1)
    assert (await get(app, "/", both(issued), *headers)).status == 200


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_a_login_of_another_site_is_refused(
    engine: Engine, headers: list[tuple[bytes, bytes]]
) -> None:
    """Though no cookie of ours came: it would sign the victim in as somebody else."""
    answer = await get(wrapped(engine, asking(log_in)), "/", *headers, method="POST")
    assert answer.status == 403
    assert engine.store.rows == {}


async def test_a_trusted_origin_may_write(engine: Engine) -> None:
    """Listed origins are ours; `cross_site="allow"` switches the check off."""
    issued = await engine.login()
    headers = [(b"origin", b"https://evil.example"), (b"sec-fetch-site", b"cross-site")]
    for options in ({"trusted_origins": ["https://evil.example"]}, {"cross_site": "allow"}):
        app = wrapped(engine, asking(), **options)
        answer = await get(app, "/", both(issued), *headers, method="POST")
        assert answer.status == 200


async def test_c155_insecure_cookies_are_for_ones_own_machine(engine: Engine) -> None:
    """A login on any other host raises, and nothing is created."""
    app = wrapped(engine, asking(log_in), cookies=Cookies.insecure())
    for host in (b"localhost:8000", b"127.0.0.1", b"[::1]", b"[::1]:8000"):
        answer = await get(app, "/", (b"host", host), method="POST")
        assert set(answer.cookies) == {b"session", b"refresh"}
    rows = len(engine.store.rows)
    for headers in ([(b"host", b"app.example")], []):
        with pytest.raises(ConfigError, match="Secure"):
            await get(app, "/", *headers, method="POST")
    assert len(engine.store.rows) == rows


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_c154_the_scheme_weakens_nothing(engine: Engine, scheme: str) -> None:
    """Cookies are Secure behind whatever proxy, and whatever it forwards."""
    headers = [(b"x-forwarded-proto", b"http"), (b"host", b"localhost")]
    app = wrapped(engine, asking(log_in))
    answer = await get(app, "/", *headers, method="POST", scheme=scheme)
    assert all(b"; Secure" in value for value in answer.all(b"set-cookie"))


# Which requests are authenticated.


async def test_c153_an_excluded_path_is_exact(engine: Engine) -> None:
    """No variant of it is excluded, and nothing but the scope's path is looked at."""
    issued = await engine.login()
    app = wrapped(engine, asking(lambda handle: handle._session), exclude={"/health"})
    assert (await get(app, "/health", both(issued))).body == b"None"
    for path in ("/health/", "//health", "/Health", "/health;x", "/%68ealth", "/./health"):
        assert (await get(app, path, both(issued))).body != b"None"
    answer = await get(app, "/me", both(issued), (b"x-forwarded-uri", b"/health"))
    assert answer.body != b"None"


async def test_c152_the_path_is_the_scopes_own(engine: Engine) -> None:
    """A prefix that a proxy or a mount took off does not count."""
    issued = await engine.login()
    app = wrapped(engine, asking(lambda handle: handle._session), exclude={"/health"})
    answer = await get(app, "/api/health", both(issued), root_path="/api")
    assert answer.body != b"None"


@pytest.mark.parametrize("passive", [{"/poll"}, lambda scope: scope["path"] == "/poll"])
async def test_a_passive_path_is_no_activity(engine: Engine, passive: Any) -> None:
    """By list or by function, on the cached way too."""
    issued = await engine.login()
    app = wrapped(engine, asking(), passive=passive)
    engine.clock.advance(1)
    await get(app, "/poll", both(issued))
    (touch,) = engine.sessions._state.activity._pending.values()
    assert touch.at is None
    await get(app, "/", both(issued))


@pytest.mark.parametrize(
    ("header", "active"), [(b"1", False), (b"true", False), (b"0", True)]
)
async def test_a_passive_header_is_no_activity(
    engine: Engine, header: bytes, active: bool
) -> None:
    """`X-Passive-Request`, but for an explicit 0."""
    issued = await engine.login()
    await get(wrapped(engine), "/", both(issued), (b"x-passive-request", header))
    (touch,) = engine.sessions._state.activity._pending.values()
    assert (touch.at is not None) is active


async def test_a_bearer_token_counts_on_demand(engine: Engine) -> None:
    """It replaces the cookies, is not ambient, and sets no cookie."""
    issued = await engine.login()
    bearer = (b"authorization", b"Bearer " + issued.session_token.encode())
    off = await get(wrapped(engine, asking()), "/", bearer)
    app = wrapped(engine, asking(), bearer=True)
    on = await get(app, "/", bearer)
    other = await engine.login("bob")
    beside = await get(app, "/", both(other), bearer)
    write = await get(app, "/", bearer, (b"sec-fetch-site", b"cross-site"), method="POST")
    assert [a.body for a in (off, on, beside, write)] == [b"None"] + [b"'alice'"] * 3


async def test_c34_nothing_else_is_a_credential(engine: Engine) -> None:
    """Not the query, not another header, not a path."""
    issued = await engine.login()
    token = issued.session_token.encode()
    headers = [(b"x-session", token), (b"authorization", b"Bearer " + token)]
    app = wrapped(engine, asking())
    query = b"__Host-session=" + token + b"&session=" + token
    path = f"/;__Host-session={issued.session_token}"
    answer = await get(app, path, *headers, query_string=query)
    assert answer.body == b"None"


# Servers that are not what the specification says.


def recoded(code: Callable[[bytes], Any], only_values: bool = False) -> Callable[..., Any]:
    name = bytes if only_values else code
    return lambda headers: [(name(k), code(v)) for k, v in headers]


SPELLINGS: dict[str, Callable[..., Any]] = {
    "list": list,
    "iterator": iter,
    "generator": lambda headers: (pair for pair in headers),
    "iterators": lambda headers: iter([iter(pair) for pair in headers]),
    "tuple": tuple,
    "lists": lambda headers: [list(pair) for pair in headers],
    "title": lambda headers: [(k.title(), v) for k, v in headers],
    "str": recoded(bytes.decode),
    "str values": recoded(bytes.decode, only_values=True),
    "bytearray": recoded(bytearray),
    "memoryview": recoded(memoryview),
    "memoryview values": recoded(memoryview, only_values=True),
}


@pytest.mark.parametrize("kind", SPELLINGS)
@pytest.mark.parametrize("cached", [True, False])
async def test_headers_of_any_type_are_read(
    engine: Engine, kind: str, cached: bool
) -> None:
    """And the app still finds all of them."""
    issued = await engine.login()
    if not cached:
        engine.sessions._state.cache.doubt()
    headers = [(b"accept", b"*/*"), both(issued), (b"x-last", b"1")]
    found: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append([tuple(pair) for pair in scope["headers"]])
        await asking()(scope, receive, send)

    scope = http_scope()
    scope["headers"] = SPELLINGS[kind](headers)
    answer = await serve(wrapped(engine, app), scope)
    assert answer.body == b"'alice'"
    assert [len(pair) for pair in found[0]] == [2, 2, 2]


@pytest.mark.parametrize(
    "client",
    [None, ("h", None), [], ["198.51.100.7", 1], ("a", 1, 2), "198.51.100.7", (None, 0), 7],
    ids=repr,
)
async def test_c116_a_client_of_any_type_is_read(engine: Engine, client: Any) -> None:
    """An address is known or it is not; nothing raises, at a login either."""
    app = wrapped(engine, asking(log_in))
    answer = await get(app, method="POST", client=client)
    (row,) = engine.store.rows.values()
    assert answer.status == 200
    assert row.address in (None, "198.51.100.7")


async def test_a_scope_without_a_client_is_served(engine: Engine) -> None:
    """The key is optional."""
    scope = http_scope(method="POST")
    del scope["client"]
    assert (await serve(wrapped(engine, asking(log_in)), scope)).status == 200


async def test_c113_forwarded_addresses_are_accepted_from_trusted_proxies_only(
    engine: Engine,
) -> None:
    """By default from none."""
    header = (b"x-forwarded-for", b"203.0.113.9")
    trusted = TrustedProxies("198.51.100.0/24")
    for options, address in (
        ({}, "198.51.100.7"),
        ({"trusted_proxies": trusted}, "203.0.113.9"),
    ):
        app = wrapped(engine, asking(lambda h: h.client.address), **options)
        assert (await get(app, "/", header)).body == repr(address).encode()


async def test_response_headers_may_be_missing(engine: Engine) -> None:
    """They are optional in ASGI, and may be any iterable."""
    issued = await engine.login()
    await engine.expire()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def generated(scope: Scope, receive: Receive, send: Send) -> None:
        headers = ((b"a", b"b") for _ in range(1))
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    assert carried(await get(wrapped(engine, app), "/", both(issued))) == NAMES
    answer = await get(wrapped(engine, generated), "/", both(issued))
    assert (answer.one(b"a"), carried(answer)) == (b"b", NAMES)


async def test_c158_unknown_scopes_are_passed_through(engine: Engine) -> None:
    """With the very objects the server gave."""
    given: list[tuple[object, ...]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given.append((scope, receive, send))

    scope: Scope = {"type": "telegram"}

    async def nothing() -> Message:
        return {}

    await wrapped(engine, app)(scope, nothing, nothing)  # type: ignore[arg-type]
    assert given == [(scope, nothing, nothing)]
    assert scope == {"type": "telegram"}


# More than one of us.


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_c151_the_same_sessions_twice_are_once(engine: Engine, kind: str) -> None:
    """The inner one passes through: one answer, one pair of cookies."""
    issued = await engine.login()
    await engine.expire()
    inner = wrapped(engine, asking() if kind == "http" else accepting)
    app = wrapped(engine, inner)
    if kind == "http":
        answer = await get(app, "/", both(issued))
        assert (answer.body, len(answer.all(b"set-cookie"))) == (b"'alice'", 2)
    else:
        answer = await serve(app, socket_scope(headers=[both(issued)]))
        assert len(cookies_of(answer.messages[0])) == 2
    assert len(engine.of(Refreshed)) == 1


@pytest.mark.parametrize("make", [http_scope, socket_scope])
async def test_c151_different_sessions_around_one_app_are_an_error(
    engine: Engine, make: Callable[[], Scope]
) -> None:
    """The error is clear, and no request gets a wrong identity."""
    app = wrapped(engine, wrapped(Engine(), responding()))
    with pytest.raises(ConfigError, match="same Sessions"):
        await serve(app, make())


@pytest.mark.parametrize("value", [None, "alice", {"user": "alice"}, True])
async def test_c151_another_object_under_our_key_of_the_scope_is_an_error(
    engine: Engine, value: object
) -> None:
    """A marker is an object of ours and nothing a client or a server can spell."""
    with pytest.raises(ConfigError):
        await serve(wrapped(engine), http_scope(**{SCOPE_KEY: value}))


async def test_c147_two_requests_of_one_connection_are_two(engine: Engine) -> None:
    """A server may reuse the parts of a scope: no session is mixed up."""
    alice, bob = await engine.login(), await engine.login("bob")
    app = wrapped(engine, asking())
    shared = http_scope()
    bodies = [
        (await serve(app, {**shared, "headers": [both(issued)]})).body
        for issued in (alice, bob, alice)
    ]
    assert bodies == [b"'alice'", b"'bob'", b"'alice'"]


async def test_c146_nothing_of_a_request_is_kept(engine: Engine) -> None:
    """After the response, neither the handle nor the scope is held, by a cycle either."""

    class Watched(dict[str, Any]):
        __slots__ = ("__weakref__",)

    issued = await engine.login()
    references: list[weakref.ref[Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        references.append(weakref.ref(scope[SCOPE_KEY]))
        await responding()(scope, receive, send)

    serving = wrapped(engine, app)
    gc.collect()
    gc.disable()
    try:
        for headers in ([both(issued)], [], [cookie_header("forged")]):
            scope = Watched(http_scope(headers=headers))
            references.append(weakref.ref(scope))
            await serve(serving, scope)
            del scope
        assert [reference() for reference in references] == [None] * 6
    finally:
        gc.enable()


async def test_c146_a_scope_changed_after_the_request_changes_nothing(
    engine: Engine,
) -> None:
    """A session that outlives its request is its own."""
    issued = await engine.login()
    scope = http_scope(headers=[both(issued)])
    handles: list[Handle] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        handles.append(scope[SCOPE_KEY])

    await serve(wrapped(engine, app), scope)
    scope.clear()
    assert handles[0].user_id == ALICE


# Errors of ours that an application lets through.


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AuthenticationRequired(), 401),
        (LoginRefused("user_locked"), 403),
        (CrossSiteRequest(), 403),
        (SessionsUnavailable(), 503),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_an_error_of_ours_becomes_its_status(
    engine: Engine, error: Exception, status: int
) -> None:
    """If nothing was sent yet; otherwise it is the server's to see."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    assert (await get(wrapped(engine, app))).status == status
    with pytest.raises(type(error)):
        await get(wrapped(engine, app), "/late")


async def test_an_error_with_status_500_reaches_the_server(engine: Engine) -> None:
    """A ConfigError is no answer to a client."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ConfigError("x")

    with pytest.raises(ConfigError):
        await get(wrapped(engine, app))


# WebSockets: the handshake. What follows it is in `test_connections_websockets.py`.


async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept", "headers": [(b"x-app", b"1")]})
    await send({"type": "websocket.send", "text": repr(scope[SCOPE_KEY].user_id)})


def cookies_of(message: Message) -> list[bytes]:
    return [v for k, v in message["headers"] if k == b"set-cookie"]


async def test_c107_the_response_to_a_handshake_sets_the_cookies(engine: Engine) -> None:
    """On the accept, the only place where they can go."""
    issued = await engine.login()
    await engine.expire()
    answer = await serve(wrapped(engine, accepting), socket_scope(headers=[both(issued)]))
    accept, text = answer.messages
    assert accept["type"] == "websocket.accept"
    assert (b"x-app", b"1") in accept["headers"]
    assert len(cookies_of(accept)) == 2
    assert text == {"type": "websocket.send", "text": "'alice'"}


async def test_c108_the_response_that_denies_a_handshake_sets_the_cookies(
    engine: Engine,
) -> None:
    """On the response that denies it."""
    issued = await engine.login()
    await engine.expire()

    async def denying(scope: Scope, receive: Receive, send: Send) -> None:
        kind = "websocket.http.response"
        await send({"type": f"{kind}.start", "status": 404, "headers": []})
        await send({"type": f"{kind}.body", "body": b"no"})

    answer = await serve(wrapped(engine, denying), socket_scope(headers=[both(issued)]))
    assert (answer.status, carried(answer)) == (404, NAMES)


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_c106_a_handshake_of_another_site_is_refused(
    engine: Engine, headers: list[tuple[bytes, bytes]]
) -> None:
    """Before the application is called."""
    issued = await engine.login()
    scope = socket_scope(headers=[both(issued), *headers])
    answer = await serve(wrapped(engine, accepting), scope)
    assert [m["code"] for m in answer.messages] == [1008]
    denied = await serve(wrapped(engine, accepting), {**scope, "extensions": DENIALS})
    assert denied.status == 403


async def test_a_policy_with_short_lifetimes_follows_the_same_rules() -> None:
    """A demonstration in seconds follows the same rules."""
    policy = Policy(
        session_ttl=timedelta(seconds=2),
        grace=timedelta(seconds=1),
        flush_every=timedelta(milliseconds=500),
    )
    async with running(policy=policy) as engine:
        issued = await engine.login()
        await engine.expire()
        answer = await get(wrapped(engine, asking()), "/", both(issued))
        assert (answer.body, carried(answer)) == (b"'alice'", NAMES)
