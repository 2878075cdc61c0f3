"""C-156: the session that a framework brings itself, beside ours, under WSGI.

Each framework keeps one word in its own signed cookie. (Falcon has cookies only, and keeps
it in one of them.) Nothing that happens to one session changes the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import bottle
import falcon
import flask
import pytest
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory

from handstamp import bottle as our_bottle
from handstamp import falcon as our_falcon
from handstamp import flask as our_flask
from handstamp.blocking import call
from handstamp.engine.sessions import Sessions
from handstamp.events import CookieOverridden
from tests.support.engines import Engine
from tests.support.webtests import Browser, set_cookies
from tests.support.wsgi import running

OURS = ["__Host-refresh", "__Host-session"]
KEY = "the key of the framework's own signature"
WORD = "word"
VARY = ("Vary", "Accept-Language")
"""The Vary of the application itself."""


def bottle_site(sessions: Sessions) -> AbstractContextManager[Any]:
    """Bottle's `set_cookie(secret=…)`."""
    app = our_bottle.wrap(bottle.Bottle(), sessions)

    @app.get("/")
    def both(session: Any) -> dict[str, Any]:
        theirs = bottle.request.get_cookie(WORD, secret=KEY)
        bottle.response.set_header(*VARY)
        return {"ours": session and session.user_id, "theirs": theirs}

    app.post("/ours/in", callback=lambda auth: auth.login("alice") and "")
    app.post("/ours/out", callback=lambda auth: auth.logout())
    app.post("/ours/up", callback=lambda auth: auth.step_up(2) and "")
    app.post("/ours/needs", callback=lambda auth: auth.require(level=2) and "")

    @app.post("/theirs/in")
    def enter() -> None:
        bottle.response.set_cookie(WORD, "hello", secret=KEY, path="/")

    app.post("/theirs/out", callback=lambda: bottle.response.delete_cookie(WORD, path="/"))
    return nullcontext(app)


def pyramid_site(sessions: Sessions) -> AbstractContextManager[Any]:
    """Pyramid's `SignedCookieSessionFactory`."""

    def both(request: Any) -> Any:
        theirs = request.session.get(WORD)
        request.response.headers.update([VARY])
        return {"ours": request.authenticated_userid, "theirs": theirs}

    views: dict[str, Callable[[Any], object]] = {
        "/ours/in": lambda request: request.session_auth.login("alice"),
        "/ours/out": lambda request: request.session_auth.logout(),
        "/ours/up": lambda request: request.session_auth.step_up(2),
        "/ours/needs": lambda request: request.session_auth.require(level=2),
        "/theirs/in": lambda request: request.session.update({WORD: "hello"}),
        "/theirs/out": lambda request: request.session.invalidate(),
    }

    def acting(act: Callable[[Any], object]) -> Callable[[Any], Response]:
        def view(request: Any) -> Response:
            act(request)
            return Response()

        return view

    with Configurator(session_factory=SignedCookieSessionFactory(KEY)) as config:
        config.include("handstamp.pyramid")
        config.set_session_auth(sessions)
        config.add_view(both, name="", renderer="json")
        for path, act in views.items():
            config.add_route(path, path)
            config.add_view(acting(act), route_name=path)
        return nullcontext(config.make_wsgi_app())


def flask_site(sessions: Sessions) -> AbstractContextManager[Any]:
    """Flask's `session`."""
    app = flask.Flask(__name__)
    app.secret_key = KEY
    our_flask.SessionAuth(app, sessions)
    auth = our_flask.session_auth

    @app.get("/")
    def both() -> Any:
        return {"ours": auth.user_id, "theirs": flask.session.get(WORD)}, [VARY]

    def acting(name: str, act: Callable[[], object]) -> None:
        def view() -> str:
            act()
            return ""

        app.post(f"/{name}", endpoint=name)(view)

    acting("ours/in", lambda: auth.login("alice"))
    acting("ours/out", lambda: auth.logout())
    acting("ours/up", lambda: auth.step_up(2))
    acting("ours/needs", lambda: auth.require(level=2))
    acting("theirs/in", lambda: flask.session.update({WORD: "hello"}))
    acting("theirs/out", lambda: flask.session.clear())
    return nullcontext(app)


