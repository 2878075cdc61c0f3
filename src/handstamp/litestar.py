"""Litestar, inside of a handler: the user, guards and dependencies.

Import them from :mod:`handstamp.litestar`.

Litestar: ``request.user``, guards, dependencies, and the scheme in the OpenAPI document.

    app = wrap(Litestar(routes, dependencies=dependencies), sessions)

or, where the ``Litestar`` object itself must stay the one that is served:

    app = Litestar(routes, plugins=[SessionAuthPlugin(sessions)])

``request.user`` is a :class:`SessionUser` and ``request.auth`` the handle with ``login``
and ``logout``: ``Request[SessionUser, Handle, State]``. Both ask the session only when you
ask them. :func:`wrap` sees every request; the plugin only those that Litestar has a route
for, which is all that matters to an application, and its cookies survive every 500 as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from litestar.openapi.config import OpenAPIConfig
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
"""``@get("/", exclude_from_auth=True)`` is open to everybody, whatever guards there are."""
SCHEME = "session"
_REQUIREMENT: dict[str, list[str]] = {SCHEME: []}


class SessionUser:
    """``request.user``: asks the session of the request whenever it is asked."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    @property
    def is_authenticated(self) -> bool:
        """Whether the request has a valid session."""
        return self._handle.is_authenticated

    @property
    def id(self) -> str | None:
        """The user's id; None for a request without a session."""
        return self._handle.user_id

    @property
    def session(self) -> Session | None:
        """The session itself."""
        return self._handle.session


class SessionGuard:
    """A guard that refuses a request with 401, 403 or 503, and a WebSocket with the close
    code of the error.

    Routes with the opt ``exclude_from_auth=True`` are left alone, so that it can guard a
    whole application. The conditions are those of ``auth.require``.
    """

    def __init__(
        self, *, level: int | None = None, fresh_within: timedelta | None = None
    ) -> None:
        self.level = level
        self.fresh_within = fresh_within

    async def __call__(
        self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
    ) -> None:
        """Raise unless this request may pass."""
        if not handler.opt.get(EXCLUDE_KEY):
            auth = session_auth(connection)
            auth.require(level=self.level, fresh_within=self.fresh_within)


requires_session = SessionGuard()
"""``guards=[requires_session]``: a session, whichever."""


def requires_fresh(*, within: timedelta) -> SessionGuard:
    """A guard for a session whose user signed in no longer ago than ``within``."""
    return SessionGuard(fresh_within=within)


def requires_level(level: int) -> SessionGuard:
    """A guard for a session of at least this trust level."""
    return SessionGuard(level=level)


def session_auth(connection: ASGIConnection[Any, Any, Any, Any]) -> Handle:
    """The handle of a request or a WebSocket: ``login``, ``logout``, ``revoke`` …

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
``current_session: CurrentSession``. The plugin brings them by itself."""


def show_guards(route: BaseRoute) -> None:
    """Give the handlers of a guarded route our requirement in the OpenAPI document."""
    for handler in getattr(route, "route_handlers", ()):
        layers = handler.ownership_layers
        guards = [guard for layer in layers for guard in layer.guards or ()]
        ours = any(isinstance(guard, SessionGuard) for guard in guards)
        shown = list(handler.security or ())
        if ours and _REQUIREMENT not in shown and not handler.opt.get(EXCLUDE_KEY):
            handler.security = [*shown, _REQUIREMENT]


_PLUGGED = "handstamp.plugged"


class SessionAuthMiddleware(_SessionAuthMiddleware):
    """:class:`handstamp.asgi.SessionAuthMiddleware` that also sets ``request.user`` and
    ``request.auth``."""

    def attach(self, scope: Scope, handle: Handle) -> None:
        """Put the handle and the user into the scope."""
        scope[SCOPE_KEY] = scope["auth"] = handle
        scope["user"] = SessionUser(handle)


def answer(request: Request[Any, Any, Any], exc: HandstampError) -> Response[Any]:
    """An error of handstamp as Litestar answers errors: JSON with a ``detail``.

    Raises what is no client's fault, such as :class:`ConfigError`, for the server to log.
    """
    if exc.status == 500:
        raise exc
    error = HTTPException(
        detail=exc.public_message, status_code=exc.status, headers=exc.headers or None
    )
    return create_exception_response(request, error)


