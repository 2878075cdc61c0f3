"""The WSGI middleware: PEP 3333 to the letter, hostile requests, many threads.

By number where the catalogue of attacks has one. That both transports answer alike is in
`tests/test_both_transports.py`.
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import BytesIO
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from werkzeug.test import Client as WerkzeugClient

from handstamp.blocking import call
from handstamp.config import Cookies, Policy, TrustedProxies
from handstamp.core.models import Client, Invalid, Issued, Reason
from handstamp.engine.cache import Cache
from handstamp.engine.sessions import Sessions
from handstamp.errors import AuthenticationRequired, ConfigError, StepUpRequired
from handstamp.events import CookieOverridden, CrossSiteRefused, Refreshed, TokenSwapped
from handstamp.stores.memory import MemoryStore
from handstamp.wsgi import ENVIRON_KEY, SessionAuthMiddleware
from tests.support.engines import ALICE, SECRET, Engine
from tests.support.wsgi import (
    App,
    Environ,
    asking,
    cookie,
    environ,
    get,
    responding,
    running,
    serve,
)

CROSS = {"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_ORIGIN": "https://evil.example"}


@pytest.fixture
def engine() -> Iterator[Engine]:
    """One process on a store in memory."""
    with running() as engine:
        yield engine


def wrapped(engine: Engine, app: App | None = None, **options: Any) -> App:
    return SessionAuthMiddleware(app or responding(), engine.sessions, **options)


def due(engine: Engine, **options: Any) -> str:
    """The cookies of a session that the next request refreshes."""
    issued = call(engine.login, **options)
    call(engine.expire)
    return cookie(issued)


# PEP 3333.


@pytest.mark.parametrize("expired", [False, True])
def test_the_apps_iterable_is_returned_unchanged(engine: Engine, expired: bool) -> None:
    """The very object, so ``close()`` is the server's to call, and is called once."""
    closed: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"a", b"b"])

        def close(self) -> None:
            closed.append("closed")

    body = Body()

    def app(environ: Environ, start_response: App) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body

    sent = due(engine) if expired else cookie(call(engine.login))
    request = environ(HTTP_COOKIE=sent)
    assert wrapped(engine, app)(request, lambda *_: None) is body
    assert closed == []
    call(engine.expire)
    assert get(wrapped(engine, app), HTTP_COOKIE=sent).body == b"ab"
    assert closed == ["closed"]


def test_a_file_wrapper_is_returned_unchanged(engine: Engine) -> None:
    """So a server may still send the file by itself."""
    wrapper = FileWrapper(BytesIO(b"contents"))

    def app(environ: Environ, start_response: App) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](wrapper)

    request = environ(HTTP_COOKIE=due(engine))
    request["wsgi.file_wrapper"] = lambda file: file
    assert wrapped(engine, app)(request, lambda *_: None) is wrapper


def test_a_stream_arrives_chunk_by_chunk(engine: Engine) -> None:
    """The first chunk is there before the last is made, with the cookies in front."""
    made: list[int] = []
    started: list[Any] = []

    def app(environ: Environ, start_response: App) -> Iterator[bytes]:
        start_response("200 OK", [])
        for number in range(3):
            made.append(number)
            yield str(number).encode()

    request = environ(HTTP_COOKIE=due(engine))
    chunks = iter(wrapped(engine, app)(request, lambda *said: started.append(said)))
    assert (next(chunks), made) == (b"0", [0])
    assert [name for name, _ in started[0][1]].count("set-cookie") == 2
    assert list(chunks) == [b"1", b"2"]


def test_what_start_response_returns_is_the_servers_write(engine: Engine) -> None:
    """The app's ``write()`` is the server's own, and nothing of ours."""
    written: list[bytes] = []

    def app(environ: Environ, start_response: App) -> list[bytes]:
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        assert write == written.append
        write(b"by hand")
        return []

    request = environ(HTTP_COOKIE=due(engine))
    wrapped(engine, app)(request, lambda *_: written.append)
    assert written == [b"by hand"]


