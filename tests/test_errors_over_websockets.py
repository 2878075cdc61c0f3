"""An error closes a WebSocket with its own code, in every ASGI framework."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import falcon.asgi
import pytest
from fastapi import FastAPI
from litestar import Litestar
from litestar import WebSocket as LitestarSocket
from litestar import websocket as litestar_websocket
from quart import Quart
from quart import websocket as quart_socket
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

import handstamp.falcon
import handstamp.fastapi
import handstamp.litestar
import handstamp.quart
import handstamp.starlette
from handstamp import asgi
from handstamp._connections import ASGIApp, Message, Receive, Scope, Send
from handstamp.engine.sessions import Sessions
from handstamp.errors import (
    AuthenticationRequired,
    CrossSiteRequest,
    FreshLoginRequired,
    HandstampError,
    LoginRefused,
    SessionsUnavailable,
    StepUpRequired,
)
from tests.support.asgi import Answer, serve, socket_scope
from tests.support.engines import Engine

ERRORS = [
    AuthenticationRequired(),
    FreshLoginRequired(within=timedelta(minutes=5), age=timedelta(hours=1)),
    LoginRefused("user_locked"),
    StepUpRequired(required=2, level=1),
    CrossSiteRequest(),
    SessionsUnavailable("connection to 192.0.2.7 refused"),
]
CONNECT: Message = {"type": "websocket.connect"}
DENIALS = {"websocket.http.response": {}}

Make = Callable[[Sessions, HandstampError], ASGIApp]


def plain(sessions: Sessions, error: HandstampError) -> ASGIApp:
    """An application without a framework."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/accepted":
            await send({"type": "websocket.accept"})
        raise error

    return asgi.SessionAuthMiddleware(app, sessions)


def starlette(sessions: Sessions, error: HandstampError) -> ASGIApp:
    """One of Starlette."""

    async def at_once(websocket: WebSocket) -> None:
        raise error

    async def accepted(websocket: WebSocket) -> None:
        await websocket.accept()
        raise error

    routes = [
        WebSocketRoute("/at-once", at_once),
        WebSocketRoute("/accepted", accepted),
    ]
    return handstamp.starlette.wrap(Starlette(routes=routes), sessions)


def fastapi(sessions: Sessions, error: HandstampError) -> ASGIApp:
    """One of FastAPI."""
    app = FastAPI()

    @app.websocket("/at-once")
    async def at_once(websocket: WebSocket) -> None:
        raise error

    @app.websocket("/accepted")
    async def accepted(websocket: WebSocket) -> None:
        await websocket.accept()
        raise error

    return handstamp.fastapi.wrap(app, sessions)


def litestar(sessions: Sessions, error: HandstampError) -> ASGIApp:
    """One of Litestar."""

    @litestar_websocket("/at-once")
    async def at_once(socket: LitestarSocket[Any, Any, Any]) -> None:
        raise error

    @litestar_websocket("/accepted")
    async def accepted(socket: LitestarSocket[Any, Any, Any]) -> None:
        await socket.accept()
        raise error

    return handstamp.litestar.wrap(Litestar([at_once, accepted]), sessions)


def quart(sessions: Sessions, error: HandstampError) -> ASGIApp:
    """One of Quart."""
    app = Quart("site")

    @app.websocket("/at-once")
    async def at_once() -> None:
        raise error

    @app.websocket("/accepted")
    async def accepted() -> None:
        await quart_socket.accept()
        raise error

    handstamp.quart.SessionAuth(app, sessions)
    served: Any = app
    return served


def falcon_asgi(sessions: Sessions, error: HandstampError) -> ASGIApp:
    """One of Falcon."""

    class AtOnce:
        async def on_websocket(self, req: Any, ws: Any) -> None:
            raise error

    class Accepted:
        async def on_websocket(self, req: Any, ws: Any) -> None:
            await ws.accept()
            raise error

    app = falcon.asgi.App()
    app.add_route("/at-once", AtOnce())
    app.add_route("/accepted", Accepted())
    return handstamp.falcon.wrap(app, sessions)


every_framework = pytest.mark.parametrize(
    "make", [plain, starlette, fastapi, litestar, quart, falcon_asgi]
)
every_error = pytest.mark.parametrize(
    "error", ERRORS, ids=lambda error: type(error).__name__
)


async def answered(make: Make, error: HandstampError, path: str, **scope: Any) -> Answer:
    """What a handshake is answered, by a server that calls the application once."""
    app = make(Engine().sessions, error)
    return await serve(app, socket_scope(path, **scope), [CONNECT])


@every_framework
@every_error
async def test_a_handshake_is_denied_with_the_code_of_the_error(
    make: Make, error: HandstampError
) -> None:
    """Where the server cannot send a response, whatever the framework."""
    [message] = (await answered(make, error, "/at-once")).messages
    assert (message["type"], message["code"]) == ("websocket.close", error.close_code)


@every_framework
@every_error
async def test_a_handshake_is_denied_with_a_response_or_the_code(
    make: Make, error: HandstampError
) -> None:
    """Where the server can send a response, it has the status of the error. Starlette
    and Falcon close the socket all the same."""
    answer = await answered(make, error, "/at-once", extensions=DENIALS)
    first = answer.messages[0]
    if first["type"] == "websocket.close":
        assert first["code"] == error.close_code
        assert make in (starlette, fastapi, falcon_asgi)
    else:
        assert first["type"] == "websocket.http.response.start"
        assert first["status"] == error.status


@every_framework
@every_error
@pytest.mark.parametrize("extensions", [{}, DENIALS], ids=["plain", "denials"])
async def test_an_accepted_socket_is_closed_with_the_code_of_the_error(
    make: Make, error: HandstampError, extensions: dict[str, Any]
) -> None:
    """And with the text that a client may read: the cause of an outage is not in it."""
    answer = await answered(make, error, "/accepted", extensions=extensions)
    accept, close = answer.messages
    assert accept["type"] == "websocket.accept"
    assert (close["type"], close["code"]) == ("websocket.close", error.close_code)
    assert close["reason"] == error.close_reason
    assert "192.0.2.7" not in close["reason"]


def test_the_reason_fits_into_a_close_frame() -> None:
    """RFC 6455, section 5.5: 125 bytes with the code; a character stays whole."""
    error = AuthenticationRequired("é" * 100)
    assert error.close_reason == "é" * 61
