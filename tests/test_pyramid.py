"""Pyramid: include it, and `make_wsgi_app` returns an application with sessions.

By number where the catalogue of attacks has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from pyramid import testing
from pyramid.authentication import SessionAuthenticationPolicy
from pyramid.authorization import (
    ACLAuthorizationPolicy,
    Allow,
    Authenticated,
    Deny,
    Everyone,
)
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationConflictError
from pyramid.httpexceptions import HTTPFound
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router
from pyramid.security import NO_PERMISSION_REQUIRED, forget, remember
from pyramid.session import SignedCookieSessionFactory
from pyramid.tweens import INGRESS

from handstamp import ULID_HASHED, Cookies, MemoryStore, Policy, Sessions
from handstamp.errors import (
    AuthenticationRequired,
    ConfigError,
    HandstampError,
)
from handstamp.events import CookieOverridden, LoggedIn, Refreshed, Revoked
from handstamp.pyramid import SessionSecurityPolicy, read_settings, session_auth
from tests.support.engines import Engine
from tests.support.webtests import Browser, set_cookies
from tests.support.wsgi import running

NAMES = ["__Host-refresh", "__Host-session"]
HOUR = timedelta(hours=1)
Configure = Callable[[Configurator], object]
View = Callable[[Any], Any]


class Root:
    """What `/` is about: everybody may look, users may read, editors may edit."""

    __acl__ = (
        (Allow, Everyone, "look"),
        (Deny, "bob", "read"),
        (Allow, Authenticated, "read"),
        (Allow, "group:editors", "edit"),
    )

    def __init__(self, request: Any) -> None:
        pass


def log_in(request: Any) -> Response:
    headers = remember(request, request.params.get("user", "alice"), remember=True)
    return Response(status=204, headerlist=headers)


def log_out(request: Any) -> HTTPFound:
    return HTTPFound("/public", headers=forget(request))


def me(request: Any) -> list[Any]:
    identity = request.identity
    return [
        request.is_authenticated,
        request.authenticated_userid,
        identity and identity.id == request.current_session.id,
    ]


def public(request: Any) -> str:
    return "hello"


def user(request: Any) -> str:
    return str(request.session_auth.require().user_id)


def broken(request: Any) -> None:
    raise ValueError


def site(config: Configurator) -> None:
    """The views of all tests."""
    views: dict[str, tuple[View, dict[str, Any]]] = {
        "login": (log_in, {}),
        "logout": (log_out, {}),
        "me": (me, {}),
        "public": (public, {}),
        "required": (user, {}),
        "declared": (user, {"require_session": True}),
        "fresh": (user, {"fresh_within": HOUR}),
        "look": (public, {"permission": "look"}),
        "read": (public, {"permission": "read"}),
        "edit": (public, {"permission": "edit"}),
        "both": (public, {"permission": "read", "require_session": True}),
        "broken": (broken, {}),
    }
    for name, (view, options) in views.items():
        config.add_route(name, f"/{name}")
        renderer = {} if name in ("login", "logout") else {"renderer": "json"}
        config.add_view(view, route_name=name, **renderer, **options)


def make(sessions: Sessions, *more: Configure, **options: Any) -> Any:
    """An application, configured as its developers would."""
    with Configurator(root_factory=Root) as config:
        config.include("handstamp.pyramid")
        config.set_session_auth(sessions, **options)
        site(config)
        for configure in more:
            configure(config)
        return config.make_wsgi_app()


@pytest.fixture
def engine() -> Iterator[Engine]:
    """One process on a store in memory."""
    with running() as engine:
        yield engine


@pytest.fixture
def browser(engine: Engine) -> Browser:
    """A browser of the usual application."""
    return Browser(make(engine.sessions))


def outage(engine: Engine) -> None:
    """From now on the database does not answer."""
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True


def test_a_user_logs_in_and_out(browser: Browser) -> None:
    """`identity`, `authenticated_userid` and `current_session` follow."""
    assert browser.get("/me").json == [False, None, None]
    assert browser.post("/login").status_code == 204
    assert browser.get("/me").json == [True, "alice", True]
    assert browser.post("/logout").location == "https://app.example/public"
    assert browser.jar() == {}
    assert browser.get("/me").json == [False, None, None]


def test_remember_opens_a_session_and_each_cookie_leaves_once(
    browser: Browser, engine: Engine
) -> None:
    """Though the headers of `remember` are put on the response, as everybody does."""
    assert set_cookies(browser.post("/login")) == NAMES
    assert len(engine.of(LoggedIn)) == 1
    assert len(engine.store.rows) == 1
    assert set_cookies(browser.post("/logout")) == NAMES
    assert [event.reason for event in engine.of(Revoked)] == ["logout"]
    assert engine.of(CookieOverridden) == []


@pytest.mark.parametrize("remember_me", [False, True])
def test_remember_has_a_word_for_cookies_that_outlive_the_browser(
    engine: Engine, remember_me: bool
) -> None:
    """`remember(request, userid, remember=True)`; without it they end with the browser."""

    def view(request: Any) -> Response:
        return Response(headerlist=remember(request, "alice", remember=remember_me))

    answer = Browser(make(engine.sessions, lambda c: c.add_view(view, name=""))).get("/")
    aged = ["Max-Age" in value for value in answer.headers.getall("set-cookie")]
    assert aged == [remember_me] * 2


def test_the_headers_of_remember_need_not_be_on_the_response(engine: Engine) -> None:
    """Nor those of a view that changes its mind: what was done last counts."""

    def careless(request: Any) -> Response:
        remember(request, "alice")
        return Response()

    def undecided(request: Any) -> Response:
        headers = [*remember(request, "alice"), *forget(request), *remember(request, 7)]
        return Response(status=204, headerlist=headers)

    def configure(config: Configurator) -> None:
        for view in (careless, undecided):
            config.add_route(view.__name__, f"/{view.__name__}")
            config.add_view(view, route_name=view.__name__)

    browser = Browser(make(engine.sessions, configure))
    assert set_cookies(browser.get("/careless")) == NAMES
    assert browser.get("/me").json[1] == "alice"
    assert set_cookies(browser.get("/undecided")) == NAMES
    assert browser.get("/me").json[1] == "7"
    assert sum(row.is_active for row in engine.store.rows.values()) == 1


def test_a_word_that_remember_does_not_know_is_an_error(engine: Engine) -> None:
    """An option of another policy, such as max_age, is not silently dropped."""

    def old(request: Any) -> Response:
        return Response(headerlist=remember(request, "alice", max_age=3600))

    browser = Browser(make(engine.sessions, lambda c: c.add_view(old, name="")))
    with pytest.raises(TypeError, match="max_age"):
        browser.get("/")


@pytest.mark.parametrize("path", ["/required", "/declared", "/fresh", "/both"])
def test_who_is_not_signed_in_gets_401(browser: Browser, path: str) -> None:
    """Asked for in the view, by an option of the view, or before its permission."""
    refused = browser.get(path)
    assert (refused.status_code, set_cookies(refused)) == (401, [])
    assert "sign in first" in refused.text
    browser.post("/login")
    assert browser.get(path).status_code == 200


def test_an_old_sign_in_is_not_fresh(browser: Browser, engine: Engine) -> None:
    """A refresh is no sign-in."""
    browser.post("/login")
    engine.clock.advance(HOUR + timedelta(seconds=1))
    assert browser.get("/declared").status_code == 200
    refused = browser.get("/fresh")
    assert refused.status_code == 401
    assert "sign in again" in refused.text


def test_the_answer_speaks_json_to_who_asks_for_it(browser: Browser) -> None:
    """As all of Pyramid's own errors do."""
    refused = browser.get("/required", headers={"Accept": "application/json"})
    assert refused.json["code"] == "401 Unauthorized"
    assert "sign in first" in refused.json["message"]


