"""Litestar: ``request.user``, guards, dependencies, and the scheme in the OpenAPI document.

    app = wrap(Litestar(routes, dependencies=dependencies), sessions)

or, where the ``Litestar`` object itself must be the one that is served:

    app = Litestar(routes, plugins=[SessionAuthPlugin(sessions)])

``request.user`` is a :class:`SessionUser`, and ``request.auth`` is the handle with
``login`` and ``logout``: ``Request[SessionUser, Handle, State]``. Both read the session
only when you read them. :func:`wrap` authenticates every request. The plugin authenticates
those that Litestar has a route for, which is enough for an application; its cookies too are
on every 500.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from litestar import Litestar, Request, Response
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.exceptions.responses import create_exception_response
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware.base import DefineMiddleware
from litestar.openapi.spec import Components, SecurityScheme
from litestar.plugins import InitPlugin
from litestar.plugins.base import ReceiveRoutePlugin
from litestar.routes.base import BaseRoute
from litestar.types import Scope as LitestarScope

from handstamp._connections import Message, Scope
from handstamp.asgi import SCOPE_KEY, Handle
from handstamp.asgi import SessionAuthMiddleware as _SessionAuthMiddleware
from handstamp.config import Cookies
from handstamp.core.models import Session
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, HandstampError

T = TypeVar("T")
if TYPE_CHECKING:
    from litestar.di import NamedDependency
else:
    try:
        from litestar.di import NamedDependency
    except ImportError:  # before 2.23
        from litestar.params import Dependency

        NamedDependency = Annotated[T, Dependency()]

SessionAuth = NamedDependency[Handle]
"""The type of a parameter ``session_auth``: the handle."""
CurrentSession = NamedDependency[Session]
"""The type of a parameter ``current_session``: the session, or a 401 without one."""
EXCLUDE_KEY = "exclude_from_auth"
"""A guard does not check ``@get("/", exclude_from_auth=True)``."""
SCHEME = "session"
_REQUIREMENT: dict[str, list[str]] = {SCHEME: []}


class SessionUser:
    """``request.user``. Every attribute reads the session of the request, and raises
    :class:`SessionsUnavailable` when the database gave no answer."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    @property
    def is_authenticated(self) -> bool:
        """Whether the request has a valid session."""
        return self._handle.is_authenticated

    @property
    def id(self) -> str | None:
        """The user's id, or None without a session."""
        return self._handle.user_id

    @property
    def session(self) -> Session | None:
        """The session, or None."""
        return self._handle.session


class SessionGuard:
    """A guard that refuses a request with 401, 403 or 503, and a WebSocket with the close
    code of the error.

    It does not check routes with the opt ``exclude_from_auth=True``, so it can guard a
    whole application. ``level`` and ``fresh_within`` are those of ``auth.require``.
    """

    def __init__(
        self, *, level: int | None = None, fresh_within: timedelta | None = None
    ) -> None:
        self.level = level
        self.fresh_within = fresh_within

    async def __call__(
        self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
    ) -> None:
        """Raise as ``auth.require`` does, unless the session meets the conditions."""
        if not handler.opt.get(EXCLUDE_KEY):
            auth = session_auth(connection)
            auth.require(level=self.level, fresh_within=self.fresh_within)


requires_session = SessionGuard()
"""``guards=[requires_session]``: any session."""


def requires_fresh(*, within: timedelta) -> SessionGuard:
    """Return a guard for a session whose login is at most ``within`` ago."""
    return SessionGuard(fresh_within=within)


def requires_level(level: int) -> SessionGuard:
    """Return a guard for a session of at least this trust level."""
    return SessionGuard(level=level)


def session_auth(connection: ASGIConnection[Any, Any, Any, Any]) -> Handle:
    """Return the handle of a request or a WebSocket: ``login``, ``logout``, ``revoke`` …

    Raises :class:`ConfigError` if there is no middleware.
    """
    return _handle(connection.scope)


def _handle(scope: LitestarScope) -> Handle:
    handle = cast(Scope, scope).get(SCOPE_KEY)
    if not isinstance(handle, Handle):
        raise ConfigError(
            "wrap the application: app = wrap(app, sessions), "
            "or give it the plugin SessionAuthPlugin(sessions)"
        )
    return handle


def _session(scope: LitestarScope) -> Session:
    return _handle(scope).require()


dependencies: Mapping[str, Provide] = {
    "session_auth": Provide(_handle, sync_to_thread=False),
    "current_session": Provide(_session, sync_to_thread=False),
}
"""For ``Litestar(dependencies=…)``: ``session_auth: SessionAuth`` and
``current_session: CurrentSession``. The plugin adds them itself."""


def show_guards(route: BaseRoute) -> None:
    """Add the scheme to the handlers of a guarded route in the OpenAPI document."""
    for handler in getattr(route, "route_handlers", ()):
        layers = handler.ownership_layers
        guards = [guard for layer in layers for guard in layer.guards or ()]
        ours = any(isinstance(guard, SessionGuard) for guard in guards)
        shown = list(handler.security or ())
        if ours and _REQUIREMENT not in shown and not handler.opt.get(EXCLUDE_KEY):
            handler.security = [*shown, _REQUIREMENT]


