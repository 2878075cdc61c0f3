"""Starlette: ``request.user``, ``request.auth``, ``@requires("authenticated")``.

    app = wrap(Starlette(routes=routes), sessions)

``request.user`` and ``request.auth`` exist for every request. They read the session only
when you read them, so a page that does not read them stays cacheable, and an outage does
not affect it. The handle with ``login`` and ``logout`` is ``session_auth(request)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, BaseUser
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.websockets import WebSocket

from handstamp._connections import Scope
from handstamp.asgi import SCOPE_KEY, Handle
from handstamp.asgi import SessionAuthMiddleware as _SessionAuthMiddleware
from handstamp.core.models import Session
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, HandstampError

SCOPE = "authenticated"


class SessionUser(BaseUser):
    """``request.user``. Every attribute reads the session of the request, and raises
    :class:`SessionsUnavailable` when the database gave no answer."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    @property
    def is_authenticated(self) -> bool:
        """Whether the request has a valid session."""
        return self._handle.is_authenticated

    @property
    def identity(self) -> str:
        """The user's id; an empty string without a session."""
        return self._handle.user_id or ""

    @property
    def display_name(self) -> str:
        """The user's id too: only the application has names."""
        return self.identity

    @property
    def session(self) -> Session | None:
        """The session, or None."""
        return self._handle.session


class SessionCredentials(AuthCredentials):
    """``request.auth``: the scope ``authenticated`` for a request with a session."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    @property
    def scopes(self) -> list[str]:  # type: ignore[override]
        """The scopes that ``@requires`` checks."""
        return [SCOPE] if self._handle.is_authenticated else []


class SessionAuthMiddleware(_SessionAuthMiddleware):
    """:class:`handstamp.asgi.SessionAuthMiddleware` that also sets ``request.user``
    and ``request.auth``."""

    def attach(self, scope: Scope, handle: Handle) -> None:
        """Put the handle, the user and the credentials into the scope."""
        scope[SCOPE_KEY] = handle
        scope["user"] = SessionUser(handle)
        scope["auth"] = SessionCredentials(handle)


def session_auth(connection: HTTPConnection) -> Handle:
    """Return the handle of a request or a WebSocket: ``login``, ``logout``, ``revoke`` …

    Raises :class:`ConfigError` if no middleware wraps the application.
    """
    handle = connection.scope.get(SCOPE_KEY)
    if not isinstance(handle, Handle):
        raise ConfigError("wrap the application: app = wrap(app, sessions)")
    return handle


def wrap(app: Starlette, sessions: Sessions, **options: Any) -> SessionAuthMiddleware:
    """Put the middleware around ``app``, and add handlers for handstamp's exceptions to it.

    ``options`` are those of :class:`SessionAuthMiddleware`. Returns the ASGI application to
    serve. ``app`` keeps the handlers that it has. Raises :class:`ConfigError`.
    """
    for kind, handler in exception_handlers.items():
        app.exception_handlers.setdefault(kind, handler)
    return SessionAuthMiddleware(app, sessions, **options)


async def handle_error(request: Request | WebSocket, exc: Exception) -> Response | None:
    """Return a plain response with the status of handstamp's exception, or close the
    WebSocket with its close code.

    Raises an exception with status 500, such as :class:`ConfigError`, for the server's log.
    """
    error = cast(HandstampError, exc)
    if error.status == 500:
        raise error
    if isinstance(request, WebSocket):
        await request.close(error.close_code, error.close_reason)
        return None
    return PlainTextResponse(error.public_message, error.status, error.headers)


Handler = Callable[[Any, Exception], Any]
exception_handlers: Mapping[type[Exception], Handler] = {HandstampError: handle_error}
"""For ``Starlette(exception_handlers=…)`` if you do not use :func:`wrap`."""

__all__: Sequence[str] = (
    "SessionAuthMiddleware",
    "SessionCredentials",
    "SessionUser",
    "exception_handlers",
    "session_auth",
    "wrap",
)
