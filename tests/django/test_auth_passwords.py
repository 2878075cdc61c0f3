"""A change of password ends the user's other sessions, as it does in Django.

Django compares `get_session_auth_hash` at each load of the user; ours are sessions of a
table without a column for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import auth
from django.contrib.auth.hashers import make_password
from django.contrib.auth.tokens import default_token_generator
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils.encoding import force_bytes
from django.utils.http import urlsafe_base64_encode

from handstamp import blocking
from handstamp.config import Policy
from handstamp.django.users import claim_matches, make_claim
from handstamp.events import LateRefresh, Replayed, Revoked
from handstamp.supabase import SupabaseSessions
from tests.django import django_setup as setup
from tests.django import django_site as site
from tests.django.django_browsers import (
    SYNC_ONLY,
    Browser,
    asgi,
    asgi_in_a_thread,
    closed,
    wrapped,
    wsgi,
)
from tests.django.people.models import Plain, Strict
from tests.support.engines import Engine
from tests.support.waiting import until

OLD, NEW = "the old password", "the new password, and a longer one"
MD5 = "django.contrib.auth.hashers.MD5PasswordHasher"
QUICK = "tests.django.people.models.Quick"
UPGRADING = [QUICK, MD5]
MESSAGES = "django.contrib.messages.middleware.MessageMiddleware"
NOBODY = [False, "None", ""]
_numbers = count()


@pytest.fixture(scope="module", autouse=True)
def _tables() -> None:
    """Of every model."""
    call_command("migrate", run_syncdb=True, verbosity=0)


def person(**more: Any) -> site.User:
    """Somebody new, with the old password."""
    name = f"somebody{next(_numbers)}"
    return site.User.objects.create_user(name, password=OLD, **more)


@pytest.fixture
def user(_tables: None) -> site.User:
    """Whose password changes."""
    return person()


@pytest.fixture
def engine() -> Iterator[Engine]:
    """The engine of the settings."""
    engine = Engine()
    with override_settings(HANDSTAMP={"SESSIONS": engine.sessions}):
        yield engine


Browsers = Callable[[], Browser]


@pytest.fixture(params=[wsgi, asgi, asgi_in_a_thread, wrapped], ids=lambda f: f.__name__)
async def browsers(
    request: pytest.FixtureRequest, engine: Engine
) -> AsyncIterator[Browsers]:
    """Browsers of one server, for each way of serving the site."""
    below = [SYNC_ONLY] if request.param is asgi_in_a_thread else []
    with override_settings(MIDDLEWARE=[*setup.PLAIN, MESSAGES, *below]):
        transport, made = request.param(), list[Browser]()

        def browser() -> Browser:
            made.append(Browser(transport))
            return made[-1]

        yield browser
        for each in made:
            await each.close()
    await closed(engine)


async def signed_in(browser: Browser, user: site.User) -> Browser:
    """The same, with a session of this user."""
    answer = await browser.post(f"/login?user={user.username}")
    assert answer.status_code == 200
    return browser


async def name_of(browser: Browser) -> str:
    """Who it is, as a view sees it."""
    found: str = (await browser.get("/me")).json()[2]
    return found


async def pages(browser: Browser) -> list[Any]:
    """The user in a sync and in an async view."""
    return [(await browser.get(path)).json() for path in ("/me", "/ame")]


async def form(browser: Browser, path: str, **fields: str) -> Any:
    """A form of Django's, sent with its token."""
    token = (await browser.get("/form")).text
    browser.cookies.set("csrftoken", token, "testserver.local")
    headers = {"X-CSRFToken": token, "Referer": "https://testserver/"}
    return await browser.post(path, data=fields, headers=headers)


CHANGE = {"old_password": OLD, "new_password1": NEW, "new_password2": NEW}


def live(engine: Engine, user: site.User) -> list[str]:
    """The sessions of this user that are not over."""
    rows = engine.store.rows.values()
    return [row.id for row in rows if row.is_active and row.user_id == str(user.pk)]


def ends(engine: Engine) -> set[str]:
    """The reasons of the sessions that ended."""
    return {event.reason for event in engine.of(Revoked)}


# Changes that are saved.


