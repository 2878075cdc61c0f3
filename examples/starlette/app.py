"""Starlette: ``uvicorn examples.starlette.app:app`` from the repository root."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from examples import settings
from examples.accounts import Accounts, AccountsUnavailable, WrongPassword
from examples.answers import health, summary
from handstamp import LoginRefused
from handstamp.starlette import session_auth, wrap

accounts = Accounts(settings.database_url())
sessions = settings.sessions()  # Sessions(dsn, secrets=…, shape=…, policy=…)
signed_in = requires("authenticated", status_code=401)


async def login(request: Request) -> Response:
    async with request.form() as form:
        username, password = str(form.get("username", "")), str(form.get("password", ""))
        remember = form.get("remember") in {"1", "on", "true", "yes"}
    try:
        user_id = await accounts.verify(username, password)
        await session_auth(request).login(user_id, remember=remember)
    except (WrongPassword, LoginRefused):
        raise HTTPException(401, "wrong username or password") from None
    return Response(status_code=204)


async def logout(request: Request) -> Response:
    await session_auth(request).logout()
    return Response(status_code=204)


@signed_in
async def me(request: Request) -> Response:
    user_id, session_id = request.user.identity, request.user.session.id
    username = await accounts.username(user_id)
    return JSONResponse(
        {"user_id": user_id, "session_id": session_id, "username": username}
    )


@signed_in
async def list_sessions(request: Request) -> Response:
    return JSONResponse(list(map(summary, await session_auth(request).list_sessions())))


@signed_in
async def revoke(request: Request) -> Response:
    if not await session_auth(request).revoke(request.path_params["id"]):
        raise HTTPException(404, "no such session")
    return Response(status_code=204)


@signed_in
async def revoke_others(request: Request) -> Response:
    await session_auth(request).revoke_others()
    return Response(status_code=204)


async def public(request: Request) -> Response:
    return JSONResponse({"hello": "world"})


async def healthz(request: Request) -> Response:
    return JSONResponse(await health(sessions))


@requires("authenticated")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    with suppress(WebSocketDisconnect, KeyError):  # gone, or a frame without text
        await websocket.send_json({"user_id": websocket.user.identity})
        while True:
            await websocket.send_text(await websocket.receive_text())


async def unavailable(request: Request, exc: Exception) -> Response:
    return PlainTextResponse("temporarily unavailable", 503, {"Retry-After": "1"})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with accounts:
        yield


routes = [
    Route("/login", login, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
    Route("/me", me),
    Route("/sessions", list_sessions),
    Route("/sessions/revoke-others", revoke_others, methods=["POST"]),
    Route("/sessions/{id}/revoke", revoke, methods=["POST"]),
    Route("/public", public),
    Route("/healthz", healthz),
    WebSocketRoute("/ws", echo),
]
handlers = {AccountsUnavailable: unavailable}
site = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
app = wrap(site, sessions, cookies=settings.cookies())
