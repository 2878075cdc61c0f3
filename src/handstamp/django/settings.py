"""The setting ``HANDSTAMP``: a dict of options, read and checked once for each process.

The keys are the options of :mod:`handstamp.options` in capitals (``SESSION_TTL``), and two
that only Django has: ``DATABASE``, an alias of ``DATABASES`` whose address is used, and
``GET_USER``, a function from a user id to a user or None, or its dotted name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from django.conf import settings
from django.core.signals import setting_changed

from handstamp.asgi import SessionAuthMiddleware
from handstamp.config import Cookies
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError
from handstamp.options import OBJECT, Option, Settings, read_options

_OWN = (Option("get_user", "own", OBJECT),)
_IN_THE_ADDRESS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl")
_current: list[Settings[Sessions]] = []


def configuration() -> Settings[Sessions]:
    """What the setting of this process describes. Raises :class:`ConfigError`."""
    if not _current:
        _current.append(read(getattr(settings, "HANDSTAMP", None)))
    return _current[0]


def get_sessions() -> Sessions:
    """The engine that the settings describe, the same at every call."""
    return configuration().sessions


def cookies_of(found: Settings[Sessions]) -> Cookies:
    """The names and attributes of the cookies."""
    return found.sessions.cookie_transport(found.middleware.get("cookies")).cookies


def _clear(*, setting: str, **_: Any) -> None:
    if setting == "HANDSTAMP":  # in a test: override_settings
        _current.clear()


setting_changed.connect(_clear, dispatch_uid="handstamp.django.settings")


def read(given: object) -> Settings[Sessions]:
    """The settings that a value of ``HANDSTAMP`` describes. Raises :class:`ConfigError`."""
    if not isinstance(given, Mapping):
        raise ConfigError("HANDSTAMP must be a dict in your settings")
    source = dict(given)
    if "DATABASE" in source or not source.keys() & {"DATABASE_URL", "SESSIONS"}:
        alias = source.pop("DATABASE", "default")
        source.setdefault("DATABASE_URL", _address_of(alias))
    found = read_options(
        {f"HANDSTAMP[{key!r}]": value for key, value in source.items()},
        lambda name: f"HANDSTAMP[{name.upper()!r}]",
        engine=Sessions,
        own=_OWN,
    )
    # For the checks that the middleware makes of its arguments.
    SessionAuthMiddleware(_no_app, found.sessions, **found.middleware)
    return found


async def _no_app(*_: object) -> None:
    raise NotImplementedError


def _address_of(alias: str) -> str:
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
