"""`HANDSTAMP` in the settings, and what `manage.py check` reports."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.management import call_command
from django.test import override_settings

from handstamp import Cookies, Policy, Sessions
from handstamp.django.settings import configuration, database_url, get_sessions, read
from handstamp.errors import ConfigError
from handstamp.stores.memory import MemoryStore
from handstamp.stores.shapes import ULID_HASHED
from handstamp.stores.table import TableStore
from tests.django import django_setup as setup

SECRET = "a secret of the settings: 32 bytes and more"
URL = "postgresql://user:password@localhost/app"
GOOD: dict[str, Any] = {"DATABASE_URL": URL, "SECRETS": [SECRET]}
OURS = setup.OURS
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
LOGIN_REQUIRED = "django.contrib.auth.middleware.LoginRequiredMiddleware"
CACHE = "django.middleware.cache.UpdateCacheMiddleware"


def ids(deploy: bool = False) -> list[str]:
    """The ids of what our checks report."""
    found = run_checks(tags=["handstamp"], include_deployment_checks=deploy)
    return sorted(message.id for message in found)


@pytest.fixture(autouse=True)
def good() -> Iterator[None]:
    """Settings that work."""
    with override_settings(HANDSTAMP=GOOD):
        yield


def test_good_settings_have_no_complaints() -> None:
    """Neither here nor for production."""
    assert ids() == ids(deploy=True) == []


def test_every_key_reaches_its_place() -> None:
    """Numbers are seconds, lists stay lists, and a path is imported."""
    found = read(
        GOOD
        | {
            "POLICY": {"session_ttl": 600, "idle_ttl": None, "max_sessions": 3},
            "COOKIES": {"same_site": "Strict"},
            "TRUSTED_PROXIES": ["10.0.0.0/8"],
            "EXCLUDE": ["/metrics"],
            "BEARER": True,
            "SHAPE": "handstamp.ULID_HASHED",
            "CACHE_SIZE": 10,
            "GET_USER": "handstamp.django.SessionUser",
        }
    )
    assert found.sessions.policy == Policy(
        session_ttl=timedelta(minutes=10), max_sessions=3
    )
    assert found.middleware["cookies"] == Cookies(same_site="Strict")
    assert "10.1.2.3" in found.middleware["trusted_proxies"]
    assert (found.middleware["exclude"], found.middleware["bearer"]) == (["/metrics"], True)
    assert found.own["get_user"]("7").pk == "7"


def test_ready_objects_are_taken_as_they_are() -> None:
    """A policy, cookies, a shape, or a whole engine."""
    policy, cookies = Policy(session_ttl=timedelta(minutes=1)), Cookies.insecure()
    ready = {"POLICY": policy, "COOKIES": cookies, "SHAPE": ULID_HASHED}
    found = read(GOOD | ready)
    assert (found.sessions.policy, found.middleware["cookies"]) == (policy, cookies)
    sessions = Sessions(MemoryStore(), secret=SECRET)
    assert read({"SESSIONS": sessions}).sessions is sessions


def test_one_engine_serves_the_process() -> None:
    """However often it is read; other settings make another one."""
    assert get_sessions() is configuration().sessions is get_sessions()
    before = get_sessions()
    with override_settings(HANDSTAMP=GOOD):
        assert get_sessions() is not before


BAD = {
    "none": None,
    "a list": [],
    "no secret": {"DATABASE_URL": URL},
    "an empty secret": GOOD | {"SECRETS": []},
    "a short secret": GOOD | {"SECRETS": ["short"]},
    "an unknown key": GOOD | {"SECERT": SECRET},
    "a key in lower case": GOOD | {"session_ttl": 600},
    "an unknown policy": GOOD | {"POLICY": {"ttl": 1}},
    "an impossible policy": GOOD | {"POLICY": {"session_ttl": 10, "grace": 9}},
    "a field in two places": GOOD | {"POLICY": {"grace": 5}, "GRACE": 5},
    "impossible cookies": GOOD | {"COOKIES": {"secure": False}},
    "a proxy that is none": GOOD | {"TRUSTED_PROXIES": ["nonsense"]},
    "a function of nobody's": GOOD | {"GET_USER": "nowhere.find"},
    "sqlite": {"DATABASE": "default", "SECRETS": [SECRET]},
    "an unknown alias": {"DATABASE": "other", "SECRETS": [SECRET]},
    "sessions and more": {"SESSIONS": Sessions(MemoryStore(), secret=SECRET), **GOOD},
    "sessions that are none": {"SESSIONS": "handstamp.Cookies"},
}


@pytest.mark.parametrize("given", BAD.values(), ids=BAD.keys())
def test_bad_settings_are_refused_and_reported(given: Any) -> None:
    """By an error with a reason, which `manage.py check` prints without a secret."""
    with pytest.raises(ConfigError) as refused:
        read(given)
    with override_settings(HANDSTAMP=given):
        [message] = run_checks(tags=["handstamp"])
        assert (message.id, message.msg) == ("handstamp.E001", str(refused.value))
        assert ids(deploy=True) == ["handstamp.E001"]
    assert SECRET not in message.msg
    assert "password" not in message.msg


def test_a_good_secret_does_not_hide_another_mistake() -> None:
    """The other options of the middleware are refused when the server starts."""
    for wrong in ({"OUTAGE": "x"}, {"CROSS_SITE": "x"}, {"TRUSTED_ORIGINS": ["x"]}):
        with override_settings(HANDSTAMP=GOOD | wrong):
            assert ids() == ["handstamp.E001"]


ORDERS = {
    "fine": ([CACHE, AUTHENTICATION, OURS, LOGIN_REQUIRED], []),
    "missing": ([], ["handstamp.W001"]),
    "before Django's user": ([OURS, AUTHENTICATION], ["handstamp.E002"]),
    "user read too soon": ([LOGIN_REQUIRED, OURS], ["handstamp.E003"]),
    "cached too soon": ([OURS, CACHE], ["handstamp.E004"]),
    "by its full path": (["handstamp.django.middleware.SessionAuthMiddleware"], []),
}


@pytest.mark.parametrize(("order", "complaints"), ORDERS.values(), ids=ORDERS.keys())
def test_the_order_of_middleware_is_checked(
    order: list[str], complaints: list[str]
) -> None:
    """What comes too early or too late has an id of its own."""
    with override_settings(MIDDLEWARE=order):
        assert ids() == complaints


@pytest.mark.parametrize("setting", ["SESSION_COOKIE_NAME", "CSRF_COOKIE_NAME"])
def test_a_cookie_name_of_djangos_is_an_error(setting: str) -> None:
    """Each would overwrite the other."""
    with override_settings(**{setting: "__Host-session"}):
        assert ids() == ["handstamp.E005"]


RISKS = {
    "insecure": ({"COOKIES": Cookies.insecure()}, {}, ["handstamp.W002"]),
    "one secret": ({"SECRETS": [SECRET]}, {"SECRET_KEY": SECRET}, ["handstamp.W003"]),
    "cross-site": ({"CROSS_SITE": "allow"}, {}, ["handstamp.W004"]),
    "a proxy": ({}, {"USE_X_FORWARDED_HOST": True}, ["handstamp.W005"]),
    "two secrets": ({}, {"SECRET_KEY": "of Django"}, []),
}


@pytest.mark.parametrize(("given", "other", "complaints"), RISKS.values(), ids=RISKS.keys())
def test_risks_are_reported_for_production(
    given: dict[str, Any], other: dict[str, Any], complaints: list[str]
) -> None:
    """By `check --deploy` only."""
    with override_settings(HANDSTAMP=GOOD | given, **other):
        assert ids() == []
        assert ids(deploy=True) == complaints


def test_manage_py_check_runs_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Under the application's own tag."""
    call_command("check", "--tag", "handstamp")
    assert "no issues" in capsys.readouterr().out


