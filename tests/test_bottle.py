"""Bottle: one plugin, `login=True`, injected keywords, and Bottle's own error pages.

By number where the catalogue of attacks has one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import wraps
from typing import Any

import pytest
from bottle import Bottle, HTTPError, HTTPResponse, abort, redirect, request, response

from handstamp import Cookies, Policy
from handstamp.bottle import (
    SessionAuthPlugin,
    current_session,
    fresh_login_required,
    login_required,
    session_auth,
    wrap,
)
from handstamp.errors import AuthenticationRequired, ConfigError, SessionsUnavailable
from handstamp.events import Refreshed, Revoked
from tests.support.engines import Engine
from tests.support.webtests import Browser, set_cookies
from tests.support.wsgi import running

NAMES = ["__Host-refresh", "__Host-session"]
HOUR = timedelta(hours=1)


def log_in(auth: Any) -> HTTPResponse:
    auth.login(request.query.user or "alice", remember=True)
    return HTTPResponse(status=204)


def log_out(auth: Any) -> None:
    auth.logout()
    redirect("/public")


def me(session: Any, auth: Any) -> dict[str, Any]:
    same = session is current_session() and auth is session_auth()
    return {"user": session and session.user_id, "same": same}


def hello(name: str, session: Any) -> str:
    return f"{name} {session and session.user_id}"


def public() -> str:
    return "hello"


def required() -> str:
    return str(session_auth().require().user_id)


def declared(session: Any) -> str:
    return str(session.user_id)


@login_required
def decorated(session: Any) -> str:
    return str(session.user_id)


@fresh_login_required(within=HOUR)
def decorated_fresh(auth: Any) -> str:
    return str(auth.user_id)


def generator() -> Iterator[str]:
    yield ""
    yield str(session_auth().require().user_id)
    yield "!"


def broken() -> None:
    raise ValueError


def routes(app: Bottle) -> Bottle:
    """The routes of all tests."""
    app.post("/login", callback=log_in)
    app.post("/logout", callback=log_out)
    app.get("/me", callback=me)
    app.get("/hello/<name>", callback=hello)
    app.get("/public", callback=public)
    app.get("/required", callback=required)
    app.get("/declared", login=True, callback=declared)
    app.get("/fresh", fresh_within=HOUR, callback=public)
    app.get("/decorated", callback=decorated)
    app.get("/decorated-fresh", callback=decorated_fresh)
    app.get("/generator", callback=generator)
    app.get("/broken", callback=broken)
    return app


@pytest.fixture
def engine() -> Iterator[Engine]:
    """One process on a store in memory."""
    with running() as engine:
        yield engine


@pytest.fixture
def app(engine: Engine) -> Bottle:
    """The usual application."""
    return routes(wrap(Bottle(), engine.sessions))


@pytest.fixture
def browser(app: Bottle) -> Browser:
    """A browser of it."""
    return Browser(app)


def outage(engine: Engine) -> None:
    """From now on the database does not answer."""
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True


ASKING = ["/required", "/declared", "/fresh", "/decorated", "/decorated-fresh"]


def test_a_user_logs_in_and_out(browser: Browser) -> None:
    """The injected session follows; a redirect clears the cookies as well."""
    assert browser.get("/me").json == {"user": None, "same": True}
    answer = browser.post("/login")
    assert (answer.status_code, set_cookies(answer)) == (204, NAMES)
    assert browser.get("/me").json == {"user": "alice", "same": True}
    answer = browser.post("/logout")
    assert (answer.status_code, set_cookies(answer)) == (302, NAMES)
    assert browser.jar() == {}
    assert browser.get("/me").json == {"user": None, "same": True}


@pytest.mark.parametrize("path", [*ASKING, "/generator"])
def test_who_is_not_signed_in_gets_401(browser: Browser, path: str) -> None:
    """Bottle's own page, with our text, however the session is read."""
    refused = browser.get(path)
    assert (refused.status_code, set_cookies(refused)) == (401, [])
    assert refused.content_type == "text/html"
    assert "sign in first" in refused.text
    browser.post("/login")
    assert browser.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/fresh", "/decorated-fresh"])