_PLUGIN_KEY = "handstamp.plugin"


class SessionAuthMiddleware(_SessionAuthMiddleware):
    """:class:`handstamp.asgi.SessionAuthMiddleware` that also sets ``request.user`` and
    ``request.auth``."""

    def attach(self, scope: Scope, handle: Handle) -> None:
        """Put the handle and the user into the scope."""
        scope[SCOPE_KEY] = scope["auth"] = handle
        scope["user"] = SessionUser(handle)


def handle_error(request: Request[Any, Any, Any], exc: HandstampError) -> Response[Any]:
    """Return handstamp's exception as Litestar returns errors: JSON with a ``detail``.

    Raises an exception with status 500, such as :class:`ConfigError`, for the server's log.
    """
    if exc.status == 500:
        raise exc
    error = HTTPException(
        detail=exc.public_message, status_code=exc.status, headers=exc.headers or None
    )
    return create_exception_response(request, error)


async def _raise_in_websocket(exc: Exception, scope: LitestarScope) -> None:
    # Litestar has no handlers for exceptions of a WebSocket, and closes it with 4500. The
    # middleware closes it with the exception's own code.
    if scope["type"] == ScopeType.WEBSOCKET and isinstance(exc, HandstampError):
        raise exc


def wrap(app: Litestar, sessions: Sessions, **options: Any) -> SessionAuthMiddleware:
    """Put the middleware around ``app``.

    ``options`` are those of :class:`SessionAuthMiddleware`. Returns the ASGI application to
    serve. ``app`` gets a handler for handstamp's exceptions, unless it has one, and the
    scheme in its OpenAPI document. Raises :class:`ConfigError`.
    """
    _configure(app, sessions.cookie_transport(options.get("cookies")).cookies)
    for route in app.routes:
        show_guards(route)
    return SessionAuthMiddleware(cast(Any, app), sessions, **options)


class SessionAuthPlugin(InitPlugin, ReceiveRoutePlugin):
    """The same as :func:`wrap`, as a plugin of Litestar.

    ``options`` are those of :class:`SessionAuthMiddleware`, which is put outside of all
    other middleware in the application's list. Adds :data:`dependencies`.
    """

    def __init__(self, sessions: Sessions, **options: Any) -> None:
        self._sessions = sessions
        self._options = options

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add everything to the application's configuration. Raises
        :class:`ConfigError`."""
        app_config.openapi_config = copy(app_config.openapi_config)
        cookie_transport = self._sessions.cookie_transport(self._options.get("cookies"))
        _configure(app_config, cookie_transport.cookies)
        options = {"sessions": self._sessions, **self._options}
        app_config.middleware.insert(
            0, DefineMiddleware(cast(Any, _PluginMiddleware), **options)
        )
        app_config.before_send.append(cast(Any, _edit_late_response))
        app_config.on_startup.insert(0, self._sessions.open)
        app_config.on_shutdown.append(self._sessions.close)  # after all others
        app_config.dependencies = {**dependencies, **app_config.dependencies}
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Show in the OpenAPI document that a guarded route needs a session."""
        show_guards(route)


class _PluginMiddleware(SessionAuthMiddleware):
    def attach(self, scope: Scope, handle: Handle) -> None:
        super().attach(scope, handle)
        scope[_PLUGIN_KEY] = handle


async def _edit_late_response(message: Message, scope: Scope) -> None:
    # Litestar creates the response to an exception of another middleware outside of ours.
    handle = scope.get(_PLUGIN_KEY)
    if handle and message["type"] == "http.response.start" and not handle._started:
        message["headers"] = handle.response_headers(list(message["headers"]))


def _configure(target: AppConfig | Litestar, cookies: Cookies) -> None:
    """Add the handlers and the scheme to an application or to its configuration. Raises
    :class:`ConfigError` where Litestar's own session uses a cookie of our names."""
    for each in target.middleware:
        backend = getattr(each, "kwargs", {}).get("backend")
        key = getattr(getattr(backend, "config", None), "key", None)
        if key in (cookies.session_name, cookies.refresh_name):
            raise ConfigError(
                f"Litestar's own session middleware uses the cookie {key!r} as well: "
                "give it another key"
            )
    handlers = cast(dict[Any, Any], target.exception_handlers)
    handlers.setdefault(HandstampError, handle_error)
    target.after_exception.append(cast(Any, _raise_in_websocket))
    if target.openapi_config is None:
        return
    scheme = SecurityScheme(
        type="apiKey",
        name=cookies.session_name,
        security_scheme_in="cookie",
        description="Set by the login; refreshed automatically.",
    )
    own = target.openapi_config.components
    own = own if isinstance(own, list) else [own]
    ours = Components(security_schemes={SCHEME: scheme})
    target.openapi_config.components = [*own, ours]


__all__ = (
    "CurrentSession",
    "Handle",
    "SessionAuth",
    "SessionAuthMiddleware",
    "SessionAuthPlugin",
    "SessionGuard",
    "SessionUser",
    "dependencies",
    "requires_fresh",
    "requires_level",
    "requires_session",
    "session_auth",
    "wrap",
)
