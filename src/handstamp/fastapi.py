"""FastAPI: the session as a typed dependency, and in the OpenAPI document.

Current = Annotated[Session, Depends(current_session)]
Optional = Annotated[Session | None, Depends(optional_session)]

app = FastAPI()
app = wrap(app, sessions)          # or: uvicorn serves what wrap() returns
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
from handstamp.starlette import answer as _starlette_answer


class SessionScheme(SecurityBase):
    """The session cookie as an OpenAPI security scheme, and the handle as its value."""

    def __init__(self, cookies: Cookies | None = None) -> None:
        name = (cookies or Cookies()).session_name
        self.model = APIKey.model_validate(
            {
                "in": APIKeyIn.cookie,
                "name": name,
                "description": "Set by the sign-in; refreshed by itself.",
            }
        )
        self.scheme_name = "session"

    async def __call__(self, connection: HTTPConnection) -> Handle:
        """The handle of this request or WebSocket."""
        return session_auth(connection)


session_scheme = SessionScheme()
SessionAuth = Annotated[Handle, Security(session_scheme)]
"""The handle, for routes that log in and out."""


async def current_session(auth: SessionAuth) -> Session:
    """The session of this request; answers 401 without one, 503 if nobody can say."""
    return auth.require()


async def optional_session(auth: SessionAuth) -> Session | None:
    """The session of this request, or None; answers 503 if nobody can say."""
    return auth.session


CurrentSession = Annotated[Session, Depends(current_session)]
OptionalSession = Annotated[Session | None, Depends(optional_session)]


def wrap(app: FastAPI, sessions: Sessions, **options: Any) -> SessionAuthMiddleware:
    """``app`` with sessions, and with FastAPI's own answers for what they raise.

    ``options`` go to :class:`handstamp.starlette.SessionAuthMiddleware`. The result is
    the ASGI application to serve; ``app`` itself stays as it was, but for its exception
    handlers.
    """
    handlers: dict[Any, Any] = app.exception_handlers
    handlers.setdefault(HandstampError, answer)
    return SessionAuthMiddleware(app, sessions, **options)


async def answer(request: Request | WebSocket, exc: Exception) -> Response | None:
    """An error of handstamp as FastAPI answers errors: JSON with a ``detail``."""
    if not isinstance(exc, HandstampError) or exc.status == 500:
        raise exc  # the operator's fault, and the operator reads the log
    if isinstance(request, WebSocket):
        return await _starlette_answer(request, exc)
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
