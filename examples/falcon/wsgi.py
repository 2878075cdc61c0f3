"""Falcon, WSGI: ``gunicorn --threads 8 examples.falcon.wsgi:app``, from the root."""

from __future__ import annotations

from typing import Any

import falcon
from falcon import HTTPNotFound, HTTPServiceUnavailable, HTTPUnauthorized, Request, Response
from falcon.media.multipart import MultipartForm

from examples import settings
from examples.accounts import Accounts, AccountsUnavailable, WrongPassword
from examples.answers import health, summary
from handstamp import LoginRefused
from handstamp.blocking import call
from handstamp.falcon import session_auth, wrap

accounts = Accounts(settings.database_url())
sessions = settings.sessions()  # Sessions(dsn, secrets=…, shape=…, policy=…)
OPEN = {"auth_disabled": True}


def fields(req: Request) -> dict[str | None, Any]:
    """The fields of a form in either encoding, without files."""
    form = req.get_media(default_when_empty={})
    if not isinstance(form, MultipartForm):
        return form if isinstance(form, dict) else {}
    return {part.name: part.get_text() for part in form if not part.filename}


class Login:
    auth = OPEN

    def on_post(self, req: Request, resp: Response) -> None:
        form = fields(req)
        username, password = form.get("username"), form.get("password")
        try:
            if not isinstance(username, str) or not isinstance(password, str):
                raise WrongPassword
            user_id = call(accounts.verify, username, password)
            remember = form.get("remember") in ("1", "on", "true", "yes")
            session_auth(req).login(user_id, remember=remember)
        except (WrongPassword, LoginRefused):
            raise HTTPUnauthorized(title="wrong username or password") from None
        resp.status = 204


class Logout:
    auth = OPEN

    def on_post(self, req: Request, resp: Response) -> None:
        session_auth(req).logout()
        resp.status = 204


class Me:
    def on_get(self, req: Request, resp: Response) -> None:
        session = session_auth(req).require()
        username = call(accounts.username, session.user_id)
        ids = {"user_id": session.user_id, "session_id": session.id}
        resp.media = {**ids, "username": username}


class List:
    def on_get(self, req: Request, resp: Response) -> None:
        resp.media = list(map(summary, session_auth(req).list_sessions()))


class Revoke:
    def on_post(self, req: Request, resp: Response, id: str) -> None:
        if not session_auth(req).revoke(id):
            raise HTTPNotFound(title="no such session")
        resp.status = 204


class RevokeOthers:
    def on_post(self, req: Request, resp: Response) -> None:
        session_auth(req).revoke_others()
        resp.status = 204


class Public:
    auth = OPEN

    def on_get(self, req: Request, resp: Response) -> None:
        resp.media = {"hello": "world"}


class Health:
    auth = OPEN

    def on_get(self, req: Request, resp: Response) -> None:
        resp.media = call(health, sessions)


def unavailable(
    req: Request, resp: Response, exc: AccountsUnavailable, params: object
) -> None:
    raise HTTPServiceUnavailable(title="temporarily unavailable", retry_after=1)


site = falcon.App()
site.add_route("/login", Login())
site.add_route("/logout", Logout())
site.add_route("/me", Me())
site.add_route("/sessions", List())
site.add_route("/sessions/revoke-others", RevokeOthers())
site.add_route("/sessions/{id}/revoke", Revoke())
site.add_route("/public", Public())
site.add_route("/healthz", Health())
site.add_error_handler(AccountsUnavailable, unavailable)
app = wrap(site, sessions, protect=True, cookies=settings.cookies())
