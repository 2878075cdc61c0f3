"""Django's test clients on Supabase's sessions, found through its settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from handstamp import Cookies
from handstamp.supabase import SupabaseSessions
from handstamp.supabase.cookies import SupabaseCookie
from handstamp.testing import alogin_as, assert_revoked, login_as, steal
from handstamp.testing.databases import database_like
from handstamp.testing.engines import close
from tests.support.supabase_clients import READABLE, add, held, in_jar, pieces, sessions_on
from tests.support.supabase_site import NAME

pytest.importorskip("rest_framework")
from tests.django import django_setup as setup  # isort: skip - the first of Django

from django.contrib.auth.models import User
from django.test import AsyncClient, Client, override_settings


def user(user_id: str) -> User:
    """A user who is in no table of Django's."""
    return User(username=user_id)


@pytest.fixture(scope="module")
def supabase_dsn(supabase_template_dsn: str) -> Iterator[str]:
    """One database for all tests here: each has users of its own."""
    with database_like(supabase_template_dsn) as dsn:
        yield dsn


@pytest.fixture
def sessions(supabase_dsn: str) -> Iterator[SupabaseSessions]:
    """An engine on empty tables, whose cookie holds the user too."""
    sessions = sessions_on(supabase_dsn, cookie=READABLE)
    yield sessions
    close(sessions)


@pytest.fixture(autouse=True)
def site(sessions: SupabaseSessions) -> Iterator[None]:
    """The site of Django's own tests, on the engine of this one."""
    handstamp = {"SESSIONS": sessions, "GET_USER": user}
    with override_settings(HANDSTAMP=handstamp, MIDDLEWARE=[setup.OURS]):
        yield


def test_the_client_is_signed_in_refreshed_stolen_from_and_signed_out(
    supabase_dsn: str,
) -> None:
    """Whole or in pieces, nothing of the cookie before is left."""
    alice = add(supabase_dsn, "alice@example.org")
    bob = add(supabase_dsn, "bob@example.org", 4000)
    client, thief = Client(), Client()
    assert client.get("/required").status_code == 401
    signed_in = login_as(client, bob)
    assert set(held(client)) == pieces(5)
    assert client.get("/required").content == bob.encode()
    first = login_as(client, alice)
    assert set(held(client)) == {NAME}
    assert client.get("/required").content == alice.encode()
    assert in_jar(client) != first.refresh_token
    login_as(thief, bob)
    steal(client).into(thief)
    assert set(held(thief)) == {NAME}
    assert thief.get("/required").content == alice.encode()
    assert signed_in.revoke() is True
    assert_revoked(signed_in)
    login_as(client, bob)
    assert client.get("/logout").status_code == 200
    assert held(client) == dict.fromkeys(pieces(5), "")  # as Django's client removes them
    assert client.get("/required").status_code == 401
    login_as(client, alice)
    assert set(held(client)) == {NAME}
    assert client.get("/required").content == alice.encode()


async def test_the_async_client_is_signed_in_refreshed_and_signed_out(
    supabase_dsn: str, sessions: SupabaseSessions
) -> None:
    """The same with await."""
    bob = await asyncio.to_thread(add, supabase_dsn, "bob@example.org", 4000)
    client = AsyncClient()
    signed_in = await alogin_as(client, bob)
    assert set(held(client)) == pieces(5)
    assert (await client.get("/arequired")).content == bob.encode()
    assert steal(client).refresh_token != signed_in.refresh_token
    assert (await client.get("/alogout")).status_code == 200
    assert held(client) == dict.fromkeys(pieces(5), "")
    await sessions.close()


def test_the_cookie_has_the_attributes_of_the_project_s(
    supabase_dsn: str, sessions: SupabaseSessions
) -> None:
    """Without COOKIES in the settings. Given COOKIES replace them."""
    alice = add(supabase_dsn, "alice@example.org")
    cookie = SupabaseCookie(name=NAME, same_site="Strict", secure=False)
    strict = sessions_on(supabase_dsn, cookie=cookie)
    for given, same_site in (({}, "Strict"), ({"COOKIES": Cookies()}, "Lax")):
        with override_settings(HANDSTAMP={"SESSIONS": strict, "GET_USER": user, **given}):
            client = Client()
            login_as(client, alice)
            assert client.cookies[NAME]["samesite"] == same_site
            answer = client.get("/required")
            assert answer.cookies[NAME]["samesite"] == same_site
    close(strict)


def test_every_header_of_a_refresh_is_sent(supabase_dsn: str) -> None:
    """Also those against caches, and both removals of a cookie with a domain."""
    alice = add(supabase_dsn, "alice@example.org")
    sessions = sessions_on(supabase_dsn, cookie=SupabaseCookie(name=NAME, domain="a.test"))
    with override_settings(HANDSTAMP={"SESSIONS": sessions, "GET_USER": user}):
        client = Client(headers={"host": "a.test"})
        login_as(client, alice)
        client.cookies["theme"] = "dark"
        answer = client.get("/required")
        assert (answer["Expires"], answer["Pragma"]) == ("0", "no-cache")
        assert answer["Cache-Control"].startswith("private, no-cache, no-store")
        lines = [morsel.OutputString() for morsel in client.get("/logout").cookies.values()]
    close(sessions)
    assert len(lines) == 2
    assert all(line.startswith(f"{NAME}=; Max-Age=0; ") for line in lines)
    assert sorted("Domain=a.test" in line for line in lines) == [False, True]
