"""What Flask and Quart have in common: settings, signals, errors as HTTP exceptions, and
nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from blinker import Namespace
from werkzeug.exceptions import HTTPException, ServiceUnavailable, default_exceptions

from handstamp.config import Cookies, TrustedProxies
from handstamp.engine.sessions import Sessions
from handstamp.errors import (
    AuthenticationRequired,
    ConfigError,
    HandstampError,
    SessionsUnavailable,
)

EXTENSION = "handstamp"
"""The key in ``app.extensions``."""
PREFIX = "HANDSTAMP_"
NOT_WRAPPED = (
    "no session was looked for: wrap the application with SessionAuth(app), and make "
    "requests with app.test_client() in tests"
)

_signals = Namespace()
user_logged_in = _signals.signal("user-logged-in")
"""Sent by the application after a sign-in, with ``session``."""
user_logged_out = _signals.signal("user-logged-out")
"""Sent by the application after a sign-out, with the ``session`` that it ended."""
session_revoked = _signals.signal("session-revoked")
"""Sent by the application after a user ended sessions of theirs, with ``user_id``,
``session_id`` (None for all but the one they use) and ``count``."""

_ENGINE = {"database_url", "secret", "shape", "policy"}
_MIDDLEWARE = {
    *("cookies", "trusted_proxies", "exclude", "passive", "cross_site"),
    *("trusted_origins", "outage", "bearer"),
}


@dataclass(frozen=True, slots=True)
class Extension:
    """``app.extensions["handstamp"]``: what one application was given."""

    sessions: Sessions
    load_user: Callable[[str], Any] | None = None


class NotSignedIn(AuthenticationRequired, AttributeError):
    """An attribute of a session or a user was read where there is none.

    A 401 in a view, as for ``login_required``; nothing at all in a Jinja template, and
    ``hasattr`` is false.
    """


class Nobody:
    """What stands where no session or no user is: false, and without attributes."""

    def __repr__(self) -> str:
        return "nobody"

    def __bool__(self) -> Literal[False]:
        return False

    def __getattr__(self, name: str) -> NoReturn:
        raise NotSignedIn


NOBODY = Nobody()


def prepare(
    app: Any, sessions: Sessions | None, given: Mapping[str, Any]
) -> tuple[Sessions, dict[str, Any]]:
    """What :func:`read_settings` finds, for an application that can take it.

    Raises :class:`ConfigError`, also for a second SessionAuth.
    """
    if EXTENSION in app.extensions:
        raise ConfigError("this application has a SessionAuth already")
    sessions, chosen = read_settings(app.config, sessions, given)
    cookies = sessions.cookie_transport(chosen.get("cookies")).cookies
    check_names(app.config, app.secret_key, cookies)
    return sessions, chosen


def read_settings(
    config: Mapping[str, Any], sessions: Sessions | None, given: Mapping[str, Any]
) -> tuple[Sessions, dict[str, Any]]:
    """The engine and the middleware's options, from ``app.config`` and what was given in
    code, which wins. Raises :class:`ConfigError`."""
    configured = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in config.items()
        if name.startswith(PREFIX)
    }
    settings = {**configured, **given}
    insecure = settings.pop("insecure_cookies", False)
    for name in settings.keys() - _ENGINE - _MIDDLEWARE:
        raise ConfigError(f"there is no setting {PREFIX}{name.upper()}")
    if insecure:
        settings.setdefault("cookies", Cookies.insecure())
    if isinstance(proxies := settings.get("trusted_proxies"), (str, list, tuple)):
        networks = [proxies] if isinstance(proxies, str) else proxies
        settings["trusted_proxies"] = TrustedProxies(*networks)
    options = {k: v for k, v in settings.items() if k in _MIDDLEWARE}
    return sessions or _make_engine(settings), options


def _make_engine(settings: Mapping[str, Any]) -> Sessions:
    missing = {"database_url", "secret"} - {k for k, v in settings.items() if v}
    if missing:
        names = " and ".join(PREFIX + name.upper() for name in sorted(missing))
        raise ConfigError(f"set {names} in app.config, or give SessionAuth your Sessions")
    chosen = {name: settings[name] for name in ("shape", "policy") if name in settings}
    secret = settings["secret"]
    secrets: Sequence[str | bytes] = (
        secret if isinstance(secret, (list, tuple)) else [secret]
    )
    return Sessions(settings["database_url"], secrets=secrets, **chosen)


def check_names(config: Mapping[str, Any], secret_key: object, cookies: Cookies) -> None:
    """Raise :class:`ConfigError` where the framework's own session, which is on when the
    application has a ``secret_key``, would take one of our cookies for its own."""
    name = config["SESSION_COOKIE_NAME"]
    if secret_key and name in (cookies.session_name, cookies.refresh_name):
        raise ConfigError(
            f"the framework's own session uses a cookie {name!r} too: set "
            "SESSION_COOKIE_NAME to another name"
        )


def as_http_exception(error: HandstampError) -> HTTPException:
    """An error of ours as the framework's own, for its handlers of statuses to answer.

    Raises what is no client's fault, such as :class:`ConfigError`, for the log.
    """
    if error.status == 500:
        raise error
    if isinstance(error, SessionsUnavailable):
        return ServiceUnavailable(error.public_message, retry_after=error.retry_after)
    return default_exceptions[error.status](str(error))