def test_c94_a_second_start_has_exactly_one_cookie_of_each_name(engine: Engine) -> None:
    """An error page that replaces an answer carries the new tokens too, once."""

    def app(environ: Environ, start_response: App) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            raise ZeroDivisionError
        except ZeroDivisionError as exc:
            info = (type(exc), exc, exc.__traceback__)
            start_response("500 Oops", [("Content-Type", "text/plain")], info)
        return [b"oops"]

    answer = get(wrapped(engine, app), HTTP_COOKIE=due(engine))
    assert (answer.status, answer.starts) == (500, 2)
    assert set(answer.cookies) == {"__Host-session", "__Host-refresh"}


def test_c94_exc_info_is_the_servers_to_raise(engine: Engine) -> None:
    """After the first byte ``start_response`` raises it, as PEP 3333 requires."""

    def app(environ: Environ, start_response: App) -> list[bytes]:
        start_response("200 OK", [])(b"half")
        try:
            raise ZeroDivisionError("half way")
        except ZeroDivisionError as exc:
            start_response("500 Oops", [], (type(exc), exc, exc.__traceback__))
        return []

    with pytest.raises(ZeroDivisionError, match="half way"):
        serve(wrapped(engine, app), environ(HTTP_COOKIE=due(engine)))


def test_c94_exc_info_is_not_kept(engine: Engine) -> None:
    """No frame of ours stays in a cycle with the traceback it was shown."""
    frames: list[Any] = []

    def app(environ: Environ, start_response: App) -> list[bytes]:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError as exc:
            start_response("500 Oops", [], (type(exc), exc, exc.__traceback__))
        return []

    def start(status: str, headers: Any, exc_info: Any = None) -> None:
        frames.append(sys._getframe(1))

    wrapped(engine, app)(environ(), start)
    assert frames[0].f_locals.get("exc_info") is None


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_c95_a_response_without_a_body_sets_the_cookies(
    engine: Engine, status: str
) -> None:
    """A rotation is delivered by whatever answer comes first."""
    answer = get(wrapped(engine, responding(status)), HTTP_COOKIE=due(engine))
    assert set(answer.cookies) == {"__Host-session", "__Host-refresh"}
    assert (answer.body, answer.one("cache-control")) == (b"", "private, no-store")


def test_c74_head_is_like_get(engine: Engine) -> None:
    """It rotates, and its refusal has no body."""
    answer = get(wrapped(engine), method="HEAD", HTTP_COOKIE=due(engine))
    assert set(answer.cookies) == {"__Host-session", "__Host-refresh"}
    refused = get(wrapped(engine, asking(lambda h: h.require())), method="HEAD")
    assert (refused.status, refused.body) == (401, b"")


def test_the_apps_header_list_is_not_changed(engine: Engine) -> None:
    """An application may use one list for all its answers."""
    headers = [("Content-Type", "text/plain")]

    def app(environ: Environ, start_response: App) -> list[bytes]:
        start_response("200 OK", headers)
        return [b""]

    expired = due(engine)
    for sent in (cookie(call(engine.login)), expired):
        assert get(wrapped(engine, app), HTTP_COOKIE=sent).one("vary") == "Cookie"
    assert headers == [("Content-Type", "text/plain")]


def test_c93_a_cookie_of_our_name_that_the_app_sets_gives_way(engine: Engine) -> None:
    """One Set-Cookie of a name, ours where we have one; and an event says so."""
    app = responding(headers=[("Set-Cookie", "__Host-session=theirs"), ("Vary", "Accept")])
    answer = get(wrapped(engine, app), HTTP_COOKIE=due(engine))
    assert "theirs" not in answer.cookies.values()
    assert len(answer.all("set-cookie")) == 2
    assert answer.one("vary") == "Accept, Cookie"
    call(_turn)
    assert [event.dropped for event in engine.of(CookieOverridden)] == [True]


async def _turn() -> None:
    """Whatever was to be done soon is done when this returns."""


def test_an_error_of_ours_in_a_generator_is_the_servers(engine: Engine) -> None:
    """A generator raises while the server iterates; the middleware cannot catch that."""

    def app(environ: Environ, start_response: App) -> Iterator[bytes]:
        environ[ENVIRON_KEY].require()
        yield b""

    iterable = wrapped(engine, app)(environ(), lambda *_: None)
    with pytest.raises(AuthenticationRequired):
        next(iter(iterable))


