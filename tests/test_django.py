"""Django: `request.user`, `login_required`, signals, its own session, and a 503.

Over both transports, and in both of Django's modes under ASGI. By number where the
catalogue of attacks has one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import django
import pytest
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.core.asgi import get_asgi_application
from django.core.cache import cache
from django.core.management import call_command
from django.db import connections
from django.test import AsyncClient, Client, override_settings

from handstamp import blocking
from handstamp.config import Policy
from handstamp.django import get_sessions, wrap
from handstamp.errors import ConfigError
from handstamp.events import CookieOverridden, Refreshed, Revoked
from tests.django import django_setup as setup
from tests.django import django_site as site
from tests.django.django_browsers import (
    NAMES,
    SYNC_ONLY,
    Browser,
    asgi,
    asgi_in_a_thread,
    closed,
    wrapped,
    wsgi,
)
from tests.support.engines import Engine, listening

Serve = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _users() -> None:
    """Alice and bob are in the database."""
    call_command("migrate", verbosity=0)
    for name in ("alice", "bob"):
        if not site.User.objects.filter(username=name).exists():
            site.User.objects.create_user(name, password=f"{name}'s")


@pytest.fixture
def engine() -> Iterator[Engine]:
    """The engine of the settings."""
    engine = Engine()
    with override_settings(HANDSTAMP={"SESSIONS": engine.sessions}):
        yield engine


@pytest.fixture(params=[wsgi, asgi, asgi_in_a_thread, wrapped], ids=lambda f: f.__name__)
async def browser(request: pytest.FixtureRequest, engine: Engine) -> AsyncIterator[Browser]:
    """A browser, for each way of serving the site."""
    below = [SYNC_ONLY] if request.param is asgi_in_a_thread else []
    with override_settings(MIDDLEWARE=[*setup.PLAIN, *below]):
        browser = Browser(request.param())
        yield browser
        await browser.close()
    await closed(engine)


def id_of(name: str) -> str:
    return str(site.User.objects.get(username=name).pk)


@pytest.fixture(scope="module")
def alice(_users: None) -> str:
    """Her id."""
    return id_of("alice")


NOBODY = [False, "None", ""]


@pytest.mark.parametrize("a", ["", "a"], ids=["sync", "async"])
async def test_a_user_logs_in_and_out(browser: Browser, alice: str, a: str) -> None:
    """`request.user` is the application's own model and follows at once."""
    assert (await browser.get("/me")).json() == NOBODY
    response = await browser.post(f"/{a}login")
    assert response.json() == [alice, "alice"]
    assert set(browser.cookies) == NAMES
    assert (await browser.get("/me")).json() == [True, alice, "alice"]
    assert (await browser.get("/ame")).json() == [True, alice, "alice"]
    assert (await browser.post(f"/{a}logout")).text == "False"
    assert set(browser.cookies) == set()
    assert (await browser.get("/ame")).json() == NOBODY


async def test_an_id_is_enough_to_log_in(browser: Browser) -> None:
    """The user of this id is found for the signal and for the rest of the view."""
    assert (await browser.post("/login-by-id")).text == "alice"


@pytest.mark.parametrize("path", ["/secret", "/mixed", "/for-alice"])
async def test_djangos_own_protections_work(browser: Browser, path: str) -> None:
    """Decorators and mixins redirect to the sign-in and let alice in."""
    response = await browser.get(path)
    assert response.status_code == 302
    assert response.headers["location"] == f"/login-form?next={path}"
    await browser.post("/login")
    assert (await browser.get(path)).status_code == 200


async def test_user_passes_test_sees_the_user(browser: Browser) -> None:
    """Bob is signed in, and still not alice."""
    await browser.post("/login?user=bob")
    assert (await browser.get("/for-alice")).status_code == 302


async def test_a_template_has_the_user(browser: Browser) -> None:
    """By the context processor of Django."""
    assert (await browser.get("/hello")).text == ""
    await browser.post("/login")
    assert (await browser.get("/hello")).text == "alice is in"


