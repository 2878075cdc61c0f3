"""Falcon, ASGI: ``uvicorn examples.falcon.app:app`` from the repository root."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import falcon.asgi
from falcon import HTTPNotFound, HTTPServiceUnavailable, HTTPUnauthorized
from falcon.asgi import Request, Response, WebSocket
from falcon.asgi.multipart import MultipartForm

from examples import settings
from examples.accounts import Accounts, AccountsUnavailable, WrongPassword
from examples.answers import health, summary
from handstamp import LoginRefused
from handstamp.falcon import session_auth, wrap

accounts = Accounts(settings.database_url())
sessions = settings.sessions()  # Sessions(dsn, secrets=…, shape=…, policy=…)
OPEN = {"auth_disabled": True}


async def fields(req: Request) -> dict[str | None, Any]:
    """The fields of a form in either encoding, without files."""
    form = await req.get_media(default_when_empty={})
    if not isinstance(form, MultipartForm):
        return form if isinstance(form, dict) else {}
    return {part.name: await part.get_text() async for part in form if not part.filename}


class Login:
    auth = OPEN

    async def on_post(self, req: Request, resp: Response) -> None:
        form = await fields(req)
        username, password = form.get("username"), form.get("password")
        try:
            if not isinstance(username, str) or not isinstance(password, str):
                raise WrongPassword
            user_id = await accounts.verify(username, password)
            remember = form.get("remember") in ("1", "on", "true", "yes")
            await session_auth(req).login(user_id, remember=remember)
        except (WrongPassword, LoginRefused):
            raise HTTPUnauthorized(title="wrong username or password") from None
        resp.status = 204


class Logout:
    auth = OPEN

    async def on_post(self, req: Request, resp: Response) -> None:
        await session_auth(req).logout()
        resp.status = 204


class Me:
    async def on_get(self, req: Request, resp: Response) -> None:
        session = session_auth(req).require()
        username = await accounts.username(session.user_id)
        ids = {"user_id": session.user_id, "session_id": session.id}
        resp.media = {**ids, "username": username}


class List:
    async def on_get(self, req: Request, resp: Response) -> None:
        resp.media = list(map(summary, await session_auth(req).list_sessions()))


class Revoke:
    async def on_post(self, req: Request, resp: Response, id: str) -> None:
        if not await session_auth(req).revoke(id):
            raise HTTPNotFound(title="no such session")
        resp.status = 204


class RevokeOthers:
    async def on_post(self, req: Request, resp: Response) -> None:
        await session_auth(req).revoke_others()
        resp.status = 204


class Public:
    auth = OPEN

    async def on_get(self, req: Request, resp: Response) -> None:
        resp.media = {"hello": "world"}


class Health:
    auth = OPEN

    async def on_get(self, req: Request, resp: Response) -> None:
        resp.media = await health(sessions)


class Echo:
    async def on_websocket(self, req: Request, ws: WebSocket) -> None:
        await ws.accept()
        with suppress(falcon.WebSocketDisconnected, falcon.PayloadTypeError):
            await ws.send_media({"user_id": req.context.user_id})
            while True:
                await ws.send_text(await ws.receive_text())


async def unavailable(
    req: Request, resp: Response, exc: AccountsUnavailable, params: object
) -> None:
    raise HTTPServiceUnavailable(title="temporarily unavailable", retry_after=1)


class Closing:
    async def process_shutdown(self, scope: object, event: object) -> None:
        await accounts.__aexit__()


site = falcon.asgi.App(middleware=[Closing()])
site.add_route("/login", Login())
site.add_route("/logout", Logout())
site.add_route("/me", Me())
site.add_route("/sessions", List())
site.add_route("/sessions/revoke-others", RevokeOthers())
site.add_route("/sessions/{id}/revoke", Revoke())
site.add_route("/public", Public())
site.add_route("/healthz", Health())
site.add_route("/ws", Echo())
site.add_error_handler(AccountsUnavailable, unavailable)
app = wrap(site, sessions, protect=True, cookies=settings.cookies())