def test_c148_what_the_app_raises_passes_through(engine: Engine) -> None:
    """Also what ends a process, and errors of ours after the start of the answer."""

    def exits(environ: Environ, start_response: App) -> Any:
        raise SystemExit(3)

    def too_late(environ: Environ, start_response: App) -> Any:
        start_response("200 OK", [])
        raise StepUpRequired(required=2, level=1)

    with pytest.raises(SystemExit):
        serve(wrapped(engine, exits), environ())
    with pytest.raises(StepUpRequired):
        serve(wrapped(engine, too_late), environ())


# Hostile requests.

HOSTILE: dict[str, Environ] = {
    "no method": {"REQUEST_METHOD": None},
    "an odd method": {"REQUEST_METHOD": "gEt\x00"},
    "an empty method": {"REQUEST_METHOD": ""},
    "a cookie beyond latin-1": {"HTTP_COOKIE": "__Host-session=\u2603\U0001f36a"},
    "a lone surrogate": {"HTTP_COOKIE": "__Host-session=\udcff\ud800"},
    "bytes for a cookie": {"HTTP_COOKIE": b"__Host-session=x"},
    "a huge cookie": {"HTTP_COOKIE": "__Host-session=" + "A" * 1_000_000},
    "many cookies": {"HTTP_COOKIE": "__Host-session=x; " * 5_000},
    "control characters": {"HTTP_COOKIE": "__Host-session=\x00\r\n\x7f"},
    "an empty cookie": {"HTTP_COOKIE": ""},
    "a header name beyond latin-1": {
        "HTTP_Ÿ_\u2603": "x",
        "HTTP_COOKIE": "__Host-session=x",
    },
    "a header name without a name": {"HTTP_": "x", "HTTP_COOKIE": "__Host-session=x"},
    "a header that is no text": {"HTTP_X": 7, "HTTP_COOKIE": "__Host-session=x"},
    "a user agent beyond latin-1": {
        "HTTP_USER_AGENT": "\u2603\ud800\x00",
        "HTTP_COOKIE": "__Host-session=x",
    },
    "an address that is none": {"REMOTE_ADDR": "\ud800", "HTTP_COOKIE": "__Host-session=x"},
    "no address": {"REMOTE_ADDR": None, "HTTP_COOKIE": "__Host-session=x"},
    "no path": {"PATH_INFO": None},
    "a path beyond latin-1": {"PATH_INFO": "/\u2603\ud800"},
    "a bearer token beyond latin-1": {"HTTP_AUTHORIZATION": "Bearer \u2603"},
    "an odd origin": {"HTTP_ORIGIN": "\ud800", "HTTP_COOKIE": "__Host-session=x"},
}


