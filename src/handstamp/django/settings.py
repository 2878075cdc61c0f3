"""``HANDSTAMP`` in the settings, read and checked once.

DATABASE           an alias of DATABASES, which must be PostgreSQL; "default"
DATABASE_URL       or an address: postgresql://user:password@host:port/name
SECRETS            a list, oldest first; each at least 32 bytes
POLICY             fields of Policy; a number is seconds
COOKIES            fields of Cookies
TRUSTED_PROXIES    networks whose X-Forwarded-For is believed
GET_USER           a function from a user id to a user or None, or the path of one
SHAPE, CACHE_SIZE, POOL_SIZE, LISTEN_DSN      as in Sessions
EXCLUDE, PASSIVE   exact paths, as in the middleware
CROSS_SITE, TRUSTED_ORIGINS, OUTAGE, BEARER   as in the middleware
SESSIONS           or a whole Sessions of your own, or the path of one
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlencode

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from handstamp.asgi import SessionAuthMiddleware
from handstamp.config import Cookies, Policy, TrustedProxies
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError

T = TypeVar("T")
_ENGINE_KEYS = frozenset(
    {"DATABASE", "DATABASE_URL", "SECRETS", "POLICY"}
    | {"SHAPE", "CACHE_SIZE", "POOL_SIZE", "LISTEN_DSN"}
)
_PASSED_ON = ("SHAPE", "CACHE_SIZE", "POOL_SIZE", "LISTEN_DSN")
_DOOR_KEYS = ("EXCLUDE", "PASSIVE", "CROSS_SITE", "TRUSTED_ORIGINS", "OUTAGE", "BEARER")
_KEYS = _ENGINE_KEYS | {*_DOOR_KEYS, "SESSIONS", "COOKIES", "TRUSTED_PROXIES", "GET_USER"}
_LISTS = frozenset({"EXCLUDE", "PASSIVE", "TRUSTED_ORIGINS"})
_IN_THE_ADDRESS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What the settings say, ready for use. ``options`` are those of a middleware."""

    sessions: Sessions
    cookies: Cookies
    options: Mapping[str, Any]
    get_user: Callable[[str], Any] | None


_current: list[Configuration] = []


def configuration() -> Configuration:
    """The one of this process, made when first asked for. Raises :class:`ConfigError`."""
    if not _current:
        _current.append(read(getattr(settings, "HANDSTAMP", None)))
    return _current[0]


def get_sessions() -> Sessions:
    """The engine that the settings describe, the same at every call."""
    return configuration().sessions


def _changed(*, setting: str, **_: Any) -> None:
    if setting == "HANDSTAMP":  # in a test: override_settings
        _current.clear()


setting_changed.connect(_changed, dispatch_uid="handstamp.django.settings")


def read(given: object) -> Configuration:
    """``HANDSTAMP`` as a configuration. Raises :class:`ConfigError`."""
    if not isinstance(given, Mapping):
        raise ConfigError("HANDSTAMP must be a dict in your settings")
    unknown = sorted(map(str, given.keys() - _KEYS))
    if unknown:
        raise ConfigError(f"HANDSTAMP has no {', '.join(unknown)}")
    sessions, get_user = _sessions(given), _imported(given.get("GET_USER"))
    proxies = _listed("TRUSTED_PROXIES", given.get("TRUSTED_PROXIES", ()))
    options: dict[str, Any] = {
        key.lower(): _value(key, given[key]) for key in _DOOR_KEYS if key in given
    }
    options["cookies"] = _cookies(given.get("COOKIES"))
    options["trusted_proxies"] = TrustedProxies(*proxies)
    found = Configuration(
        sessions=sessions,
        cookies=sessions.cookie_transport(options["cookies"]).cookies,
        options=options,
        get_user=get_user,
    )
    SessionAuthMiddleware(_no_app, sessions, **options)  # refuses what cannot work
    return found


async def _no_app(*_: object) -> None:
    raise NotImplementedError


def _value(key: str, value: object) -> object:
    return _listed(key, value) if key in _LISTS else value