async def _let_out_of_sockets(exc: Exception, scope: LitestarScope) -> None:
    # Litestar knows no handlers for what a WebSocket raises: all would be a 4500.
    if scope["type"] == ScopeType.WEBSOCKET and isinstance(exc, HandstampError):
        raise exc


def wrap(app: Litestar, sessions: Sessions, **options: Any) -> SessionAuthMiddleware:
    """``app`` with sessions, and with Litestar's own answers for what they raise.

    ``options`` go to :class:`SessionAuthMiddleware`. The result is the ASGI application
    to serve; ``app`` gets a handler for our errors, unless it has one, and our scheme in
    its OpenAPI document. Raises :class:`ConfigError`.
    """
    _teach(app, sessions.cookie_transport(options.get("cookies")).cookies)
    for route in app.routes:
        show_guards(route)
    return SessionAuthMiddleware(cast(Any, app), sessions, **options)


class SessionAuthPlugin(InitPlugin, ReceiveRoutePlugin):
    """The same from inside: ``Litestar(…, plugins=[SessionAuthPlugin(sessions)])``.

    ``options`` go to :class:`SessionAuthMiddleware`. It stands outside of the middleware
    that is in the application's list, and brings :data:`dependencies`.
    """

    def __init__(self, sessions: Sessions, **options: Any) -> None:
        self._sessions = sessions
        self._options = options

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Put everything into an application's settings. Raises :class:`ConfigError`."""
        app_config.openapi_config = copy(app_config.openapi_config)
        cookie_transport = self._sessions.cookie_transport(self._options.get("cookies"))
        _teach(app_config, cookie_transport.cookies)
        options = {"sessions": self._sessions, **self._options}
        app_config.middleware.insert(0, DefineMiddleware(cast(Any, _Plugged), **options))
        app_config.before_send.append(cast(Any, _edit_what_came_from_further_out))
        app_config.on_startup.insert(0, self._sessions.open)
        app_config.on_shutdown.append(self._sessions.close)  # after all others
        app_config.dependencies = {**dependencies, **app_config.dependencies}
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Show in the OpenAPI document what a guarded route asks for."""
        show_guards(route)


class _Plugged(SessionAuthMiddleware):
    def attach(self, scope: Scope, handle: Handle) -> None:
        super().attach(scope, handle)
        scope[_PLUGGED] = handle


async def _edit_what_came_from_further_out(message: Message, scope: Scope) -> None:
    # The answer to what another middleware raised is made outside of ours.
    handle = scope.get(_PLUGGED)
    if handle and message["type"] == "http.response.start" and not handle._started:
        message["headers"] = handle.response_headers(list(message["headers"]))


def _teach(target: AppConfig | Litestar, cookies: Cookies) -> None:
    _check_names(target.middleware, cookies)
    handlers = cast(dict[Any, Any], target.exception_handlers)
    handlers.setdefault(HandstampError, answer)
    target.after_exception.append(cast(Any, _let_out_of_sockets))
    if target.openapi_config is not None:
        _describe(target.openapi_config, cookies)


def _check_names(middleware: Iterable[Any], cookies: Cookies) -> None:
    for each in middleware:
        backend = getattr(each, "kwargs", {}).get("backend")
        key = getattr(getattr(backend, "config", None), "key", None)
        if key in (cookies.session_name, cookies.refresh_name):
            raise ConfigError(
                f"Litestar's own session middleware uses the cookie {key!r} as well: "
                "give it another key"
            )


def _describe(config: OpenAPIConfig, cookies: Cookies) -> None:
    scheme = SecurityScheme(
        type="apiKey",
        name=cookies.session_name,
        security_scheme_in="cookie",
        description="Set by the sign-in; refreshed by itself.",
    )
    theirs = config.components
    theirs = theirs if isinstance(theirs, list) else [theirs]
    config.components = [*theirs, Components(security_schemes={SCHEME: scheme})]


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
