"""Litestar: ``uvicorn examples.litestar.app:app`` from the repository root."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from litestar import Litestar, Request, Response, WebSocket, get, post, websocket
from litestar.datastructures import State
from litestar.exceptions import NotAuthorizedException, NotFoundException

from examples import settings
from examples.accounts import Accounts, AccountsUnavailable, WrongPassword
from examples.answers import health, summary
from handstamp import LoginRefused
from handstamp.litestar import (
    CurrentSession,
    Handle,
    SessionAuth,
    SessionUser,
    dependencies,
    requires_session,
    wrap,
)

accounts = Accounts(settings.database_url())
sessions = settings.sessions()  # Sessions(dsn, secrets=…, shape=…, policy=…)


@post("/login", status_code=204)
async def login(request: Request[SessionUser, Handle, State]) -> None:
    form = await request.form()
    username, password = form.get("username"), form.get("password")
    try:
        if not isinstance(username, str) or not isinstance(password, str):
            raise WrongPassword
        user_id = await accounts.verify(username, password)
        remember = form.get("remember") in {"1", "on", "true", "yes"}
        await request.auth.login(user_id, remember=remember)
    except (WrongPassword, LoginRefused):
        raise NotAuthorizedException("wrong username or password") from None


@post("/logout", status_code=204)
async def logout(session_auth: SessionAuth) -> None:
    await session_auth.logout()


@get("/me", guards=[requires_session])
async def me(current_session: CurrentSession) -> dict[str, str | None]:
    user_id = current_session.user_id
    username = await accounts.username(user_id)
    return {"user_id": user_id, "session_id": current_session.id, "username": username}


@get("/sessions", guards=[requires_session])
async def list_sessions(session_auth: SessionAuth) -> list[dict[str, object]]:
    return list(map(summary, await session_auth.list_sessions()))


@post("/sessions/revoke-others", guards=[requires_session], status_code=204)
async def revoke_others(session_auth: SessionAuth) -> None:
    await session_auth.revoke_others()


@post("/sessions/{id:str}/revoke", guards=[requires_session], status_code=204)
async def revoke(session_auth: SessionAuth, id: str) -> None:
    if not await session_auth.revoke(id):
        raise NotFoundException("no such session")


@get("/public")
async def public() -> dict[str, str]:
    return {"hello": "world"}


@get("/healthz")
async def healthz() -> dict[str, str]:
    return await health(sessions)


@websocket("/ws", guards=[requires_session])
async def echo(socket: WebSocket[SessionUser, Handle, State]) -> None:
    await socket.accept()
    with suppress(KeyError, OSError):  # gone, or a frame without text
        await socket.send_json({"user_id": socket.user.id})
        while True:
            message: Any = await socket.receive()
            await socket.send_text(message["text"])


def unavailable(request: Request[Any, Any, Any], exc: AccountsUnavailable) -> Response[str]:
    return Response(
        "temporarily unavailable", status_code=503, headers={"Retry-After": "1"}
    )


site = Litestar(
    [
        login,
        logout,
        me,
        list_sessions,
        revoke_others,
        revoke,
        public,
        healthz,
        echo,
    ],
    dependencies=dependencies,
    exception_handlers={AccountsUnavailable: unavailable},
    lifespan=[lambda _: accounts],
)
app = wrap(site, sessions, cookies=settings.cookies())