def test_an_old_sign_in_is_not_fresh(browser: Browser, engine: Engine, path: str) -> None:
    """A refresh is no sign-in."""
    browser.post("/login")
    assert browser.get(path).status_code == 200
    engine.clock.advance(HOUR + timedelta(seconds=1))
    assert browser.get("/declared").status_code == 200
    refused = browser.get(path)
    assert refused.status_code == 401
    assert "sign in again" in refused.text


def test_p5_asking_in_an_outage_is_a_503(browser: Browser, engine: Engine) -> None:
    """With Retry-After, however the session is read, and the cookies are not changed."""
    browser.post("/login")
    jar = browser.jar()
    outage(engine)
    for path in (*ASKING, "/me", "/hello/you", "/generator"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "temporarily unavailable" in answer.text
        assert (set_cookies(answer), browser.jar()) == ([], jar)
    engine.store.down = False
    assert browser.get("/me").json == {"user": "alice", "same": True}


def test_p5_not_asking_in_an_outage_is_a_200(browser: Browser, engine: Engine) -> None:
    """Login and logout are refused then, and no user is logged out."""
    browser.post("/login")
    outage(engine)
    public = browser.get("/public")
    assert (public.status_code, set_cookies(public)) == (200, [])
    for path in ("/login", "/logout"):
        answer = browser.post(path)
        assert (answer.status_code, set_cookies(answer)) == (503, [])


def test_c102_public_pages_stay_cacheable(browser: Browser) -> None:
    """Without our cookies, a page that does not read the session has no Vary; to get
    the handle is not to read it."""
    assert "vary" not in browser.get("/public").headers
    assert browser.get("/me").headers["vary"] == "Cookie"
    browser.post("/login")
    assert browser.get("/public").headers["vary"] == "Cookie"


def test_an_expired_session_is_refreshed(browser: Browser, engine: Engine) -> None:
    """On any page, whether it reads the session or not; the browser has the new pair."""
    browser.post("/login")
    old = browser.jar()
    engine.clock.advance(engine.policy.session_ttl)
    answer = browser.get("/public")
    assert set_cookies(answer) == NAMES
    assert answer.headers["cache-control"] == "private, no-store"
    assert all(browser.jar()[name] != old[name] for name in NAMES)
    assert browser.get("/me").json == {"user": "alice", "same": True}
    assert len(engine.of(Refreshed)) == 1


def test_a_parameter_of_the_url_is_not_replaced(app: Bottle, browser: Browser) -> None:
    """A part of the URL that is called `session` is not replaced."""
    assert browser.get("/hello/you").text == "you None"

    @app.get("/talks/<session>")
    def talk(session: str) -> str:
        return session

    assert browser.get("/talks/monday").text == "monday"


def test_the_keywords_can_be_chosen(engine: Engine) -> None:
    """Then `auth` and `session` mean nothing any more; one name for both is refused."""
    plugin = SessionAuthPlugin(
        engine.sessions, auth_keyword="handle", session_keyword="visitor"
    )
    app = Bottle()
    app.install(plugin)

    @app.get("/")
    def view(handle: Any, visitor: Any, auth: int = 1, session: int = 2) -> str:
        return f"{handle.is_authenticated} {visitor} {auth} {session}"

    assert Browser(app).get("/").text == "False None 1 2"
    with pytest.raises(ConfigError, match="two names"):
        SessionAuthPlugin(engine.sessions, auth_keyword="session")


def test_a_method_and_a_decorated_callback_are_injected_too(
    app: Bottle, browser: Browser
) -> None:
    """If the decorator sets `__wrapped__`."""

    class Page:
        def show(self, auth: Any) -> str:
            return str(auth.is_authenticated)

    def shouting(view: Callable[..., str]) -> Callable[..., str]:
        @wraps(view)
        def louder(*args: Any, **kwargs: Any) -> str:
            return view(*args, **kwargs).upper()

        return louder

    app.get("/method", callback=Page().show)
    app.get("/shouted", callback=shouting(Page().show))
    app.get("/builtin", callback=dict)
    assert browser.get("/method").text == "False"
    assert browser.get("/shouted").text == "FALSE"
    assert browser.get("/builtin").status_code == 200


def test_an_error_handler_of_the_application(engine: Engine) -> None:
    """Replaces Bottle's page, and finds the error itself."""
    app = routes(wrap(Bottle(), engine.sessions))
    seen: list[Exception] = []

    def mine(error: HTTPError) -> str:
        seen.append(error.exception)
        return f"mine: {error.body}"

    app.error(401, callback=mine)
    app.error(503, callback=mine)
    browser = Browser(app)
    for path in (*ASKING, "/generator"):
        refused = browser.get(path)
        assert (refused.status_code, refused.text) == (401, "mine: sign in first")
    browser.post("/login")
    outage(engine)
    answer = browser.get("/required")
    assert (answer.status_code, answer.text) == (503, "mine: temporarily unavailable")
    assert answer.headers["retry-after"] == "1"
    kinds = [AuthenticationRequired] * 6 + [SessionsUnavailable]
    assert [type(error) for error in seen] == kinds


def test_an_error_in_a_hook_is_answered_alike(app: Bottle, browser: Browser) -> None:
    """So a hook may guard a whole application."""

    @app.hook("before_request")
    def guard() -> None:
        if request.path.startswith("/p"):
            session_auth().require()

    assert browser.get("/public").status_code == 401
    browser.post("/login")
    assert browser.get("/public").status_code == 200


def test_a_refused_login_is_a_403() -> None:
    """Where the application does not catch it."""
    with running(policy=Policy(max_sessions=1, on_limit="refuse")) as engine:
        app = routes(wrap(Bottle(), engine.sessions))
        assert Browser(app).post("/login").status_code == 204
        refused = Browser(app).post("/login")
    assert (refused.status_code, set_cookies(refused)) == (403, [])
    assert "too many" in refused.text


def test_an_error_of_the_operator_s_is_bottle_s_500(engine: Engine) -> None:
    """The reason is in the server's log, and nothing of it in the page."""
    app = routes(wrap(Bottle(), engine.sessions, cookies=Cookies.insecure()))
    answer = Browser(app).post("/login")
    assert (answer.status_code, set_cookies(answer)) == (500, [])
    assert "Secure" not in answer.text
    assert "ConfigError: cookies without Secure" in answer.errors


def test_without_catchall_the_middleware_answers(app: Bottle, browser: Browser) -> None:
    """Where a hook of another plugin reads the session, and Bottle catches nothing."""
    app.config["catchall"] = False
    app.get("/skipping", skip=True, callback=lambda: session_auth().require())
    refused = browser.get("/skipping")
    assert (refused.status_code, refused.text) == (401, "sign in first\n")
    with pytest.raises(ValueError):
        browser.get("/broken")


def test_c157_a_rotated_cookie_leaves_with_an_error_page(
    browser: Browser, engine: Engine
) -> None:
    """The middleware is outside of Bottle's 500, its 404 and its 405."""
    browser.post("/login")
    for path, status in (("/broken", 500), ("/nowhere", 404), ("/login", 405)):
        engine.clock.advance(engine.policy.session_ttl)
        answer = browser.get(path)
        assert (answer.status_code, set_cookies(answer)) == (status, NAMES)
    assert browser.get("/me").json == {"user": "alice", "same": True}
    assert len(engine.of(Refreshed)) == 3


@pytest.mark.parametrize("how", ["set", "returned", "raised", "redirect", "abort"])
def test_cookies_of_the_application_leave_beside_ours(
    app: Bottle, browser: Browser, how: str
) -> None:
    """Whether the response is the request's own, or another one that replaces it."""

    @app.post("/both")
    def both(auth: Any) -> Any:
        auth.login("alice")
        other = HTTPResponse(status=204)
        target = response if how in ("set", "redirect") else other
        target.set_cookie("theme", "dark")
        if how == "raised":
            raise other
        if how == "redirect":
            redirect("/public")
        if how == "abort":
            abort(409)
        return other if how == "returned" else "set"

    answer = browser.post("/both")
    theirs = [] if how == "abort" else ["theme"]
    assert set_cookies(answer) == [*NAMES, *theirs]
    assert browser.get("/me").json == {"user": "alice", "same": True}


def test_installed_twice_is_installed_once(engine: Engine) -> None:
    """With the same settings; with others it is an error."""
    app = routes(Bottle())
    plugin = SessionAuthPlugin(engine.sessions, outage="refuse")
    for _ in range(2):
        app.install(plugin)
        app.install(SessionAuthPlugin(engine.sessions, outage="refuse"))
    browser = Browser(app)
    assert set_cookies(browser.post("/login")) == NAMES
    assert browser.get("/declared").headers.getall("vary") == ["Cookie"]
    with running() as other:
        for more in (
            SessionAuthPlugin(engine.sessions),
            SessionAuthPlugin(other.sessions, outage="refuse"),
        ):
            with pytest.raises(ConfigError, match="other settings"):
                app.install(more)
    app.uninstall("handstamp")
    app.install(plugin)
    assert browser.get("/declared").text == "alice"


def test_an_option_that_the_middleware_does_not_know_is_refused(engine: Engine) -> None:
    """When it is installed."""
    with pytest.raises(TypeError, match="cokies"):
        Bottle().install(SessionAuthPlugin(engine.sessions, cokies=None))


def test_a_skipped_route_is_left_alone(app: Bottle, browser: Browser) -> None:
    """By name, by class or altogether; the middleware is around it all the same, and a
    decorator of ours answers by itself."""

    def view(auth: str = "nothing") -> str:
        return auth

    guarded = login_required(lambda: str(session_auth().user_id))
    skips = {"name": ["handstamp"], "class": [SessionAuthPlugin], "all": True}
    for name, skip in skips.items():
        app.get(f"/{name}", skip=skip, login=True, callback=view)
        app.get(f"/{name}/guarded", skip=skip, callback=guarded)
        assert browser.get(f"/{name}").text == "nothing"
        assert browser.get(f"/{name}/guarded").status_code == 401
    browser.post("/login")
    assert browser.get("/all/guarded").text == "alice"


def test_a_whole_application_may_require_a_login(app: Bottle, browser: Browser) -> None:
    """By its configuration; a route can have another value."""
    app.config["login"] = True
    app.get("/open", login=False, callback=lambda: "open")
    app.get("/closed", callback=lambda: "closed")
    assert [browser.get(p).status_code for p in ("/open", "/closed")] == [200, 401]


@pytest.mark.parametrize("config", [{"login": "yes"}, {"fresh_within": 600}], ids=str)
def test_a_requirement_that_cannot_be_read_is_refused(
    app: Bottle, browser: Browser, config: dict[str, Any]
) -> None:
    """A 500, with the reason in the log: better than an open route."""
    app.get("/", callback=lambda: "in", **config)
    browser.post("/login")
    answer = browser.get("/")
    assert (answer.status_code, "must be" in answer.errors) == (500, True)


def test_a_write_from_another_site_is_refused(browser: Browser, engine: Engine) -> None:
    """With our cookies by the middleware, without them by the route."""
    foreign = {"Sec-Fetch-Site": "cross-site"}
    refused = browser.post("/logout", headers=foreign)
    assert (refused.status_code, set_cookies(refused)) == (403, [])
    browser.post("/login")
    refused = browser.post("/logout", headers=foreign)
    assert (refused.status_code, set_cookies(refused)) == (403, [])
    assert engine.of(Revoked) == []


def test_a_mounted_application_has_the_session(engine: Engine) -> None:
    """If both have the plugin, be its routes merged or be it called as it is."""
    plugin = SessionAuthPlugin(engine.sessions)

    def child() -> Bottle:
        app = routes(Bottle())
        app.install(plugin)
        return app

    parent = routes(Bottle())
    parent.install(plugin)
    parent.mount("/merged/", child())
    called = child()
    parent.mount("/called/", lambda environ, start: called(environ, start))
    browser = Browser(parent)
    for prefix in ("/merged", "/called"):
        answer = browser.post(f"{prefix}/login")
        assert (answer.status_code, set_cookies(answer)) == (204, NAMES)
        answer = browser.get(f"{prefix}/me")
        assert answer.json == {"user": "alice", "same": True}
        assert answer.headers.getall("vary") == ["Cookie"]
        browser.post(f"{prefix}/logout")
        assert browser.get(f"{prefix}/declared").status_code == 401


def test_a_forgotten_plugin_is_an_error(engine: Engine) -> None:
    """Where only the mounted application has one, and where none has."""
    child, parent = Bottle(), Bottle()
    child.install(SessionAuthPlugin(engine.sessions))
    parent.mount("/child/", routes(child))
    parent.get("/alone", callback=lambda: session_auth())
    browser = Browser(parent)
    assert browser.get("/child/public").status_code == 200
    for path in ("/child/me", "/child/declared", "/child/decorated", "/alone"):
        answer = browser.get(path)
        assert (answer.status_code, "ConfigError" in answer.errors) == (500, True)
        assert "app.install(SessionAuthPlugin(sessions))" in answer.errors


def test_c145_a_thread_is_given_the_handle(app: Bottle, browser: Browser) -> None:
    """`request` is the thread's own, so another thread has no session by itself."""
    found: list[object] = []

    @app.get("/thread")
    def view(auth: Any) -> str:
        def work() -> None:
            found.append(auth.user_id)
            try:
                session_auth()
            except RuntimeError as exc:
                found.append(str(exc))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return "done"

    browser.post("/login")
    assert browser.get("/thread").text == "done"
    assert found == ["alice", "Request context not initialized."]


def test_c147_requests_in_many_threads_are_never_mixed(app: Bottle) -> None:
    """Each thread's injected session, handle and `session_auth()` are its own user's."""
    both = threading.Barrier(8)

    @app.get("/meet")
    def greet(session: Any, auth: Any) -> dict[str, str]:
        both.wait(30)
        return {"session": session.user_id, "read": session_auth().user_id}

    browsers = {f"user{n}": Browser(app) for n in range(8)}
    for name, browser in browsers.items():
        browser.post(f"/login?user={name}")
    answers: dict[str, Any] = {}

    def visit(name: str) -> None:
        for _ in range(5):
            answers[name] = browsers[name].get("/meet").json
            assert answers[name] == {"session": name, "read": name}

    threads = [threading.Thread(target=visit, args=[name]) for name in browsers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {name: {"session": name, "read": name} for name in browsers}


def test_bottle_s_own_signed_cookies_stay_theirs(app: Bottle, browser: Browser) -> None:
    """They count on, whichever user logs in."""

    @app.get("/count")
    def count(session: Any) -> dict[str, Any]:
        n = int(request.get_cookie("count", "0", secret="s" * 32)) + 1
        response.set_cookie("count", str(n), secret="s" * 32)
        return {"n": n, "user": session and session.user_id}

    seen = [browser.get("/count").json]
    browser.post("/login")
    seen.append(browser.get("/count").json)
    browser.post("/logout")
    seen.append(browser.get("/count").json)
    assert [tuple(line.values()) for line in seen] == [
        (1, None),
        (2, "alice"),
        (3, None),
    ]