def _listed(key: str, value: Any) -> list[str]:
    if isinstance(value, str) or callable(value):
        raise ConfigError(f"HANDSTAMP[{key!r}] must be a list")
    return list(value)


def _imported(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return import_string(value)
    except ImportError as exc:
        raise ConfigError(f"HANDSTAMP: cannot import {value!r}: {exc}") from None


def _sessions(given: Mapping[str, Any]) -> Sessions:
    if "SESSIONS" in given:
        beside = sorted(given.keys() & _ENGINE_KEYS)
        if beside:
            raise ConfigError(f"HANDSTAMP: SESSIONS excludes {', '.join(beside)}")
        sessions = _imported(given["SESSIONS"])
        if not isinstance(sessions, Sessions):
            raise ConfigError("HANDSTAMP['SESSIONS'] must be a Sessions")
        return sessions
    if not given.get("SECRETS"):
        raise ConfigError("HANDSTAMP['SECRETS'] is missing: a list, oldest first")
    passed_on = {k.lower(): _imported_shape(k, given[k]) for k in _PASSED_ON if k in given}
    return Sessions(
        _address(given),
        secrets=given["SECRETS"],
        policy=_policy(given.get("POLICY")),
        **passed_on,
    )


def _imported_shape(key: str, value: Any) -> Any:
    return _imported(value) if key == "SHAPE" else value


def _policy(given: Any) -> Policy:
    if given is None or isinstance(given, Policy):
        return given or Policy()
    durations = {f.name for f in fields(Policy) if "timedelta" in str(f.type)}
    counted = {
        name: timedelta(seconds=value) if _is_number(value) and name in durations else value
        for name, value in given.items()
    }
    return _made(Policy, "POLICY", counted)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _cookies(given: Any) -> Cookies | None:
    if given is None or isinstance(given, Cookies):
        return given
    return _made(Cookies, "COOKIES", given)


def _made(kind: type[T], key: str, given: Mapping[str, Any]) -> T:
    unknown = sorted(given.keys() - {f.name for f in fields(cast(Any, kind))})
    if unknown:
        raise ConfigError(f"HANDSTAMP[{key!r}] has no {', '.join(unknown)}")
    return kind(**given)


def _address(given: Mapping[str, Any]) -> str:
    if "DATABASE_URL" in given:
        return str(given["DATABASE_URL"])
    alias = given.get("DATABASE", "default")
    database = settings.DATABASES.get(alias)
    if database is None:
        raise ConfigError(f"HANDSTAMP['DATABASE']: there is no {alias!r} in DATABASES")
    engine = str(database.get("ENGINE", ""))
    if not engine.endswith(("postgresql", "postgis")):
        raise ConfigError(
            f"HANDSTAMP['DATABASE']: {alias!r} has the engine {engine or 'none'!r}, and "
            "the sessions are in PostgreSQL: name another alias, or give DATABASE_URL"
        )
    return database_url(database)


def database_url(database: Mapping[str, Any]) -> str:
    """An entry of DATABASES as an address. Raises :class:`ConfigError`."""
    options = database.get("OPTIONS") or {}
    if not database.get("NAME") or "service" in options:
        raise ConfigError("HANDSTAMP: this database has no NAME: give DATABASE_URL")
    host, port = str(database.get("HOST") or ""), str(database.get("PORT") or "")
    query = {key: str(options[key]) for key in _IN_THE_ADDRESS if key in options}
    if host.startswith("/"):
        query.update({"host": host} | ({"port": port} if port else {}))
        host = port = ""
    user, password = (quote(str(database.get(k) or ""), "") for k in ("USER", "PASSWORD"))
    who = f"{user}:{password}@" if password else f"{user}@" if user else ""
    where = f"[{host}]" if ":" in host else host
    at = where + (f":{port}" if port else "")
    tail = f"?{urlencode(query)}" if query else ""
    return f"postgresql://{who}{at}/{quote(str(database['NAME']), '')}{tail}"
