"""The application of the fault tests: each of its processes is one worker.

``/stats`` returns the figures of the engine, without a query.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import cast

from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from handstamp import Cookies, Policy, Sessions
from handstamp.starlette import session_auth, wrap
from handstamp.stores.table import TableStore

sessions = Sessions(
    os.environ["DATABASE_URL"],
    secret=os.environ["HANDSTAMP_SECRET"],
    policy=Policy.from_env(),
    listen_dsn=os.environ["LISTEN_URL"],
)


@requires("authenticated", status_code=401)
async def me(request: Request) -> Response:
    return JSONResponse({"session_id": request.user.session.id})


async def public(request: Request) -> Response:
    return JSONResponse({"hello": "world"})


async def login(request: Request) -> Response:
    session = await session_auth(request).login(request.path_params["user_id"])
    return JSONResponse({"session_id": session.id})


async def revoke(request: Request) -> Response:
    return JSONResponse(await sessions.revoke(request.path_params["session_id"]))


async def stats(request: Request) -> Response:
    breaker = cast(TableStore, sessions.store).breaker
    figures = {"breaker_is_open": breaker.is_open, "trips": breaker.trips}
    return JSONResponse(asdict(sessions.stats()) | figures)


@requires("authenticated")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


site = Starlette(
    routes=[
        Route("/me", me),
        Route("/public", public),
        Route("/login/{user_id}", login, methods=["POST"]),
        Route("/revoke/{session_id}", revoke, methods=["POST"]),
        Route("/stats", stats),
        WebSocketRoute("/ws", echo),
    ]
)
app = wrap(site, sessions, cookies=Cookies.insecure())
