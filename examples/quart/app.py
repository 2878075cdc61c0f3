"""Quart: ``uvicorn examples.quart.app:app`` from the repository root."""

from __future__ import annotations

from quart import Quart, abort, request, websocket

from examples import settings
from examples.accounts import Accounts, AccountsUnavailable, WrongPassword
from examples.answers import health, summary
from handstamp import LoginRefused
from handstamp.quart import SessionAuth, current_session, login_required, session_auth

accounts = Accounts(settings.database_url())
sessions = settings.sessions()  # Sessions(dsn, secrets=…, shape=…, policy=…)
app = Quart(__name__)
SessionAuth(app, sessions, cookies=settings.cookies())


@app.post("/login")
async def login() -> tuple[str, int]:
    form = await request.form
    username, password = form.get("username", ""), form.get("password", "")
    remember = form.get("remember") in {"1", "on", "true", "yes"}
    try:
        user_id = await accounts.verify(username, password)
        await session_auth.login(user_id, remember=remember)
    except (WrongPassword, LoginRefused):
        abort(401, "wrong username or password")
    return "", 204


@app.post("/logout")
async def logout() -> tuple[str, int]:
    await session_auth.logout()
    return "", 204


@app.get("/me")
@login_required
async def me() -> dict[str, str | None]:
    user_id, session_id = current_session.user_id, current_session.id
    username = await accounts.username(user_id)
    return {"user_id": user_id, "session_id": session_id, "username": username}


@app.get("/sessions")
@login_required
async def list_sessions() -> list[dict[str, object]]:
    return list(map(summary, await session_auth.list_sessions()))


@app.post("/sessions/<id>/revoke")
@login_required
async def revoke(id: str) -> tuple[str, int]:
    if not await session_auth.revoke(id):
        abort(404)
    return "", 204


@app.post("/sessions/revoke-others")
@login_required
async def revoke_others() -> tuple[str, int]:
    await session_auth.revoke_others()
    return "", 204


@app.get("/public")
async def public() -> dict[str, str]:
    return {"hello": "world"}


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return await health(sessions)


@app.websocket("/ws")
@login_required
async def echo() -> None:
    await websocket.send_json({"user_id": current_session.user_id})
    while isinstance(message := await websocket.receive(), str):
        await websocket.send(message)


@app.errorhandler(AccountsUnavailable)
async def unavailable(exc: AccountsUnavailable) -> tuple[str, int, dict[str, str]]:
    return "temporarily unavailable", 503, {"Retry-After": "1"}


@app.after_serving
async def close() -> None:
    await accounts.__aexit__()
