"""Bottle: a plugin, which also puts the middleware around the application.

    app = Bottle()
    app.install(SessionAuthPlugin(sessions))

    @app.get("/mail", login=True)
    def mail(session):                     # injected, as ``auth`` is: the handle
        return f"hello {session.user_id}"

Installing replaces ``app.wsgi``, which is what a call of the application leads to, so that
``app.run()``, a server and a test client all pass the middleware, outside of Bottle's own
error pages. Bottle's signed cookies stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial, wraps
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
    """The handle of the request that this thread serves: ``login``, ``logout`` …

    ``bottle.request`` belongs to the thread of its request: give another thread the
    handle itself. Raises :class:`ConfigError` if no middleware wraps the application.
    """
    handle = request.environ.get(ENVIRON_KEY)
    if not isinstance(handle, Handle):
        raise ConfigError(
            "this application has no sessions: app.install(SessionAuthPlugin(sessions)), "
            "on the application that is served as well as on those mounted in it"
        )
    return handle


def current_session() -> Session | None:
    """The session of the request that this thread serves, or None.

    Raises :class:`SessionsUnavailable` when the database gave no answer.
    """
    return session_auth().session


class _Around(SessionAuthMiddleware):
    """The middleware of a plugin, and what the plugin was made with."""

    settings: Mapping[str, Any]


class SessionAuthPlugin:
    """Sessions for an application, and Bottle's own answers for what they raise.

    ``options`` go to :class:`handstamp.wsgi.SessionAuthMiddleware`. A callback with a
    parameter named ``auth`` gets the handle, and one named ``session`` the session or
    None; choose other names by ``auth_keyword`` and ``session_keyword``. A route may say
    ``login=True`` or ``fresh_within=timedelta(…)``. ``skip=["handstamp"]`` leaves a route
    alone, but for the middleware. Raises :class:`ConfigError`.
    """

    name = "handstamp"
    """Bottle applies one plugin of a name to a route, however often it is installed."""
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
        """Put the middleware around ``app``; nothing if it is there already.

        Raises :class:`ConfigError` if that one was made with other settings.
        """
        present = vars(app).get("wsgi")
        if not isinstance(present, _Around):
            app.wsgi = _Around(app.wsgi, **self._settings)
            app.wsgi.settings = self._settings
            app.trigger_hook = answering(app.trigger_hook)
        elif present.settings != self._settings:
            raise ConfigError(
                "this application has a SessionAuthPlugin with other settings: "
                "install the same one, or only one"
            )

    def apply(self, callback: View, route: Any) -> View:
        """``callback`` with what it wants injected, behind what its route requires."""
        wanted = self._wanted(route.callback)
        check = _requirement(route.config)

        @answering
        @wraps(callback)
        def view(*args: Any, **kwargs: Any) -> Any:
            check()
            for name in wanted - kwargs.keys():
                kwargs[name] = self._injected[name]()
            return callback(*args, **kwargs)

        return view

    def _wanted(self, callback: View) -> set[str]:
        try:
            parameters = inspect.signature(callback).parameters
        except (TypeError, ValueError):  # of something built in
            return set()
        return self._injected.keys() & parameters.keys()


def wrap(app: Bottle, sessions: Sessions, **options: Any) -> Bottle:
    """``app`` itself, with the plugin installed."""
    app.install(SessionAuthPlugin(sessions, **options))
    return app


def login_required(view: Callable[P, T]) -> Callable[P, T]:
    """For a callback, what ``login=True`` is for a route."""
    return _behind(partial(_require, None), view)


def fresh_login_required(
    *, within: timedelta
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """For a callback, what ``fresh_within=within`` is for a route."""
    return partial(_behind, partial(_require, within))


def answering(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, with an :class:`HTTPError` in place of what handstamp raises.

    The error has the status, the text, and the original as its ``exception``, so
    ``@app.error(401)`` may say something else. A generator is covered to its end. What is
    no client's fault, such as :class:`ConfigError`, is raised as it is.
    """

    @wraps(function)
    def answered(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            result = function(*args, **kwargs)
        except HandstampError as exc:
            raise _http_error(exc) from exc
        return _answering_each(result) if inspect.isgenerator(result) else result

    return answered


def _answering_each(chunks: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from chunks
    except HandstampError as exc:
        raise _http_error(exc) from exc


def _http_error(exc: HandstampError) -> HTTPError:
    if exc.status == 500:
        raise exc  # the operator's fault, and the operator reads the log
    return HTTPError(exc.status, exc.public_message, exc, **exc.headers)


def _requirement(config: Any) -> Callable[[], object]:
    """What a route's configuration asks for. Raises :class:`ConfigError`."""
    login, within = config.get("login", False), config.get("fresh_within")
    if not isinstance(login, bool):
        raise ConfigError(f"login must be True or False, not {login!r}")
    if within is not None and not isinstance(within, timedelta):
        raise ConfigError(f"fresh_within must be a timedelta, not {within!r}")
    if login or within is not None:
        return partial(_require, within)
    return lambda: None


def _require(within: timedelta | None) -> Session:
    return session_auth().require(fresh_within=within)


def _behind(check: Callable[[], object], view: Callable[P, T]) -> Callable[P, T]:
    @wraps(view)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        answering(check)()
        return view(*args, **kwargs)

    return checked


__all__ = (
    "SessionAuthPlugin",
    "answering",
    "current_session",
    "fresh_login_required",
    "login_required",
    "session_auth",
    "wrap",
)
