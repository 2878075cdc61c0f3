"""A step-up through the handle: its response carries the new cookies, on each transport."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from handstamp import asgi as ours_asgi
from handstamp import wsgi as ours_wsgi
from handstamp.blocking import call
from handstamp.core.models import Issued
from handstamp.errors import HandstampError
from handstamp.events import Replayed
from handstamp.stores.memory import MemoryStore
from tests.support import asgi, wsgi
from tests.support.engines import Engine

Hook = Callable[[], Awaitable[None]]


@dataclass
class Response:
    """What came back; ``raised`` is what the application got instead."""

    status: int = 0
    body: str = ""
    headers: dict[str, list[str]] = field(default_factory=dict)
    raised: HandstampError | None = None

    @property
    def lines(self) -> list[str]:
        """The Set-Cookie lines."""
        return self.headers.get("set-cookie", [])

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that it sets; each once."""
        pairs = [line.partition(";")[0].partition("=") for line in self.lines]
        assert len({name for name, _, _ in pairs}) == len(pairs)
        return {name: value for name, _, value in pairs}


class Site(Protocol):
    """An application on one transport: ``POST /up`` raises the level of its session to 2,
    ``POST /in`` logs bob in, and everything is answered with the level and the user.
    ``meanwhile`` is awaited in the application, before it does what it is asked."""

    engine: Engine

    def run(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any: ...

    def send(
        self,
        path: str,
        jar: dict[str, str],
        *,
        method: str = "POST",
        meanwhile: Hook | None = None,
        late: bool = False,
        **headers: str,
    ) -> Response: ...


def describe(session: Any) -> str:
    return "anonymous" if session is None else f"{session.user_id} {session.level or 0}"


def header(jar: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in jar.items())


class OverAsgi:
    """The ASGI middleware and its handle."""

    def __init__(self, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._options = options
        self.engine = Engine()
        self.run(self.engine.sessions.open)

    def run(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        async def running() -> Any:
            return await work(*arguments)

        return self._runner.run(running())

    def close(self) -> None:
        self.run(self.engine.sessions.close)
        self._runner.close()

    def send(
        self,
        path: str,
        jar: dict[str, str],
        *,
        method: str = "POST",
        meanwhile: Hook | None = None,
        late: bool = False,
        **headers: str,
    ) -> Response:
        response = Response()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            handle = scope[ours_asgi.SCOPE_KEY]
            if late:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                if meanwhile is not None:
                    await meanwhile()
                if path == "/up":
                    await handle.step_up(2)
                if path == "/in":
                    await handle.login("bob")
            except HandstampError as exc:
                response.raised = exc
                raise
            if not late:
                await asgi.responding(body=describe(handle.session).encode())(
                    scope, receive, send
                )

        sent = {"host": "app.example", "cookie": header(jar), **headers}
        raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in sent.items() if v]
        wrapped = ours_asgi.SessionAuthMiddleware(
            app, self.engine.sessions, **self._options
        )
        scope = asgi.http_scope(path, method=method, headers=raw)
        try:
            answer = self.run(asgi.serve, wrapped, scope)
        except HandstampError:
            return response
        response.status, response.body = answer.status, answer.body.decode()
        for name, value in answer.start["headers"]:
            response.headers.setdefault(name.decode(), []).append(value.decode())
        return response


class OverWsgi:
    """The WSGI middleware and its handle."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.engine = Engine()
        self.run(self.engine.sessions.open)

    def run(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        return call(work, *arguments)

    def close(self) -> None:
        self.run(self.engine.sessions.close)

    def send(
        self,
        path: str,
        jar: dict[str, str],
        *,
        method: str = "POST",
        meanwhile: Hook | None = None,
        late: bool = False,
        **headers: str,
    ) -> Response:
        response = Response()

        def app(environ: Any, start_response: Any) -> Any:
            handle = environ[ours_wsgi.ENVIRON_KEY]
            if late:
                start_response("200 OK", [])
            try:
                if meanwhile is not None:
                    call(meanwhile)
                if path == "/up":
                    handle.step_up(2)
                if path == "/in":
                    handle.login("bob")
            except HandstampError as exc:
                response.raised = exc
                raise
            if not late:
                start_response("200 OK", [])
            return [describe(handle.session).encode()]

        sent = {"cookie": header(jar), **headers}
        raw = {f"HTTP_{name.upper()}": value for name, value in sent.items() if value}
        wrapped = ours_wsgi.SessionAuthMiddleware(
            app, self.engine.sessions, **self._options
        )
        try:
            answer = wsgi.serve(wrapped, wsgi.environ(path, method=method, **raw))
        except HandstampError:
            return response
        response.status, response.body = answer.status, answer.body.decode()
        for name, value in answer.headers:
            response.headers.setdefault(name.lower(), []).append(value)
        return response


TRANSPORTS: dict[str, Callable[..., Any]] = {"asgi": OverAsgi, "wsgi": OverWsgi}


@pytest.fixture(params=TRANSPORTS)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """The application on each transport."""
    site = TRANSPORTS[request.param](bearer=True)
    yield site
    site.close()


def jar_of(issued: Issued) -> dict[str, str]:
    assert issued.refresh_token is not None
    return {
        "__Host-session": issued.session_token,
        "__Host-refresh": issued.refresh_token,
    }


async def later(engine: Engine) -> None:
    """Until after grace, with everything written that was noticed."""
    await engine.sessions.flush()
    engine.clock.advance(engine.policy.grace.total_seconds() + 1)


def test_the_response_carries_new_cookies_with_the_level(site: Site) -> None:
    """Both, uncached; the browser goes on with them, and a copy of the old ones does
    not."""
    old = jar_of(site.run(site.engine.login))
    response = site.send("/up", old)
    assert (response.status, response.body) == (200, "alice 2")
    assert response.cookies.keys() == old.keys()
    assert not set(response.cookies.values()) & set(old.values())
    assert response.headers["cache-control"] == ["private, no-store"]
    assert response.headers["vary"] == ["Cookie"]
    assert site.send("/", response.cookies).body == "alice 2"
    assert site.send("/", old).body == "anonymous"
    assert site.send("/", {"__Host-session": old["__Host-session"]}).body == "anonymous"


def test_a_tab_that_was_on_its_way_signs_nobody_out(site: Site) -> None:
    """Its request has the old cookies and is refused without a cookie of its own; the next
    one has the new, also long afterwards."""
    old = jar_of(site.run(site.engine.login))
    fresh = site.send("/up", old).cookies
    refused = site.send("/", old)
    assert (refused.body, refused.lines) == ("anonymous", [])
    site.run(later, site.engine)
    assert site.send("/", fresh).body == "alice 2"


def test_an_old_copy_that_comes_later_ends_the_session(site: Site) -> None:
    """Grace is over: a client with the old refresh token is a second party."""
    old = jar_of(site.run(site.engine.login))
    fresh = site.send("/up", old).cookies
    site.run(later, site.engine)
    assert site.send("/", old).body == "anonymous"
    assert site.send("/", fresh).body == "anonymous"
    assert len(site.engine.of(Replayed)) == 1


@pytest.mark.parametrize("remember", [True, False])
@pytest.mark.parametrize("rotated", [True, False])
def test_cookies_that_outlive_the_browser_still_do(
    site: Site, remember: bool, rotated: bool
) -> None:
    """Those of a session that is not remembered still do not; whether this very request
    rotated or not."""
    issued = site.run(lambda: site.engine.login(remember=remember))
    if rotated:
        site.run(site.engine.expire)
    response = site.send("/up", jar_of(issued))
    assert response.body == "alice 2"
    assert len(response.lines) == 2
    assert {"Max-Age" in line for line in response.lines} == {remember}
    assert site.send("/", response.cookies).body == "alice 2"


def test_a_second_click_changes_nothing(site: Site) -> None:
    """The level is there: no new cookies, and those of the first go on. Of a request that
    rotated, the rotated ones leave."""
    fresh = site.send("/up", jar_of(site.run(site.engine.login))).cookies
    again = site.send("/up", fresh)
    assert (again.body, again.lines) == ("alice 2", [])
    site.run(site.engine.expire)
    rotated = site.send("/up", fresh)
    assert rotated.body == "alice 2"
    assert site.send("/", rotated.cookies).body == "alice 2"


def test_two_clicks_at_once_leave_cookies_that_live(site: Site) -> None:
    """The second is under way when the first is answered: whichever answer comes last."""
    old = jar_of(site.run(site.engine.login))
    first: list[Issued] = []

    async def the_other_click() -> None:
        answer = await site.engine.sessions.step_up(session_id, 2)
        assert answer is not None
        assert answer.issued is not None
        first.append(answer.issued)

    (session_id,) = site.engine.store.rows
    second = site.send("/up", old, meanwhile=the_other_click)
    assert (second.body, second.lines) == ("alice 2", [])
    assert site.send("/", jar_of(*first)).body == "alice 2"


@pytest.mark.parametrize("what", ["step up", "login"])
def test_a_slow_answer_does_not_replace_newer_cookies(site: Site, what: str) -> None:
    """It rotated at its start, and then the user stepped up, or logged in again, in
    another tab: its cookies are dead, and stay away."""
    engine = site.engine
    old = jar_of(site.run(engine.login))
    (session_id,) = engine.store.rows
    site.run(engine.expire)
    newest: list[Issued] = []

    async def overtake() -> None:
        if what == "login":
            newest.append(await engine.login(replaces=session_id))
            return
        answer = await engine.sessions.step_up(session_id, 2)
        assert answer is not None
        assert answer.issued is not None
        newest.append(answer.issued)

    slow = site.send("/", old, meanwhile=overtake)
    assert (slow.body, slow.lines) == ("alice 0", [])
    site.run(later, engine)
    assert site.send("/", jar_of(*newest)).body.startswith("alice")


def test_a_step_up_comes_before_the_response(site: Site) -> None:
    """Afterwards nothing can carry the cookies, so nothing is done."""
    old = jar_of(site.run(site.engine.login))
    response = site.send("/up", old, late=True)
    assert response.raised is not None
    assert "before the response starts" in str(response.raised)
    assert site.send("/", old).body == "alice 0"


def test_a_page_of_another_site_steps_nobody_up(site: Site) -> None:
    """403, and the old cookies stay good."""
    old = jar_of(site.run(site.engine.login))
    for method in ("POST", "GET"):
        response = site.send(
            "/up",
            old,
            method=method,
            sec_fetch_site="cross-site",
            sec_fetch_mode="navigate",
            origin="https://evil.example",
        )
        assert (response.status, response.lines) == (403, [])
    assert site.send("/", old).body == "alice 0"


def test_a_bearer_client_is_told_where_its_tokens_are(site: Site) -> None:
    """Cookies would not reach it, and its token would be dead: the handle refuses, and
    the sessions' own call hands the tokens out."""
    issued = site.run(site.engine.login)
    bearer = f"Bearer {issued.session_token}"
    response = site.send("/up", {}, authorization=bearer)
    assert response.raised is not None
    assert "sessions.step_up()" in str(response.raised)
    assert site.send("/", {}, authorization=bearer).body == "alice 0"
    answer = site.run(site.engine.sessions.step_up, issued.session.id, 2)
    bearer = f"Bearer {answer.issued.session_token}"
    assert site.send("/", {}, authorization=bearer).body == "alice 2"


def test_nobody_steps_up(site: Site) -> None:
    """401, with a token that is forged too."""
    for jar in ({}, {"__Host-session": "forged"}):
        response = site.send("/up", jar)
        assert (response.status, response.lines) == (401, [])


def test_a_session_that_ended_meanwhile_does_not_step_up(site: Site) -> None:
    """401, no cookie."""
    issued = site.run(site.engine.login)

    async def end() -> None:
        await site.engine.sessions.revoke(issued.session.id)

    response = site.send("/up", jar_of(issued), meanwhile=end)
    assert (response.status, response.lines) == (401, [])


def test_an_outage_raises_no_level(site: Site) -> None:
    """503, no cookie; afterwards the old cookies are as good as before."""
    issued = site.run(site.engine.login)
    store = site.engine.store
    assert isinstance(store, MemoryStore)

    async def go_down() -> None:
        store.down = True

    response = site.send("/up", jar_of(issued), meanwhile=go_down)
    assert (response.status, response.lines) == (503, [])
    store.down = False
    assert site.send("/", jar_of(issued)).body == "alice 0"


def test_a_login_has_no_level_again(site: Site) -> None:
    """What was proven counts for the session in which it was proven."""
    fresh = site.send("/up", jar_of(site.run(site.engine.login))).cookies
    response = site.send("/in", fresh)
    assert response.body == "bob 0"
    assert site.send("/", fresh).body == "anonymous"