@pytest.mark.parametrize("changed", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_request_causes_a_500(engine: Engine, changed: Environ, method: str) -> None:
    """Whatever is in the environ, the request is anonymous or refused."""
    request = {**environ(method=method), **changed}
    request = {key: value for key, value in request.items() if value is not None}
    proxies = TrustedProxies("198.51.100.0/24")
    app = wrapped(engine, asking(), bearer=True, exclude=["/x"], trusted_proxies=proxies)
    answer = serve(app, request)
    assert (answer.status, answer.body) in (
        (200, b"None"),
        (
            403,
            b"refused: the request was made by another site; if that site is yours, "
            b"list it in trusted_origins\n",
        ),
    )
    assert answer.cookies == {}
    assert engine.store.queries == 0


def test_an_almost_empty_environ_is_served(engine: Engine) -> None:
    """A server that omits what PEP 3333 requires gets a response all the same."""

    def app(environ: Environ, start_response: App) -> list[bytes]:
        start_response("200 OK", [])
        return [repr(environ[ENVIRON_KEY].user_id).encode()]

    answer = serve(wrapped(engine, app), {})
    assert (answer.status, answer.body) == (200, b"None")


def test_c26_an_underscore_is_no_way_round_a_proxy(engine: Engine) -> None:
    """Headers with ``_`` and ``-`` are one name here, so only the peer decides."""
    request = environ(HTTP_X_FORWARDED_FOR="203.0.113.5")
    app = wrapped(engine, asking(lambda handle: handle.client.address))
    assert serve(app, dict(request)).body == b"'198.51.100.7'"
    near = wrapped(
        engine,
        asking(lambda handle: handle.client.address),
        trusted_proxies=TrustedProxies("198.51.100.7"),
    )
    assert serve(near, dict(request)).body == b"'203.0.113.5'"


# The options of a middleware.


def test_c153_an_excluded_path_is_exact_also_beyond_ascii(engine: Engine) -> None:
    """Paths are given as text, and compared as WSGI spells them."""
    issued = call(engine.login)
    app = wrapped(engine, asking(), exclude=["/münchen", "/plain"])
    sent = {"HTTP_COOKIE": cookie(issued)}
    spelt = "/münchen".encode().decode("latin-1")
    assert get(app, spelt, **sent).body == b"None"
    assert get(app, "/plain", **sent).body == b"None"
    for near in ("/münchen", "/plain/", "/PLAIN", "//plain", "/plain;x"):
        assert serve(app, environ(near, **sent)).body == b"'alice'"


@pytest.mark.parametrize("passive", [["/poll"], lambda e: e["PATH_INFO"] == "/poll"])
def test_a_passive_path_is_no_activity(engine: Engine, passive: Any) -> None:
    """Authenticated, from the cache too, and no touch; another path is one."""
    issued = call(engine.login)
    app, sent = wrapped(engine, asking(), passive=passive), {"HTTP_COOKIE": cookie(issued)}
    assert get(app, **sent).body == b"'alice'"  # a first use is always recorded
    call(engine.sessions.flush)
    engine.clock.advance(2 * engine.policy.touch_every)
    assert get(app, "/poll", **sent).body == b"'alice'"
    assert engine.sessions.stats().pending_touches == 0
    assert get(app, **sent).body == b"'alice'"
    assert engine.sessions.stats().pending_touches == 1


@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "h2c, websocket"])
def test_a_handshake_rotates_nothing_and_proves_its_token(
    engine: Engine, upgrade: str
) -> None:
    """A WebSocket library under WSGI writes the response itself, so no cookie of ours would
    be on it. The refresh token is accepted without a rotation, and was seen: the one before
    is a replay."""
    stolen = call(engine.login)
    call(engine.expire)
    sent = {"HTTP_COOKIE": cookie(call(engine.refreshed, stolen)), "HTTP_UPGRADE": upgrade}
    call(engine.expire)
    answer = get(wrapped(engine, asking()), **sent)
    assert (answer.body, answer.all("set-cookie")) == (b"'alice'", [])
    assert len(engine.of(Refreshed)) == 1
    call(engine.sessions.flush)
    assert call(engine.ask, stolen) == Invalid(Reason.REPLAYED)