ENTRIES = {
    "postgresql:///app": {"NAME": "app"},
    "postgresql://h/app": {"NAME": "app", "HOST": "h"},
    "postgresql://u@h:5433/app": {"NAME": "app", "HOST": "h", "PORT": 5433, "USER": "u"},
    "postgresql://u:p%40%2F%3A@h/a%20b": {
        **{"NAME": "a b", "HOST": "h", "USER": "u", "PASSWORD": "p@/:"}
    },
    "postgresql://[::1]/app": {"NAME": "app", "HOST": "::1"},
    "postgresql:///app?host=%2Frun%2Fpg&port=5433": {
        **{"NAME": "app", "HOST": "/run/pg", "PORT": "5433"}
    },
    "postgresql://h/app?sslmode=require": {
        **{"NAME": "app", "HOST": "h", "OPTIONS": {"sslmode": "require", "pool": True}}
    },
}


@pytest.mark.parametrize(("address", "entry"), ENTRIES.items())
def test_an_entry_of_databases_becomes_an_address(
    address: str, entry: dict[str, Any]
) -> None:
    """With special characters escaped, and a socket's folder as a parameter."""
    assert database_url(entry) == address


@pytest.mark.parametrize("entry", [{}, {"NAME": ""}, {"OPTIONS": {"service": "x"}}])
def test_an_entry_without_a_name_is_refused(entry: dict[str, Any]) -> None:
    """There is nothing to make an address of."""
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        database_url(entry)


def test_the_default_database_is_the_applications_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it is PostgreSQL."""
    entry = {"ENGINE": "django.contrib.gis.db.backends.postgis", "NAME": "app"}
    monkeypatch.setitem(settings.DATABASES, "default", entry)
    assert isinstance(read({"SECRETS": [SECRET]}).sessions.store, TableStore)
    with override_settings(HANDSTAMP={"SECRETS": [SECRET]}):
        assert ids() == []