def test_an_access_control_list_decides(browser: Browser) -> None:
    """With the user's id and `Authenticated` as principals; refused is Pyramid's 403."""

    def statuses() -> list[int]:
        paths = ("/look", "/read", "/edit")
        return [browser.get(path).status_code for path in paths]

    assert statuses() == [200, 403, 403]
    browser.post("/login")
    assert statuses() == [200, 200, 403]
    browser.post("/login?user=bob")
    assert statuses() == [200, 403, 403]


def test_a_groupfinder_gives_more_principals(engine: Engine) -> None:
    """And none at all for a user whom it does not know any more."""

    def groups(userid: str, request: Any) -> list[str] | None:
        return {"alice": ["group:editors"], "carol": []}.get(userid)

    def configure(config: Configurator) -> None:
        config.set_security_policy(SessionSecurityPolicy(groups))

    browser = Browser(make(engine.sessions, configure))
    answers = {}
    for name in ("alice", "carol", "ghost"):
        browser.post(f"/login?user={name}")
        answers[name] = [browser.get(p).status_code for p in ("/look", "/read", "/edit")]
    assert answers == {
        "alice": [200, 200, 200],
        "carol": [200, 200, 403],
        "ghost": [200, 403, 403],
    }


class Foreign:
    """A security policy of the application's own."""

    def authenticated_userid(self, request: Any) -> str:
        return "foreign"


