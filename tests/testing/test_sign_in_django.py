"""Django's clients are signed in through its settings: MIDDLEWARE and HANDSTAMP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from handstamp import ConfigError, Cookies, Sessions
from handstamp.testing import (
    FrozenClock,
    alogin_as,
    assert_revoked,
    login_as,
    outage,
    steal,
)

pytest.importorskip("rest_framework")
from tests.django import django_setup as setup  # isort: skip - the first of Django

from django.contrib.auth.models import User
from django.test import AsyncClient, Client, override_settings
from rest_framework.test import APIClient


def user(user_id: str) -> User:
    """A user who is in no table."""
    return User(username=user_id)


@pytest.fixture(autouse=True)
def site(handstamp_sessions: Sessions) -> Iterator[None]:
    """The site of Django's own tests, on the engine of this one."""
    handstamp = {"SESSIONS": handstamp_sessions, "GET_USER": user}
    with override_settings(HANDSTAMP=handstamp, MIDDLEWARE=[setup.OURS]):
        yield


@pytest.mark.parametrize("path", ["/required", "/arequired"])
def test_the_client_is_signed_in_refreshed_and_signed_out(
    path: str, handstamp_sessions: Sessions, handstamp_clock: FrozenClock
) -> None:
    """Over plain http too, because this client sends every cookie."""
    client = Client()
    assert client.get(path).status_code == 401
    alice = login_as(client, "alice")
    for _ in range(3):
        assert client.get(path).content == b"alice"
        handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
    assert alice.revoke(reason="lost") is True
    assert client.get(path).status_code == 401
    assert_revoked(alice, reason="lost")


@pytest.mark.parametrize("path", ["/required", "/arequired"])
async def test_the_async_client_is_signed_in_refreshed_and_signed_out(
    path: str, handstamp_sessions: Sessions, handstamp_clock: FrozenClock
) -> None:
    """The same with await."""
    client = AsyncClient()
    assert (await client.get(path)).status_code == 401
    alice = await alogin_as(client, "alice")
    for _ in range(3):
        assert (await client.get(path)).content == b"alice"
        handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
    assert await alice.arevoke(reason="lost") is True
    assert (await client.get(path)).status_code == 401
    await handstamp_sessions.close()


def test_the_client_of_django_rest_framework_is_signed_in() -> None:
    """Its authentication class returns the application's own user."""
    client = APIClient()
    assert client.get("/api").status_code == 401
    login_as(client, "alice")
    assert client.get("/api").json() == ["alice", "alice"]


def test_django_s_cookies_can_be_stolen() -> None:
    """And put into another client."""
    client, thief = Client(), Client()
    alice = login_as(client, "alice")
    stolen = steal(client)
    assert stolen.session_token == alice.session_token
    stolen.into(thief)
    assert thief.get("/required").content == b"alice"


def test_p5_an_outage_is_a_503(handstamp_sessions: Sessions) -> None:
    """For a request that needs the session. After the outage all is as before."""
    client = Client()
    login_as(client, "alice")
    with outage(handstamp_sessions):
        assert client.get("/required").status_code == 503
        assert client.get("/public").status_code == 200
    assert client.get("/required").content == b"alice"


def test_the_cookies_are_those_of_the_settings(handstamp_sessions: Sessions) -> None:
    """They have the names and attributes that a response would give them."""
    given: dict[str, Any] = {
        "SESSIONS": handstamp_sessions,
        "COOKIES": Cookies(session_name="sid", refresh_name="rid", same_site="Strict"),
        "EXCLUDE": ["/healthz"],
    }
    with override_settings(HANDSTAMP=given):
        client = Client()
        login_as(client, "alice")
        assert set(client.cookies) == {"sid", "rid"}
        assert {m["samesite"] for m in client.cookies.values()} == {"Strict"}
        assert client.get("/required").content == b"alice"


def test_settings_without_handstamp_are_an_error() -> None:
    """Django's client gets its engine from the settings."""
    with override_settings(HANDSTAMP=None), pytest.raises(ConfigError, match="HANDSTAMP"):
        login_as(Client(), "alice")
