"""FastAPI: ``uvicorn examples.fastapi.app:app`` from the repository root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Annotated

from fastapi import FastAPI, Form, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from examples import settings
from examples.accounts import Accounts, AccountsUnavailable, WrongPassword
from examples.answers import health
from handstamp import LoginRefused, Session
from handstamp.fastapi import CurrentSession, SessionAuth, wrap

accounts = Accounts(settings.database_url())
sessions = settings.sessions()  # Sessions(dsn, secrets=…, shape=…, policy=…)


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    async with accounts:
        yield


api = FastAPI(title="handstamp example", lifespan=lifespan)


class SessionSummary(BaseModel):
    id: str
    created_at: datetime
    last_activity_at: datetime | None
    address: str | None
    current: bool


@api.post("/login", status_code=204)
async def login(
    auth: SessionAuth,
    username: Annotated[str, Form()],
    password: Annotated[str, Form()],
    remember: Annotated[bool, Form()] = False,
) -> None:
    try:
        user_id = await accounts.verify(username, password)
        await auth.login(user_id, remember=remember)
    except (WrongPassword, LoginRefused):
        raise HTTPException(401, "wrong username or password") from None


@api.post("/logout", status_code=204)
async def logout(auth: SessionAuth) -> None:
    await auth.logout()


@api.get("/me")
async def me(session: CurrentSession) -> dict[str, str | None]:
    username = await accounts.username(session.user_id)
    return {"user_id": session.user_id, "session_id": session.id, "username": username}


@api.get("/sessions", response_model=list[SessionSummary])
async def list_sessions(auth: SessionAuth) -> list[Session]:
    return await auth.list_sessions()


@api.post("/sessions/revoke-others", status_code=204)
async def revoke_others(auth: SessionAuth) -> None:
    await auth.revoke_others()


@api.post("/sessions/{id}/revoke", status_code=204)
async def revoke(auth: SessionAuth, id: str) -> None:
    if not await auth.revoke(id):
        raise HTTPException(404, "no such session")


@api.get("/public")
async def public() -> dict[str, str]:
    return {"hello": "world"}


@api.get("/healthz")
async def healthz() -> dict[str, str]:
    return await health(sessions)


@api.websocket("/ws")
async def echo(websocket: WebSocket, session: CurrentSession) -> None:
    await websocket.accept()
    with suppress(WebSocketDisconnect, KeyError):  # gone, or a frame without text
        await websocket.send_json({"user_id": session.user_id})
        while True:
            await websocket.send_text(await websocket.receive_text())


@api.exception_handler(AccountsUnavailable)
async def unavailable(request: Request, exc: AccountsUnavailable) -> JSONResponse:
    return JSONResponse({"detail": "temporarily unavailable"}, 503, {"Retry-After": "1"})


app = wrap(api, sessions, cookies=settings.cookies())