def falcon_site(sessions: Sessions) -> AbstractContextManager[Any]:
    """Falcon's `set_cookie`, unsigned."""

    def both(req: Any, resp: Any) -> None:
        theirs = req.cookies.get(WORD)
        resp.set_header(*VARY)
        resp.media = {"ours": our_falcon.session_auth(req).user_id, "theirs": theirs}

    acts: dict[str, Callable[[Any, Any], object]] = {
        "/ours/in": lambda req, resp: our_falcon.session_auth(req).login("alice"),
        "/ours/out": lambda req, resp: our_falcon.session_auth(req).logout(),
        "/ours/up": lambda req, resp: our_falcon.session_auth(req).step_up(2),
        "/ours/needs": lambda req, resp: our_falcon.session_auth(req).require(level=2),
        "/theirs/in": lambda req, resp: resp.set_cookie(WORD, "hello", path="/"),
        "/theirs/out": lambda req, resp: resp.unset_cookie(WORD, path="/"),
    }
    app = falcon.App()
    app.add_sink(both, "/$")
    for path, act in acts.items():
        app.add_sink(act, path)
    return nullcontext(our_falcon.wrap(app, sessions))


@contextmanager
def django_site(sessions: Sessions) -> Iterator[Any]:
    """Django's `signed_cookies`, below us in MIDDLEWARE."""
    from tests.django import django_setup  # isort: skip - settings before models
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse, JsonResponse
    from django.test import override_settings
    from django.urls import path

    from handstamp.django import login, logout

    def both(request: Any) -> Any:
        ours = request.user.username or None
        answer = {"ours": ours, "theirs": request.session.get(WORD)}
        return JsonResponse(answer, headers=dict([VARY]))

    def acting(act: Callable[[Any], object]) -> Callable[[Any], Any]:
        def view(request: Any) -> Any:
            act(request)
            return HttpResponse()

        return view

    call_command("migrate", verbosity=0)
    alice, created = User.objects.get_or_create(username="alice")
    if created:  # other modules know her by her password, in the same database
        alice.set_password("alice's")
        alice.save()
    urls = (
        path("", both),
        path("ours/in", acting(lambda request: login(request, alice))),
        path("ours/out", acting(logout)),
        path("ours/up", acting(lambda request: request.session_auth.step_up(2))),
        path("ours/needs", acting(lambda request: request.session_auth.require(level=2))),
        path("theirs/in", acting(lambda request: request.session.update({WORD: "hello"}))),
        path("theirs/out", acting(lambda request: request.session.flush())),
    )
    theirs = "django.contrib.sessions.middleware.SessionMiddleware"
    with override_settings(
        ROOT_URLCONF=urls,
        MIDDLEWARE=[django_setup.OURS, theirs],
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        HANDSTAMP={"SESSIONS": sessions},
    ):
        yield get_wsgi_application()


SITES = [bottle_site, pyramid_site, flask_site, falcon_site, django_site]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """One process on a store in memory."""
    with running() as engine:
        yield engine


@pytest.fixture(params=SITES, ids=lambda site: site.__name__.partition("_")[0])
def browser(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Browser]:
    """A browser of a site of each framework."""
    with request.param(engine.sessions) as app:
        yield Browser(app)


def states(browser: Browser) -> tuple[str | None, str | None]:
    """Who is signed in with us, and the word in the framework's own session."""
    found = browser.get("/").json
    return found["ours"], found["theirs"]


def theirs(browser: Browser) -> dict[str, str]:
    """The cookies that are not ours."""
    return {name: value for name, value in browser.jar().items() if name not in OURS}