@pytest.mark.parametrize(
    "request_",
    [
        {"method": "POST"},
        {"HTTP_X_PASSIVE_REQUEST": "1"},
        {"HTTP_SEC_PURPOSE": "prefetch"},
        {"path": "/poll"},
    ],
    ids=str,
)
def test_p1_a_cached_session_never_leaves_the_thread(
    engine: Engine, request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for a POST, nor for a passive request: the loop is not needed, as long as
    there is nothing to report."""
    here = Client(address=environ()["REMOTE_ADDR"])
    sent = {"HTTP_COOKIE": cookie(call(engine.login, client=here)), **request_}
    app = wrapped(engine, asking(), passive=["/poll"])

    def crossing(*_: object) -> None:
        raise AssertionError("crossed into the loop")

    monkeypatch.setattr("handstamp.blocking._submit", crossing)
    assert get(app, **sent).body == b"'alice'"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "sent",
    [
        {"HTTP_COOKIE": cookie(session="A" * 80, refresh="B" * 80)},
        {"HTTP_COOKIE": cookie(session="x.y.z")},
        {"HTTP_COOKIE": cookie(refresh="B" * 80)},
        {"HTTP_AUTHORIZATION": "Bearer " + "A" * 80},
        {"HTTP_COOKIE": "__Host-session"},
        {"HTTP_COOKIE": f"{cookie(session='A' * 80)}; {cookie(session='B' * 80)}"},
        {"HTTP_COOKIE": f"{cookie(session='x', refresh='y')}; {cookie(refresh='z')}"},
    ],
    ids=str,
)
def test_p2_a_forged_cookie_never_leaves_the_thread(
    sent: dict[str, str], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of them starts no loop, and delays no request that needs it."""

    def crossing(*_: object) -> None:
        raise AssertionError("crossed into the loop")

    monkeypatch.setattr("handstamp.blocking._submit", crossing)
    app = wrapped(Engine(), asking(), bearer=True)
    answer = get(app, method=method, **sent)
    assert (answer.body, answer.cookies) == (b"None", {})


def test_a_cross_site_write_with_a_forged_cookie_never_leaves_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is refused as any other, and is no event: anybody can send a flood of them."""

    def crossing(*_: object) -> None:
        raise AssertionError("crossed into the loop")

    monkeypatch.setattr("handstamp.blocking._submit", crossing)
    engine = Engine()
    sent = {"HTTP_COOKIE": cookie(session="A" * 80), **CROSS}
    assert get(wrapped(engine, asking()), method="POST", **sent).status == 403
    assert engine.events == []


def test_credentials_that_are_only_partly_forged_are_checked(engine: Engine) -> None:
    """A dead session token beside a good refresh token, and tokens in each other's place,
    which is an event."""
    issued = call(engine.login)
    call(engine.expire)
    app = wrapped(engine, asking())
    mixed = cookie(session="A" * 80, refresh=issued.refresh_token)
    assert get(app, HTTP_COOKIE=mixed).body == b"'alice'"
    swapped = cookie(session=issued.refresh_token)
    assert get(app, HTTP_COOKIE=swapped).body == b"None"
    call(_turn)
    assert len(engine.of(TokenSwapped)) == 1


def test_a_bearer_token_counts_on_demand(engine: Engine) -> None:
    """From the cache as well, and only where it was asked for."""
    issued = call(engine.login)
    sent = {"HTTP_AUTHORIZATION": f"Bearer {issued.session_token}"}
    assert get(wrapped(engine, asking()), **sent).body == b"None"
    assert get(wrapped(engine, asking(), bearer=True), **sent).body == b"'alice'"
    engine.store.down = True
    assert get(wrapped(engine, asking(), bearer=True), **sent).body == b"'alice'"


def test_a_write_of_another_site_is_refused(engine: Engine) -> None:
    """403 before anything is read, an event, and no call of the app."""
    app = wrapped(engine, lambda *_: pytest.fail("the app was called"))
    sent = {"HTTP_COOKIE": cookie(call(engine.login)), **CROSS}
    answer = get(app, method="POST", **sent)
    assert (answer.status, answer.one("vary")) == (403, "Cookie")
    call(_turn)
    assert len(engine.of(CrossSiteRefused)) == 1
    trusting = wrapped(engine, asking(), trusted_origins=["https://evil.example"])
    assert get(trusting, method="POST", **sent).body == b"'alice'"


def test_c155_insecure_cookies_are_for_ones_own_machine(engine: Engine) -> None:
    """A login elsewhere is refused, as the operator's fault."""
    login = asking(lambda handle: handle.login("bob"))
    app = wrapped(engine, login, cookies=Cookies.insecure())
    assert set(get(app, HTTP_HOST="localhost:8000").cookies) == {"session", "refresh"}
    with pytest.raises(ConfigError, match="https"):
        serve(app, environ(HTTP_HOST="app.example"))


def test_c151_the_same_sessions_twice_are_once(engine: Engine) -> None:
    """The inner middleware lets the request through; the cookies leave once."""
    app = wrapped(engine, wrapped(engine, asking()))
    answer = get(app, HTTP_COOKIE=due(engine))
    assert answer.body == b"'alice'"
    assert len(answer.all("set-cookie")) == 2


def test_c151_different_sessions_around_one_app_are_an_error(engine: Engine) -> None:
    """Two engines would disagree on who it is."""
    other = Sessions(MemoryStore(), secret=SECRET)
    app = wrapped(engine, SessionAuthMiddleware(responding(), other))
    with pytest.raises(ConfigError, match="different Sessions"):
        serve(app, environ())


# Whose request it is.


def test_c146_a_handle_outlives_what_the_server_does_to_its_environ(engine: Engine) -> None:
    """uWSGI clears the environ after the answer; background work keeps its handle."""
    kept: list[Any] = []
    app = wrapped(engine, asking(lambda handle: kept.append(handle) or handle.user_id))
    request = environ(HTTP_COOKIE=cookie(call(engine.login)), HTTP_USER_AGENT="Agent A")
    serve(app, request)
    request.clear()
    request.update(environ(REMOTE_ADDR="203.0.113.66", HTTP_USER_AGENT="Agent B"))
    (handle,) = kept
    assert (handle.user_id, handle.client.address) == (ALICE, "198.51.100.7")
    assert handle.client.user_agent == "Agent A"


@pytest.mark.parametrize("expired", [False, True])
def test_c146_a_reused_environ_contains_no_earlier_session(
    engine: Engine, expired: bool
) -> None:
    """A server that only overwrites the headers of the last request gets a new handle."""
    app = wrapped(engine, asking())
    request = environ(HTTP_COOKIE=due(engine) if expired else cookie(call(engine.login)))
    assert serve(app, request).body == b"'alice'"
    request["HTTP_COOKIE"] = cookie(call(engine.login, "bob"))
    assert serve(app, request).body == b"'bob'"
    del request["HTTP_COOKIE"]
    assert serve(app, request).body == b"None"


def test_nothing_of_a_request_waits_for_the_garbage_collector(engine: Engine) -> None:
    """A handle and its environ are no cycle: both are freed with the request."""
    import gc
    import weakref

    seen: list[weakref.ref[Any]] = []
    app = wrapped(engine, asking(lambda h: seen.append(weakref.ref(h)) or h.user_id))
    gc.disable()
    try:
        serve(app, environ(HTTP_COOKIE=cookie(call(engine.login))))
        serve(app, environ(HTTP_COOKIE=due(engine)))
        assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()


def test_c145_a_thread_started_in_a_request_keeps_its_handle(engine: Engine) -> None:
    """The next request on the same thread does not change it."""
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("handle")
    gate, found = threading.Event(), []

    def later() -> None:
        gate.wait(10)
        found.append(variable.get().user_id)

    def start(handle: Any) -> str | None:
        variable.set(handle)
        if not workers:
            context = contextvars.copy_context()
            workers.append(threading.Thread(target=context.run, args=[later]))
            workers[0].start()
        return handle.user_id

    workers: list[threading.Thread] = []
    app = wrapped(engine, asking(start))
    get(app, HTTP_COOKIE=cookie(call(engine.login)))
    assert get(app, HTTP_COOKIE=cookie(call(engine.login, "bob"))).body == b"'bob'"
    gate.set()
    workers[0].join()
    assert found == [ALICE]


# Many threads.


class Load:
    """Threads that ask as fast as they can, each time as another of these sessions."""

    def __init__(self, app: App, issued: list[Issued]) -> None:
        self.app, self.issued = app, issued
        self.over: set[str] = set()
        self.stop = threading.Event()
        self.served = 0
        self.wrong: list[str] = []

    def work(self, number: int) -> int:
        served = 0
        while not self.stop.is_set():
            number = (number * 5 + 3) % len(self.issued)
            one = self.issued[number]
            was_over = one.session.id in self.over
            answer = serve(self.app, environ(HTTP_COOKIE=cookie(session=one.session_token)))
            served += 1
            if answer.body not in (one.session.user_id.encode(), b"nobody"):
                self.wrong.append(f"{answer.body!r} for {one.session.user_id}")
            if was_over and answer.body != b"nobody":
                self.wrong.append(f"{one.session.user_id} was served after the revocation")
        return served


def naming(environ: Environ, start_response: App) -> list[bytes]:
    """An application that says whose request it is."""
    start_response("200 OK", [])
    return [(environ[ENVIRON_KEY].user_id or "nobody").encode()]


def load(engine: Engine, revoke: Callable[[Issued], None]) -> Load:
    """32 threads over 64 sessions, a quarter of which end meanwhile."""
    issued = [call(engine.login, f"user{number}") for number in range(64)]
    load = Load(wrapped(engine, naming), issued)
    with ThreadPoolExecutor(32) as pool:
        counts = [pool.submit(load.work, number) for number in range(32)]
        for one in issued[::4]:
            revoke(one)
            load.over.add(one.session.id)
        load.stop.set()
        load.served = sum(count.result() for count in counts)
    return load


@pytest.mark.parametrize("cache_size", [1000, 5])
def test_32_threads_and_revocations_in_between(cache_size: int) -> None:
    """After a revoke has returned, that session serves no request, no user is mixed up,
    and the cache's indices agree, also while it evicts."""
    with running(cache_size=cache_size) as engine:
        done = load(engine, lambda one: call(engine.sessions.revoke, one.session.id))
        assert done.wrong == []
        assert done.served > 64
        consistent(engine)


def test_32_threads_while_users_are_revoked_and_everything_is_doubted() -> None:
    """The same by user, while the cache is doubted all the time."""
    with running() as engine:

        def revoke(one: Issued) -> None:
            engine.sessions._state.cache.doubt()
            call(engine.sessions.revoke_user, one.session.user_id)

        assert load(engine, revoke).wrong == []
        consistent(engine)


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-7)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient")
def test_c143_threads_that_all_change_the_cache_leave_it_consistent() -> None:
    """Putting, using, dropping, doubting and forgetting at once, with room for five of
    forty."""
    with running() as engine:
        for number in range(40):
            call(engine.login, f"user{number % 8}")
        entries = list(engine.sessions._state.cache._live.values())
    cache = Cache(5)

    def work(seed: int) -> None:
        for step in range(seed, seed + 3000):
            entry = entries[step * 7 % len(entries)]
            cache.put(cache.ticket(), entry)
            cache.mark_used(entries[step % len(entries)])
            if step % 5 == 0:
                cache.forget_session(entry.session.id)
            if step % 11 == 0:
                cache.doubt_user(entry.session.user_id)
            if step % 97 == 0:
                cache.doubt()
            if step % 3 == 0:
                cache.drop(entry.key)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    agreeing(cache)