@pytest.mark.parametrize("path", ["/password", "/our-password"])
async def test_changing_ones_password_signs_out_every_other_browser(
    browsers: Browsers, engine: Engine, user: site.User, path: str
) -> None:
    """By Django's own view and by ours; this browser goes on, in the same session."""
    here, there = [await signed_in(browsers(), user) for _ in range(2)]
    before = (await here.get("/list")).json()
    answer = await form(here, path, **CHANGE)
    assert (answer.status_code, answer.headers["location"]) == (302, "/me")
    assert await pages(there) == [NOBODY, NOBODY]
    assert (await there.get("/required")).status_code == 401
    assert [page[2] for page in await pages(here)] == [user.username] * 2
    current = [line for line in before if line[1]]
    assert (await here.get("/list")).json() == current
    assert ends(engine) == {"password changed"}


async def test_an_async_view_keeps_its_session(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """With `await aupdate_session_auth_hash`."""
    here, there = [await signed_in(browsers(), user) for _ in range(2)]
    assert (await here.post(f"/akeeping?to={NEW}")).text == "saved"
    assert await name_of(here) == user.username
    assert await name_of(there) == ""
    assert len(live(engine, user)) == 1


async def test_a_copy_of_the_old_cookies_is_dead_after_a_change(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """The session that goes on has new tokens; stolen old ones are worthless, and a
    request that was on its way with them takes nothing from it."""
    here, thief = await signed_in(browsers(), user), browsers()
    thief.cookies.update(here.cookies)
    assert await name_of(thief) == user.username
    await form(here, "/password", **CHANGE)
    for path in ("/me", "/ame"):
        assert (await thief.get(path)).json() == NOBODY
    assert (await thief.get("/required")).status_code == 401
    assert await name_of(here) == user.username
    assert len(live(engine, user)) == 1
    assert engine.of(Replayed) == []
    assert {event.session_id for event in engine.of(LateRefresh)} <= set(live(engine, user))


async def test_the_new_tokens_go_on_rotating(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """And still carry the hash of the new password."""
    here = await signed_in(browsers(), user)
    await form(here, "/password", **CHANGE)
    for _ in range(2):
        engine.clock.advance(engine.policy.session_ttl)
        assert await name_of(here) == user.username
    await sync_to_async(change_unseen)(user)
    assert await name_of(here) == ""


async def test_a_view_that_keeps_no_session_ends_its_own_too(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """`set_password` and `save`, and no `update_session_auth_hash`."""
    here, there = [await signed_in(browsers(), user) for _ in range(2)]
    assert (await here.post(f"/set-password?to={NEW}")).text == "saved"
    assert await pages(here) == await pages(there) == [NOBODY, NOBODY]
    assert live(engine, user) == []


async def test_the_admin_changes_the_password_of_another_user(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """Who is signed out everywhere; the administrator is not."""
    admin = await sync_to_async(person)(is_staff=True, is_superuser=True)
    desk, phone = [await signed_in(browsers(), admin) for _ in range(2)]
    there = await signed_in(browsers(), user)
    path = f"/admin/auth/user/{user.pk}/password/"
    new = {"password1": NEW, "password2": NEW, "usable_password": "true"}
    assert (await form(desk, path, **new)).status_code == 302
    assert await name_of(there) == ""
    assert live(engine, user) == []
    assert [await name_of(each) for each in (desk, phone)] == [admin.username] * 2


async def test_the_admin_changes_their_own_password(
    browsers: Browsers, engine: Engine
) -> None:
    """In the admin's form of users: this browser goes on, the other does not."""
    admin = await sync_to_async(person)(is_staff=True, is_superuser=True)
    desk, phone = [await signed_in(browsers(), admin) for _ in range(2)]
    path = f"/admin/auth/user/{admin.pk}/password/"
    new = {"password1": NEW, "password2": NEW, "usable_password": "true"}
    assert (await form(desk, path, **new)).status_code == 302
    assert await name_of(phone) == ""
    assert await name_of(desk) == admin.username
    assert len(live(engine, admin)) == 1


async def test_a_password_that_was_reset_ends_every_session(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """By the link in a mail, opened in a browser without a session, or in one that has."""
    new = browsers()
    for browser in (new, await signed_in(browsers(), user)):
        there = await signed_in(browsers(), user)
        uid = urlsafe_base64_encode(force_bytes(user.pk))
        token = await sync_to_async(reset_token)(user)
        first = await browser.get(f"/reset/{uid}/{token}/")
        assert first.status_code == 302
        fields = {"new_password1": NEW, "new_password2": NEW}
        answer = await form(browser, first.headers["location"], **fields)
        assert (answer.status_code, answer.headers["location"]) == (302, "/public")
        assert [await name_of(each) for each in (browser, there)] == ["", ""]
        assert live(engine, user) == []


def reset_token(user: site.User) -> str:
    """What a mail has in its link."""
    return default_token_generator.make_token(site.User.objects.get(pk=user.pk))


async def test_the_command_ends_every_session(
    browsers: Browsers, engine: Engine, user: site.User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`manage.py changepassword`."""
    there = await signed_in(browsers(), user)
    monkeypatch.setattr("getpass.getpass", lambda prompt="": NEW)
    await sync_to_async(call_command)("changepassword", user.username, verbosity=0)
    assert await name_of(there) == ""
    assert live(engine, user) == []


async def test_a_change_that_is_rolled_back_ends_nothing(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """What was not committed did not happen."""
    there = await signed_in(browsers(), user)

    def undone() -> None:
        with transaction.atomic():
            changed = site.User.objects.get(pk=user.pk)
            changed.set_password(NEW)
            changed.save()
            transaction.set_rollback(True)

    await sync_to_async(undone)()
    assert await name_of(there) == user.username


@pytest.mark.parametrize("fields", [None, ["password"], ["password", "email"]])
async def test_every_save_of_another_password_counts(
    browsers: Browsers, engine: Engine, user: site.User, fields: list[str] | None
) -> None:
    """Also of a hash that was assigned, and of none that can be used; not of the rest."""
    there = await signed_in(browsers(), user)

    def save(**changes: Any) -> None:
        changed = site.User.objects.get(pk=user.pk)
        for name, value in changes.items():
            setattr(changed, name, value)
        changed.save(update_fields=fields)

    await sync_to_async(save)(email="new@example.org", first_name="New")
    assert await name_of(there) == user.username
    await sync_to_async(save)(password=make_password(NEW))
    assert live(engine, user) == []
    assert await name_of(there) == ""
    await signed_in(there, user)
    await sync_to_async(save)(password=make_password(None))
    assert live(engine, user) == []


# Changes that no save tells.


def change_unseen(user: site.User, to: str | None = NEW) -> None:
    """As a script, another service or an administrator in psql does it."""
    site.User.objects.filter(pk=user.pk).update(password=make_password(to))


@pytest.mark.parametrize("to", [NEW, OLD, None])
async def test_a_change_past_django_ends_sessions_when_the_user_is_loaded(
    browsers: Browsers, engine: Engine, user: site.User, to: str | None
) -> None:
    """Cached or not; to the same password with another salt; to none. And the session is
    over, also for views that do not read the user."""
    for path in ("/me", "/ame"):
        here = await signed_in(browsers(), user)
        assert await name_of(here) == user.username
        await sync_to_async(change_unseen)(user, to)
        assert (await here.get(path)).json() == NOBODY
        await until(lambda: not live(engine, user))
        assert (await here.get("/required")).status_code == 401
        assert ends(engine) == {"password changed"}
        await sync_to_async(change_unseen)(user, OLD)


async def test_the_user_and_the_session_of_one_request_agree(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """REST framework's `request.auth`, `session_auth` and `login_required` have no session
    where `request.user` is anonymous."""
    for path, status in (("/api", 401), ("/secret", 302), ("/list", 401)):
        here = await signed_in(browsers(), user)
        await sync_to_async(change_unseen)(user)
        if path == "/list":
            assert (await here.get("/both")).json() == [False, False]
            await until(lambda: not live(engine, user))
        assert (await here.get(path)).status_code == status


async def test_a_refreshed_session_is_compared_too(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """Its tokens are replaced on this very request, and it ends."""
    here = await signed_in(browsers(), user)
    await sync_to_async(change_unseen)(user)
    engine.clock.advance(engine.policy.session_ttl)
    assert await name_of(here) == ""
    await until(lambda: not live(engine, user))


def test_a_request_on_its_way_takes_nothing_from_the_session(
    engine: Engine, user: site.User
) -> None:
    """It has the old tokens of before the password changed here, and reads the user
    after that: it is anonymous, and the session that got new tokens goes on."""
    client = signed_in_as(user)
    early = client.get("/public").wsgi_request
    assert client.post("/our-password", CHANGE).status_code == 302
    assert not early.user.is_authenticated
    blocking.call(asyncio.sleep, 0)
    assert is_known(client)
    assert len(live(engine, user)) == 1
    blocking.call(engine.sessions.close)


@pytest.mark.parametrize("path", ["/keeping?", "/keeping?django&", "/adjango?"])
async def test_a_session_is_kept_after_a_change_past_django(
    browsers: Browsers, engine: Engine, user: site.User, path: str
) -> None:
    """`update_session_auth_hash`, ours or Django's own, with a user who was loaded anew."""
    here, there = [await signed_in(browsers(), user) for _ in range(2)]
    if path == "/adjango?" and not hasattr(auth, "aupdate_session_auth_hash"):
        pytest.skip("this Django has none")
    assert (await here.post(f"{path}to={NEW}")).text == "saved"
    assert await name_of(here) == user.username
    assert await name_of(there) == ""
    assert len(live(engine, user)) == 1


async def test_what_django_remembers_of_an_earlier_change_keeps_nothing(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """The trace in `request.session` is of the password before this one."""
    here = await signed_in(browsers(), user)
    await form(here, "/password", **CHANGE)
    await sync_to_async(change_unseen)(user, OLD)
    assert await name_of(here) == ""
    await signed_in(here, user)
    assert (await here.get("/count")).json()[1] == user.username
    assert await name_of(here) == user.username


# Changes that are none.


async def test_a_hash_made_anew_at_a_login_ends_no_session(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """The hasher of the settings is another one since: this login and the others stay."""
    there = await signed_in(browsers(), user)
    here = browsers()
    with override_settings(PASSWORD_HASHERS=UPGRADING):
        fields = {"username": user.username, "password": OLD}
        assert (await form(here, "/login-form", **fields)).status_code == 302
        await sync_to_async(user.refresh_from_db)()
        assert user.password.startswith("pbkdf2_sha256$1000$")
        assert await pages(here) == await pages(there)
        assert await name_of(there) == user.username
        assert len(live(engine, user)) == 2


async def test_a_hash_made_anew_by_a_confirmation_ends_no_session(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """`request.user.check_password`, as before something that matters."""
    here, there = [await signed_in(browsers(), user) for _ in range(2)]
    with override_settings(PASSWORD_HASHERS=UPGRADING):
        assert (await here.post(f"/confirm?is={OLD}")).text == "True"
        for browser in (here, there):
            assert await name_of(browser) == user.username
        assert len(live(engine, user)) == 2


async def test_a_change_ends_sessions_while_hashers_are_upgraded(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """Any change ends a session of the new hasher. A session of the old hasher ends by a
    change that is saved, and by one to no password."""
    with override_settings(PASSWORD_HASHERS=UPGRADING):
        old = await signed_in(browsers(), user)
        assert await sync_to_async(user.check_password)(OLD)
        new = await signed_in(browsers(), user)
        await sync_to_async(change_unseen)(user)
        assert await name_of(new) == ""
        await sync_to_async(change_unseen)(user, None)
        assert await name_of(old) == ""
        await signed_in(old, user)
        user.set_password(NEW)
        await user.asave()
        assert live(engine, user) == []


async def test_keys_in_fallbacks_are_good(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """As in Django; a key that is gone ends the sessions of its time."""
    here = await signed_in(browsers(), user)
    with override_settings(
        SECRET_KEY="new", SECRET_KEY_FALLBACKS=["for Django's own signatures"]
    ):
        assert await name_of(here) == user.username
        assert len(live(engine, user)) == 1
    with override_settings(SECRET_KEY="new"):
        assert await name_of(here) == ""


async def test_the_first_deploy_ends_no_session(
    browsers: Browsers, engine: Engine, user: site.User
) -> None:
    """A session that carries no hash is not compared, and ends with a saved change."""
    here = browsers()
    await here.post(f"/login-without-hash?user={user.username}")
    assert await name_of(here) == user.username
    await sync_to_async(change_unseen)(user)
    assert await name_of(here) == user.username
    await sync_to_async(saved)(user, OLD)
    assert await name_of(here) == ""


def saved(user: Any, password: str) -> None:
    """A change through the model."""
    user.set_password(password)
    user.save()


def test_it_costs_no_query(engine: Engine, user: site.User) -> None:
    """The user is loaded once, as before, and only if a view reads it."""
    client = Client()
    client.post(f"/login?user={user.username}")
    for path, queries in (("/me", 1), ("/public", 0), ("/required", 0)):
        with CaptureQueriesContext(connection) as seen:
            assert client.get(path).status_code == 200
        assert len(seen) == queries
    blocking.call(engine.sessions.close)


# Other models of users.


def signed_in_as(user: Any) -> Client:
    """A browser of Django's test client."""
    client = Client()
    assert client.post(f"/login-model?pk={user.pk}").status_code == 200
    return client


def is_known(client: Client) -> bool:
    """Whether a view sees a user."""
    found: bool = client.get("/me").json()[0]
    return found


@override_settings(AUTH_USER_MODEL="people.Strict")
@pytest.mark.parametrize("change", ["email", "update", "hash"])
def test_a_hash_of_the_application_s_own_counts_in_full(
    engine: Engine, change: str
) -> None:
    """Another address ends the sessions, saved or not; and so does a hash that is made
    anew, because that cannot be distinguished from a change."""
    user = Strict(name=f"strict{next(_numbers)}")
    saved(user, OLD)
    client = signed_in_as(user)
    assert is_known(client)
    if change == "email":
        user.email = "new@example.org"
        user.save(update_fields=["email"])
        assert live(engine, user) == []
    elif change == "update":
        Strict.objects.filter(pk=user.pk).update(email="new@example.org")
    with override_settings(PASSWORD_HASHERS=UPGRADING if change == "hash" else [MD5]):
        assert user.check_password(OLD)
        assert not is_known(client)
    blocking.call(engine.sessions.close)


@override_settings(AUTH_USER_MODEL="people.Plain")
def test_a_model_without_the_hash_is_not_checked(engine: Engine) -> None:
    """As in Django; `manage.py check` reports it."""
    user = Plain.objects.create(name=f"plain{next(_numbers)}", password=make_password(OLD))
    client = signed_in_as(user)
    user.password = make_password(NEW)
    user.save()
    assert is_known(client)
    assert [m.id for m in run_checks(tags=["handstamp"])] == ["handstamp.W006"]
    blocking.call(engine.sessions.close)


def test_ids_of_the_application_s_own_are_left_alone(user: site.User) -> None:
    """Where `GET_USER` finds users by another id than the primary key, a saved change ends
    no session of the user who has that key as an id."""
    engine = Engine()
    setting = {"SESSIONS": engine.sessions, "GET_USER": by_name}
    with override_settings(HANDSTAMP=setting):
        other = blocking.call(engine.sessions.create, str(user.pk))
        own = blocking.call(engine.sessions.create, user.username)
        saved(user, NEW)
        rows = engine.store.rows
        assert rows[other.session.id].is_active
        assert rows[own.session.id].is_active
        blocking.call(engine.sessions.close)


def by_name(name: str) -> site.User | None:
    """For `GET_USER`."""
    return site.User.objects.filter(username=name).first()


def test_a_change_in_an_outage_is_no_success(engine: Engine, user: site.User) -> None:
    """The sessions could not be ended, so no success is reported."""
    client = signed_in_as(user)
    assert is_known(client)
    engine.store.down = True
    answer = client.post(f"/set-password?to={NEW}")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    engine.store.down = False
    engine.clock.advance(Policy().session_ttl)
    assert not is_known(client)
    blocking.call(engine.sessions.close)


async def test_a_save_on_the_thread_of_a_loop_counts(
    engine: Engine, user: site.User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook, where Django allows it: it waits for nothing."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    await engine.sessions.create(str(user.pk))
    saved(user, NEW)
    await until(lambda: not live(engine, user))
    await engine.sessions.create(str(user.pk))
    await engine.sessions.close()
    saved(user, OLD)
    await until(lambda: not live(engine, user))
    await engine.sessions.close()


def test_without_settings_of_ours_users_are_saved_as_ever(user: site.User) -> None:
    """In a project that has the application installed and not set up."""
    with override_settings(HANDSTAMP=None):
        saved(user, NEW)
    assert site.User.objects.get(pk=user.pk).check_password(NEW)


def test_without_djangos_sessions_our_view_keeps_this_one(
    engine: Engine, user: site.User
) -> None:
    """Django's own view needs `SessionMiddleware`."""
    with override_settings(MIDDLEWARE=[setup.OURS]):
        here, there = signed_in_as(user), signed_in_as(user)
        assert here.post("/our-password", CHANGE).status_code == 302
        assert is_known(here)
        assert not is_known(there)
    blocking.call(engine.sessions.close)


@pytest.mark.parametrize("kind", ["db", "cache", "cached_db", "file", "signed_cookies"])
def test_every_kind_of_djangos_sessions_shows_the_trace(
    engine: Engine, user: site.User, kind: str
) -> None:
    """Django's own view keeps this session, wherever Django keeps its own."""
    with override_settings(SESSION_ENGINE=f"django.contrib.sessions.backends.{kind}"):
        here, there = signed_in_as(user), signed_in_as(user)
        for _ in range(2):
            here.get("/count")
        assert here.post("/password", CHANGE).status_code == 302
        assert is_known(here)
        assert not is_known(there)
        there = signed_in_as(user)
        for path in ("/count", "/cycle", "/count"):
            assert here.get(path).status_code == 200
        assert is_known(there)
        assert len(live(engine, user)) == 2
    blocking.call(engine.sessions.close)


@pytest.mark.parametrize("kind", ["db", "signed_cookies"])
def test_the_trace_of_djangos_own_login_ends_no_session(
    engine: Engine, user: site.User, kind: str
) -> None:
    """Of the time before: a session of ours that carries no hash is left as it is."""
    with override_settings(SESSION_ENGINE=f"django.contrib.sessions.backends.{kind}"):
        there = signed_in_as(user)
        here = Client()
        here.force_login(user, "django.contrib.auth.backends.ModelBackend")
        here.post(f"/login-without-hash?user={user.username}")
        for path in ("/count", "/cycle", "/count"):
            assert here.get(path).status_code == 200
        assert is_known(here)
        assert is_known(there)
        assert len(live(engine, user)) == 2
    blocking.call(engine.sessions.close)


def test_another_key_in_djangos_own_session_ends_no_session(
    engine: Engine, user: site.User
) -> None:
    """Django writes its hash anew for a new SECRET_KEY, and our session is still good."""
    old = settings.SECRET_KEY
    here, there = signed_in_as(user), signed_in_as(user)
    with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=[old]):
        here.force_login(user, "django.contrib.auth.backends.ModelBackend")
        assert here.get("/cycle").status_code == 200
        assert is_known(here)
        assert is_known(there)
    assert len(live(engine, user)) == 2
    blocking.call(engine.sessions.close)


def test_a_claim_tells_nothing_of_the_password(user: site.User) -> None:
    """Neither the hash nor anything that a password can be tried on without the key."""
    claim = make_claim(user)
    assert claim is not None
    assert len(claim) == 28
    assert user.get_session_auth_hash()[:8] not in claim
    assert make_claim(user) == claim
    with override_settings(SECRET_KEY="another"):
        assert make_claim(user) != claim


def test_only_claims_of_ours_are_compared(user: site.User) -> None:
    """A claim that the application bound itself is its own business."""
    for claim in (None, "", "mine", "d1", "d1" + "A" * 27, "d2" + "A" * 26):
        assert claim_matches(claim, user)
    own = str(make_claim(user))
    for digest in ("A" * 22, own[7:] + "A", own[6:].swapcase()):
        assert not claim_matches(own[:6] + digest, user)
        assert not claim_matches("d1----" + digest, user)


def test_a_damaged_password_is_like_none(user: site.User) -> None:
    """It is compared as it is, and was never upgraded."""
    for text in ("", "x", "md5$", "pbkdf2_sha256$x$y$z", "argon2$$", None):
        user.password = text  # type: ignore[assignment]
        claim = make_claim(user)
        assert claim_matches(claim, user)
        user.password = make_password(NEW)
        assert not claim_matches(claim, user)


def test_sessions_that_carry_no_claims_are_reported(engine: Engine) -> None:
    """Those of Supabase: a change without a save ends no session there."""
    dsn = "postgresql://postgres@localhost/none"
    sessions = SupabaseSessions(dsn, url="https://a.example", jwt_secret="x" * 32)
    with override_settings(HANDSTAMP={"SESSIONS": sessions}):
        assert [m.id for m in run_checks(tags=["handstamp"])] == ["handstamp.W007"]
    assert [m.id for m in run_checks(tags=["handstamp"])] == []
