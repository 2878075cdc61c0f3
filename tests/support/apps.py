"""Small applications on one engine, with and without a framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from handstamp import Sessions, wsgi
from handstamp.starlette import session_auth, wrap

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


async def me(request: Request) -> Response:
    return PlainTextResponse(session_auth(request).require().user_id)


async def public(request: Request) -> Response:
    return PlainTextResponse("hello")


async def logout(request: Request) -> Response:
    await session_auth(request).logout()
    return Response(status_code=204)


async def socket(websocket: WebSocket) -> None:
    user_id = session_auth(websocket).require().user_id
    await websocket.accept()
    await websocket.send_text(user_id)
    await websocket.close()


ROUTES = [
    Route("/me", me),
    Route("/public", public),
    Route("/logout", logout, methods=["GET", "POST"]),
    WebSocketRoute("/ws", socket),
]


def over_asgi(sessions: Sessions, **options: Any) -> Any:
    """A Starlette app: ``/me`` answers the user id or 401, ``/public`` always 200."""
    return wrap(Starlette(routes=ROUTES), sessions, **options)


def over_wsgi(sessions: Sessions, **options: Any) -> WSGIApplication:
    """A WSGI app without a framework, with the same paths but the WebSocket."""
    return wsgi.SessionAuthMiddleware(_plain, sessions, **options)


def _plain(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    handle: wsgi.Handle = environ["handstamp"]
    if environ["PATH_INFO"] == "/logout":
        handle.logout()
    body = handle.require().user_id if environ["PATH_INFO"] == "/me" else "hello"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()]
