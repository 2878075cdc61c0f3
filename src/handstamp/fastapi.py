"""FastAPI: the session as a typed dependency, and in the OpenAPI document.

api = FastAPI()

@api.get("/me")
async def me(session: CurrentSession):     # 401 without a session
    return {"user_id": session.user_id}

app = wrap(api, sessions)                  # serve what wrap() returns
"""

# Without `from __future__ import annotations`: FastAPI before 0.123 cannot read the
# annotations of SessionScheme.__call__ when they are text.

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Security
from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from handstamp.asgi import Handle
from handstamp.config import Cookies
from handstamp.core.models import Session
from handstamp.engine.sessions import Sessions
from handstamp.errors import HandstampError
from handstamp.starlette import SessionAuthMiddleware, session_auth
from handstamp.starlette import handle_error as _handle_as_starlette


class SessionScheme(SecurityBase):
    """The session cookie as an OpenAPI security scheme; as a dependency, the handle."""

    def __init__(self, cookies: Cookies | None = None) -> None:
        name = (cookies or Cookies()).session_name
        self.model = APIKey.model_validate(
            {
                "in": APIKeyIn.cookie,
                "name": name,
                "description": "Set by the login; refreshed automatically.",
            }
        )
        self.scheme_name = "session"

    async def __call__(self, connection: HTTPConnection) -> Handle:
        """Return the handle of this request or WebSocket."""
        return session_auth(connection)


session_scheme = SessionScheme()
SessionAuth = Annotated[Handle, Security(session_scheme)]
"""The type of a parameter that is the handle, for routes that log in and out."""


async def current_session(auth: SessionAuth) -> Session:
    """Return the session of this request. The response is 401 without one, and 503 when the
    database gave no answer."""
    return auth.require()


async def optional_session(auth: SessionAuth) -> Session | None:
    """Return the session of this request, or None. The response is 503 when the database
    gave no answer."""
    return auth.session


CurrentSession = Annotated[Session, Depends(current_session)]
OptionalSession = Annotated[Session | None, Depends(optional_session)]


def wrap(app: FastAPI, sessions: Sessions, **options: Any) -> SessionAuthMiddleware:
    """Put the middleware around ``app``, and add a handler for handstamp's exceptions to
    it.

    ``options`` are those of :class:`handstamp.starlette.SessionAuthMiddleware`. Returns the
    ASGI application to serve. ``app`` keeps the handlers that it has. Raises
    :class:`ConfigError`.
    """
    handlers: dict[Any, Any] = app.exception_handlers
    handlers.setdefault(HandstampError, handle_error)
    return SessionAuthMiddleware(app, sessions, **options)


async def handle_error(request: Request | WebSocket, exc: Exception) -> Response | None:
    """Return handstamp's exception as FastAPI returns errors: JSON with a ``detail``.

    Closes a WebSocket, and raises an exception with status 500, as
    :func:`handstamp.starlette.handle_error` does.
    """
    if not isinstance(exc, HandstampError) or exc.status == 500:
        raise exc
    if isinstance(request, WebSocket):
        return await _handle_as_starlette(request, exc)
    headers = exc.headers
    if exc.status == 401:
        headers["WWW-Authenticate"] = "APIKey"
    return JSONResponse(
        {"detail": exc.public_message}, status_code=exc.status, headers=headers
    )


__all__ = (
    "CurrentSession",
    "OptionalSession",
    "SessionAuth",
    "SessionAuthMiddleware",
    "SessionScheme",
    "current_session",
    "optional_session",
    "session_auth",
    "session_scheme",
    "wrap",
)
