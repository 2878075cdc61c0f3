"""Litestar, inside of a handler: the user, guards and dependencies.

Import them from :mod:`handstamp.litestar`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.handlers.base import BaseRouteHandler
from litestar.routes.base import BaseRoute
from litestar.types import Scope as LitestarScope

from handstamp.asgi import SCOPE_KEY, Handle
from handstamp.core.records import Session
from handstamp.errors import ConfigError
from handstamp.types import Scope

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
    """A guard that refuses with 401, 403 or 503; closes a WebSocket with 4401 or 1013.

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
