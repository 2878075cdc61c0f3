"""Bottle: a plugin, which also puts the middleware around the application.

    app = Bottle()
    app.install(SessionAuthPlugin(sessions))

    @app.get("/mail", login=True)
    def mail(session):                     # injected, as ``auth`` is: the handle
        return f"hello {session.user_id}"

Rule 1. Installing the plugin replaces ``app.wsgi``, which every call of the application
calls. So requests of ``app.run()``, a server and a test client all pass the middleware, and
the cookies are also on Bottle's own error pages.
Rule 2. Cookies of the application, signed or not, are not changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from bottle import Bottle, HTTPError, request

from handstamp.core.models import Session
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, HandstampError
from handstamp.wsgi import ENVIRON_KEY, Handle, SessionAuthMiddleware

P = ParamSpec("P")
T = TypeVar("T")
View = Callable[..., Any]


def session_auth() -> Handle:
    """The handle of the request in this thread, with ``login``, ``logout`` and so on.

    ``bottle.request`` exists only in the thread of its request: pass the handle to another
    thread. Raises :class:`ConfigError` if no middleware wraps the application.
    """
    handle = request.environ.get(ENVIRON_KEY)
    if not isinstance(handle, Handle):
        raise ConfigError(
            "this application has no sessions: app.install(SessionAuthPlugin(sessions)), "
            "on the application that is served as well as on those mounted in it"
        )
    return handle


def current_session() -> Session | None:
    """The session of the request in this thread, or None.

    Raises :class:`SessionsUnavailable` when the database gave no answer.
    """
    return session_auth().session


class _PluginMiddleware(SessionAuthMiddleware):
    """The middleware of a plugin, with the arguments of the plugin."""

    settings: Mapping[str, Any]


class SessionAuthPlugin:
    """Sessions for an application. Errors of handstamp become Bottle's own.

    ``options`` go to :class:`handstamp.wsgi.SessionAuthMiddleware`. A callback with a
    parameter ``auth`` gets the handle, one with a parameter ``session`` the session or
    None; ``auth_keyword`` and ``session_keyword`` change these names. A route may have
    ``login=True`` or ``fresh_within=timedelta(…)``. With ``skip=["handstamp"]`` a route has
    the middleware only. Raises :class:`ConfigError`.
    """

    name = "handstamp"
    """Bottle applies only one plugin of this name to a route."""
    api = 2

    def __init__(
        self,
        sessions: Sessions,
        *,
        auth_keyword: str = "auth",
        session_keyword: str = "session",
        **options: Any,
    ) -> None:
        if auth_keyword == session_keyword:
            raise ConfigError("auth_keyword and session_keyword must be two names")
        self._settings = {"sessions": sessions, **options}
        self._injected: dict[str, Callable[[], object]] = {
            auth_keyword: session_auth,
            session_keyword: current_session,
        }

    def setup(self, app: Bottle) -> None:
        """Put the middleware around ``app``, unless it is there already.

        Raises :class:`ConfigError` if the one that is there has other settings.
        """
        present = vars(app).get("wsgi")
        if not isinstance(present, _PluginMiddleware):
            app.wsgi = _PluginMiddleware(app.wsgi, **self._settings)
            app.wsgi.settings = self._settings
            app.trigger_hook = convert_errors(app.trigger_hook)
        elif present.settings != self._settings:
            raise ConfigError(
                "this application has a SessionAuthPlugin with other settings: "
                "install the same one, or only one"
            )

    def apply(self, callback: View, route: Any) -> View:
        """``callback`` with its injected arguments, behind the check of its route.

        Raises :class:`ConfigError` for a bad ``login`` or ``fresh_within`` of the route.
        """
        login = route.config.get("login", False)
        within = route.config.get("fresh_within")
        if not isinstance(login, bool):
            raise ConfigError(f"login must be True or False, not {login!r}")
        if within is not None and not isinstance(within, timedelta):
            raise ConfigError(f"fresh_within must be a timedelta, not {within!r}")
        required = login or within is not None
        try:
            names = set(inspect.signature(route.callback).parameters)
        except (TypeError, ValueError):  # a builtin function has no signature
            names = set()
        injected = names & self._injected.keys()

        @convert_errors
        @wraps(callback)
        def view(*args: Any, **kwargs: Any) -> Any:
            if required:
                session_auth().require(fresh_within=within)
            for name in injected - kwargs.keys():
                kwargs[name] = self._injected[name]()
            return callback(*args, **kwargs)

        return view


def wrap(app: Bottle, sessions: Sessions, **options: Any) -> Bottle:
    """``app`` itself, with the plugin installed."""
    app.install(SessionAuthPlugin(sessions, **options))
    return app


def login_required(view: Callable[P, T]) -> Callable[P, T]:
    """The decorator for a callback that does what ``login=True`` does for a route."""
    return _guarded(view, None)


def fresh_login_required(
    *, within: timedelta
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """The decorator that does what ``fresh_within=within`` does for a route."""
    return lambda view: _guarded(view, within)


def _guarded(view: Callable[P, T], within: timedelta | None) -> Callable[P, T]:
    @wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        convert_errors(session_auth().require)(fresh_within=within)
        return view(*args, **kwargs)

    return guarded


def convert_errors(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, which raises an :class:`HTTPError` for an error of handstamp.

    It has the status, the public text, and the error as its ``exception``, so that
    ``@app.error(401)`` can answer it. Errors of a generator are converted too. A fault of
    the server, such as :class:`ConfigError`, is raised as it is.
    """

    @wraps(function)
    def converted(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            result = function(*args, **kwargs)
        except HandstampError as exc:
            raise _http_error(exc) from exc
        return _convert_in_chunks(result) if inspect.isgenerator(result) else result

    return converted


def _convert_in_chunks(chunks: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from chunks
    except HandstampError as exc:
        raise _http_error(exc) from exc


def _http_error(exc: HandstampError) -> HTTPError:
    if exc.status == 500:
        raise exc  # for the operator, in the log
    return HTTPError(exc.status, exc.public_message, exc, **exc.headers)


__all__ = (
    "SessionAuthPlugin",
    "convert_errors",
    "current_session",
    "fresh_login_required",
    "login_required",
    "session_auth",
    "wrap",
)
