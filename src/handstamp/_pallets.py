"""What Flask and Quart have in common: settings, signals, errors as HTTP exceptions, and
the object in place of a missing session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from blinker import Namespace
from werkzeug.exceptions import HTTPException, ServiceUnavailable, default_exceptions

from handstamp.config import Cookies
from handstamp.engine.sessions import Sessions
from handstamp.errors import (
    AuthenticationRequired,
    ConfigError,
    HandstampError,
    SessionsUnavailable,
)
from handstamp.options import PREFIX, Settings, read_options

EXTENSION = "handstamp"
"""The key in ``app.extensions``."""
NOT_WRAPPED = (
    "this request did not pass the middleware: wrap the application with SessionAuth(app), "
    "and make requests with app.test_client() in tests"
)

_signals = Namespace()
user_logged_in = _signals.signal("user-logged-in")
"""Sent by the application after a login, with ``session``."""
user_logged_out = _signals.signal("user-logged-out")
"""Sent by the application after a logout, with the ``session`` that it ended."""
session_revoked = _signals.signal("session-revoked")
"""Sent by the application after a user revoked their own sessions, with ``user_id``,
``session_id`` (None for all but the current one) and ``count``."""


@dataclass(frozen=True, slots=True)
class Extension:
    """``app.extensions["handstamp"]``."""

    sessions: Sessions
    load_user: Callable[[str], Any] | None = None


class NotSignedIn(AuthenticationRequired, AttributeError):
    """An attribute was read of a session or a user that does not exist.

    In a view this is a 401, as for ``login_required``. In a Jinja template the attribute is
    undefined, and ``hasattr`` is false, because it is an AttributeError as well.
    """


class Anonymous:
    """What ``current_session`` and ``current_user`` are without a session: false, and
    without attributes."""

    def __repr__(self) -> str:
        return "anonymous"

    def __bool__(self) -> Literal[False]:
        return False

    def __getattr__(self, name: str) -> NoReturn:
        raise NotSignedIn


ANONYMOUS = Anonymous()


def prepare(
    app: Any, sessions: Sessions | None, options: Mapping[str, Any]
) -> Settings[Sessions]:
    """The settings of an application: ``HANDSTAMP_*`` in ``app.config``, and the options
    that were given in code, which win.

    Raises :class:`ConfigError`, also for a second SessionAuth.
    """
    if EXTENSION in app.extensions:
        raise ConfigError("this application has a SessionAuth already")
    source = {key: value for key, value in app.config.items() if key.startswith(PREFIX)}
    settings = read_options(
        source,
        lambda name: PREFIX + name.upper(),
        engine=Sessions,
        sessions=sessions,
        in_code=options,
    )
    cookies = settings.middleware.get("cookies")
    transport = settings.sessions.cookie_transport(cookies)
    check_names(app.config, app.secret_key, transport.cookies)
    return settings


def check_names(config: Mapping[str, Any], secret_key: object, cookies: Cookies) -> None:
    """Raise :class:`ConfigError` if the framework's own session uses a cookie of the same
    name. It uses one as soon as the application has a ``secret_key``."""
    name = config["SESSION_COOKIE_NAME"]
    if secret_key and name in (cookies.session_name, cookies.refresh_name):
        raise ConfigError(
            f"the framework's own session uses a cookie {name!r} too: set "
            "SESSION_COOKIE_NAME to another name"
        )


def as_http_exception(error: HandstampError) -> HTTPException:
    """The framework's exception with the same status, for the handlers of that status.

    Raises ``error`` itself if it is a fault of the server, such as :class:`ConfigError`.
    """
    if error.status == 500:
        raise error
    if isinstance(error, SessionsUnavailable):
        return ServiceUnavailable(error.public_message, retry_after=error.retry_after)
    return default_exceptions[error.status](str(error))