def foreign(config: Configurator) -> None:
    """What an application's `security.py` includes."""
    config.set_security_policy(Foreign())


@pytest.mark.parametrize("first", [False, True])
def test_a_policy_of_the_application_is_no_conflict(engine: Engine, first: bool) -> None:
    """It decides, wherever it is set; `request.session_auth` is there beside it."""
    with Configurator() as config:
        for includeme in (foreign, "handstamp.pyramid")[:: 1 if first else -1]:
            config.include(includeme)
        config.set_session_auth(engine.sessions)
        config.add_view(
            lambda request: [request.authenticated_userid, request.session_auth.user_id],
            renderer="json",
        )
    assert Browser(config.make_wsgi_app()).get("/").json == ["foreign", None]


def test_the_policies_of_pyramid_1_go_on(engine: Engine) -> None:
    """An application that has not moved to a security policy can be included in."""

    def configure(config: Configurator) -> None:
        with pytest.warns(DeprecationWarning, match="have been deprecated"):
            config.set_authentication_policy(SessionAuthenticationPolicy())
        with pytest.warns(DeprecationWarning, match="have been deprecated"):
            config.set_authorization_policy(ACLAuthorizationPolicy())
        config.set_session_factory(SignedCookieSessionFactory("x" * 32))

    browser = Browser(make(engine.sessions, configure))
    assert [browser.get(p).status_code for p in ("/look", "/read")] == [200, 403]
    browser.post("/login")
    assert browser.get("/read").status_code == 200
    assert browser.get("/declared").status_code == 401


def test_a_permission_for_everyone_reads_no_session(
    browser: Browser, engine: Engine
) -> None:
    """So such a view can be cached, and an outage does not affect it."""
    assert "vary" not in browser.get("/look").headers
    assert browser.get("/read").headers["vary"] == "Cookie"
    browser.post("/login")
    outage(engine)
    assert [browser.get(p).status_code for p in ("/look", "/read")] == [200, 503]


def test_the_verdict_of_a_list_can_be_printed(engine: Engine) -> None:
    """`pyramid.debug_authorization` does so, in an outage as well."""
    seen: list[str] = []

    def explain(request: Any) -> Response:
        permissions = ("look", "read")[: int(request.params["n"])]
        seen.extend(str(request.has_permission(name)) for name in permissions)
        return Response()

    browser = Browser(make(engine.sessions, lambda c: c.add_view(explain, name="")))
    browser.post("/login")
    browser.get("/?n=2")
    outage(engine)
    browser.get("/?n=1")
    principals = [text.rpartition(" for principals ")[2] for text in seen]
    alice = f"['{Everyone}', '{Authenticated}', 'alice']"
    assert principals == [f"['{Everyone}']", alice, f"['{Everyone}']"]


