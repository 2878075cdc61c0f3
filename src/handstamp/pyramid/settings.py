"""The settings of a Pyramid application, for whoever keeps them in an ini file.

handstamp.database = postgresql://…       handstamp.secret = …   (or handstamp.secrets)
handstamp.session_ttl = 900               and every other field of Policy, in seconds
handstamp.trusted_proxies = 10.0.0.0/8    and every other option of the middleware
handstamp.same_site = Strict              and every other field of Cookies
handstamp.insecure_cookies = true         for plain http on your own machine
handstamp.shape = myapp.tables.SHAPE      a TableShape of your own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from pyramid.interfaces import ISessionFactory
from pyramid.settings import asbool, aslist

from handstamp.config import Cookies, Policy, TrustedProxies
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError
from handstamp.stores.shapes import ULID_HASHED

PREFIX = "handstamp."
_BOOLEAN = ("accept_unsigned", "end_on_password_change")
_POLICY = {field.name for field in fields(Policy)}
_COOKIES = {field.name for field in fields(Cookies)} - {"secure", "insecure_hosts"}
_SECRETS: Mapping[str, Callable[[Any], Any]] = {"secret": str, "secrets": aslist}
_OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "bearer": asbool,
    "cross_site": str,
    "exclude": aslist,
    "outage": str,
    "passive": aslist,
    "trusted_origins": aslist,
}


def read_settings(
    settings: Mapping[str, Any], resolve: Callable[[Any], Any]
) -> tuple[Sessions, dict[str, Any]]:
    """The sessions and the options of the middleware, from ``handstamp.*``.

    Durations are in seconds, lists are separated by white space. Raises
    :class:`ConfigError`, also for a name that there is not.
    """
    given = {k.removeprefix(PREFIX): v for k, v in settings.items() if k.startswith(PREFIX)}

    def take(names: Iterable[str]) -> dict[str, Any]:
        return {name: given.pop(name) for name in names if name in given}

    if not given.get("database"):
        raise ConfigError("handstamp.database is not set: postgresql://…")
    insecure = asbool(given.pop("insecure_cookies", False))
    cookies = replace(Cookies.insecure() if insecure else Cookies(), **take(_COOKIES))
    proxies = TrustedProxies(*aslist(given.pop("trusted_proxies", "")))
    options = {name: _OPTIONS[name](value) for name, value in take(_OPTIONS).items()}
    secrets = {name: _SECRETS[name](value) for name, value in take(_SECRETS).items()}
    shape = resolve(given.pop("shape", ULID_HASHED))
    policy = _policy(take(_POLICY))
    database = given.pop("database")
    if given:
        raise ConfigError(f"no such setting: {', '.join(PREFIX + name for name in given)}")
    sessions = Sessions(database, shape=shape, policy=policy, **secrets)
    return sessions, {**options, "cookies": cookies, "trusted_proxies": proxies}


def check_names(registry: Any, cookies: Cookies) -> None:
    """Raise :class:`ConfigError` where Pyramid's own session has a cookie of our names,
    as far as its factory shows."""
    name = getattr(registry.queryUtility(ISessionFactory), "_cookie_name", None)
    if name in (cookies.session_name, cookies.refresh_name):
        raise ConfigError(
            f"the cookie {name!r} would be Pyramid's session and ours: give its session "
            'factory another name, such as cookie_name="app_session"'
        )


def _policy(given: dict[str, Any]) -> Policy:
    chosen = {name: asbool(given.pop(name)) for name in _BOOLEAN if name in given}
    if "on_limit" in given:
        chosen["on_limit"] = given.pop("on_limit")
    numbers = {PREFIX + name.upper(): str(value) for name, value in given.items()}
    return replace(Policy.from_env(numbers, prefix=PREFIX), **chosen)