def ours(browser: Browser) -> dict[str, str]:
    """The cookies that are."""
    return {name: value for name, value in browser.jar().items() if name in OURS}


def test_c156_a_login_with_ours_leaves_theirs_as_it_was(browser: Browser) -> None:
    """A logout as well: their cookie is neither changed nor sent again."""
    browser.post("/theirs/in")
    before = theirs(browser)
    assert (len(before), states(browser)) == (1, (None, "hello"))
    assert set_cookies(browser.post("/ours/in")) == OURS
    assert (theirs(browser), states(browser)) == (before, ("alice", "hello"))
    assert set_cookies(browser.post("/ours/out")) == OURS
    assert (theirs(browser), states(browser)) == (before, (None, "hello"))


def test_c156_what_happens_to_theirs_leaves_ours_as_it_was(browser: Browser) -> None:
    """Neither a new session of theirs nor the end of it touches our cookies."""
    browser.post("/ours/in")
    before = ours(browser)
    assert sorted(before) == OURS
    answer = browser.post("/theirs/in")
    assert (len(set_cookies(answer)), set(OURS) & {*set_cookies(answer)}) == (1, set())
    assert (ours(browser), states(browser)) == (before, ("alice", "hello"))
    answer = browser.post("/theirs/out")
    assert set(OURS) & {*set_cookies(answer)} == set()
    assert (ours(browser), states(browser)) == (before, ("alice", None))


def test_c156_both_cookies_are_set_by_one_response(
    browser: Browser, engine: Engine
) -> None:
    """Ours are rotated where theirs is set, and no override is reported."""
    browser.post("/ours/in")
    before = ours(browser)
    engine.clock.advance(engine.policy.session_ttl)
    answer = browser.post("/theirs/in")
    names = set_cookies(answer)
    assert (len(names), len({*names} - {*OURS})) == (3, 1)
    assert all(ours(browser)[name] != before[name] for name in OURS)
    assert answer.headers["cache-control"] == "private, no-store"
    assert states(browser) == ("alice", "hello")
    assert engine.of(CookieOverridden) == []


def test_a_step_up_replaces_ours_and_leaves_theirs(browser: Browser) -> None:
    """Both new cookies are on the response of the view; the old ones have neither the
    level nor the session any more."""
    browser.post("/ours/in")
    browser.post("/theirs/in")
    old, word = ours(browser), theirs(browser)
    assert browser.post("/ours/needs").status_int == 403
    answer = browser.post("/ours/up")
    assert set_cookies(answer) == OURS
    assert answer.headers["cache-control"] == "private, no-store"
    assert (theirs(browser), states(browser)) == (word, ("alice", "hello"))
    assert all(ours(browser)[name] != old[name] for name in OURS)
    assert browser.post("/ours/needs").status_int == 200
    browser.reset()
    for name, value in old.items():
        browser.set_cookie(name, value)
    assert browser.post("/ours/needs").status_int == 401


def test_c156_a_revoked_session_changes_nothing_of_theirs(
    browser: Browser, engine: Engine
) -> None:
    """A user whose session is revoked keeps the framework's own session."""
    browser.post("/theirs/in")
    browser.post("/ours/in")
    assert states(browser) == ("alice", "hello")
    for row in list(engine.store.rows):
        assert call(engine.sessions.revoke, row)
    assert states(browser) == (None, "hello")


def test_one_vary_that_names_the_cookie(browser: Browser) -> None:
    """With and without a session: one header, which names Cookie once,
    beside what the application set."""
    answers = [browser.get("/")]
    for path in ("/theirs/in", "/ours/in"):
        browser.post(path)
        answers.append(browser.get("/"))
    for answer in answers:
        [vary] = answer.headers.getall("vary")
        names = [name.strip().lower() for name in vary.split(",")]
        assert sorted(names) == ["accept-language", "cookie"]