@pytest.mark.parametrize("path", ["/me", "/required", "/declared", "/fresh", "/read"])
def test_p5_asking_in_an_outage_is_a_503(
    browser: Browser, engine: Engine, path: str
) -> None:
    """With Retry-After, however the session is read, and the cookies are not changed."""
    browser.post("/login")
    jar = browser.jar()
    outage(engine)
    answer = browser.get(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "temporarily unavailable" in answer.text
    assert (set_cookies(answer), browser.jar()) == ([], jar)
    engine.store.down = False
    assert browser.get(path).status_code == 200


def test_p5_not_asking_in_an_outage_is_a_200(browser: Browser, engine: Engine) -> None:
    """Login and logout are refused then, and no user is logged out."""
    browser.post("/login")
    outage(engine)
    public = browser.get("/public")
    assert (public.status_code, set_cookies(public)) == (200, [])
    for path in ("/login", "/logout"):
        answer = browser.post(path)
        assert (answer.status_code, set_cookies(answer)) == (503, [])


def test_p5_an_error_page_that_asks_in_an_outage_is_a_503(engine: Engine) -> None:
    """Where nothing of Pyramid's answers any more, the middleware does."""

    def not_found(request: Any) -> Response:
        return Response(f"nothing here, {request.authenticated_userid}", status=404)

    browser = Browser(make(engine.sessions, lambda c: c.add_notfound_view(not_found)))
    browser.post("/login")
    assert browser.get("/nowhere").text == "nothing here, alice"
    outage(engine)
    answer = browser.get("/nowhere")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_c102_public_pages_stay_cacheable(browser: Browser) -> None:
    """Without our cookies, a page that does not read the session has no Vary."""
    assert "vary" not in browser.get("/public").headers
    assert browser.get("/me").headers["vary"] == "Cookie"
    browser.post("/login")
    assert browser.get("/public").headers["vary"] == "Cookie"


def test_a_refused_login_is_a_403(engine: Engine) -> None:
    """Where the application does not catch it."""
    with running(policy=Policy(max_sessions=1, on_limit="refuse")) as strict:
        app = make(strict.sessions)
        assert Browser(app).post("/login").status_code == 204
        refused = Browser(app).post("/login")
        assert (refused.status_code, set_cookies(refused)) == (403, [])
        assert "too many" in refused.text


@pytest.mark.parametrize("kind", [AuthenticationRequired, HandstampError, Exception])
def test_an_exception_view_of_the_application(
    engine: Engine, kind: type[Exception]
) -> None:
    """Replaces ours for the same or a narrower error; a wider one does not."""

    def mine(exc: Exception, request: Any) -> Response:
        return Response(f"mine: {exc}", status=418)

    def configure(config: Configurator) -> None:
        config.add_exception_view(mine, context=kind)

    browser = Browser(make(engine.sessions, configure))
    assert browser.get("/required").status_code == (401 if kind is Exception else 418)


def test_an_error_of_the_operator_s_goes_to_the_application_s_own_500(
    engine: Engine,
) -> None:
    """Where it has an exception view for everything; otherwise to the server's log."""

    def mine(exc: Exception, request: Any) -> Response:
        return Response(type(exc).__name__, status=500)

    def configure(config: Configurator) -> None:
        config.add_exception_view(mine, context=Exception)

    insecure = Cookies.insecure()
    browser = Browser(make(engine.sessions, configure, cookies=insecure))
    answer = browser.post("/login")
    assert (answer.status_code, answer.text) == (500, "ConfigError")
    with pytest.raises(ConfigError, match="without Secure"):
        Browser(make(engine.sessions, cookies=insecure)).post("/login")


def test_an_expired_session_is_refreshed(browser: Browser, engine: Engine) -> None:
    """On any page, whether it reads the session or not; the browser has the new pair."""
    browser.post("/login")
    old = browser.jar()
    engine.clock.advance(engine.policy.session_ttl)
    answer = browser.get("/public")
    assert (set_cookies(answer), answer.headers["cache-control"]) == (
        NAMES,
        "private, no-store",
    )
    assert all(browser.jar()[name] != old[name] for name in NAMES)
    assert browser.get("/me").json[1] == "alice"
    assert len(engine.of(Refreshed)) == 1


def failing_tween(handler: View, registry: Any) -> View:
    """A tween outside of everything, which answers what fails below by itself."""

    def tween(request: Any) -> Any:
        try:
            return handler(request)
        except ValueError:
            return Response(f"sorry, {request.session_auth.user_id}", status=500)

    return tween


def tweened(config: Configurator) -> None:
    """Adds that tween."""
    config.add_tween(f"{__name__}.{failing_tween.__name__}", under=INGRESS)


def test_c157_a_rotated_cookie_leaves_with_an_error_page(engine: Engine) -> None:
    """The middleware is outside the outermost tween, which may read the session."""

    browser = Browser(make(engine.sessions, tweened))
    browser.post("/login")
    engine.clock.advance(engine.policy.session_ttl)
    answer = browser.get("/broken")
    assert (answer.status_code, answer.text) == (500, "sorry, alice")
    assert set_cookies(answer) == NAMES
    assert browser.get("/me").json[1] == "alice"
    assert len(engine.of(Refreshed)) == 1


def test_without_an_error_page_the_exception_is_the_server_s(browser: Browser) -> None:
    """It passes through the middleware as it is."""
    with pytest.raises(ValueError):
        browser.get("/broken")


def test_an_error_of_ours_in_a_tween_is_answered_too(engine: Engine) -> None:
    """No exception view is out there, so the middleware answers."""

    def configure(config: Configurator) -> None:
        config.add_tween(f"{__name__}.{asking_tween.__name__}", under=INGRESS)

    refused = Browser(make(engine.sessions, configure)).get("/public")
    assert (refused.status_code, refused.text) == (401, "sign in first\n")


def asking_tween(handler: View, registry: Any) -> View:
    """A tween that refuses requests without a session."""

    def tween(request: Any) -> Any:
        request.session_auth.require()
        return handler(request)

    return tween


@pytest.mark.parametrize("late", [False, True])
def test_an_execution_policy_of_the_application_goes_on(engine: Engine, late: bool) -> None:
    """Such as that of pyramid_retry; what it does happens inside of the middleware."""

    def thrice(environ: Any, router: Any) -> Any:
        for _ in range(2):
            with router.request_context(environ) as request:
                router.invoke_request(request)
        with router.request_context(environ) as request:
            return router.invoke_request(request)

    def configure(config: Configurator) -> None:
        if late:
            config.commit()
        config.set_execution_policy(thrice)

    browser = Browser(make(engine.sessions, configure))
    assert set_cookies(browser.post("/login")) == NAMES
    assert len(engine.store.rows) == 3
    assert sum(row.is_active for row in engine.store.rows.values()) == 1
    assert browser.get("/me").json[1] == "alice"


def test_a_write_from_another_site_is_refused(browser: Browser, engine: Engine) -> None:
    """With our cookies by the middleware, without them by the view."""
    foreign = {"Sec-Fetch-Site": "cross-site"}
    refused = browser.post("/logout", headers=foreign)
    assert (refused.status_code, set_cookies(refused)) == (403, [])
    browser.post("/login")
    refused = browser.post("/logout", headers=foreign)
    assert (refused.status_code, set_cookies(refused)) == (403, [])
    assert engine.of(Revoked) == []


def test_a_subrequest_is_its_parent_s_if_it_is_given_the_handle(engine: Engine) -> None:
    """Without it, reading the session raises what to do; other views work."""

    def parent(request: Any) -> Any:
        subrequest = Request.blank(request.params["path"])
        if "given" in request.params:
            subrequest.environ["handstamp"] = request.environ["handstamp"]
        return request.invoke_subrequest(subrequest)

    browser = Browser(make(engine.sessions, lambda c: c.add_view(parent, name="")))
    browser.post("/login")
    assert browser.get("/?path=/me&given=1").json[1] == "alice"
    assert browser.get("/?path=/public").json == "hello"
    with pytest.raises(ConfigError, match="subrequest"):
        browser.get("/?path=/me")


def test_a_router_that_was_made_by_hand_is_an_error(engine: Engine) -> None:
    """The first request that reads the session raises, and is not anonymous."""
    app = make(engine.sessions)
    browser = Browser(Router(app.registry))
    assert browser.get("/public").status_code == 200
    for path in ("/me", "/declared", "/read"):
        with pytest.raises(ConfigError, match="make_wsgi_app"):
            browser.get(path)


def test_without_sessions_no_application_is_made() -> None:
    """Included and forgotten is an error of its own."""
    config = Configurator()
    config.include("handstamp.pyramid")
    with pytest.raises(ConfigError, match=r"handstamp\.database_url .*set_session_auth"):
        config.make_wsgi_app()


def test_sessions_are_set_once(engine: Engine) -> None:
    """Twice is Pyramid's own conflict; included twice is once."""
    with Configurator() as config:
        config.include("handstamp.pyramid")
        config.include("handstamp.pyramid")
        config.set_session_auth(engine.sessions)
        config.commit()
    config.set_session_auth(engine.sessions)
    config.set_session_auth(engine.sessions, bearer=True)
    with pytest.raises(ConfigurationConflictError):
        config.commit()


@pytest.mark.parametrize(
    "options", [{"require_session": "yes"}, {"fresh_within": 600}], ids=str
)
def test_a_requirement_that_means_nothing_is_refused(
    engine: Engine, options: dict[str, Any]
) -> None:
    """While the view is configured, and not when somebody comes."""

    def configure(config: Configurator) -> None:
        config.add_view(public, name="", **options)

    with pytest.raises(Exception, match=f"{next(iter(options))} must be"):
        make(engine.sessions, configure)


def test_a_view_may_say_that_it_requires_nothing(engine: Engine) -> None:
    """Where the class of the view has another value."""

    def configure(config: Configurator) -> None:
        config.add_view(public, name="", renderer="json", require_session=False)
        config.set_default_permission("read")
        config.add_view(
            public, name="open", renderer="json", permission=NO_PERMISSION_REQUIRED
        )

    browser = Browser(make(engine.sessions, configure))
    assert [browser.get(path).status_code for path in ("/", "/open")] == [403, 200]


def test_pyramid_s_own_session_stays_its_own(engine: Engine) -> None:
    """`request.session` counts on, whichever user logs in."""

    def count(request: Any) -> list[Any]:
        request.session["n"] = request.session.get("n", 0) + 1
        return [request.session["n"], request.authenticated_userid]

    def configure(config: Configurator) -> None:
        config.set_session_factory(SignedCookieSessionFactory("x" * 32))
        config.add_view(count, name="", renderer="json")

    browser = Browser(make(engine.sessions, configure))
    seen = [browser.get("/").json]
    browser.post("/login")
    seen.append(browser.get("/").json)
    browser.post("/logout")
    seen.append(browser.get("/").json)
    assert seen == [[1, None], [2, "alice"], [3, None]]


def test_two_sessions_in_one_cookie_are_refused(engine: Engine) -> None:
    """On plain http ours is called `session`, as Pyramid's is by default."""

    def configure(config: Configurator, **name: str) -> None:
        config.set_session_factory(SignedCookieSessionFactory("x" * 32, **name))

    insecure = Cookies.insecure()
    with pytest.raises(ConfigError, match="cookie_name="):
        make(engine.sessions, configure, cookies=insecure)
    other = partial(configure, cookie_name="other")
    assert make(engine.sessions, other, cookies=insecure)


def test_the_testing_policy_of_pyramid_works(engine: Engine) -> None:
    """A unit test of a view needs neither sessions nor a request of a server."""
    request = testing.DummyRequest()
    with testing.testConfig(request=request) as config:
        config.include("handstamp.pyramid")
        config.testing_securitypolicy(
            userid="alice", permissive=False, remember_result=[("X", "1")]
        )
        assert request.authenticated_userid == "alice"
        assert not request.has_permission("edit")
        assert remember(request, "alice") == [("X", "1")]


def test_a_functional_test_may_use_the_testing_policy(engine: Engine) -> None:
    """It decides instead of ours; the handle is there beside it."""

    with Configurator(root_factory=Root) as config:
        config.include("handstamp.pyramid")
        config.set_session_auth(engine.sessions)
        config.commit()
        config.testing_securitypolicy(userid="tester")
        site(config)
    browser = Browser(config.make_wsgi_app())
    assert browser.get("/edit").status_code == 200
    assert browser.get("/declared").status_code == 401


def test_a_request_that_did_not_pass_the_middleware_is_an_error() -> None:
    """The error names what is missing."""
    with pytest.raises(ConfigError, match=r"config\.include"):
        session_auth(testing.DummyRequest())


def test_c147_two_browsers_are_two_users(engine: Engine) -> None:
    """On one application, in turns."""
    app = make(engine.sessions)
    browsers = {name: Browser(app) for name in ("alice", "bob")}
    for name, browser in browsers.items():
        browser.post(f"/login?user={name}")
    for name, browser in [*browsers.items()] * 3:
        assert browser.get("/me").json[1] == name


def read(**more: Any) -> tuple[Sessions, dict[str, Any]]:
    """The settings that are needed, and more of them."""
    given = {f"handstamp.{name}": value for name, value in more.items()}
    if "secrets" not in more:
        given = {"handstamp.secret": "x" * 32, **given}
    given = {"handstamp.database_url": "postgresql://db/app", **given}
    settings = read_settings({"pyramid.reload_templates": "true", **given})
    return settings.sessions, dict(settings.middleware)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"secret": "short"}, "32 bytes"),
        ({"secrets": "short, shorter"}, "32 bytes"),
        (
            {"secret": "x" * 32, "secrets": "y" * 32},
            r"handstamp\.secret and handstamp\.secrets: give one",
        ),
        ({"secure": "false"}, "needs secure=True"),
        ({"session_ttl": "1.5"}, "session_ttl"),
        ({"idle_ttl": "1"}, "idle_ttl"),
        ({"on_limit": "shrug"}, "on_limit"),
        ({"same_site": "Loose"}, "same_site"),
        ({"trusted_proxies": "everybody"}, "trusted proxy"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_named(setting: dict[str, str], message: str) -> None:
    """Before there is an application, let alone a request."""
    with pytest.raises(ConfigError, match=message):
        read(**setting)


def test_secrets_are_a_list_oldest_first() -> None:
    """Both work; a token is made with the newest."""
    old, new = "o" * 32, "n" * 32
    sessions, _ = read(secrets=f"{old}\n{new}")
    other = Sessions(MemoryStore(), secret=new)
    pair = other._state.tokens.mint("id", b"e" * 64, remember=False)
    assert sessions._state.tokens.mint("id", b"e" * 64, remember=False) == pair


SHAPE = replace(ULID_HASHED, table="logins")


def test_the_settings_configure_an_application() -> None:
    """The include is all; `set_session_auth` wins where it is called as well."""
    settings = {
        "handstamp.database_url": "postgresql://db/app",
        "handstamp.secret": "x" * 32,
        "handstamp.shape": f"{__name__}.SHAPE",
        "handstamp.session_name": "sid",
    }
    config = Configurator(settings=settings)
    config.include("handstamp.pyramid")
    config.commit()
    sessions, options = config.registry["handstamp"]
    assert repr(sessions.store) == "TableStore(table='logins')"
    assert options["cookies"].session_name == "sid"
    sessions = Sessions(MemoryStore(), secret="x" * 32)
    config = Configurator(settings=settings)
    config.include("handstamp.pyramid")
    config.set_session_auth(sessions)
    config.commit()
    assert config.registry["handstamp"] == (sessions, {})