async def test_an_inactive_user_is_anonymous(browser: Browser, alice: str) -> None:
    """As with Django's own backend; so is one who was deleted."""
    await browser.post("/login")
    users = site.User.objects.filter(pk=alice)
    await users.aupdate(is_active=False)
    try:
        assert (await browser.get("/me")).json() == NOBODY
    finally:
        await users.aupdate(is_active=True)
    assert (await browser.get("/me")).json()[0] is True


IDS = ["01HZY3J8Z8Z8Z8Z8Z8Z8Z8Z8Z8", "999999", "1e5", "☃"]
if django.VERSION >= (5, 0):  # before, it knows no range for the integers of SQLite
    IDS.append("9" * 50)


@pytest.mark.parametrize("id", IDS)
async def test_an_id_that_no_user_has_is_anonymous(
    browser: Browser, engine: Engine, id: str
) -> None:
    """Also one that cannot be a key of this model."""
    issued = await engine.login(id)
    await closed(engine)
    browser.cookies.set("__Host-session", issued.session_token, "testserver.local")
    assert (await browser.get("/me")).json() == NOBODY
    assert (await browser.get("/required")).text == id


@pytest.mark.parametrize("path", ["/required", "/arequired"])
async def test_require_is_a_401(
    browser: Browser, alice: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Raised by the handle, answered by the middleware, and no error in the log."""
    assert (await browser.get(path)).status_code == 401
    alarms = [r.levelname for r in caplog.records if r.levelno >= logging.WARNING]
    assert alarms == ["WARNING"]
    await browser.post("/login")
    assert (await browser.get(path)).text == alice


@pytest.mark.parametrize("path", ["/stepping-up", "/refusing"])
async def test_other_refusals_are_a_403(browser: Browser, path: str) -> None:
    """With the reason."""
    response = await browser.get(path)
    assert response.status_code == 403
    assert response.text.startswith(("this needs trust level 2", "no session was opened"))


@pytest.mark.parametrize("a", ["", "a"], ids=["sync", "async"])
async def test_sessions_are_listed_and_revoked(
    browser: Browser, engine: Engine, a: str
) -> None:
    """In both kinds of views."""
    await browser.post("/login")
    first = dict(browser.cookies)
    browser.cookies.clear()
    await browser.post("/login")
    lines = (await browser.get(f"/{a}list")).json()
    assert sorted(current for _, current in lines) == [False, True]
    [other] = [id for id, current in lines if not current]
    assert (await browser.post(f"/{a}revoke/{other}")).json() is True
    assert (await browser.post(f"/{a}revoke/{other}")).json() is False
    second = dict(browser.cookies)
    for cookies, found in ((first, False), (second, True)):
        browser.cookies.clear()
        browser.cookies.update(cookies)
        assert (await browser.get("/me")).json()[0] is found
    await engine_login_elsewhere(browser)
    assert (await browser.post(f"/{a}others")).json() == 1
    assert len(engine.of(Revoked)) == 2


async def engine_login_elsewhere(browser: Browser) -> None:
    """Another sign-in of alice's, whose cookies are dropped."""
    kept = dict(browser.cookies)
    browser.cookies.clear()
    await browser.post("/login")
    browser.cookies.clear()
    browser.cookies.update(kept)


@pytest.mark.parametrize("a", ["", "a"], ids=["sync", "async"])
async def test_a_view_calls_the_engine(browser: Browser, alice: str, a: str) -> None:
    """`call` and `acall` find the loop that the engine is on."""
    await browser.post("/login")
    assert (await browser.post(f"/{a}revoke-user/{alice}")).json() == 1
    assert (await browser.get("/me")).json() == NOBODY


@pytest.mark.parametrize("serve", [asgi, wrapped])
async def test_an_async_view_that_would_block_its_loop_is_told_to_await(
    engine: Engine, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """It would hang every request, so it is refused as a fault; the loop goes on."""
    browser = Browser(serve())
    await browser.post("/login")
    assert (await browser.get("/blocking")).status_code == 500
    assert "this is an async view: await" in caplog.text
    assert (await browser.get("/alist")).status_code == 200
    await browser.close()
    await closed(engine)


def test_a_stream_is_streamed(engine: Engine) -> None:
    """Piece by piece, with the headers of a rotated pair before the first."""
    client = Client()
    client.post("/login")
    engine.clock.advance(engine.policy.session_ttl)
    response = client.get("/stream")
    assert response.streaming
    assert set(response.cookies) == NAMES
    assert list(response.streaming_content) == [b"a", b"alice", b"b"]
    blocking.call(engine.sessions.close)


async def test_a_stream_is_streamed_under_asgi(engine: Engine) -> None:
    """The same, awaited."""
    client = AsyncClient()
    await client.post("/alogin")
    engine.clock.advance(engine.policy.session_ttl)
    response = await client.get("/astream")
    assert response.streaming
    assert set(response.cookies) == NAMES
    assert [piece async for piece in response] == [b"a", b"alice", b"b"]
    await engine.sessions.close()


async def test_a_stream_that_has_begun_cannot_log_in(engine: Engine) -> None:
    """Its headers have left, so the cookies could not."""
    browser = Browser(wsgi())
    assert "before the response starts" in (await browser.get("/late")).text
    assert engine.store.rows == {}


async def expire(browser: Browser, engine: Engine) -> None:
    """Sign in, and let the session token run out."""
    await browser.post("/login")
    engine.clock.advance(engine.policy.session_ttl)


async def test_an_expired_session_is_refreshed(browser: Browser, engine: Engine) -> None:
    """Both cookies are delivered unchanged, and nothing is stored."""
    await expire(browser, engine)
    old = dict(browser.cookies)
    response = await browser.get("/public")
    assert response.headers["cache-control"] == "private, no-store"
    lines = response.headers.get_list("set-cookie")
    assert all("; Path=/; HttpOnly; SameSite=Lax; Secure" in line for line in lines)
    assert [line.partition("=")[0] for line in lines] == [
        "__Host-session",
        "__Host-refresh",
    ]
    assert all("; Max-Age=" in line for line in lines)
    assert all(browser.cookies[name] != old[name] for name in NAMES)
    assert (await browser.get("/me")).json()[2] == "alice"
    assert len(engine.of(Refreshed)) == 1
    assert engine.of(CookieOverridden) == []


@pytest.mark.parametrize("path", ["/broken", "/abroken", "/nowhere"])
async def test_c157_a_cookie_on_an_unhandled_error(
    browser: Browser, engine: Engine, path: str
) -> None:
    """Django's 500 and 404 have the new pair."""
    await expire(browser, engine)
    response = await browser.get(path)
    assert response.status_code in (404, 500)
    assert len(response.headers.get_list("set-cookie")) == 2
    assert (await browser.get("/me")).json()[2] == "alice"
    assert len(engine.of(Refreshed)) == 1


async def test_cookies_of_the_application_are_kept(
    browser: Browser, engine: Engine
) -> None:
    """All but one of our name; Cache-Control is replaced."""
    await expire(browser, engine)
    response = await browser.get("/cookies")
    lines = [line.strip() for line in response.headers.get_list("set-cookie")]
    own = [line for line in lines if not line.startswith("__Host-")]
    assert sorted(line.partition(";")[0] for line in own) == ["one=1", 'two="a b"']
    assert any("Max-Age=60" in line and "SameSite=Strict" in line for line in own)
    assert len(lines) == 4
    assert not any("mine" in line for line in lines)
    assert response.headers["cache-control"] == "private, no-store"
    assert "expires" not in response.headers
    assert {part.strip() for part in response.headers["vary"].split(",")} == {
        "Accept",
        "Cookie",
    }


@pytest.mark.parametrize("serve", [wsgi, asgi, wrapped])
async def test_c102_djangos_cache_keeps_users_apart(engine: Engine, serve: Serve) -> None:
    """It sees the Vary of a page that read the session, so another user never gets it."""
    cached = "django.middleware.cache.UpdateCacheMiddleware", *setup.PLAIN
    cached = *cached, "django.middleware.cache.FetchFromCacheMiddleware"
    with override_settings(MIDDLEWARE=cached, CACHE_MIDDLEWARE_SECONDS=60):
        cache.clear()
        browser = Browser(serve())
        await browser.post("/login")
        for _ in range(2):
            assert (await browser.get("/me")).json()[2] == "alice"
        browser.cookies.clear()
        assert (await browser.get("/me")).json() == NOBODY
        await browser.post("/login?user=bob")
        assert (await browser.get("/me")).json()[2] == "bob"
        await browser.close()
    await closed(engine)


async def test_c102_public_pages_stay_cacheable(browser: Browser) -> None:
    """Without our cookies, a page that does not read the session has no Vary."""
    response = await browser.get("/public")
    assert not {"vary", "set-cookie", "cache-control"} & response.headers.keys()
    assert (await browser.get("/me")).headers["vary"] == "Cookie"
    await browser.post("/login")
    assert (await browser.get("/public")).headers["vary"] == "Cookie"


async def down(browser: Browser, engine: Engine) -> None:
    """Sign in, and take the database away."""
    await expire(browser, engine)
    engine.store.down = True


ASKING = ["/me", "/ame", "/secret", "/mixed", "/hello", "/required", "/arequired", "/list"]


@pytest.mark.parametrize("path", [*ASKING, "/logout", "/alogout", "/api"])
async def test_p5_asking_in_an_outage_is_a_503(
    browser: Browser, engine: Engine, path: str
) -> None:
    """With Retry-After, however the session is read, and the cookies are not changed."""
    await down(browser, engine)
    cookies = dict(browser.cookies)
    response = await browser.get(path)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "set-cookie" not in response.headers
    assert dict(browser.cookies) == cookies
    engine.store.down = False
    assert (await browser.get("/me")).status_code == 200


@pytest.mark.parametrize("path", ["/public", "/apublic"])
async def test_p5_not_asking_in_an_outage_is_a_200(
    browser: Browser, engine: Engine, path: str
) -> None:
    """And no user is logged out."""
    await down(browser, engine)
    response = await browser.get(path)
    assert (response.status_code, "set-cookie" in response.headers) == (200, False)
    engine.store.down = False


@pytest.mark.parametrize(
    ("serve", "asking"), [(wsgi, "Asking"), (asgi, "Asking"), (asgi, "async_asking")]
)
async def test_p5_a_middleware_that_asks_in_an_outage_is_a_503(
    engine: Engine, serve: Serve, asking: str
) -> None:
    """Django makes a 500 of what a middleware raises, and ours makes it good."""
    below = f"tests.django.django_site.{asking}"
    with override_settings(MIDDLEWARE=[*setup.PLAIN, below]):
        browser = Browser(serve())
        await down(browser, engine)
        response = await browser.get("/public")
        await browser.close()
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    engine.store.down = False
    await closed(engine)


@pytest.mark.parametrize("serve", [wsgi, asgi])
async def test_a_handler_of_the_application_wins(engine: Engine, serve: Serve) -> None:
    """Who has an answer of their own for an error of ours keeps it."""
    teapot = "tests.django.django_site.Teapot"
    with override_settings(MIDDLEWARE=[*setup.PLAIN, teapot]):
        browser = Browser(serve())
        assert (await browser.get("/required")).status_code == 418
        await browser.close()


@pytest.mark.parametrize("option", ["refuse", "anonymous"])
@pytest.mark.parametrize("serve", [wsgi, asgi])
async def test_the_other_policies_for_an_outage(
    engine: Engine, serve: Serve, option: str
) -> None:
    """Refused by the middleware, or treated as anonymous."""
    setting = {"SESSIONS": engine.sessions, "OUTAGE": option}
    with override_settings(HANDSTAMP=setting):
        browser = Browser(serve())
        await down(browser, engine)
        statuses = [(await browser.get(p)).status_code for p in ("/public", "/me")]
        await browser.close()
    assert statuses == ([503, 503] if option == "refuse" else [200, 200])
    engine.store.down = False
    await closed(engine)


async def test_a_write_of_another_site_is_refused(browser: Browser, engine: Engine) -> None:
    """With our cookies before any view, without them in it; the session lives on."""
    foreign = {"Sec-Fetch-Site": "cross-site"}
    response = await browser.post("/logout", headers=foreign)
    assert (response.status_code, "set-cookie" in response.headers) == (403, False)
    await browser.post("/login")
    response = await browser.post("/logout", headers=foreign)
    assert (response.status_code, "set-cookie" in response.headers) == (403, False)
    browser.cookies, kept = browser.cookies, dict(browser.cookies)
    browser.cookies.clear()
    assert (await browser.post("/login", headers=foreign)).status_code == 403
    browser.cookies.update(kept)
    assert (await browser.get("/me")).json()[2] == "alice"


async def test_c156_djangos_own_sessions_stay_theirs(browser: Browser) -> None:
    """The cookies differ, and a logout does not change what the application keeps there."""
    await browser.post("/login")
    assert [(await browser.get("/count")).json() for _ in range(2)] == [
        [1, "alice"],
        [2, "alice"],
    ]
    assert set(browser.cookies) == {*NAMES, "sessionid"}
    await browser.post("/logout")
    assert (await browser.get("/count")).json() == [3, ""]


async def test_c147_two_browsers_are_two_users(browser: Browser) -> None:
    """On one application, in turns."""
    jars = {}
    for name in ("alice", "bob"):
        browser.cookies.clear()
        await browser.post(f"/login?user={name}")
        jars[name] = dict(browser.cookies)
    for name in ("alice", "bob") * 3:
        browser.cookies.clear()
        browser.cookies.update(jars[name])
        assert (await browser.get("/me")).json()[2] == name


@pytest.mark.parametrize("a", ["", "a"], ids=["sync", "async"])
async def test_djangos_signals_are_sent(browser: Browser, alice: str, a: str) -> None:
    """At login and logout, with the user; without one it is None."""
    heard: list[tuple[str, Any]] = []

    def entered(*, sender: Any, request: Any, user: Any, **_: Any) -> None:
        assert (sender, request.user) == (site.User, user)
        heard.append(("in", user.username))

    def left(*, sender: Any, user: Any, **_: Any) -> None:
        heard.append(("out", user and user.username))

    user_logged_in.connect(entered)
    user_logged_out.connect(left)
    try:
        await browser.post(f"/{a}login")
        await browser.post(f"/{a}logout")
        await browser.post(f"/{a}logout")
    finally:
        user_logged_in.disconnect(entered)
        user_logged_out.disconnect(left)
    assert heard == [("in", "alice"), ("out", "alice"), ("out", None)]
    user = await site.User.objects.aget(pk=alice)
    assert user.last_login is not None  # by a receiver of Django's own


@pytest.mark.parametrize("serve", [wsgi, asgi, wrapped])
@pytest.mark.parametrize("a", ["", "a"], ids=["sync", "async"])
async def test_a_sign_in_replaces_the_csrf_token(
    engine: Engine, serve: Serve, a: str
) -> None:
    """A token from before the sign-in is of no use after it."""
    csrf = "django.middleware.csrf.CsrfViewMiddleware"
    with override_settings(MIDDLEWARE=[*setup.PLAIN, csrf]):
        browser = Browser(serve())
        token = (await browser.get("/form")).text
        before = browser.cookies["csrftoken"]
        headers = {"X-CSRFToken": token, "Referer": "https://testserver/form"}
        assert (await browser.post(f"/{a}login")).status_code == 403
        assert (await browser.post(f"/{a}login", headers=headers)).status_code == 200
        assert browser.cookies["csrftoken"] != before
        assert (await browser.post("/logout", headers=headers)).status_code == 403
        await browser.close()
    await closed(engine)


@pytest.mark.parametrize("serve", [wsgi, asgi, asgi_in_a_thread, wrapped])
async def test_login_required_middleware(
    engine: Engine, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Every view needs a user unless it is exempted, and an outage is a 503 without
    a traceback in the log."""
    if django.VERSION < (5, 1):
        pytest.skip("there is none before Django 5.1")
    below = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    with override_settings(MIDDLEWARE=[*setup.PLAIN, below]):
        browser = Browser(serve())
        assert (await browser.get("/me")).status_code == 302
        await browser.post("/login")
        assert (await browser.get("/me")).json()[2] == "alice"
        engine.clock.advance(engine.policy.session_ttl)
        engine.store.down = True
        response = await browser.get("/me")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "Internal Server Error" not in caplog.text
        engine.store.down = False
        await browser.close()
    await closed(engine)


async def test_rest_framework_knows_the_user(browser: Browser, alice: str) -> None:
    """`request.auth` is the session; without one the response is a 401 with the scheme."""
    response = await browser.get("/api")
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Session")
    await browser.post("/login")
    assert (await browser.get("/api")).json() == ["alice", alice]
    assert (await browser.post("/api")).json() == ["alice", alice]
    assert (await browser.get("/api")).headers["vary"] == "Accept, Cookie"


async def test_rest_framework_can_log_in(browser: Browser) -> None:
    """With the request that it wraps."""
    assert (await browser.post("/api-login")).json() == "alice"
    assert (await browser.get("/me")).json()[2] == "alice"


async def test_rest_framework_asks_for_a_token_where_told_to(browser: Browser) -> None:
    """A write with our cookie and without the CSRF token is a 403."""
    await browser.post("/login")
    assert (await browser.get("/strict-api")).json() == "alice"
    assert (await browser.post("/strict-api")).status_code == 403
    token = (await browser.get("/form")).text
    browser.cookies.set("csrftoken", token, "testserver.local")
    headers = {"X-CSRFToken": token, "Referer": "https://testserver/"}
    assert (await browser.post("/strict-api", headers=headers)).json() == "alice"


@pytest.mark.parametrize("serve", [wsgi, asgi])
async def test_rest_framework_asks_for_a_token_where_nothing_else_protects(
    engine: Engine, serve: Serve
) -> None:
    """With cross-site writes allowed by the middleware, its own check is on; a bearer token
    needs none, for no browser attaches it."""
    setting = {"SESSIONS": engine.sessions, "CROSS_SITE": "allow", "BEARER": True}
    with override_settings(HANDSTAMP=setting):
        browser = Browser(serve())
        await browser.post("/login")
        assert (await browser.get("/api")).status_code == 200
        assert (await browser.post("/api")).status_code == 403
        token = browser.cookies["__Host-session"]
        browser.cookies.clear()
        bearer = {"Authorization": f"Bearer {token}"}
        assert (await browser.post("/api", headers=bearer)).status_code == 200
        basic = {"Authorization": "Basic YTpi", "Cookie": f"__Host-session={token}"}
        assert (await browser.post("/api", headers=basic)).status_code == 403
        for text in ("Bearer", "Bearer two words", "bearer ?"):  # no bearer token
            malformed = {**basic, "Authorization": text}
            assert (await browser.post("/api", headers=malformed)).status_code == 403
        await browser.close()
    await closed(engine)


async def test_djangos_own_form_signs_in(browser: Browser) -> None:
    """The views of contrib.auth, on our sessions; `remember` is honoured."""
    token = (await browser.get("/form")).text
    browser.cookies.set("csrftoken", token, "testserver.local")
    headers = {"X-CSRFToken": token, "Referer": "https://testserver/"}
    form = {"username": "alice", "password": "alice's", "remember": "on"}
    wrong = {**form, "password": "x"}
    refused = await browser.post("/login-form", data=wrong, headers=headers)
    assert (refused.status_code, NAMES & set(browser.cookies)) == (200, set())
    response = await browser.post("/login-form", data=form, headers=headers)
    assert (response.status_code, response.headers["location"]) == (302, "/me")
    lines = response.headers.get_list("set-cookie")
    assert sum("Max-Age=" in line and line.startswith("__Host-") for line in lines) == 2
    assert (await browser.get("/me")).json()[2] == "alice"


# Django 4.2 warns of a GET before it finds that the view takes none.
@pytest.mark.filterwarnings("ignore:Log out via GET requests is deprecated")
async def test_djangos_own_view_signs_out(browser: Browser) -> None:
    """By POST, with the token; the cookies go."""
    await browser.post("/login")
    token = (await browser.get("/form")).text
    browser.cookies.set("csrftoken", token, "testserver.local")
    headers = {"X-CSRFToken": token, "Referer": "https://testserver/"}
    assert (await browser.get("/logout-form")).status_code == 405
    assert (await browser.post("/logout-form")).status_code == 403
    assert (await browser.post("/logout-form", headers=headers)).text == "bye"
    assert not NAMES & set(browser.cookies)
    assert (await browser.get("/me")).json() == NOBODY


def test_djangos_own_form_shows_a_refusal() -> None:
    """As it shows a wrong password."""
    engine = Engine(policy=Policy(max_sessions=1, on_limit="refuse"))
    with override_settings(HANDSTAMP={"SESSIONS": engine.sessions}):
        client = Client()
        client.post("/login")
        client.cookies.clear()
        form = {"username": "alice", "password": "alice's"}
        response = client.post("/login-form", form)
        blocking.call(engine.sessions.close)
    assert response.status_code == 200
    assert b"correct username and password" in response.content


@pytest.mark.parametrize("a", ["", "a"], ids=["sync", "async"])
async def test_p17_djangos_own_logout_ends_our_session_too(
    browser: Browser, engine: Engine, a: str
) -> None:
    """`django.contrib.auth.logout`, which the admin and many packages call, is no success
    for a session that lives on; its signal is sent once."""
    heard: list[Any] = []

    def left(*, user: Any, **_: Any) -> None:
        heard.append(user and user.username)

    user_logged_out.connect(left)
    try:
        await browser.post("/login")
        foreign = {"Sec-Fetch-Site": "cross-site"}
        refused = await browser.get(f"/{a}djangos-logout", headers=foreign)
        assert (refused.status_code, refused.headers.get("set-cookie")) == (403, None)
        assert (await browser.get("/me")).json()[2] == "alice"
        for _ in range(2):
            assert (await browser.post(f"/{a}djangos-logout")).text == "False"
    finally:
        user_logged_out.disconnect(left)
    assert not NAMES & set(browser.cookies)
    assert (await browser.get("/me")).json() == NOBODY
    assert not any(row.is_active for row in engine.store.rows.values())
    assert heard == ["alice", None]


@pytest.mark.parametrize("serve", [wsgi, asgi, wrapped])
@pytest.mark.parametrize("a", ["", "a"], ids=["sync", "async"])
async def test_a_sign_out_on_a_path_that_is_left_out_names_the_user(
    engine: Engine, serve: Serve, a: str
) -> None:
    """Nobody was signed in there, and the session of the browser ended all the same."""
    setting = {"SESSIONS": engine.sessions, "EXCLUDE": [f"/{a}login", f"/{a}logout"]}
    heard: list[Any] = []

    def left(*, user: Any, **_: Any) -> None:
        heard.append(user and user.username)

    user_logged_out.connect(left)
    try:
        with override_settings(HANDSTAMP=setting):
            browser = Browser(serve())
            for path in ("login", "login", "logout", "logout"):
                await browser.post(f"/{a}{path}")
            await browser.close()
    finally:
        user_logged_out.disconnect(left)
    await closed(engine)
    assert heard == ["alice", None]
    assert not any(row.is_active for row in engine.store.rows.values())


@pytest.mark.parametrize("serve", [wsgi, asgi, wrapped])
async def test_paths_may_be_left_out(engine: Engine, serve: Serve) -> None:
    """On an excluded path every request is anonymous."""
    setting = {"SESSIONS": engine.sessions, "EXCLUDE": ["/me"]}
    with override_settings(HANDSTAMP=setting):
        browser = Browser(serve())
        await browser.post("/login")
        assert (await browser.get("/me")).json() == NOBODY
        assert (await browser.get("/ame")).json()[2] == "alice"
        await browser.close()
    await closed(engine)


@pytest.mark.parametrize("serve", [wsgi, asgi, wrapped])
async def test_an_entry_too_many_changes_nothing(engine: Engine, serve: Serve) -> None:
    """The inner one finds the handle of the outer one."""
    with override_settings(MIDDLEWARE=[*setup.PLAIN, setup.OURS]):
        browser = Browser(serve())
        await expire(browser, engine)
        response = await browser.get("/me")
        assert (response.json()[2], len(response.headers.get_list("set-cookie"))) == (
            "alice",
            2,
        )
        await browser.close()
    await closed(engine)


def test_djangos_test_client(engine: Engine, alice: str) -> None:
    """It keeps the cookies and shows their attributes."""
    client = Client()
    response = client.post("/login")
    assert response.cookies["__Host-session"]["samesite"] == "Lax"
    assert response.cookies["__Host-session"]["max-age"] == "900"
    assert client.get("/me").json() == [True, alice, "alice"]
    assert client.post("/logout").status_code == 200
    assert client.get("/me").json() == NOBODY
    blocking.call(engine.sessions.close)


async def test_djangos_async_test_client(engine: Engine, alice: str) -> None:
    """The same, under ASGI."""
    client = AsyncClient()
    await client.post("/alogin")
    assert (await client.get("/ame")).json() == [True, alice, "alice"]
    assert (await client.post("/logout")).status_code == 200
    assert (await client.get("/me")).json() == NOBODY
    await engine.sessions.close()


async def test_both_test_clients_share_one_engine(engine: Engine, alice: str) -> None:
    """The second one runs on the loop of the first."""
    first, second = Client(), AsyncClient()
    await asyncio.to_thread(visited, first, "/login")
    second.cookies.update(first.cookies)
    assert (await second.get("/ame")).json() == [True, alice, "alice"]
    engine.clock.advance(engine.policy.session_ttl)
    assert (await second.get("/ame")).json()[0] is True
    assert len((await second.get("/alist")).json()) == 1
    assert (await second.post("/alogout")).status_code == 200
    assert (await asyncio.to_thread(visited, first, "/me")).json() == NOBODY
    await closed(engine)


def visited(client: Client, path: str) -> Any:
    """A response, with this thread's connection closed, which the client does not do."""
    try:
        return client.post(path)
    finally:
        connections.close_all()


async def test_a_wrapped_application_opens_and_closes_with_the_server(
    engine: Engine,
) -> None:
    """Django itself knows no lifespan."""
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "lifespan.startup.complete":
            await listening(engine)
            assert engine.sessions.stats().listener == "listening"

    await wrap(get_asgi_application())({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert engine.sessions.stats().listener != "listening"


def test_other_sessions_around_are_a_mistake(engine: Engine) -> None:
    """Two engines for one request cannot both be right."""
    client, other = Client(), Client()
    client.post("/login")
    assert get_sessions() is engine.sessions
    request = client.get("/me").wsgi_request
    handle = request.handstamp
    refused = pytest.raises(ConfigError, match="two SessionAuthMiddleware")
    with override_settings(HANDSTAMP={"SESSIONS": Engine().sessions}), refused:
        other.get("/me", handstamp=handle)
    blocking.call(engine.sessions.close)