def consistent(engine: Engine) -> None:
    """Every index of the engine's cache says the same."""
    agreeing(engine.sessions._state.cache)


def agreeing(cache: Cache) -> None:
    """The cache, its order and its indices hold the same sessions."""
    held = {**cache._live, **cache._doubted}
    assert len(held) == len(cache._live) + len(cache._doubted) == len(cache)
    assert set(held) == set(cache._order)
    assert {key: entry.key for key, entry in held.items()} == {key: key for key in held}
    by_session = {(name, key) for name, keys in cache._by_session.items() for key in keys}
    assert by_session == {(entry.session.id, key) for key, entry in held.items()}
    by_user = {(name, key) for name, keys in cache._by_user.items() for key in keys}
    assert by_user <= {(entry.session.user_id, key) for key, entry in held.items()}
    assert by_user >= {(e.session.user_id, key) for key, e in cache._live.items()}
    assert all(cache._by_user.values())
    assert len(cache) <= cache._order.maxsize


def test_32_threads_refresh_one_session_once(engine: Engine) -> None:
    """One successor for all of them, and one UPDATE."""
    sent = due(engine)
    barrier = threading.Barrier(32)

    def ask(_: int) -> tuple[bytes, frozenset[str]]:
        barrier.wait()
        answer = get(wrapped(engine, asking()), HTTP_COOKIE=sent)
        return answer.body, frozenset(answer.cookies.values())

    with ThreadPoolExecutor(32) as pool:
        answers = set(pool.map(ask, range(32)))
    assert len(answers) == 1
    ((body, tokens),) = answers
    assert (body, len(tokens)) == (b"'alice'", 2)


def test_p5_an_outage_is_a_503_and_keeps_the_cookies() -> None:
    """Only if the application reads the session."""
    with running(policy=Policy(time_budget=timedelta(milliseconds=200))) as engine:
        sent = due(engine)
        engine.store.down = True
        assert get(wrapped(engine), HTTP_COOKIE=sent).status == 200
        answer = get(wrapped(engine, asking()), HTTP_COOKIE=sent)
        assert (answer.status, answer.one("retry-after"), answer.cookies) == (503, "1", {})
        assert answer.body == b"temporarily unavailable\n"


def test_a_refusal_is_a_response_for_test_clients_too(engine: Engine) -> None:
    """Werkzeug's raises what it is given as `exc_info`, and the 401 was never seen."""
    client = WerkzeugClient(wrapped(engine, asking(lambda h: h.require())))
    assert client.get("/").status_code == 401
